"""What a pull fetches, and what it does not fetch twice."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mlxo.core.errors import (
    Cancelled,
    UpstreamError,
)
from mlxo.store.pull import pull
from tests.fakes.hub import COMMIT, FakeHub
from tests.store.conftest import NAME, Bench, run


def test_the_fake_speaks_to_the_real_client(hub: FakeHub, content: dict[str, bytes], tmp_path: Path) -> None:
    import huggingface_hub

    api = huggingface_hub.HfApi(endpoint=hub.url)
    info = api.model_info("org/tiny", files_metadata=True)
    assert info.sha == COMMIT
    assert {s.rfilename: s.size for s in info.siblings or ()} == {n: len(d) for n, d in content.items()}
    assert {f.path for f in api.list_repo_tree("org/tiny")} == set(content)
    for name, data in content.items():
        got = api.hf_hub_download("org/tiny", name, cache_dir=tmp_path)
        assert Path(got).read_bytes() == data
    with pytest.raises(huggingface_hub.errors.RepositoryNotFoundError):
        api.model_info("org/none")
    with pytest.raises(huggingface_hub.errors.RevisionNotFoundError):
        api.model_info("org/tiny", revision="none")


def test_a_repository_becomes_a_model(bench: Bench, hub: FakeHub, content: dict[str, bytes]) -> None:
    content["README.md"] = b"hello"
    content["pytorch_model.bin"] = b"pickle"
    run(bench)
    spec = bench.registry.resolve(NAME)
    got = {p.name: p.read_bytes() for p in Path(spec.path).iterdir()}
    assert got == {n: d for n, d in content.items() if n not in ("README.md", "pytorch_model.bin")}
    assert hub.gets("README.md") == hub.gets("pytorch_model.bin") == []
    assert bench.problems() == []
    assert bench.leftovers() == []
    digest = f"sha256:{hashlib.sha256(content['model.safetensors']).hexdigest()}"
    assert bench.statuses[0] == "pulling manifest"
    assert (
        bench.statuses[-3:] == ["verifying sha256 digest", "writing manifest", "success"]
        or bench.statuses[-1] == "success"
    )
    ordered = list(dict.fromkeys(bench.statuses))
    assert (
        ordered.index("verifying sha256 digest")
        < ordered.index("writing manifest")
        < ordered.index("success")
    )
    bars = [line for line in bench.lines if line.digest == digest and line.total]
    assert {line.status for line in bars} == {f"pulling {digest[7:19]}"}
    assert {line.total for line in bars} == {len(content["model.safetensors"])}
    counts = [line.completed or 0 for line in bars]
    assert counts == sorted(counts)
    assert counts[-1] == len(content["model.safetensors"])


def test_a_short_name_means_a_repository_too(bench: Bench, hub: FakeHub, content: dict[str, bytes]) -> None:
    run(bench, "org/tiny")
    assert [e.name for e in bench.registry.list()] == ["org/tiny:latest"]


def test_nothing_is_fetched_twice(bench: Bench, hub: FakeHub, content: dict[str, bytes]) -> None:
    run(bench)
    before = hub.sent.copy()
    assert set(before) == set(content)
    run(bench)
    run(bench, "org/tiny")
    assert hub.sent == before


def test_only_what_changed_is_fetched(bench: Bench, hub: FakeHub, content: dict[str, bytes]) -> None:
    run(bench)
    hub.sent.clear()
    content["tokenizer.json"] = content["tokenizer.json"].replace(b"BPE", b"bpe")  # the same size
    run(bench)
    assert hub.sent == Counter({"tokenizer.json": len(content["tokenizer.json"])})
    view = Path(bench.registry.resolve(NAME).path)
    assert (view / "tokenizer.json").read_bytes() == content["tokenizer.json"]


def test_weights_that_came_another_way_are_not_fetched(
    bench: Bench, hub: FakeHub, content: dict[str, bytes]
) -> None:
    bench.upload({"model.safetensors": content["model.safetensors"]})
    run(bench)
    assert hub.gets("model.safetensors") == []


def test_a_cut_connection_goes_on_where_it_stopped(
    bench: Bench, hub: FakeHub, content: dict[str, bytes]
) -> None:
    size = len(content["model.safetensors"])
    hub.cuts["model.safetensors"] = [500_000, 0, 300_000]
    run(bench)
    assert bench.problems() == []
    assert hub.sent["model.safetensors"] == size  # not a byte twice
    starts = [s.range for s in hub.gets("model.safetensors") if s.path.startswith("/storage/")]
    assert starts == [None, "bytes=500000-", "bytes=500000-", "bytes=800000-"]


def test_a_storage_without_ranges_starts_again(bench: Bench, hub: FakeHub, content: dict[str, bytes]) -> None:
    hub.ranges = False
    hub.cuts["model.safetensors"] = [500_000]
    run(bench)
    assert bench.problems() == []
    assert hub.sent["model.safetensors"] == 500_000 + len(content["model.safetensors"])


def test_a_hub_that_keeps_hanging_up_is_given_up_and_resumed_later(
    bench: Bench, hub: FakeHub, content: dict[str, bytes]
) -> None:
    hub.cuts["model.safetensors"] = [700_000, 0, 0, 0, 0, 0]
    with pytest.raises(UpstreamError, match=r"127\.0\.0\.1:\d+ cannot be reached") as caught:
        run(bench)
    assert caught.value.hint is not None
    assert bench.registry.list() == []
    assert bench.problems() == []
    hub.cuts.clear()
    run(bench)
    assert hub.sent["model.safetensors"] == len(content["model.safetensors"])


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_in_trouble_is_asked_again(
    bench: Bench, hub: FakeHub, content: dict[str, bytes], status: int
) -> None:
    hub.statuses["config.json"] = [status, status]
    run(bench)
    assert bench.registry.resolve(NAME).name == "hf.co/org/tiny:latest"
    hub.repos["org/tiny"].status = status
    with pytest.raises(UpstreamError, match=f"answered status {status}"):
        run(bench)


def test_a_cancelled_pull_stops_at_once_and_resumes(
    bench: Bench, hub: FakeHub, content: dict[str, bytes]
) -> None:
    def leave(progress: Any) -> None:
        if progress.completed:
            bench.cancelled.set()

    with pytest.raises(Cancelled):
        pull(bench.registry, NAME, leave, bench.cancelled)
    bench.cancelled.clear()
    assert len(bench.leftovers()) == 1
    sizes = [(bench.home / "tmp" / name).stat().st_size for name in bench.leftovers()]
    assert 0 < sizes[0] < len(content["model.safetensors"])
    run(bench)
    last = hub.gets("model.safetensors")[-1]
    assert last.range == f"bytes={sizes[0]}-"
    assert bench.problems() == []


def test_a_killed_pull_resumes(bench: Bench, hub: FakeHub, content: dict[str, bytes]) -> None:
    hub.gate = threading.Event()
    hub.gate_after = 700_000
    command = [sys.executable, "-m", "tests.store.victim", "pull", str(bench.home), NAME]
    environment = os.environ | {"HF_ENDPOINT": hub.url}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as victim:
        assert victim.stdout is not None
        while not int(victim.stdout.readline().split()[-1]):  # it tells what it has written
            pass
        victim.kill()
    assert bench.registry.list() == []
    assert bench.problems() == []
    (name,) = [n for n in bench.leftovers() if n.startswith("pull-")]
    have = (bench.home / "tmp" / name).stat().st_size
    assert 0 < have < len(content["model.safetensors"])
    hub.gate.set()
    hub.gate = None
    run(bench)
    assert hub.gets("model.safetensors")[-1].range == f"bytes={have}-"
    assert bench.problems() == []
    view = Path(bench.registry.resolve(NAME).path)
    assert (view / "model.safetensors").read_bytes() == content["model.safetensors"]
    assert [n for n in bench.leftovers() if n.startswith("work-")]
    bench.registry.gc(0)
    assert list((bench.home / "tmp").iterdir()) == []


def test_two_pulls_share_one_download(bench: Bench, hub: FakeHub, content: dict[str, bytes]) -> None:
    hub.gate = threading.Event()
    hub.gate_after = 1_000_000
    other = Bench(bench.home)
    started = threading.Event()

    def first_bytes(progress: Any) -> None:
        if progress.completed:
            started.set()

    arguments = (bench.registry, NAME, first_bytes, bench.cancelled)
    first = threading.Thread(target=pull, args=arguments)
    second = threading.Thread(target=run, args=(other, "org/tiny"))
    first.start()
    assert started.wait(20)
    second.start()
    hub.gate.set()
    first.join()
    second.join()
    assert hub.sent["model.safetensors"] == len(content["model.safetensors"])
    assert sorted(e.name for e in bench.registry.list()) == ["hf.co/org/tiny:latest", "org/tiny:latest"]


def test_damage_in_a_partial_download_is_noticed_and_mended(
    bench: Bench, hub: FakeHub, content: dict[str, bytes]
) -> None:
    hub.cuts["model.safetensors"] = [700_000, 0, 0, 0, 0, 0]
    with pytest.raises(UpstreamError):
        run(bench)
    hub.cuts.clear()
    (name,) = bench.leftovers()
    partial = bench.home / "tmp" / name
    partial.write_bytes(bytes(partial.stat().st_size))  # as after a power cut
    run(bench)
    assert bench.problems() == []
    view = Path(bench.registry.resolve(NAME).path)
    assert (view / "model.safetensors").read_bytes() == content["model.safetensors"]
