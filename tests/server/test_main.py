"""`mlxo serve` as a process: readiness, its one lock, its port, signals, its size."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mlxo import __version__
from mlxo.core.errors import InvalidRequest, MlxoError
from mlxo.server.main import serve

PATIENCE = 30.0


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """`serve` sets logging up for a process of its own; put pytest's back."""
    root, ours = logging.getLogger(), logging.getLogger("mlxo")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Daemon:
    def __init__(self, home: Path, port: int) -> None:
        reader, writer = os.pipe()
        self.port = port
        self.home = home
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlxo", "serve"],
            env={
                **os.environ,
                "MLXO_HOME": str(home),
                "MLXO_HOST": f"127.0.0.1:{port}",
                "MLXO_READY_FD": str(writer),
            },
            pass_fds=(writer,),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(writer)
        with os.fdopen(reader, "rb") as f:
            self.said = f.read()  # to the end: the daemon must close it, once ready or by its death

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, err

    def output(self) -> tuple[int, str]:
        _, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, err


@contextmanager
def running(home: Path, port: int = 0) -> Iterator[Daemon]:
    daemon = Daemon(home, port or free_port())
    try:
        yield daemon
    finally:
        daemon.process.kill()
        daemon.process.communicate()


def get(port: int, path: str) -> bytes:
    import http.client

    link = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        link.request("GET", path)
        return link.getresponse().read()
    finally:
        link.close()


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_life_of_a_daemon(home: Path, number: int) -> None:
    with running(home) as daemon:
        assert daemon.said == b"ready\n"
        assert get(daemon.port, "/") == b"Ollama is running"
        state = json.loads((home / "daemon.json").read_text())
        assert state == {
            "pid": daemon.process.pid,
            "address": f"127.0.0.1:{daemon.port}",
            "version": __version__,
        }
        code, log = daemon.end(number)
        assert code == 0
        assert f"is listening on http://127.0.0.1:{daemon.port}" in log
        assert "Traceback" not in log
        assert not (home / "daemon.json").exists()


def test_a_daemon_without_a_model_is_small_and_has_no_mlx(home: Path) -> None:
    with running(home) as daemon:
        get(daemon.port, "/api/tags")
        status = Path(f"/proc/{daemon.process.pid}/status").read_text()
        (rss,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        assert rss < 60 * 1024, f"{rss} kB"
        assert "mlx/lib" not in Path(f"/proc/{daemon.process.pid}/maps").read_text()


def test_a_quiet_daemon_has_a_spare_runner_that_dies_with_it(home: Path) -> None:
    with running(home) as daemon:
        assert daemon.process.stderr is not None
        line = next(line for line in daemon.process.stderr if "a spare runner is ready" in line)
        pid = int(line.split("pid")[1])
        assert exists(pid)
        daemon.process.kill()
        daemon.process.wait(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while exists(pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not exists(pid)


def test_a_start_sweeps_what_killed_work_left_behind(home: Path) -> None:
    old = home / "blobs" / ("sha256-" + "0" * 64)
    old.parent.mkdir(parents=True)
    old.write_bytes(b"orphan")
    os.utime(old, (1, 1))
    with running(home) as daemon:
        _, log = daemon.end()
    assert "garbage collected: 1 files" in log
    assert not old.exists()


def test_what_a_daemon_does_not_import() -> None:
    code = (
        "import sys, mlxo.server.main;"
        "heavy = ('mlx', 'mlx_lm', 'transformers', 'huggingface_hub', 'numpy', 'jinja2', 'rich', 'click');"
        "print([m for m in heavy if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_one_daemon_a_home(home: Path) -> None:
    with running(home) as first:
        second = Daemon(home, free_port())
        code, err = second.output()
        assert second.said == b""
        assert code == 1
        assert f"is running already on 127.0.0.1:{first.port} (pid {first.process.pid})" in err
        assert "mlxo daemon stop" in err
        assert len(err.splitlines()) == 2
        assert (home / "daemon.json").exists()


def test_another_mlxo_on_the_port(home: Path, tmp_path: Path) -> None:
    with running(home) as first:
        code, err = Daemon(tmp_path / "other", first.port).output()
        assert code == 1
        assert f"another mlxo server, of another MLXO_HOME, holds 127.0.0.1:{first.port}" in err
        assert f"MLXO_HOST=127.0.0.1:{first.port + 1}" in err
        assert not (tmp_path / "other" / "daemon.json").exists()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b'{"version":"0.12.3"}', "Ollama 0.12.3 holds"),
        (b"<html>hello</html>", "another program holds"),
        (b"[1]", "another program holds"),
        (None, "another program holds"),
    ],
)
def test_a_foreign_program_on_the_port(
    home: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes | None, words: str
) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if answer is not None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as foreign:
        thread = threading.Thread(target=foreign.serve_forever)
        thread.start()
        monkeypatch.setenv("MLXO_HOST", f"127.0.0.1:{foreign.server_port}")
        try:
            with pytest.raises(MlxoError, match=words) as caught:
                serve([])
        finally:
            foreign.shutdown()
            thread.join()
    assert "MLXO_HOST=" in str(caught.value.hint)


@pytest.mark.parametrize("host", ["203.0.113.9:1234", "no.such.host.invalid:1234"])
def test_an_address_that_is_not_here(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("MLXO_HOST", host)
    with pytest.raises(MlxoError, match=r"no address of this machine|cannot listen on"):
        serve([])


def test_a_home_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLXO_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(MlxoError, match=str(tmp_path)):
        serve([])


def test_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert serve(["--help"]) == 0
    assert "Usage: mlxo serve" in capsys.readouterr().out
    with pytest.raises(InvalidRequest, match="takes no arguments"):
        serve(["--port", "1"])


def test_a_bad_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXO_MAX_QUEUE", "many")
    with pytest.raises(MlxoError, match="MLXO_MAX_QUEUE"):
        serve([])
