from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from mlxo.core.errors import InvalidRequest, NotFound
from mlxo.store.blobs import check_digest, short
from tests.store.conftest import Bench

HEX = "ab" * 32


@pytest.mark.parametrize("text", [f"sha256:{HEX}", f"sha256-{HEX}"])
def test_both_forms_of_a_digest_mean_the_same(text: str) -> None:
    assert check_digest(text) == f"sha256:{HEX}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        HEX,
        f"sha256:{HEX[:-1]}",
        f"sha256:{HEX}0",
        f"sha256:{HEX}\n",
        f"SHA256:{HEX}",
        f"sha256:{HEX.upper()}",
        f"sha256:{'/..' * 21}a",
        "sha256:../../../../etc/passwd",
        f"sha256:{HEX}/../x",
        f"md5:{HEX}",
        "x" * 10_000_000,
    ],
)
def test_nothing_else_is_a_digest(text: str, bench: Bench) -> None:
    for use in (check_digest, bench.registry.blobs.path, bench.registry.blobs.has, bench.registry.blobs.read):
        with pytest.raises(InvalidRequest, match="invalid digest format"):
            use(text)


def test_a_blob_is_named_by_its_content(bench: Bench) -> None:
    blobs = bench.registry.blobs
    with blobs.writer() as writer:
        writer.write(b"hello ")
        writer.write(b"world")
        blob = writer.commit()
    expected = hashlib.sha256(b"hello world").hexdigest()
    assert blob == (f"sha256:{expected}", 11, False)
    assert (bench.home / "blobs" / f"sha256-{expected}").read_bytes() == b"hello world"
    assert blobs.read(blob.digest) == b"hello world"
    assert blobs.size(blob.digest) == 11
    assert short(blob.digest) == expected[:12]
    assert bench.leftovers() == []


def test_the_same_bytes_again_are_said_to_exist(bench: Bench) -> None:
    first = bench.registry.blobs.add_bytes(b"x")
    assert not first.existed
    assert bench.registry.blobs.add_bytes(b"x").existed


def test_a_wrong_digest_leaves_nothing(bench: Bench) -> None:
    expected = hashlib.sha256(b"x").hexdigest()
    with bench.registry.blobs.writer() as writer:
        writer.write(b"x")
        with pytest.raises(InvalidRequest) as caught:
            writer.commit(f"sha256:{HEX}")
    assert caught.value.message == f'digest mismatch, expected "sha256:{HEX}", got "sha256:{expected}"'
    assert list(bench.registry.blobs.all()) == []
    assert bench.leftovers() == []


def test_a_writer_that_is_left_leaves_nothing(bench: Bench) -> None:
    with bench.registry.blobs.writer() as writer:
        writer.write(b"half")
    assert list(bench.registry.blobs.all()) == []
    assert bench.leftovers() == []


@pytest.mark.parametrize("link", [False, True])
def test_a_file_becomes_a_blob_and_stays(bench: Bench, tmp_path: Path, link: bool) -> None:
    source = tmp_path / "file"
    source.write_bytes(b"z" * 3_000_000)
    ticks: list[int] = []
    blob = bench.registry.blobs.add_file(source, link=link, tick=ticks.append)
    assert blob.digest == f"sha256:{hashlib.sha256(source.read_bytes()).hexdigest()}"
    assert sum(ticks) == blob.size == 3_000_000
    assert bench.registry.blobs.path(blob.digest).samefile(source) == link
    assert bench.leftovers() == []


def test_rot_is_healed_by_the_same_bytes(bench: Bench) -> None:
    blob = bench.registry.blobs.add_bytes(b"right")
    bench.registry.blobs.path(blob.digest).write_bytes(b"wrong")
    bench.registry.blobs.add_bytes(b"right")
    assert bench.registry.blobs.read(blob.digest) == b"right"


def test_a_blob_lands_whole_by_rename(bench: Bench) -> None:
    """Whoever reads the old file goes on reading it: nothing is ever written in place."""
    blob = bench.registry.blobs.add_bytes(b"right")
    path = bench.registry.blobs.path(blob.digest)
    path.write_bytes(b"wrong")
    with path.open("rb") as reader:
        bench.registry.blobs.add_bytes(b"right")
        assert reader.read() == b"wrong"
        assert os.fstat(reader.fileno()).st_ino != path.stat().st_ino


def test_a_missing_blob_is_not_found(bench: Bench) -> None:
    digest = f"sha256:{HEX}"
    with pytest.raises(NotFound, match=digest):
        bench.registry.blobs.read(digest)
    assert bench.registry.blobs.use(digest) is None
    assert not bench.registry.blobs.has(digest)


def test_use_marks_a_blob_and_minds_its_size(bench: Bench) -> None:
    blob = bench.registry.blobs.add_bytes(b"12345")
    path = bench.registry.blobs.path(blob.digest)
    os.utime(path, (1, 1))
    assert bench.registry.blobs.use(blob.digest, 4) is None
    assert path.stat().st_mtime == 1
    assert bench.registry.blobs.use(blob.digest, 5) == 5
    assert path.stat().st_mtime > 1


def test_foreign_files_among_the_blobs_are_not_blobs(bench: Bench) -> None:
    blob = bench.registry.blobs.add_bytes(b"x")
    (bench.home / "blobs" / ".DS_Store").write_bytes(b"")
    (bench.home / "blobs" / f"sha256:{HEX}").write_bytes(b"")
    assert [digest for digest, _ in bench.registry.blobs.all()] == [blob.digest]
