"""Starting, finding and stopping the real server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from mlxo import __version__
from mlxo.cli import daemon
from mlxo.cli.main import dispatch
from mlxo.core.process import command
from tests.cli.conftest import Mlxo


def cli(*argv: str, **options: Any) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return subprocess.Popen(command(*argv), stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, **options)


def finish(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out.decode(), err.decode()


def state(home: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((home / "daemon.json").read_bytes())
    return found


@pytest.fixture
def address(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A free address for this home's daemon, which is stopped in the end."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("MLXO_HOST", address)
    yield address
    if home.exists():
        assert dispatch("daemon", ["daemon", "stop"]) == 0


def test_clients_that_start_at_once_get_one_daemon(address: str, home: Path, mlxo: Mlxo) -> None:
    clients = [cli("ps") for _ in range(3)]
    for client in clients:
        code, out, err = finish(client)
        assert (code, err) == (0, "")
        assert out.startswith("NAME ")
    log = (home / "logs" / "daemon.log").read_text()
    assert log.count("is listening on") == 1
    status = json.loads(mlxo("daemon", "status", "--json").out)
    assert status.pop("uptime") < 120
    assert status == {
        "running": True,
        "pid": state(home)["pid"],
        "address": address,
        "version": __version__,
        "models": [],
        "home": str(home),
        "log": str(home / "logs" / "daemon.log"),
    }
    assert mlxo("daemon", "stop").out == b"stopped\n"
    done = mlxo("daemon", "status")
    assert done.code == 1
    assert done.out.startswith(b"running  no\n")
    assert mlxo("daemon", "stop").out == b"the server is not running\n"


def test_the_daemon_outlives_its_client_and_restart_makes_another(
    address: str, home: Path, mlxo: Mlxo
) -> None:
    code, _, err = finish(cli("daemon", "restart"))
    assert (code, err) == (0, "")
    first = state(home)["pid"]
    assert os.getsid(first) == first  # a terminal that closes does not end it
    code, out, err = finish(cli("daemon", "restart"))
    assert (code, out, err) == (0, f"mlxo {__version__} listens on {address}\n", "")
    assert state(home)["pid"] != first
    assert mlxo("list").out == b"NAME    ID    SIZE    MODIFIED    \n"


def test_a_daemon_that_hangs_is_killed(
    address: str, home: Path, mlxo: Mlxo, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert finish(cli("ps"))[0] == 0
    os.kill(state(home)["pid"], signal.SIGSTOP)
    monkeypatch.setattr(daemon, "TERM_SECONDS", 0.1)
    monkeypatch.setattr(daemon, "STATUS_SECONDS", 0.1)
    assert b"models   the server does not answer\n" in mlxo("daemon", "status").out
    assert mlxo("daemon", "stop").out == b"stopped\n"
    assert not (home / "daemon.json").exists()


def test_a_daemon_that_dies_at_its_start_is_quoted(address: str, home: Path) -> None:
    host, _, port = address.partition(":")
    with socket.socket() as squatter:  # holds the port and listens to nobody
        squatter.bind((host, int(port)))
        code, out, err = finish(cli("list"))
    lines = err.splitlines()
    assert (code, out) == (1, "")
    assert lines[0] == "Error: the server ended while it started (exit code 1)"
    assert lines[2].startswith(f"  Error: another program holds {address}")
    assert lines[1] == f"Hint: see its log, {home}/logs/daemon.log"
    assert not (home / "daemon.json").exists()


def test_a_server_of_this_home_at_another_address_is_named(
    address: str, home: Path, mlxo: Mlxo, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert finish(cli("ps"))[0] == 0
    monkeypatch.setenv("MLXO_HOST", "127.0.0.1:1")
    done = mlxo("ps")
    assert done.code == 1
    assert done.err.startswith(f"Error: the server of {home} listens on {address}, not on 127.0.0.1:1\n")


def test_a_pid_that_was_reused_is_left_alone(home: Path, mlxo: Mlxo) -> None:
    home.mkdir()
    (home / "daemon.lock").touch()
    (home / "daemon.json").write_text(
        json.dumps({"pid": os.getpid(), "address": "127.0.0.1:1", "version": "1"})
    )
    assert mlxo("daemon", "stop").out == b"the server is not running\n"
    assert not (home / "daemon.json").exists()


def test_a_lock_without_a_state_is_a_server_on_its_way(home: Path, mlxo: Mlxo) -> None:
    home.mkdir()
    with FileLock(home / "daemon.lock"):
        done = mlxo("daemon", "stop")
    assert (done.code, done.out) == (1, b"")
    assert done.err.startswith(f"Error: a server is starting or stopping: it holds {home}/daemon.lock\n")


def test_logs(home: Path, mlxo: Mlxo) -> None:
    assert mlxo("daemon", "logs").err.startswith("Error: there is no log yet: ")
    log = home / "logs" / "daemon.log"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"".join(b"line %d\n" % i for i in range(100)) + b"\xff end\n")
    assert mlxo("daemon", "logs", "-n", "2").out.decode() == "line 99\n� end\n"
    assert len(mlxo("daemon", "logs").out.splitlines()) == 50
    with cli("daemon", "logs", "-f", "-n", "1") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\xff end\n"
        with log.open("ab") as f:
            f.write(b"more\n")
        assert process.stdout.readline() == b"more\n"
        process.kill()


def test_a_long_log_is_set_aside(tmp_path: Path) -> None:
    log = tmp_path / "daemon.log"
    assert daemon._rotate(log) == 0
    log.write_bytes(b"x" * 100)
    assert daemon._rotate(log) == 100
    with log.open("ab") as f:
        f.truncate(daemon.MAX_LOG + 1)
    assert daemon._rotate(log) == 0
    assert not log.exists()
    assert (tmp_path / "daemon.log.1").stat().st_size == daemon.MAX_LOG + 1
