"""What a long operation says while it runs: the lines of Ollama's create and pull streams."""

from __future__ import annotations

import threading
from collections.abc import Callable

from mlxo.core.errors import Cancelled
from mlxo.core.types import Frozen


class Progress(Frozen, frozen=True, kw_only=True):
    """One line. `total` and `completed` are bytes of the blob `digest`."""

    status: str
    digest: str | None = None
    total: int | None = None
    completed: int | None = None


Report = Callable[[Progress], None]


def check(cancelled: threading.Event) -> None:
    """Raise Cancelled when the caller has left."""
    if cancelled.is_set():
        raise Cancelled("the request was cancelled")
