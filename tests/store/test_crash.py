"""kill -9 and a full disk: whatever the moment, what was there is there, and the next try succeeds."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlxo.core.errors import DiskFull
from mlxo.store.create import Recipe
from mlxo.store.pull import pull
from tests.fakes.hub import FakeHub, Repo
from tests.store import models
from tests.store.conftest import NAME, Bench

KILLS = 25  # of create and of pull each


def run_and_kill(arguments: list[str], lines: int) -> None:
    """Start a victim, kill it as soon as it has said `lines` lines (it goes on while we read)."""
    command = [sys.executable, "-m", "tests.store.victim", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as victim:
        assert victim.stdout is not None
        assert victim.stderr is not None
        for _ in range(lines):
            if not victim.stdout.readline():
                raise AssertionError(victim.stderr.read().decode())
        victim.kill()


def assert_sound(bench: Bench) -> None:
    assert bench.problems() == []
    for entry in bench.registry.list():
        view = Path(bench.registry.resolve(entry.name).path)
        assert all(p.exists() for p in view.iterdir())
    assert len(bench.registry.list()) == len(list(bench.registry.manifests.names()))


@pytest.mark.slow
def test_a_killed_create_leaves_the_registry_sound(bench: Bench) -> None:
    moments = random.Random(20)
    bench.create_from("kept", models.files(1000))
    kept = bench.registry.find("kept")
    for kill in range(KILLS):
        run_and_kill(["churn", str(bench.home)], moments.randint(1, 70))
        assert_sound(bench)
        assert bench.registry.find("kept") == kept
        bench.create_from("m0", models.files(kill, rows=3000))
        assert bench.registry.resolve("m0").name == "m0:latest"
    for entry in bench.registry.list():
        bench.registry.delete(entry.name)
    bench.registry.gc(0)
    assert list(bench.registry.blobs.all()) == []
    assert list((bench.home / "tmp").iterdir()) == []


@pytest.mark.slow
def test_a_killed_pull_leaves_the_registry_sound(bench: Bench, hub: FakeHub) -> None:
    moments = random.Random(21)
    hub.repos["org/tiny"] = Repo(models.files(5, rows=20_000))
    for _ in range(KILLS):
        run_and_kill(["repull", str(bench.home), NAME], moments.randint(1, 40))
        assert_sound(bench)
        pull(bench.registry, NAME, bench.report, bench.cancelled)
        assert_sound(bench)
        assert bench.registry.resolve(NAME).name == "hf.co/org/tiny:latest"
        bench.registry.delete(NAME)
    bench.registry.gc(0)
    assert list(bench.registry.blobs.all()) == []
    assert list((bench.home / "tmp").iterdir()) == []


def test_a_file_that_may_not_grow_is_a_full_disk(bench: Bench) -> None:
    bench.create_from("kept", models.files())
    kept = bench.registry.find("kept")
    for limit in (100, 100_000, 1_000_000):
        command = [sys.executable, "-m", "tests.store.victim", "limited", str(bench.home), str(limit)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        last = done.stdout.splitlines()[-1]
        assert last == f"error disk_full there is no space left to write in {bench.home}/blobs"
        assert done.stderr == ""
        assert bench.registry.find("kept") == kept
        assert bench.problems() == []
        assert [n for n in bench.leftovers() if n != "pull"] == []
    bench.create_from("big", models.files(7, rows=100_000))
    assert bench.problems() == []
    assert {e.name for e in bench.registry.list()} == {"kept:latest", "big:latest"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB; only root may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_loses_nothing(small_disk: Path, hub: FakeHub) -> None:
    bench = Bench(small_disk / "home")
    bench.create_from("kept", models.files(rows=10_000))
    hub.repos["org/tiny"] = Repo(models.files(5, rows=20_000))
    filler = small_disk / "filler"
    filler.write_bytes(bytes(1_200_000))
    attempts: list[Callable[[], object]] = [
        lambda: bench.create_from("big", models.files(7, rows=60_000)),
        lambda: pull(bench.registry, NAME, bench.report, bench.cancelled),
    ]
    for attempt in attempts:
        with pytest.raises(DiskFull, match="there is no space left to write in") as caught:
            attempt()
        assert "MLXO_HOME" in (caught.value.hint or "")
        assert [e.name for e in bench.registry.list()] == ["kept:latest"]
        assert bench.problems() == []
    full = small_disk / "fuller"
    with full.open("wb", buffering=0) as f, contextlib.suppress(OSError):
        while True:
            f.write(bytes(4096))
    with pytest.raises(DiskFull):  # not a byte free: not even the manifest fits
        bench.create("renamed", Recipe(from_="kept", system="x" * 5000))
    assert bench.problems() == []
    full.unlink()
    filler.unlink()
    pull(bench.registry, NAME, bench.report, bench.cancelled)
    assert hub.sent["model.safetensors"] <= len(hub.repos["org/tiny"].files["model.safetensors"]) + 300_000
    assert {e.name for e in bench.registry.list()} == {"kept:latest", "hf.co/org/tiny:latest"}
    assert bench.problems() == []


def test_a_home_that_may_not_be_written_is_one_sentence(bench: Bench) -> None:
    bench.home.parent.mkdir(parents=True, exist_ok=True)
    bench.home.write_bytes(b"a file stands where the home should be")
    with pytest.raises(Exception, match="mlxo") as caught:
        bench.create_from("m", models.files())
    assert type(caught.value).__name__ == "StoreError"
