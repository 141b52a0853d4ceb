"""delete, copy, gc and verify."""

from __future__ import annotations

import concurrent.futures
import os
import threading
import time
from pathlib import Path

import pytest

from mlxo.core.errors import Busy, Cancelled, ModelNotFound
from mlxo.store import work
from mlxo.store.create import Recipe
from mlxo.store.gc import GRACE, Problem
from mlxo.store.progress import Progress
from tests.store import models
from tests.store.conftest import Bench

HOUR_AGO = time.time() - GRACE - 60


def age(path: Path) -> None:
    os.utime(path, (HOUR_AGO, HOUR_AGO), follow_symlinks=False)


def test_copy_shares_everything(bench: Bench) -> None:
    bench.create_from("a", models.files())
    blobs = list(bench.registry.blobs.all())
    bench.registry.copy("a", "b:tag")
    one, two = bench.registry.list()
    assert {one.name, two.name} == {"a:latest", "b:tag"}
    assert one.digest == two.digest
    assert list(bench.registry.blobs.all()) == blobs
    assert one.modified_at >= two.modified_at


def test_delete_takes_what_nobody_else_needs(bench: Bench) -> None:
    bench.create_from("a", models.files())
    bench.create("b", Recipe(from_="a", system="x"))
    views = [Path(bench.registry.resolve(name).path) for name in ("a", "b")]
    bench.registry.delete("a")
    assert not views[0].exists()
    assert views[1].exists()
    assert bench.problems() == []
    assert bench.registry.resolve("b").system == "x"
    bench.registry.delete("b")
    assert list(bench.registry.blobs.all()) == []
    assert not views[1].exists()
    assert not (bench.home / "manifests" / "registry.ollama.ai").exists()
    with pytest.raises(ModelNotFound):
        bench.registry.delete("b")


def test_a_copy_keeps_the_view_alive(bench: Bench) -> None:
    bench.create_from("a", models.files())
    bench.registry.copy("a", "b")
    view = Path(bench.registry.resolve("a").path)
    bench.registry.delete("a")
    assert (view / "config.json").exists()


def test_gc_waits_for_the_grace(bench: Bench) -> None:
    bench.create_from("a", models.files())
    bench.registry.resolve("a")
    tmp = bench.home / "tmp"
    young, old = bench.registry.blobs.add_bytes(b"young"), bench.registry.blobs.add_bytes(b"older")
    age(bench.registry.blobs.path(old.digest))
    for name in ("blob-young", "blob-old", "pull-x"):
        (tmp / name).write_bytes(b"x")
    (tmp / "work-old").mkdir()
    (bench.home / "views" / ("0" * 64)).mkdir()
    for path in (tmp / "blob-old", tmp / "pull-x", tmp / "work-old", bench.home / "views" / ("0" * 64)):
        age(path)
    freed = bench.registry.gc()
    assert freed.removed == 4
    assert not bench.registry.blobs.has(old.digest)
    assert bench.registry.blobs.has(young.digest)
    assert [p.name for p in tmp.iterdir()] == ["blob-young"]
    assert len(list((bench.home / "views").iterdir())) == 1
    bench.registry.gc(0)
    assert not bench.registry.blobs.has(young.digest)
    assert list(tmp.iterdir()) == []
    assert bench.problems() == []
    assert bench.registry.resolve("a").name == "a:latest"


def test_nothing_that_running_work_has_touched_is_deleted(bench: Bench) -> None:
    bench.create_from("a", models.files())
    digest = next(f.digest for f in bench.registry.find("a").manifest.files if f.name == "model.safetensors")
    path = bench.registry.blobs.path(digest)
    with bench.registry.workspace() as folder:
        fresh = bench.registry.blobs.add_bytes(b"made by the work")
        assert bench.registry.blobs.use(digest)
        lock_time = (folder / "lock").stat().st_mtime
        assert path.stat().st_mtime >= lock_time
        bench.registry.delete("a")
        bench.registry.gc(0)
        assert folder.exists()
        assert path.exists()
        assert bench.registry.blobs.has(fresh.digest)
    bench.registry.gc(0)
    assert list(bench.registry.blobs.all()) == []


def test_a_download_that_is_under_way_is_left_alone(bench: Bench) -> None:
    import filelock

    partial = bench.home / "tmp" / "pull-abc"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"half")
    with filelock.FileLock(work.lock_of(partial)):
        age(partial)
        age(work.lock_of(partial))
        assert bench.registry.gc(0).removed == 0
    assert bench.registry.gc(0).removed == 2
    assert list(partial.parent.iterdir()) == []


def test_gc_of_nothing_does_nothing(bench: Bench) -> None:
    assert bench.registry.gc(0).removed == 0
    assert bench.registry.list() == []
    assert bench.problems() == []


def test_a_held_lock_is_waited_for_and_then_said(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "_PATIENCE", 0.05)
    bench.create_from("a", models.files())
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with work.locked(bench.registry.paths):
            held.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    try:
        with pytest.raises(Busy, match="another process holds"):
            bench.registry.delete("a")
    finally:
        done.set()
        thread.join()
    bench.registry.delete("a")


def test_verify_finds_what_is_wrong(bench: Bench) -> None:
    bench.create_from("good", models.files())
    bench.create_from("bad", models.files(1))
    by_name = {f.name: f for f in bench.registry.find("bad").manifest.files}
    weights = bench.registry.blobs.path(by_name["model.safetensors"].digest)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    bench.registry.blobs.path(by_name["config.json"].digest).unlink()  # shared with good: the same bytes
    lines: list[Progress] = []
    checked = bench.registry.verify(lines.append, bench.cancelled)
    assert checked.checked == len(
        {f.digest for s in ("good", "bad") for f in bench.registry.find(s).manifest.blobs}
    )
    assert len(checked.problems) == 2
    found = {p.digest: p for p in checked.problems}
    assert found[by_name["config.json"].digest].problem == "the blob is missing"
    rotten = found[by_name["model.safetensors"].digest]
    assert isinstance(rotten, Problem)
    assert rotten.model == "bad:latest"
    assert rotten.problem.startswith("the blob's content has the digest sha256:")
    assert lines[-1].total is not None
    assert 0 < (lines[-1].completed or 0) <= lines[-1].total
    weights.write_bytes(data + b"more")
    assert any("bytes instead of" in p for p in bench.problems())
    bench.create_from("bad", models.files(1))  # the same again heals it
    assert bench.problems() == []


def test_verify_can_be_left(bench: Bench) -> None:
    bench.create_from("a", models.files())
    bench.cancelled.set()
    with pytest.raises(Cancelled):
        bench.registry.verify(bench.report, bench.cancelled)


def test_many_threads_make_and_delete_at_once(bench: Bench) -> None:
    def work_on(number: int) -> None:
        mine = Bench(bench.home)
        for turn in range(4):
            with mine.registry.workspace():  # the uploads are under its protection too
                mine.create_from(f"m{number}", models.files(turn))
            mine.registry.copy(f"m{number}", "shared")
            mine.registry.resolve(f"m{number}")
            mine.registry.gc(0)
            mine.registry.delete(f"m{number}")

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(work_on, n) for n in range(4)]:
            future.result()
    assert bench.problems() == []
    assert [e.name for e in bench.registry.list()] == ["shared:latest"]
    bench.registry.delete("shared")
    bench.registry.gc(0)
    assert list(bench.registry.blobs.all()) == []
