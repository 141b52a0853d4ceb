"""The requests that are under way, so that one of them can be ended from another connection."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Running:
    """A request and the task that answers it. Belongs to the event loop."""

    def __init__(self, task: asyncio.Task[object]) -> None:
        self._task = task
        self._cancelled = False

    def cancel(self) -> None:
        """Its handler ends there and then; the client gets an answer or a last line that says so."""
        if not self._cancelled:
            self._cancelled = True
            self._task.cancel()

    def was_cancelled(self) -> bool:
        """Whether it was by `cancel`, and not by a client that left; then the task goes on, to say so."""
        if self._cancelled:
            self._task.uncancel()
        return self._cancelled


@contextmanager
def registered(requests: dict[str, Running], id_: str) -> Iterator[str]:
    """The current task answers the request `id_`, inside the block."""
    task = asyncio.current_task()
    assert task is not None
    requests[id_] = Running(task)
    try:
        yield id_
    finally:
        del requests[id_]
