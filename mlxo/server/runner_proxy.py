"""The daemon's end of a runner: speaks frames with the child, notices when it dies or stands still.

Everything here belongs to the event loop. Events of a request pile up without a bound while its HTTP client
is slow, so that no client can hold up its neighbours; num_predict and num_ctx bound the pile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Self

from mlxo.core import duration, wire
from mlxo.core.errors import InvalidRequest, LoadFailed, MlxoError, RunnerError, Stalled, from_code
from mlxo.core.types import Failed, Finished, ModelSpec, Request, RunnerStats
from mlxo.server.child import EXIT_GRACE, Child, Launch
from mlxo.server.stream import EventStream

log = logging.getLogger(__name__)

BEAT = 10.0  # seconds without an event until a stream is told that the engine is at work: proxies want bytes
SHUTDOWN_GRACE = 3.0  # seconds a child has to leave when it is asked to
_PING = ""  # among the owed: no request is called so
_NO_MODEL = ModelSpec(name="no model", digest="", path="")


class RunnerProxy(asyncio.Protocol):
    """One runner child: made by `spawn`, given its model by `load`, unusable once `gone` is done.

    `warm` is done when its imports are; its result is the bytes it then holds.
    """

    def __init__(self, launch: Launch, child: Child) -> None:
        loop = asyncio.get_running_loop()
        self.spec = _NO_MODEL
        self.stats = RunnerStats()
        self.context = 0
        self.load_ns = 0
        self.gone: asyncio.Future[None] = loop.create_future()
        self.warm: asyncio.Future[int] = loop.create_future()
        self._loop = loop
        self._launch = launch
        self._child = child
        self._transport: asyncio.WriteTransport | None = None
        self._unpacker = wire.from_runner()
        self._streams: dict[str, EventStream] = {}
        self._ready: asyncio.Future[wire.Ready] = loop.create_future()
        self._ended: MlxoError | None = None
        self._fatal: wire.Fatal | None = None
        self._finishing: asyncio.Task[None] | None = None
        # What the watchdog goes by: requests whose last event has not come, and when anything came at all.
        self._owed: set[str] = set()
        self._heard = 0.0
        self._watchdog: asyncio.TimerHandle | None = None

    @classmethod
    async def spawn(cls, launch: Launch) -> Self:
        """Start a child without a model. Raises LoadFailed."""
        child = await Child.spawn(launch)
        with contextlib.ExitStack() as undo:
            undo.callback(child.kill)
            undo.callback(child.end.close)
            loop = asyncio.get_running_loop()
            _, proxy = await loop.create_unix_connection(lambda: cls(launch, child), sock=child.end)
            undo.pop_all()
        return proxy

    @classmethod
    async def start(cls, spec: ModelSpec, launch: Launch) -> Self:
        """`spawn` and `load`."""
        proxy = await cls.spawn(launch)
        await proxy.load(spec)
        return proxy

    async def load(self, spec: ModelSpec) -> None:
        """Raises LoadFailed, or what the child says is wrong with the model; the child is gone then."""
        self.spec = spec
        loaded = False
        try:
            await self._load(spec)
            loaded = True
        finally:
            if not loaded:
                await self.close(grace=0)

    async def _load(self, spec: ModelSpec) -> None:
        launch = self._launch
        self._send(
            wire.Load(
                spec=spec,
                rows=launch.rows,
                context=launch.context,
                cache=launch.cache,
                cache_size=launch.cache_size,
            )
        )
        try:
            ready = await asyncio.wait_for(
                asyncio.shield(self._ready), launch.timeout if launch.timeout > 0 else None
            )
        except TimeoutError:
            text = duration.show(int(launch.timeout * 1e9))
            raise LoadFailed(
                f"{spec.name} did not load within {text}", "MLXO_LOAD_TIMEOUT sets a longer limit"
            ) from None
        self.stats, self.context, self.load_ns = ready.stats, ready.context, ready.load_ns
        log.info(
            "loaded %s in %s, %d MB, on %s, pid %d",
            spec.name,
            duration.show(ready.load_ns),
            ready.stats.active_bytes >> 20,
            ready.stats.backend,
            self._child.pid,
        )

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def alive(self) -> bool:
        return self._ended is None and self._child.alive

    @property
    def silent(self) -> float:
        """Seconds for which it has owed a word."""
        return self._loop.time() - self._heard if self._owed else 0.0

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
        self._expect(request.id)
        return stream

    def ping(self) -> None:
        """Ask for fresh `stats`; they are there some moments later."""
        if self._ended is None:
            self._send(wire.Ping())
            self._expect(_PING)

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
        await self._child.reap(grace)
        if self._transport is not None:
            self._transport.abort()
        await asyncio.wait([self.gone])

    def _cancel(self, id_: str) -> None:
        if self._streams.pop(id_, None) is not None:
            self._send(wire.Cancel(id=id_))

    def _send(self, frame: wire.ToRunner) -> None:
        data = wire.pack([frame])
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    # ------------------------------------------------------------ the watchdog

    def _expect(self, id_: str) -> None:
        if not self._owed:
            self._heard = self._loop.time()
        self._owed.add(id_)
        if self._watchdog is None and self._launch.stall > 0:
            self._watchdog = self._loop.call_later(self._launch.stall, self._check)

    def _check(self) -> None:
        """While it has work the engine says something every second, or at the end of a longer step."""
        self._watchdog = None
        if not self._owed or self._ended is not None:
            return
        left = self._heard + self._launch.stall - self._loop.time()
        if left > 0:
            self._watchdog = self._loop.call_later(left, self._check)
            return
        text = duration.show(int(self._launch.stall * 1e9))
        error = Stalled(
            f"the runner of {self.spec.name} made no progress for {text} and was ended",
            "ask again: the model is loaded anew; MLXO_STALL_TIMEOUT sets another limit",
        )
        log.error("%s", error.message)
        self._end(error)
        self._child.kill()

    def _end(self, error: MlxoError) -> None:
        self._ended = error
        for stream in self._streams.values():
            stream.fail(error)
        self._streams.clear()

    # ------------------------------------------------------------ what the child says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        try:
            for frame in self._unpacker.feed(data):
                self._receive(frame)
        except RunnerError as e:
            log.warning("the pipe of %s broke: %s", self.spec.name, e)
            assert self._transport is not None
            self._transport.abort()

    def _receive(self, frame: wire.FromRunner) -> None:
        if isinstance(frame, wire.Emit):
            last = isinstance(frame.event, Finished | Failed)
            if last:
                self._owed.discard(frame.id)
            stream = self._streams.get(frame.id)
            if stream is None:  # cancelled a moment ago
                return
            if last:
                del self._streams[frame.id]
            stream.heard = self._heard
            stream.put(frame.event)
        elif isinstance(frame, wire.Stats):
            self.stats = frame.stats
            self._owed.discard(_PING)
            for stream in self._streams.values():
                if self._heard - stream.heard >= BEAT:
                    stream.heard = self._heard
                    stream.beat()
        elif isinstance(frame, wire.Ready):
            self._ready.set_result(frame)
        elif isinstance(frame, wire.Warm):
            self.warm.set_result(frame.resident)
        else:
            self._fatal = frame

    def connection_lost(self, exc: Exception | None) -> None:
        self._finishing = asyncio.create_task(self._finish())

    async def _finish(self) -> None:
        """The socket is closed: say why to everybody who waits, within a second."""
        await self._child.reap(EXIT_GRACE)
        error = self._ended or self._explain()
        if self._watchdog is not None:
            self._watchdog.cancel()
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # there may be nobody left who waits for it
        if not self.warm.done():
            self.warm.cancel()
        self._end(error)
        self.gone.set_result(None)

    def _explain(self) -> MlxoError:
        if self._fatal is not None:
            return from_code(self._fatal.code, self._fatal.message, self._fatal.hint)
        error = self._child.explain(self.spec.name, self._ready.done())
        log.log(logging.INFO if self.spec is _NO_MODEL else logging.ERROR, "%s", error.message)
        return error
