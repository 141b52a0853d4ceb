"""A whole mlxo as its users have it: the real command, a daemon of its own, a home of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


class Mlxo:
    """Runs `mlxo VERB ...` as a child process against this test's own daemon."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = int(s.getsockname()[1])
        self.home = home
        self.url = f"http://127.0.0.1:{self.port}"
        self.env = {**os.environ, "MLXO_HOME": str(home), "MLXO_HOST": f"127.0.0.1:{self.port}"}

    def start(self, *words: str, **env: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "mlxo", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**self.env, **env},
        )

    def __call__(
        self, *words: str, stdin: str = "", ok: bool = True, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Waits for the command; with `ok` a failure fails the test and shows what it said."""
        done = subprocess.run(
            [sys.executable, "-m", "mlxo", *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=150,
            env={**self.env, **env},
        )
        assert not ok or done.returncode == 0, f"mlxo {words} failed:\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stdout + done.stderr
        return done


@pytest.fixture
def mlxo(home: Path) -> Iterator[Mlxo]:
    command = Mlxo(home)
    yield command
    command("daemon", "stop", ok=False)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mlxo]:
    """One daemon for a module whose tests do not disturb each other."""
    command = Mlxo(tmp_path_factory.mktemp("home"))
    yield command
    command("daemon", "stop", ok=False)
