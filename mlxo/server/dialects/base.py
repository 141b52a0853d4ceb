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
from typing import Any, NamedTuple, Protocol, runtime_checkable

import msgspec

from mlxo.core.errors import MlxoError
from mlxo.core.types import Event, Request


class Need(NamedTuple):
    """A capability that the model must have, and what to tell the client of one that lacks it."""

    capability: str
    complaint: str


class Parsed(NamedTuple):
    """`request.options` is what the client sent; the handler lays it over the model's and the defaults.

    `wishes` are for the answer alone, in the dialect's own words: "usage", "echo". `copies` is how many
    answers are wanted; of several the dialect's answers are `Choices`.
    """

    request: Request
    needs: tuple[Need, ...] = ()
    wishes: frozenset[str] = frozenset()
    copies: int = 1


@dataclass(frozen=True)
class Clock:
    """Wall time for stamps, a monotonic one in nanoseconds for durations. Tests bring their own."""

    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    monotonic: Callable[[], int] = time.monotonic_ns


class Whole(Protocol):
    """One response. Made when the request arrives; `loaded` is called when its model is there."""

    def loaded(self) -> None: ...

    def collect(self, events: Sequence[Event]) -> bytes:
        """All events of the request folded into one JSON body."""


@runtime_checkable
class Answer(Whole, Protocol):
    """A response that may be streamed."""

    content_type: str

    def encode(self, events: Sequence[Event]) -> bytes:
        """The next bytes of a stream; empty when these events have none.

        No events at all mean that the model is still at work: a line that says no more, if there is one.
        """

    def encode_error(self, error: MlxoError) -> bytes:
        """The last bytes of a stream that failed midway."""


@runtime_checkable
class Choices(Answer, Protocol):
    """An answer that may be several, each with events of its own."""

    def encode_choice(self, index: int, events: Sequence[Event]) -> bytes: ...

    def collect_choices(self, answers: Sequence[Sequence[Event]]) -> bytes: ...


ErrorShape = Callable[[MlxoError], tuple[int, dict[str, Any]]]
"""(HTTP status, JSON body) of an error."""


class Dialect(NamedTuple):
    """One inference route: `parse(body, request id)`, the maker of its answers, the shape of its errors.

    `missing` is what it says of a model that is not there, whose name stands for the `{}`.
    """

    parse: Callable[[bytes, str], Parsed]
    answer: Callable[[Parsed], Whole]
    error: ErrorShape
    missing: str = "model '{}' not found"


class Folded:
    """An answer that is never streamed: `fold` makes a JSON object of all events."""

    def __init__(self, fold: Callable[[Sequence[Event]], dict[str, Any]]) -> None:
        self._fold = fold

    def loaded(self) -> None:
        """Such answers tell no durations."""

    def collect(self, events: Sequence[Event]) -> bytes:
        return msgspec.json.encode(self._fold(events))


_ALPHABET = string.ascii_lowercase + string.digits


def new_id(prefix: str) -> str:
    """What an answer or a tool call is called; nobody has to guess or to keep it."""
    return prefix + "".join(random.choices(_ALPHABET, k=8))
