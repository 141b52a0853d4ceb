"""Reading the head of a GGUF file: its metadata and its table of tensors. No weights are touched.

Layout (little-endian; the GGUF specification of the ggml project, versions 2 and 3):
    "GGUF", u32 version, u64 tensor count, u64 pair count
    pairs:   string key, u32 value type, value          (string = u64 length + UTF-8 bytes)
    tensors: string name, u32 dimensions, u64 x dimensions (innermost first), u32 type, u64 offset
    padding to `general.alignment` (32 unless given); offsets count from there

The file comes from outside. Every length is held against what is left of the file before anything is
allocated for it, and every tensor's bytes must lie inside the file and apart from the other tensors'.
Raises Corrupt for a file that breaks its format, UnsupportedModel for a sound one that mlxo cannot take.
"""

from __future__ import annotations

import mmap
import struct
import sys
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from mlxo.core.errors import Corrupt, NotFound, UnsupportedModel

MAGIC = b"GGUF"

# "Numbers" are packed: one metadata array can hold a byte a value, and a list would take eight times that.
Numbers: TypeAlias = "array[int] | array[float]"
Value: TypeAlias = "int | float | bool | str | Numbers | list[Value]"


class TensorType(NamedTuple):
    """`block` weights are stored in `size` bytes."""

    name: str
    block: int
    size: int


TYPES: Mapping[int, TensorType] = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    30: TensorType("BF16", 1, 2),
}
# Types that exist and that mlxo does not read: only for the sentence that refuses them.
_OTHER_TYPES: Mapping[int, str] = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip

