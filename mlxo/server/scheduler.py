"""Which models are resident: loads, shares, expires and evicts them.

Everything here belongs to the event loop; no state changes between two awaits that are not written as such.
A resident is keyed by its manifest digest, so two names of one model share it, and a name that was created
anew gets the new model with its next request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Protocol

from mlxo.core.errors import Busy, MlxoError, TooLarge
from mlxo.core.types import ModelSpec, Request, RunnerStats
from mlxo.hardware import estimate
from mlxo.server.policy import Held, Limits, victims
from mlxo.server.stream import EventStream

log = logging.getLogger(__name__)

RETRY = 30  # seconds until it is worth to ask again for memory that others use
FOREVER = 292 * 365 * 86400.0  # seconds: what clients are shown for a model that never expires


class Runner(Protocol):
    """What the scheduler and the handlers need of a runner; RunnerProxy is the one there is."""

    stats: RunnerStats
    context: int
    load_ns: int
    gone: asyncio.Future[None]  # done when the process is, however it went

    @property
    def alive(self) -> bool: ...
    @property
    def silent(self) -> float: ...
    def submit(self, request: Request) -> EventStream: ...
    def ping(self) -> None: ...
    def abort(self, error: MlxoError) -> None: ...
    async def close(self) -> None: ...


class Resident:
    """One model in memory, or on its way in or out. `keep_alive` is seconds, negative is for ever."""

    def __init__(self, spec: ModelSpec, size: int, keep_alive: float) -> None:
        self.spec = spec
        self.keep_alive = keep_alive
        self.refs = 0
        self.last_used = time.monotonic()
        self.expires_at: float | None = None  # wall clock; None while in use or for ever
        self.runner: Runner | None = None
        self.draining = False  # somebody waits for its memory: no new requests until they have it
        self.loading: asyncio.Task[None] | None = None
        self.closing: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self._estimate = size

    @property
    def size(self) -> int:
        """Bytes: what the runner counts, or the estimate until it can."""
        if self.runner is None or not self.runner.stats.active_bytes:
            return self._estimate
        return self.runner.stats.active_bytes + estimate.PROCESS

    @property
    def until(self) -> float:
        """The wall-clock time at which it leaves if nobody asks for it again."""
        if self.expires_at is not None:
            return self.expires_at
        return time.time() + (FOREVER if self.keep_alive < 0 else min(self.keep_alive, FOREVER))


class Scheduler:
    """`start` makes a loaded runner, `size` estimates a model's bytes. `idle` is told whether nobody has or
    waits for a lease, whenever that changes.

    `keep_alive` is the default, in seconds; `rows` is how many requests of a model step at once, `max_queue`
    how many may wait, `patience` for how many seconds for memory (0: as long as it takes). `free` says how
    many bytes the machine has left; None leaves it all to `limits`.
    """

    def __init__(
        self,
        start: Callable[[ModelSpec], Awaitable[Runner]],
        size: Callable[[ModelSpec], int],
        limits: Limits,
        *,
        keep_alive: float = 300.0,
        rows: int = 16,
        max_queue: int = 512,
        patience: float = 0.0,
        free: Callable[[], int] | None = None,
        idle: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._start = start
        self._idle = idle
        self._leases = 0
        self._size = size
        self._limits = limits
        self._patience = patience
        self._free = free
        self._keep_alive = keep_alive
        self._rows = rows
        self._max_queue = max_queue
        self._residents: dict[str, Resident] = {}
        self._waiting = 0
        self._admission = asyncio.Lock()  # one at a time makes room, in order of arrival
        self._changed = asyncio.Event()
        self._closed = False

    def residents(self) -> list[Resident]:
        """All that are in memory or loading, the longest-lived first."""
        return sorted((r for r in self._residents.values() if r.closing is None), key=lambda r: -r.until)

    def holds(self, digest: str) -> bool:
        """Whether the model of this manifest is in memory, and stays for now."""
        resident = self._residents.get(digest)
        return resident is not None and resident.runner is not None and resident.closing is None

    def used(self) -> int:
        """Bytes of all that are in memory, loading or on their way out."""
        return sum(r.size for r in self._residents.values())

    @asynccontextmanager
    async def lease(self, spec: ModelSpec, keep_alive: float | None = None) -> AsyncIterator[Runner]:
        """The loaded model, which stays loaded inside the block. `keep_alive` None leaves the model's own.

        Raises Busy when too many wait, LoadFailed or what else is wrong with the model.
        """
        with self._counted():
            resident = await self._acquire(spec)
            if keep_alive is not None:
                resident.keep_alive = keep_alive
            try:
                assert resident.runner is not None
                yield resident.runner
            finally:
                self._release(resident)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._leases += 1
        if self._leases == 1:
            self._idle(False)
        try:
            yield
        finally:
            self._leases -= 1
            if not self._leases:
                self._idle(True)

    async def unload(self, name: str, digest: str) -> None:
        """Let a model go: now if it is idle, else when its last request ends; nothing if it is not loaded.

        `name` is its short name; an older model that was loaded under it goes too.
        """
        wanted = [r for r in self._residents.values() if r.spec.digest == digest or r.spec.name == name]
        for resident in wanted:
            self._retire(resident)
        closing = [r.closing for r in wanted if r.closing is not None]
        if closing:
            await asyncio.wait(closing)

    async def close(self, reason: MlxoError) -> None:
        """End every request with `reason` and every runner; nothing is loaded afterwards."""
        self._closed = True
        residents = list(self._residents.values())
        for resident in residents:
            if resident.runner is not None:
                resident.runner.abort(reason)
        if residents:
            await asyncio.wait([self._close(r) for r in residents])

    # ------------------------------------------------------------ getting in

    async def _acquire(self, spec: ModelSpec) -> Resident:
        self._refuse_when_full()
        for other in list(self._residents.values()):
            if other.spec.name == spec.name and other.spec.digest != spec.digest:
                self._retire(other)
        self._waiting += 1
        try:
            resident = self._usable(spec)
            if resident is None:
                resident = await self._admitted(spec)
            else:
                self._hold(resident)
            await self._loaded(resident)
            return resident
        finally:
            self._waiting -= 1

    def _refuse_when_full(self) -> None:
        if self._closed:
            raise Busy("the server is shutting down")
        ready = (r for r in self._residents.values() if r.runner is not None)
        pending = self._waiting + sum(max(0, r.refs - self._rows) for r in ready)
        if pending >= max(1, self._max_queue):
            raise Busy(
                "server busy, please try again.  maximum pending requests exceeded",
                "MLXO_MAX_QUEUE sets how many may wait",
            )

    def _usable(self, spec: ModelSpec) -> Resident | None:
        resident = self._residents.get(spec.digest)
        if resident is None or resident.draining or resident.closing is not None:
            return None
        if resident.runner is not None and not resident.runner.alive:
            return None  # its death is about to be noticed: the request need not share it
        return resident

    async def _admitted(self, spec: ModelSpec) -> Resident:
        """In memory or loading, and held. Raises Busy when `patience` ends before there is room."""
        try:
            async with asyncio.timeout(self._patience if self._patience > 0 else None), self._admission:
                resident = self._usable(spec) or await self._admit(spec)
                self._hold(resident)
                return resident
        except TimeoutError:
            busy = ", ".join(r.spec.name for r in self._residents.values() if r.refs) or "other models"
            raise Busy(
                f"{spec.name} does not fit beside what is in use: {busy}",
                "try again later, or let one go with mlxo stop",
                retry_after=RETRY,
            ) from None

    async def _admit(self, spec: ModelSpec) -> Resident:
        """Make room for `spec` and begin to load it. The caller holds the admission lock."""
        size = await asyncio.to_thread(self._size, spec)
        self._check_size(spec, size)
        try:
            while leaving := self._leaving(spec, size):
                for resident in self._residents.values():
                    resident.draining = resident in leaving
                idle = [r for r in leaving if not r.refs]
                self._changed.clear()
                if idle:
                    await asyncio.wait([self._close(r) for r in idle])
                else:
                    log.info("%s waits for %s to become idle", spec.name, leaving[0].spec.name)
                    await self._changed.wait()
        finally:
            for resident in self._residents.values():
                resident.draining = False
        if self._closed:
            raise Busy("the server is shutting down")
        keep_alive = self._keep_alive if spec.keep_alive is None else spec.keep_alive
        resident = Resident(spec, size, keep_alive)
        self._residents[spec.digest] = resident
        resident.loading = asyncio.create_task(self._load(resident))
        resident.loading.add_done_callback(lambda task: self._load_ended(resident, task))
        return resident

    def _leaving(self, spec: ModelSpec, size: int) -> list[Resident]:
        """Who has to go. What is on its way out goes first: its memory is still taken."""
        held = [
            Held(digest, r.size, float("-inf") if r.closing else r.last_used, busy=r.refs > 0)
            for digest, r in self._residents.items()
        ]
        limits = self._limits
        if (room := self._room()) is not None:
            limits = limits._replace(budget=min(limits.budget, room))
        chosen = [self._residents[v.key] for v in victims(held, size, limits)]
        old = self._residents.get(spec.digest)
        if old is not None and old not in chosen:  # the same model, on its way out: one key, one resident
            chosen.append(old)
        return chosen

    def _room(self) -> int | None:
        """Bytes that all models may take by what the machine has left. What still loads has not taken its."""
        if self._free is None:
            return None
        return self._free() + sum(r.size for r in self._residents.values() if r.runner is not None)

    def _check_size(self, spec: ModelSpec, size: int) -> None:
        """Raises TooLarge or Busy when it would not fit if all others left: so that none leaves in vain."""
        needs = f"{spec.name} needs about {_gigabytes(size)} of memory"
        most = self._limits.most
        if most and size > most:
            raise TooLarge(
                f"{needs}, and models may take {_gigabytes(most)} on this machine",
                "use a smaller quantisation of it, or a smaller num_ctx if a large one is set",
            )
        room = self._room()
        if room is not None and size > room:
            raise Busy(
                f"{needs}, and other programs leave {_gigabytes(room)}",
                "close some of them, use a smaller model, or set MLXO_MEMORY to try it anyway",
                retry_after=RETRY,
            )

    async def _load(self, resident: Resident) -> None:
        runner = await self._start(resident.spec)
        resident.runner = runner
        runner.gone.add_done_callback(lambda _: self._drop(resident))

    def _load_ended(self, resident: Resident, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is not None:
            self._drop(resident)

    async def _loaded(self, resident: Resident) -> None:
        """Wait for the shared load. A waiter that is cancelled gives up its own place only."""
        assert resident.loading is not None
        with ExitStack() as undo:
            undo.callback(self._release, resident)
            await asyncio.wait([resident.loading])
            if resident.loading.cancelled():
                raise Busy(f"the load of {resident.spec.name} was given up")
            resident.loading.result()
            undo.pop_all()

    # ------------------------------------------------------------ getting out

    def _hold(self, resident: Resident) -> None:
        resident.refs += 1
        resident.expires_at = None
        if resident.timer is not None:
            resident.timer.cancel()

    def _release(self, resident: Resident) -> None:
        resident.refs -= 1
        resident.last_used = time.monotonic()
        if resident.refs or self._residents.get(resident.spec.digest) is not resident:
            return
        self._changed.set()
        if resident.runner is None or resident.keep_alive == 0:
            self._close(resident)  # no runner: all who wanted it left during the load
        elif resident.closing is None:
            resident.runner.ping()
            if resident.keep_alive > 0:
                delay = min(resident.keep_alive, FOREVER)
                resident.expires_at = time.time() + delay
                resident.timer = asyncio.get_running_loop().call_later(delay, self._close, resident)

    def _retire(self, resident: Resident) -> None:
        """It leaves as soon as nobody uses it."""
        resident.keep_alive = 0
        if not resident.refs:
            self._close(resident)

    def _close(self, resident: Resident) -> asyncio.Task[None]:
        """Begin to end the runner; the task is done when its memory is free. Wait for it, never await it:
        a waiter that is cancelled must not stop it half-way.
        """
        if resident.closing is None:
            resident.closing = asyncio.create_task(self._end(resident))
        return resident.closing

    async def _end(self, resident: Resident) -> None:
        if resident.runner is None and resident.loading is not None:
            resident.loading.cancel()
            await asyncio.wait([resident.loading])
        if resident.runner is not None:
            await resident.runner.close()
            log.info("unloaded %s", resident.spec.name)
        self._drop(resident)

    def _drop(self, resident: Resident) -> None:
        """The runner is gone, however it went."""
        if resident.timer is not None:
            resident.timer.cancel()
        if self._residents.get(resident.spec.digest) is resident:
            del self._residents[resident.spec.digest]
        self._changed.set()


def _gigabytes(size: int) -> str:
    return f"{size / (1 << 30):.1f} GB"
