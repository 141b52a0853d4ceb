from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from mlxo import __version__
from tests.cli.conftest import Mlxo
from tests.fakes.daemon import FakeDaemon, Reply


@pytest.fixture
def address(home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """One where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        found = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("MLXO_HOST", found)
    monkeypatch.setenv("MLXO_BLAS", "off")  # nothing is compiled
    return found


@pytest.fixture
def alive(address: str, fake: FakeDaemon, home: Path) -> Iterator[FakeDaemon]:
    """A daemon that holds the lock of this home."""
    with FileLock(home / "daemon.lock"):
        yield fake


def about(mlxo: Mlxo) -> tuple[str, list[tuple[str, str]]]:
    """What the server is, and what is wrong with it; what the machine lacks is left out."""
    done = mlxo("doctor", "--json")
    answer: dict[str, Any] = json.loads(done.out)
    assert done.code == (1 if answer["findings"] else 0)
    assert answer["version"] == __version__
    found = [(f["about"], f["command"]) for f in answer["findings"]]
    return answer["server"], [pair for pair in found if pair[0] in ("server", "port")]


def test_a_machine_without_a_server_is_shown(address: str, home: Path, mlxo: Mlxo) -> None:
    assert about(mlxo) == ("not running", [])
    done = mlxo("doctor")
    lines = done.out.decode().splitlines()
    assert lines[0].startswith("processor   ")
    assert f"server      {address}, not running" in lines
    assert done.err == ""
    assert not home.exists()  # it looks, and leaves nothing behind


def test_a_dead_server_s_state_is_told_once(address: str, home: Path, mlxo: Mlxo) -> None:
    home.mkdir()
    (home / "daemon.lock").touch()
    (home / "daemon.json").write_text('{"pid": 1, "address": "127.0.0.1:1", "version": "0"}')
    assert about(mlxo) == ("not running", [("server", "mlxo daemon logs")])
    assert about(mlxo) == ("not running", [])


def test_somebody_else_s_port(
    fake: FakeDaemon, home: Path, mlxo: Mlxo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLXO_BLAS", "off")
    (home / "daemon.json").unlink()
    other = f"127.0.0.1:{fake.port + 1}"
    assert about(mlxo) == ("not ours", [("port", f"export MLXO_HOST={other}")])
    assert b"another program listens" in mlxo("doctor").out


def test_a_server_that_runs(alive: FakeDaemon, mlxo: Mlxo) -> None:
    running = f"running (pid {2**22 + 1})"
    alive.on("/api/version", Reply(body={"version": "0.13", "mlxo": __version__}))
    assert about(mlxo) == (running, [])
    restart = [("server", "mlxo daemon restart")]
    alive.on("/api/version", Reply(body={"version": "0.13", "mlxo": "0.0.1"}))
    assert about(mlxo) == (running, restart)
    alive.on("/api/version", Reply(status=500, body={"error": "no"}))
    assert about(mlxo) == (running, restart)
