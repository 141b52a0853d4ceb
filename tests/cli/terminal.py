"""A program on a real terminal: bytes in as keys, bytes out as a screen would get them."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

PATIENCE = 20.0  # seconds; only a failing test waits this long
_ESCAPE = re.compile(rb"\x1b(?:\[[0-9;?]*[A-Za-z]|[=>])")


class Terminal:
    """Owned by one test. `expect` waits for text after what was expected before, escapes left out."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], columns: int = 80) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            argv,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", "COLUMNS": str(columns), "PROMPT_TOOLKIT_NO_CPR": "1", **env},
            preexec_fn=_own_terminal,
        )
        os.close(slave)
        self.raw = b""
        self._at = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    @property
    def text(self) -> str:
        return _ESCAPE.sub(b"", self.raw).decode("utf-8", "replace").replace("\r", "")

    def expect(self, wanted: str) -> str:
        """Read until `wanted` was printed; what was printed up to and with it."""
        deadline = time.monotonic() + PATIENCE
        while (found := self.text.find(wanted, self._at)) < 0:
            if not self._read(deadline):
                raise AssertionError(
                    f"{wanted!r} was not printed after {self.text[: self._at][-200:]!r}: {self.text!r}"
                )
        before = self.text[self._at : found + len(wanted)]
        self._at = found + len(wanted)
        return before

    def type(self, keys: str) -> None:
        self.bytes(keys.encode())

    def bytes(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def enter(self, line: str) -> None:
        self.type(line + "\r")

    def end(self) -> int:
        """Read until the program ended; its exit code."""
        deadline = time.monotonic() + PATIENCE
        while self._read(deadline):
            pass
        return self.process.wait(PATIENCE)

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # Linux's way of saying that the other side was closed
            return False
        self.raw += data
        return bool(data)


def _own_terminal() -> None:
    """Make standard input the controlling terminal, so that Ctrl-C becomes a signal."""
    import fcntl
    import termios

    signal.signal(signal.SIGINT, signal.default_int_handler)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
