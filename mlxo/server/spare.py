"""The warm spare: a runner with its imports done, which waits to be told what to load.

Importing what a model needs takes seconds, reading the weights of most models less. So the daemon keeps one
such process (never more), hands it the next model, and makes another when the machine is quiet again.
Everything here belongs to the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from mlxo.core.errors import LoadFailed
from mlxo.core.types import ModelSpec
from mlxo.server.child import Launch
from mlxo.server.runner_proxy import RunnerProxy

log = logging.getLogger(__name__)

QUIET = 5.0  # seconds without a request until a spare is made: its imports would slow running answers down
DEATHS = 3  # spares that die one after another, until no more are made


def _tell(spare: RunnerProxy, warm: asyncio.Future[int]) -> None:
    if not warm.cancelled():
        log.info("a spare runner is ready, %d MB, pid %d", warm.result() >> 20, spare.pid)


class Spares:
    """Starts runners, from the spare when there is one. `room` says whether memory allows to keep one.

    A spare is never counted beside a model that loads, for it becomes that model's process.
    """

    def __init__(self, launch: Launch, room: Callable[[], bool], quiet: float = QUIET) -> None:
        self._launch = launch
        self._room = room
        self._quiet = quiet
        self._deaths = 0
        self._closed = False
        self._idle = False
        self._timer: asyncio.TimerHandle | None = None
        self._filling: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self.spare: RunnerProxy | None = None

    async def start(self, spec: ModelSpec) -> RunnerProxy:
        """A runner with `spec` loaded. Raises LoadFailed, or what is wrong with the model."""
        spare, self.spare = self.spare, None
        if spare is None or not spare.alive:
            return await RunnerProxy.start(spec, self._launch)
        self._deaths = 0
        await spare.load(spec)
        return spare

    def idle(self, idle: bool) -> None:
        """No request is open any more, or one is again. After some quiet the spare is made, or let go."""
        self._idle = idle
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if idle and not self._closed:
            delay = self._quiet * 2**self._deaths
            self._timer = asyncio.get_running_loop().call_later(delay, self._settle)

    async def close(self) -> None:
        self._closed = True
        self.idle(False)
        if self._filling is not None:
            await asyncio.wait([self._filling])
        self._drop()
        if self._closing:
            await asyncio.wait(self._closing)

    def _settle(self) -> None:
        self._timer = None
        if not self._room():
            self._drop()
        elif self.spare is None and self._filling is None and self._deaths < DEATHS:
            self._filling = asyncio.create_task(self._fill())

    async def _fill(self) -> None:
        try:
            with contextlib.suppress(LoadFailed):  # the next load will say why
                self.spare = spare = await RunnerProxy.spawn(self._launch)
                spare.gone.add_done_callback(lambda _: self._gone(spare))
                spare.warm.add_done_callback(lambda warm: _tell(spare, warm))
        finally:
            self._filling = None

    def _gone(self, spare: RunnerProxy) -> None:
        """It died by itself, if it is still ours; a later one is tried after a longer wait."""
        if self.spare is not spare:
            return
        self.spare = None
        self._deaths += 1
        log.info("the spare runner ended, pid %d", spare.pid)
        self.idle(self._idle)

    def _drop(self) -> None:
        spare, self.spare = self.spare, None
        if spare is not None:
            task = asyncio.create_task(spare.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
