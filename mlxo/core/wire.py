"""Frames between the daemon and a runner: a 4-byte big-endian length, then one msgpack array of frames.

Sent over one socketpair, so order is kept and a closed socket means that the other side is gone.
Both directions batch: the runner flushes once an engine step.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

import msgspec

from mlxo.core.errors import RunnerError
from mlxo.core.types import Event, Frozen, ModelSpec, Request, RunnerStats

MAX_FRAME = 256 << 20  # bytes; a longer length means that the stream is out of step


class Load(Frozen, frozen=True, kw_only=True, tag="load"):
    """The first frame to a runner. `context` caps num_ctx, `rows` caps how many sequences step at once.

    `cache` is the folder of kept prompts and `cache_size` the bytes all in it may take; 0 keeps none there.
    """

    spec: ModelSpec
    rows: int = 16
    context: int = 0
    cache: str = ""
    cache_size: int = 0


class Submit(Frozen, frozen=True, kw_only=True, tag="submit"):
    request: Request


class Cancel(Frozen, frozen=True, kw_only=True, tag="cancel"):
    id: str


class Ping(Frozen, frozen=True, kw_only=True, tag="ping"):
    """Answered by Stats from the engine thread, between two steps."""


class Shutdown(Frozen, frozen=True, kw_only=True, tag="shutdown"):
    pass


ToRunner = Load | Submit | Cancel | Ping | Shutdown


class Warm(Frozen, frozen=True, kw_only=True, tag="warm"):
    """The imports are done, the runner waits for Load. `resident` is the bytes the process holds by now."""

    resident: int


class Ready(Frozen, frozen=True, kw_only=True, tag="ready"):
    """The model is loaded. `context` is the num_ctx in force for requests that name none."""

    stats: RunnerStats
    context: int
    load_ns: int


class Emit(Frozen, frozen=True, kw_only=True, tag="emit"):
    """An event of request `id`. After Finished or Failed the id is free."""

    id: str
    event: Event


class Stats(Frozen, frozen=True, kw_only=True, tag="stats"):
    stats: RunnerStats


class Fatal(Frozen, frozen=True, kw_only=True, tag="fatal"):
    """The runner cannot go on; it exits after this frame."""

    message: str
    code: str
    hint: str | None = None


FromRunner = Warm | Ready | Emit | Stats | Fatal

_HEAD = struct.Struct(">I")
_encode = msgspec.msgpack.Encoder().encode


def pack(frames: Sequence[ToRunner] | Sequence[FromRunner]) -> bytes:
    body = _encode(frames)
    return _HEAD.pack(len(body)) + body


F = TypeVar("F")


class Unpacker(Generic[F]):
    """Bytes in, frames out, however they are cut. Owned by one reader; made by the two functions below."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[list[F]]) -> None:
        self._decode = decoder.decode
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[F]:
        """Yield every whole frame. Raises RunnerError when the bytes are no frames."""
        buffer = self._buffer
        buffer += data
        while len(buffer) >= _HEAD.size:
            (size,) = _HEAD.unpack_from(buffer)
            if size > MAX_FRAME:
                raise RunnerError(f"a frame of {size} bytes came over the runner's pipe")
            end = _HEAD.size + size
            if len(buffer) < end:
                return
            body = bytes(buffer[_HEAD.size : end])
            del buffer[:end]
            try:
                frames = self._decode(body)
            except msgspec.DecodeError as e:
                raise RunnerError(f"the runner's pipe carried something that is no frame: {e}") from e
            yield from frames


def from_runner() -> Unpacker[FromRunner]:
    """The daemon's end."""
    return Unpacker(msgspec.msgpack.Decoder(list[FromRunner]))


def to_runner() -> Unpacker[ToRunner]:
    """The runner's end."""
    return Unpacker(msgspec.msgpack.Decoder(list[ToRunner]))
