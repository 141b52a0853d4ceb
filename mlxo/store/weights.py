"""The heads of safetensors files, read and checked without touching a weight.

Format: https://huggingface.co/docs/safetensors: u64 length (little-endian), that many bytes of JSON
{name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {...}}, then the data.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec

from mlxo.core.errors import Corrupt, UnsupportedModel
from mlxo.core.types import Frozen
from mlxo.store import disk

MAX_HEADER = 100 << 20  # bytes, the limit of the reference reader
# Bytes an element.
SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2,
    "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


class Tensor(Frozen, frozen=True, kw_only=True):
    """`type` is the safetensors dtype, `shape` outermost first."""

    name: str
    type: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


class _Entry(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def decode_json(data: bytes, what: str) -> Any:
    """Raises Corrupt, whatever the bytes."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise Corrupt(f"{what} is not valid JSON: {e}") from None


def read_header(path: Path, name: str) -> tuple[Tensor, ...]:
    """The tensors of a file, which is called `name` in errors. Raises Corrupt or UnsupportedModel."""
    with disk.guard(path), path.open("rb") as f:
        size = path.stat().st_size
        length = int.from_bytes(f.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise Corrupt(
                f"{name} is not a safetensors file: its header does not fit into its {size} bytes",
                "fetch or write the file again",
            )
        raw = f.read(length)
    entries = decode_json(raw, f"the header of {name}")
    if not isinstance(entries, dict):
        raise Corrupt(f"the header of {name} is not a JSON object")
    entries.pop("__metadata__", None)
    checked = {tensor: _entry(tensor, entry, name) for tensor, entry in entries.items()}
    _check_places(checked, size - 8 - length, name)
    return tuple(Tensor(name=t, type=e.dtype, shape=tuple(e.shape)) for t, e in checked.items())


def _entry(tensor: str, raw: Any, name: str) -> _Entry:
    try:
        entry = msgspec.convert(raw, _Entry)
    except msgspec.ValidationError as e:
        raise Corrupt(f"tensor {tensor[:80]!r} of {name} is described wrongly: {e}") from None
    if entry.dtype not in SIZES:
        raise UnsupportedModel(
            f"tensor {tensor[:80]!r} of {name} has the type {entry.dtype[:20]!r}, which mlxo cannot read"
        )
    begin, end = entry.data_offsets
    if any(side < 0 for side in entry.shape) or end - begin != math.prod(entry.shape) * SIZES[entry.dtype]:
        raise Corrupt(f"tensor {tensor[:80]!r} of {name} has a shape that does not match its bytes")
    return entry


def _check_places(entries: dict[str, _Entry], size: int, name: str) -> None:
    """Every tensor inside the data, none over another."""
    last = 0
    for tensor, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        begin, end = entry.data_offsets
        if begin < last or end > size:
            fault = "overlaps another" if end <= size else "lies outside the file"
            raise Corrupt(f"tensor {tensor[:80]!r} of {name} {fault}", "fetch or write the file again")
        last = end
