"""The runner's main loop: frames in, engine steps, events out. The thread that runs it owns the engine."""

from __future__ import annotations

import contextlib
import gc
import logging
import queue
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mlxo.core import wire
from mlxo.core.errors import LoadFailed, MlxoError
from mlxo.core.types import Failed
from mlxo.hardware.detect import resident

if TYPE_CHECKING:
    from mlxo.engine.embedder import Embedder
    from mlxo.engine.engine import Engine

log = logging.getLogger(__name__)

Inbox = queue.SimpleQueue[wire.ToRunner]

# Seconds. Requests that come together are read together, in one wide prefill, when nobody waits for a token:
# then the loop waits for the next one as long as GATHER, and GATHER_MOST in all.
GATHER = 0.004
GATHER_MOST = 0.05
HEARTBEAT = 1.0  # seconds: how often the engine says that it moves, and what it holds, while it has work


def serve(end: socket.socket, inbox: Inbox) -> int:
    """Load what the first frame names and run until Shutdown. Exit status 1: the model did not load."""
    failures: list[MlxoError] = []
    with _edge(failures.append, "the runner failed while it loaded", LoadFailed):
        # Seconds, and needed whatever the first frame says: so it runs while that frame is on its way.
        from mlxo.engine.start import start

        _wait(end, inbox)
        load = inbox.get()
        if isinstance(load, wire.Shutdown):
            return 0
        if not isinstance(load, wire.Load):
            raise LoadFailed(f"the first frame to a runner was {type(load).__name__}, not Load")
        began = time.perf_counter_ns()
        engine = start(load.spec, load.rows, load.context, load.cache, load.cache_size)
        elapsed = time.perf_counter_ns() - began
    if failures:
        (e,) = failures
        end.sendall(wire.pack([wire.Fatal(message=e.message, code=e.code, hint=e.hint)]))
        return 1
    end.sendall(wire.pack([wire.Ready(stats=engine.stats(), context=engine.context, load_ns=elapsed)]))
    # The libraries' million objects live as long as the process: keep the collector from walking them.
    gc.collect()
    gc.freeze()
    _Loop(engine, end, inbox).run()
    return 0


def _wait(end: socket.socket, inbox: Inbox) -> None:
    """While there is nothing to load: what else every model needs, then say that we are ready for it."""
    from mlxo.engine import warm

    for step in warm.STEPS:
        if not inbox.empty():
            return
        step()
    with contextlib.suppress(OSError):  # a daemon that is gone: the reader ends us
        end.sendall(wire.pack([wire.Warm(resident=resident())]))


@contextlib.contextmanager
def _edge(
    report: Callable[[MlxoError], object], what: str, kind: type[MlxoError] = MlxoError
) -> Iterator[None]:
    """The process edge: whatever the block raises is reported as an MlxoError, and logged if it was none."""
    try:
        yield
    except MlxoError as e:
        report(e)
    except Exception as e:
        log.exception("%s", what)
        report(kind(f"{what} ({type(e).__name__})", "`mlxo daemon logs` shows why"))


class _Loop:
    def __init__(self, engine: Engine | Embedder, end: socket.socket, inbox: Inbox) -> None:
        self._engine = engine
        self._end = end
        self._inbox = inbox
        self._frames: deque[wire.ToRunner] = deque()
        self._out: list[wire.FromRunner] = []
        self._beat = time.monotonic()

    def run(self) -> None:
        while self._drain():
            with _edge(lambda e: self._engine.abort(e.message), "the model failed"):
                self._out += [wire.Emit(id=i, event=e) for i, e in self._engine.step()]
            if time.monotonic() - self._beat >= HEARTBEAT:
                self._beat = time.monotonic()
                self._out.append(wire.Stats(stats=self._engine.stats()))
            if self._out:
                out, self._out = self._out, []
                self._end.sendall(wire.pack(out))
        self._engine.close()

    def _drain(self) -> bool:
        """Obey every frame that has come; wait for one when there is nothing else to do. False: shut down."""
        wait: float | None = 0.0 if self._engine.busy else None
        end = None if wait is None else 0.0
        while True:
            try:
                frame = self._inbox.get(wait != 0.0, wait)
            except queue.Empty:
                return True
            if isinstance(frame, wire.Shutdown):
                return False
            self._obey(frame)
            now = time.monotonic()
            end = now + GATHER_MOST if end is None else end
            wait = max(0.0, min(GATHER, end - now))

    def _obey(self, frame: wire.ToRunner) -> None:
        if isinstance(frame, wire.Submit):
            id_ = frame.request.id

            def failed(e: MlxoError) -> None:
                self._out.append(wire.Emit(id=id_, event=Failed(message=e.message, code=e.code, hint=e.hint)))

            with _edge(failed, "the request could not be prepared"):
                self._engine.submit(frame.request)
        elif isinstance(frame, wire.Cancel):
            with _edge(lambda e: self._engine.abort(e.message), "the model failed"):
                self._engine.cancel(frame.id)
        elif isinstance(frame, wire.Ping):
            self._out.append(wire.Stats(stats=self._engine.stats()))
        else:
            log.error("unexpected frame %s", type(frame).__name__)
