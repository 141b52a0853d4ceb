"""The process behind a runner: how it is started, what it printed, how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from mlxo.core import process
from mlxo.core.errors import LoadFailed, RunnerDied, RunnerError
from mlxo.core.paths import Paths
from mlxo.core.settings import Settings
from mlxo.core.types import Frozen
from mlxo.hardware import blas

READ = 256 << 10  # bytes a read of its output
EXIT_GRACE = 0.5  # seconds between a closed socket and the exit of the child that closed it
LAST_LINES = 20  # of the child's output, kept to explain its death


class Launch(Frozen, frozen=True, kw_only=True):
    """How runners are started. `rows`, `context`, `cache` and `cache_size` go into Load.

    `timeout` is the seconds a load may take, `stall` those that open requests may go without any progress;
    for ever if <= 0.
    """

    command: tuple[str, ...]
    home: str
    rows: int = 16
    context: int = 0
    cache: str = ""
    cache_size: int = 0
    timeout: float = 300.0
    stall: float = 180.0
    blas: str = "auto"

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(
            command=tuple(process.command("_runner")),
            home=str(settings.home),
            rows=settings.parallel,
            context=settings.context,
            cache=str(Paths(settings.home.absolute()).prompts),
            cache_size=settings.cache_size,
            timeout=settings.load_timeout,
            stall=settings.stall_timeout,
            blas=settings.blas,
        )


class Child:
    """One process and our end of its socket. Belongs to the event loop."""

    def __init__(self, process_: asyncio.subprocess.Process, end: socket.socket) -> None:
        self.end = end
        self._process = process_
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._log_task = asyncio.create_task(self._copy_output())

    @classmethod
    async def spawn(cls, launch: Launch) -> Self:
        """Raises LoadFailed when the program cannot be started."""
        extra = await asyncio.to_thread(blas.environment, launch.blas, Path(launch.home), os.environ)
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as undo, theirs:
            undo.callback(ours.close)
            try:
                child = await asyncio.create_subprocess_exec(
                    *launch.command,
                    str(theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                    env={**os.environ, **extra},
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,  # a Ctrl-C in the daemon's terminal is the daemon's to handle
                )
            except OSError as e:
                raise LoadFailed(f"a runner cannot be started: {e}") from e
            undo.pop_all()
        return cls(child, ours)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still holds its end: the kernel knows before the event loop does."""
        try:
            return self.end.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def reap(self, grace: float) -> None:
        """Wait for the exit, by force after `grace` seconds, and for the rest of the output."""
        try:
            await asyncio.wait_for(self._process.wait(), grace)
        except TimeoutError:
            self.kill()
            await self._process.wait()
        await asyncio.wait([self._log_task], timeout=EXIT_GRACE)

    def explain(self, name: str, loaded: bool) -> RunnerError:
        """Why the runner of the model `name` is gone, after `reap`."""
        code = self._process.returncode
        how = process.explain_exit(code) if code is not None else "its pipe closed"
        doing = "stopped" if loaded else "stopped while it loaded"
        last = f"; its last line was: {self._lines[-1]}" if self._lines else ""
        hint = "`mlxo daemon logs` shows more"
        if code == -signal.SIGKILL:
            hint = "if the machine ran out of memory, use a smaller model or a smaller num_ctx"
        return (RunnerDied if loaded else LoadFailed)(f"the runner of {name} {doing}: {how}{last}", hint)

    async def _copy_output(self) -> None:
        """The child's output goes to the daemon's standard error; its last lines are kept."""
        assert self._process.stdout is not None
        rest = b""
        while data := await self._process.stdout.read(READ):
            *lines, rest = (rest + data).split(b"\n")
            self._note(lines)
            rest = rest[-READ:]
        self._note([rest])

    def _note(self, lines: Sequence[bytes]) -> None:
        texts = [t for line in lines if (t := line.decode("utf-8", "replace").rstrip())]
        self._lines.extend(t[-500:] for t in texts)
        if texts:
            sys.stderr.write("".join(t + "\n" for t in texts))
            sys.stderr.flush()
