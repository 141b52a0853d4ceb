"""`kill -9` of the command or of the daemon in the middle of a create or a pull, and a full disk."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Mlxo
from tests.fakes.hub import FakeHub, Repo
from tests.models import LLAMA, QWEN3

KILLS = 50


def daemon_pid(mlxo: Mlxo) -> int:
    return int(json.loads((mlxo.home / "daemon.json").read_text())["pid"])


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_fifty_kills_leave_the_registry_sound(mlxo: Mlxo, tmp_path: Path) -> None:
    """Half of them hit a create, half a pull; of each, half the command and half the daemon that does it."""
    rng = random.Random(20261122)
    (tmp_path / "Modelfile").write_text(f"FROM {QWEN3}\nQUANTIZE 8 32\n")
    with FakeHub({"org/tiny": Repo({p.name: p.read_bytes() for p in sorted(LLAMA.iterdir())})}) as hub:
        mlxo.env["HF_ENDPOINT"] = hub.url
        mlxo("list")
        for turn in range(KILLS):
            words = (
                ("create", "made", "-f", str(tmp_path / "Modelfile"))
                if turn % 2
                else ("pull", "hf.co/org/tiny")
            )
            command = mlxo.start(*words)
            assert command.stderr is not None
            # The moment is some way into the progress it prints, not a guess of seconds.
            for _ in range(rng.randrange(8)):
                if not command.stderr.readline():
                    break
            os.kill(command.pid if turn % 4 < 2 else daemon_pid(mlxo), signal.SIGKILL)
            command.communicate(timeout=60)
            if turn % 10 == 9:
                assert json.loads(mlxo("verify", "--json").stdout)["problems"] == []
                mlxo(*words)
                names = {r["name"] for r in json.loads(mlxo("list", "--json").stdout)}
                assert ("made:latest" if turn % 2 else "hf.co/org/tiny:latest") in names
                mlxo("rm", *names)
    assert json.loads(mlxo("verify", "--json").stdout)["problems"] == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1.4 MB. Skips where mounting is not allowed."""
    folder = tmp_path / "small"
    folder.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1400k", "none", folder]).returncode
    ):
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_one_sentence_and_loses_nothing(small_disk: Path, tmp_path: Path) -> None:
    mlxo = Mlxo(small_disk)
    (tmp_path / "Fits").write_text(f"FROM {LLAMA}\n")
    (tmp_path / "TooMuch").write_text(f"FROM {QWEN3}\nQUANTIZE 8 32\n")
    try:
        mlxo("create", "fits", "-f", str(tmp_path / "Fits"))
        done = mlxo("create", "much", "-f", str(tmp_path / "TooMuch"), ok=False)
        assert done.returncode == 1
        assert "full" in done.stderr
        assert {r["name"] for r in json.loads(mlxo("list", "--json").stdout)} == {"fits:latest"}
        assert json.loads(mlxo("verify", "--json").stdout)["problems"] == []
        mlxo("rm", "fits")
        mlxo("gc", "--grace", "0")
        mlxo("create", "much", "-f", str(tmp_path / "TooMuch"))
    finally:
        mlxo("daemon", "stop", ok=False)
