"""What a dialect is: bytes of a client in, one internal Request out; events in, bytes for the client out.

Pure: no HTTP server, no scheduler, no disk. The handlers know dialects by these types alone.
"""

from __future__ import annotations

import random
import string
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

from mlxo.core.errors import MlxoError
from mlxo.core.types import Event, Request


class Need(NamedTuple):
    """A capability that the model must have, and what to tell the client of one that lacks it."""

    capability: str
    complaint: str


class Parsed(NamedTuple):
    """`request.options` is what the client sent; the handler lays it over the model's and the defaults.

    `wishes` are for the answer alone, in the dialect's own words: "usage", "echo".
    """

    request: Request
    needs: tuple[Need, ...] = ()
    wishes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Clock:
    """Wall time for stamps, a monotonic one in nanoseconds for durations. Tests bring their own."""

    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    monotonic: Callable[[], int] = time.monotonic_ns


class Answer(Protocol):
    """One response. Made when the request arrives; `loaded` is called when its model is there."""

    content_type: str

    def loaded(self) -> None: ...

    def encode(self, events: Sequence[Event]) -> bytes:
        """The next bytes of a stream; empty when these events have none."""

    def collect(self, events: Sequence[Event]) -> bytes:
        """All events of the request folded into one JSON body."""

    def encode_error(self, error: MlxoError) -> bytes:
        """The last bytes of a stream that failed midway."""


ErrorShape = Callable[[MlxoError], tuple[int, dict[str, Any]]]
"""(HTTP status, JSON body) of an error."""


class Dialect(NamedTuple):
    """One inference route: `parse(body, request id)`, the maker of its answers, the shape of its errors."""

    parse: Callable[[bytes, str], Parsed]
    answer: Callable[[Parsed], Answer]
    error: ErrorShape


_ALPHABET = string.ascii_lowercase + string.digits


def new_id(prefix: str) -> str:
    """What an answer or a tool call is called; nobody has to guess or to keep it."""
    return prefix + "".join(random.choices(_ALPHABET, k=8))
