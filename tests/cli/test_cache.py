"""`mlxo cache` over files; the prompts themselves are not read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlxo.core import cachedir
from mlxo.core.paths import Paths
from tests.cli.conftest import Mlxo

DIGEST = "a" * 64


@pytest.fixture
def kept(home: Path) -> Path:
    """Two records of a model that is gone, and a file that nobody can read."""
    folder = Paths(home).prompts
    own = folder / cachedir.current() / f"{DIGEST}-{'0' * 16}"
    own.mkdir(parents=True)
    for n in "12":
        (own / f"{n * 32}-{n * 32}.safetensors").write_bytes(b"x" * 8192)
    (own / "half.part").write_bytes(b"x" * 4096)
    (folder / "note.txt").write_bytes(b"x" * 4096)
    return folder


def test_status_needs_no_server(mlxo: Mlxo, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXO_CACHE_SIZE", "2G")
    facts = json.loads(mlxo("cache", "status", "--json").out)
    assert facts == {
        "folder": str(kept),
        "cap": 2 << 30,
        "size": 24576,
        "models": [{"name": "(deleted)", "digest": DIGEST, "records": 2, "size": 20480}],
        "unreadable": {"files": 1, "size": 4096},
    }
    shown = mlxo("cache", "status").out.decode()
    assert str(kept) in shown
    assert "24 KB of 2.1 GB" in shown
    assert "4.1 KB in 1 file, the first to go" in shown
    assert f"(deleted)    {DIGEST[:12]}    2" in shown
    monkeypatch.setenv("MLXO_CACHE_SIZE", "0")
    assert "MLXO_CACHE_SIZE is 0" in mlxo("cache", "status").out.decode()


def test_clear_deletes_everything_there_and_nothing_else(mlxo: Mlxo, kept: Path, home: Path) -> None:
    beside = home / "cache" / "blas.so"
    beside.write_bytes(b"x")
    assert mlxo("cache", "clear").out == b"removed 4 files, 24 KB freed\n"
    assert cachedir.scan(kept) == []
    assert beside.exists()
    assert json.loads(mlxo("cache", "clear", "--json").out) == {"removed": 0, "freed": 0}
    assert mlxo("cache", "status").code == 0
    wrong = mlxo("cache", "flush")
    assert wrong.code == 1
    assert "flush" in wrong.err
