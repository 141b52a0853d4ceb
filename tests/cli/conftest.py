"""The CLI in this process against a daemon that follows a script."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlxo.cli.client import Client
from mlxo.cli.main import dispatch
from tests.fakes.daemon import FakeDaemon, running


@dataclass
class Done:
    code: int
    out: bytes
    err: str


Mlxo = Callable[..., Done]


@pytest.fixture
def fake(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    """A daemon of this test's home, at the address that MLXO_HOST names."""
    with running(FakeDaemon()) as daemon:
        monkeypatch.setenv("MLXO_HOST", daemon.address)
        monkeypatch.setattr(Client, "_warned", False)
        daemon.write_state(home)
        yield daemon


@pytest.fixture
def mlxo(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Mlxo:
    """`mlxo("run", "m", stdin=b"...")`: what it printed, byte for byte, and its exit code."""

    def call(*argv: str, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = dispatch(argv[0] if argv else "", list(argv))
        sys.stdout.flush()
        out, err = capfdbinary.readouterr()
        return Done(code, out, err.decode())

    return call