_SCALARS: Mapping[int, str] = {  # value type -> struct code, little-endian
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_MAX_DEPTH = 4  # arrays in arrays; the format sets no limit, no writer goes past 1
_MAX_DIMENSIONS = 4
_MAX_NAME = 1024  # bytes of a key or of a tensor's name; no real one comes near it, and errors repeat them
_MAX_ALIGNMENT = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """`shape` is outermost first, as numpy has it (the file stores it the other way round).

    `offset` and `size` are bytes in the file.
    """

    name: str
    type: TensorType
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Header:
    metadata: Mapping[str, Value]
    tensors: Mapping[str, Tensor]

    @property
    def architecture(self) -> str:
        return self.text("general.architecture")

    def text(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise Corrupt(f"the GGUF file's {key} should be a string")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise Corrupt(f"the GGUF file's {key} should be an integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number; a stored float32 comes back with the digits that it was written with (1e-05)."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
            raise Corrupt(f"the GGUF file's {key} should be a finite number")
        return float(f"{value:.7g}") if isinstance(value, float) else float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise Corrupt(f"the GGUF file's {key} should be true or false")
        return value

    def strings(self, key: str) -> list[str]:
        value = self._get(key, None)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise Corrupt(f"the GGUF file's {key} should be a list of strings")
        return value  # type: ignore[return-value]

    def numbers(self, key: str) -> Numbers:
        value = self._get(key, None)
        if not isinstance(value, array):
            raise Corrupt(f"the GGUF file's {key} should be a list of numbers")
        return value

    def _get(self, key: str, default: Value | None) -> Value:
        value = self.metadata.get(key, default)
        if value is None:
            raise Corrupt(f"the GGUF file lacks {key}")
        return value


def read(path: Path) -> Header:
    """Raises NotFound when the file cannot be opened; Corrupt and UnsupportedModel as above."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise NotFound(f"cannot read the GGUF file {path}: {error.strerror}") from error
    with file:
        if file.seek(0, 2) == 0:  # an empty file cannot be mapped
            raise Corrupt("the GGUF file is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(data)


def is_gguf(path: Path) -> bool:
    """By its first bytes: blobs carry no extension."""
    with path.open("rb") as file:
        return file.read(4) == MAGIC


class _Cursor:
    """Reads forward, and only inside the file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.size = len(data)
        self.at = 0

    def take(self, count: int) -> int:
        """Claim `count` bytes; the offset where they start."""
        start = self.at
        if count > self.size - start:
            raise Corrupt("the GGUF file ends in the middle of its header", "fetch the file again")
        self.at = start + count
        return start

    def scalar(self, code: str) -> int | float | bool:
        value: int | float | bool
        start = self.take(struct.calcsize(code))
        (value,) = struct.unpack_from(f"<{code}", self.data, start)
        return value

    def u32(self) -> int:
        return int(self.scalar("I"))

    def u64(self) -> int:
        return int(self.scalar("Q"))

    def raw(self) -> bytes:
        length = self.u64()
        start = self.take(length)
        return self.data[start : start + length]

    def text(self) -> str:
        # Vocabularies made by old writers hold broken UTF-8; such a token must not cost the whole model.
        return self.raw().decode("utf-8", "replace")

    def name(self) -> str:
        raw = self.raw()
        if not raw or len(raw) > _MAX_NAME:
            raise Corrupt("the GGUF file has a key or a tensor name of an impossible length")
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Corrupt("the GGUF file has a key or a tensor name that is not UTF-8") from error

    def value(self, kind: int, depth: int = 0) -> Value:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise Corrupt(f"the GGUF file has a value of unknown type {kind}")
        if depth == _MAX_DEPTH:
            raise Corrupt("the GGUF file nests lists too deeply")
        return self._list(self.u32(), self.u64(), depth)

    def _list(self, kind: int, count: int, depth: int) -> Value:
        if code := _SCALARS.get(kind):
            packed = array("B" if code == "?" else code)
            start = self.take(count * packed.itemsize)
            packed.frombytes(self.data[start : self.at])
            if sys.byteorder == "big":
                packed.byteswap()
            return packed
        # A string takes at least its length, a list its type and its count.
        if count * (8 if kind == _STRING else 12) > self.size - self.at:
            raise Corrupt("the GGUF file has a list that is longer than the file")
        return [self.value(kind, depth + 1) for _ in range(count)]


def _read(data: mmap.mmap) -> Header:
    cursor = _Cursor(data)
    tensor_count, pair_count = _counts(cursor)
    metadata: dict[str, Value] = {}
    for _ in range(pair_count):
        key = cursor.name()
        if key in metadata:
            raise Corrupt(f"the GGUF file gives {key!r} twice")
        metadata[key] = cursor.value(cursor.u32())
    if metadata.get("split.count", 1) != 1:
        raise UnsupportedModel(
            "this GGUF file is one part of a model that is split over several files",
            "join the parts with llama-gguf-split --merge, then import the result",
        )
    entries = [_entry(cursor) for _ in range(tensor_count)]
    return Header(metadata=metadata, tensors=_place(entries, cursor, metadata))


def _counts(cursor: _Cursor) -> tuple[int, int]:
    if cursor.size < 4 or cursor.data[: len(MAGIC)] != MAGIC:
        raise Corrupt("this is not a GGUF file")
    cursor.take(len(MAGIC))
    version = cursor.u32()
    if version & 0xFFFF == 0 and version:  # 2 or 3 with its bytes the other way round
        raise UnsupportedModel(
            "this GGUF file is big-endian; mlxo reads little-endian ones",
            "fetch the ordinary file of this model",
        )
    if version not in (2, 3):
        raise UnsupportedModel(f"this GGUF file has format version {version}; mlxo reads versions 2 and 3")
    tensors, pairs = cursor.u64(), cursor.u64()
    # The smallest pair takes 14 bytes (a key of one letter, one byte of value), the smallest tensor 33.
    if pairs * 14 + tensors * 33 > cursor.size:
        raise Corrupt(f"the GGUF file claims {tensors} tensors and {pairs} keys, more than it has room for")
    return tensors, pairs


def _entry(cursor: _Cursor) -> tuple[str, TensorType, tuple[int, ...], int]:
    name = cursor.name()
    dimensions = cursor.u32()
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise Corrupt(f"tensor {name!r} of the GGUF file has {dimensions} dimensions")
    shape = tuple(cursor.u64() for _ in range(dimensions))[::-1]
    code = cursor.u32()
    offset = cursor.u64()
    kind = TYPES.get(code)
    if kind is None:
        label = _OTHER_TYPES.get(code, f"number {code}")
        raise UnsupportedModel(
            f"tensor {name!r} is stored as {label}, which mlxo cannot read",
            "use another quantization of this model: " + ", ".join(t.name for t in TYPES.values()),
        )
    return name, kind, shape, offset


def _place(
    entries: list[tuple[str, TensorType, tuple[int, ...], int]],
    cursor: _Cursor,
    metadata: Mapping[str, Value],
) -> dict[str, Tensor]:
    """Turn relative offsets into places in the file, each checked."""
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
        raise Corrupt("the GGUF file's general.alignment should be a power of two")
    base = (cursor.at + alignment - 1) // alignment * alignment
    tensors: dict[str, Tensor] = {}
    for name, kind, shape, offset in entries:
        if name in tensors:
            raise Corrupt(f"the GGUF file has two tensors named {name!r}")
        count = 1
        for side in shape:
            count *= side  # Python integers do not overflow
        if count == 0 or shape[-1] % kind.block or offset % alignment:
            raise Corrupt(f"tensor {name!r} of the GGUF file has an impossible shape or place")
        size = count // kind.block * kind.size
        if base + offset + size > cursor.size:
            raise Corrupt(f"the GGUF file ends before the data of tensor {name!r}", "fetch the file again")
        tensors[name] = Tensor(name=name, type=kind, shape=shape, offset=base + offset, size=size)
    _refuse_overlap(tensors)
    return tensors


def _refuse_overlap(tensors: Mapping[str, Tensor]) -> None:
    end, before = 0, ""
    for tensor in sorted(tensors.values(), key=lambda t: t.offset):
        if tensor.offset < end:
            raise Corrupt(f"tensors {before!r} and {tensor.name!r} of the GGUF file overlap")
        end, before = tensor.offset + tensor.size, tensor.name
