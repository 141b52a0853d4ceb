"""The events of one request on their way from its runner to its client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from mlxo.core.errors import MlxoError, from_code
from mlxo.core.types import Event, Failed, Finished


class EventStream:
    """The events of one request in batches: all that has come since the last look.

    A batch may be empty: nothing has come for a long time, and the client may want to hear so. Iteration
    ends after the batch with Finished, or raises the error that ended the request. Leaving the `with` block
    before the end cancels the request in the runner.
    """

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel
        self._batch: list[Event] = []
        self._error: MlxoError | None = None
        self._finished = False
        self._beat = False
        self._wake: asyncio.Future[None] | None = None
        self.heard = asyncio.get_running_loop().time()

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

    def beat(self) -> None:
        """The model is at work on it, though there is nothing to tell."""
        self._beat = True
        self._notify()

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Event]:
        while not self._batch and not self._beat:
            if self._error is not None:
                raise self._error
            if self._finished:
                raise StopAsyncIteration
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        batch, self._batch, self._beat = self._batch, [], False
        return batch

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._finished:
            self._cancel()
