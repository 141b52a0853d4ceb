"""One block of a kept prompt as a safetensors file. Nothing in it is trusted, and nothing here runs MLX.

The header's tensors must be, to the byte, what the model at hand would have written; a checksum covers the
data and the name covers the tokens. Metadata: `tokens` (base64 of little-endian u32), `since` (see Parts,
counted from the block's first token), `states` (0 or 1), `crc` (CRC-32 of the data).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxo.engine.layout import Parts, Spec, Specs

WIDTH = 4  # bytes of a packed token
_MOST = 1 << 20  # bytes of a header
_TYPES: dict[mx.Dtype, tuple[str, int]] = {
    mx.float32: ("F32", 4),
    mx.float16: ("F16", 2),
    mx.bfloat16: ("BF16", 2),
    mx.uint32: ("U32", 4),
    mx.int32: ("I32", 4),
    mx.uint8: ("U8", 1),
    mx.int8: ("I8", 1),
}

Bytes = NDArray[np.uint8]


class Head(NamedTuple):
    """What a record says of itself. `tokens` is packed, `since` counts from its first token."""

    tokens: bytes
    since: int
    stateful: bool

    @property
    def size(self) -> int:
        """How many tokens."""
        return len(self.tokens) // WIDTH


def digest(parent: bytes, tokens: bytes) -> bytes:
    """The name of a block: it stands for all the tokens up to its end."""
    return hashlib.sha256(parent + tokens).digest()[:16]


def storable(specs: Specs | None) -> bool:
    if specs is None:
        return False
    states = (s for state in specs.states for s in state if s is not None)
    return all(spec.dtype in _TYPES for spec in (*specs.every, *specs.window, *states))


def _arrays(specs: Specs, head: Head) -> list[tuple[str, Spec]]:
    """The arrays of a block in their order in the file, with all sides known."""

    def sized(spec: Spec, tokens: int) -> Spec:
        return Spec((*spec.shape[:-2], tokens, spec.shape[-1]), spec.dtype)

    found = [(f"every.{i}", sized(s, head.size)) for i, s in enumerate(specs.every)]
    if head.since < head.size:
        found += [(f"window.{i}", sized(s, head.size - head.since)) for i, s in enumerate(specs.window)]
    if head.stateful:
        found += [
            (f"state.{i}.{j}", s)
            for i, state in enumerate(specs.states)
            for j, s in enumerate(state)
            if s is not None
        ]
    return found


def _tensors(specs: Specs, head: Head) -> tuple[dict[str, Any], int]:
    """The header's entries and the length of the data."""
    entries: dict[str, Any] = {}
    end = 0
    for name, spec in _arrays(specs, head):
        kind, width = _TYPES[spec.dtype]
        begin, end = end, end + width * math.prod(spec.shape)
        entries[name] = {"dtype": kind, "shape": list(spec.shape), "data_offsets": [begin, end]}
    return entries, end


def fits(parts: Parts, specs: Specs, head: Head) -> bool:
    """Whether the arrays are what a reader will expect."""
    expected = [spec for _, spec in _arrays(specs, head)]
    return [Spec(tuple(a.shape), a.dtype) for a in parts.arrays] == expected


def write(path: Path, specs: Specs, head: Head, data: Sequence[Bytes]) -> None:
    """Write the record of `data`, the bytes of its arrays in order. Raises OSError."""
    crc = 0
    for piece in data:
        crc = zlib.crc32(piece.data, crc)
    text = _header(specs, head, crc)
    with path.open("wb") as f:
        f.write(text)
        for piece in data:
            f.write(piece.data)


def size(specs: Specs, head: Head) -> int:
    """The bytes that a record takes on a disk of 4096 byte blocks."""
    length = len(_header(specs, head, 0)) + _tensors(specs, head)[1]
    return -(-length // 4096) * 4096


def _header(specs: Specs, head: Head, crc: int) -> bytes:
    """With its length before it."""
    about = {
        "tokens": base64.b64encode(head.tokens).decode(),
        "since": str(head.since),
        "states": str(int(head.stateful)),
        "crc": f"{crc:010}",
    }
    text = json.dumps({"__metadata__": about, **_tensors(specs, head)[0]}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_head(path: Path, specs: Specs, most: int) -> Head | None:
    """What the record holds, at most `most` tokens; None when it is not a sound one. Raises OSError."""
    with path.open("rb") as f:
        found = _open(f, specs, most)
    return found and found[0]


def read(path: Path, specs: Specs, head: Head) -> Bytes | None:
    """The data of the record with this very head; None when it is not sound. Raises OSError."""
    with path.open("rb") as f:
        found = _open(f, specs, head.size)
        if found is None or found[0] != head:
            return None
        _, crc, size = found
        data = np.empty(size, dtype=np.uint8)
        return data if f.readinto(data.data) == size and zlib.crc32(data.data) == crc else None


def _open(f: Any, specs: Specs, most: int) -> tuple[Head, int, int] | None:
    """The head, and checksum and length of what follows; the file stands at its first byte."""
    size = os.fstat(f.fileno()).st_size
    length = int.from_bytes(f.read(8), "little")
    if not 0 < length <= min(size - 8, _MOST):
        return None
    try:
        entries = json.loads(f.read(length))
        about = entries.pop("__metadata__")
        tokens = base64.b64decode(about["tokens"], validate=True)
        head, crc = Head(tokens, int(about["since"]), about["states"] == "1"), int(about["crc"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, binascii.Error):
        return None
    if not head.tokens or len(head.tokens) % WIDTH or head.size > most or not 0 <= head.since <= head.size:
        return None
    expected, total = _tensors(specs, head)
    if entries != expected or size != 8 + length + total:
        return None
    return head, crc, total


def parts(specs: Specs, head: Head, start: int, data: Bytes) -> Parts:
    """The arrays in `data`, of a block that begins at token `start`. On the thread that will use them."""
    loaded: list[mx.array] = []
    at = 0
    for _, spec in _arrays(specs, head):
        size = _TYPES[spec.dtype][1] * math.prod(spec.shape)
        loaded.append(mx.array(data[at : at + size]).view(spec.dtype).reshape(spec.shape))
        at += size
    rest = iter(loaded)
    every = [next(rest) for _ in specs.every]
    window = [next(rest) for _ in specs.window] if head.since < head.size else []
    states = None
    if head.stateful:
        states = [[None if s is None else next(rest) for s in state] for state in specs.states]
    return Parts(every, window, start + head.since, states)


def raw(arrays: Sequence[mx.array]) -> list[Bytes]:
    """Their bytes, without a copy where the machine allows; waits for them. On the thread of the arrays."""
    views = [a.view(mx.uint8) for a in arrays]
    mx.eval(views)
    return [np.asarray(v).reshape(-1) for v in views]
