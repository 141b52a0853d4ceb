"""The daemon's end of a runner: starts the child, speaks frames with it, notices when it dies.

Everything here belongs to the event loop. Events of a request pile up without a bound while its HTTP client
is slow, so that no client can hold up its neighbours; num_predict and num_ctx bound the pile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from mlxo.core import duration, process, wire
from mlxo.core.errors import InvalidRequest, LoadFailed, MlxoError, RunnerDied, RunnerError, from_code
from mlxo.core.settings import Settings
from mlxo.core.types import Event, Failed, Finished, Frozen, ModelSpec, Request, RunnerStats
from mlxo.hardware import blas

log = logging.getLogger(__name__)

READ = 256 << 10  # bytes a read of the socket
EXIT_GRACE = 0.5  # seconds between a closed socket and the exit of the child that closed it
SHUTDOWN_GRACE = 3.0  # seconds a child has to leave when it is asked to
LAST_LINES = 20  # of the child's output, kept to explain its death


class Launch(Frozen, frozen=True, kw_only=True):
    """How runners are started. `rows` and `context` go into Load; `timeout` is seconds, for ever if <= 0."""

    command: tuple[str, ...]
    home: str
    rows: int = 16
    context: int = 0
    timeout: float = 300.0
    blas: str = "auto"

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(
            command=tuple(process.command("_runner")),
            home=str(settings.home),
            rows=settings.parallel,
            context=settings.context,
            timeout=settings.load_timeout,
            blas=settings.blas,
        )


class EventStream:
    """The events of one request in batches: all that has come since the last look.

    Iteration ends after the batch with Finished, or raises the error that ended the request. Leaving the
    `with` block before the end cancels the request in the runner.
    """

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel
        self._batch: list[Event] = []
        self._error: MlxoError | None = None
        self._finished = False
        self._wake: asyncio.Future[None] | None = None

    def put(self, event: Event) -> None:
        if isinstance(event, Failed):
            self.fail(from_code(event.code, event.message, event.hint))
            return
        self._batch.append(event)
        self._finished = isinstance(event, Finished)
        self._notify()

    def fail(self, error: MlxoError) -> None:
        self._error = error
        self._finished = True
        self._notify()

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Event]:
        while not self._batch:
            if self._error is not None:
                raise self._error
            if self._finished:
                raise StopAsyncIteration
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        batch, self._batch = self._batch, []
        return batch

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._finished:
            self._cancel()


class RunnerProxy:
    """One runner child. Made by `start`; unusable once `gone` is done."""

    def __init__(
        self,
        spec: ModelSpec,
        child: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.spec = spec
        self.stats = RunnerStats()
        self.context = 0
        self.load_ns = 0
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._child = child
        self._reader = reader
        self._writer = writer
        self._streams: dict[str, EventStream] = {}
        self._ready: asyncio.Future[wire.Ready] = asyncio.get_running_loop().create_future()
        self._ended: MlxoError | None = None
        self._fatal: wire.Fatal | None = None
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._log_task = asyncio.create_task(self._copy_output())
        self._read_task = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, spec: ModelSpec, launch: Launch) -> Self:
        """Start a child and load `spec` in it. Raises LoadFailed, or what the child says is wrong with it."""
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
            undo.callback(_kill, child)
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            undo.pop_all()
        proxy = cls(spec, child, reader, writer)
        loaded = False
        try:
            await proxy._load(launch)
            loaded = True
        finally:
            if not loaded:
                await proxy.close(grace=0)
        return proxy

    async def _load(self, launch: Launch) -> None:
        self._send(wire.Load(spec=self.spec, rows=launch.rows, context=launch.context))
        limit = launch.timeout if launch.timeout > 0 else None
        try:
            ready = await asyncio.wait_for(asyncio.shield(self._ready), limit)
        except TimeoutError:
            text = duration.show(int(launch.timeout * 1e9))
            raise LoadFailed(
                f"{self.spec.name} did not load within {text}", "MLXO_LOAD_TIMEOUT sets a longer limit"
            ) from None
        self.stats, self.context, self.load_ns = ready.stats, ready.context, ready.load_ns
        log.info(
            "loaded %s in %s, %d MB, on %s, pid %d",
            self.spec.name,
            duration.show(ready.load_ns),
            ready.stats.active_bytes >> 20,
            ready.stats.backend,
            self._child.pid,
        )

    @property
    def pid(self) -> int:
        return self._child.pid

    def submit(self, request: Request) -> EventStream:
        """Hand `request` over. Its id must be unlike that of any open request. Raises InvalidRequest."""
        stream = EventStream(lambda: self._cancel(request.id))
        if self._ended is not None:
            stream.fail(self._ended)
            return stream
        try:
            self._send(wire.Submit(request=request))
        except OverflowError:
            raise InvalidRequest("a number in the request has more than 64 bits") from None
        self._streams[request.id] = stream
        return stream

    def ping(self) -> None:
        """Ask for fresh `stats`; they are there some moments later."""
        if self._ended is None:
            self._send(wire.Ping())

    def abort(self, error: MlxoError) -> None:
        """End every open request with `error`."""
        for id_, stream in list(self._streams.items()):
            self._cancel(id_)
            stream.fail(error)

    async def close(self, grace: float = SHUTDOWN_GRACE) -> None:
        """Ask the child to leave, kill it after `grace` seconds, and wait until it is gone."""
        if self._ended is None:
            self._ended = RunnerError(f"{self.spec.name} was unloaded")
            if grace:
                self._send(wire.Shutdown())
        await self._reap(grace)
        await asyncio.wait([self._read_task])

    def _cancel(self, id_: str) -> None:
        if self._streams.pop(id_, None) is not None and not self._writer.is_closing():
            self._send(wire.Cancel(id=id_))

    def _send(self, frame: wire.ToRunner) -> None:
        if not self._writer.is_closing():
            self._writer.write(wire.pack([frame]))

    # ------------------------------------------------------------ what the child says

    async def _read(self) -> None:
        unpacker = wire.from_runner()
        try:
            while data := await self._reader.read(READ):
                for frame in unpacker.feed(data):
                    self._receive(frame)
        except (ConnectionError, RunnerError) as e:
            log.warning("the pipe of %s broke: %s", self.spec.name, e)
        await self._finish()

    def _receive(self, frame: wire.FromRunner) -> None:
        if isinstance(frame, wire.Emit):
            stream = self._streams.get(frame.id)
            if stream is None:  # cancelled a moment ago
                return
            if isinstance(frame.event, Finished | Failed):
                del self._streams[frame.id]
            stream.put(frame.event)
        elif isinstance(frame, wire.Stats):
            self.stats = frame.stats
        elif isinstance(frame, wire.Ready):
            self._ready.set_result(frame)
        else:
            self._fatal = frame

    async def _finish(self) -> None:
        """The socket is closed: say why to everybody who waits, within a second."""
        await self._reap(EXIT_GRACE)
        error = self._ended or self._explain()
        self._ended = error
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # there may be nobody left who waits for it
        for stream in self._streams.values():
            stream.fail(error)
        self._streams.clear()
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
        self.gone.set_result(None)

    async def _reap(self, grace: float) -> None:
        """Wait for the child's exit, by force after `grace` seconds, and for the rest of its output."""
        try:
            await asyncio.wait_for(self._child.wait(), grace)
        except TimeoutError:
            _kill(self._child)
            await self._child.wait()
        await asyncio.wait([self._log_task], timeout=EXIT_GRACE)

    def _explain(self) -> MlxoError:
        code = self._child.returncode
        how = process.explain_exit(code) if code is not None else "its pipe closed"
        last = self._lines[-1] if self._lines else ""
        kind = RunnerDied if self._ready.done() else LoadFailed
        if self._fatal is not None:
            return from_code(self._fatal.code, self._fatal.message, self._fatal.hint)
        doing = "stopped" if self._ready.done() else "stopped while it loaded"
        message = f"the runner of {self.spec.name} {doing}: {how}" + (
            f"; its last line was: {last}" if last else ""
        )
        log.error("%s", message)
        hint = "`mlxo daemon logs` shows more"
        if code == -signal.SIGKILL:
            hint = "if the machine ran out of memory, use a smaller model or a smaller num_ctx"
        return kind(message, hint)

    async def _copy_output(self) -> None:
        """The child's output goes to the daemon's standard error; its last lines are kept."""
        assert self._child.stdout is not None
        rest = b""
        while data := await self._child.stdout.read(READ):
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


def _kill(child: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.kill()
