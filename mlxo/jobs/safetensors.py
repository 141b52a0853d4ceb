"""Writing one safetensors file tensor by tensor, so that no more than a piece of one is in memory.

Layout (github.com/huggingface/safetensors): u64 length of the header, the header as JSON
{name: {"dtype", "shape", "data_offsets": [begin, end]}}, then the bytes, little-endian, without gaps.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_ITEM = {"F32": 4, "F16": 2, "BF16": 2, "U32": 4, "U8": 1, "I32": 4, "I64": 8, "BOOL": 1}


class Entry(NamedTuple):
    dtype: str  # as safetensors names it: a key of _ITEM
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return _ITEM[self.dtype] * math.prod(self.shape)


class Writer:
    """A context manager. The file appears under its name, complete and on disk, when the block ends well.

    Invariant: the bytes of a tensor are written in order; tensors may interleave.
    """

    def __init__(self, path: Path, entries: Mapping[str, Entry]) -> None:
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._file = self._part.open("wb")
        header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
        end = 0
        self._next: dict[str, int] = {}
        self._end: dict[str, int] = {}
        for name, entry in entries.items():
            self._next[name], end = end, end + entry.size
            self._end[name] = end
            offsets = [self._next[name], end]
            header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._base = 8 + len(text)

    def write(self, name: str, data: NDArray[Any]) -> None:
        """Append the bytes of `data` to the tensor `name`."""
        start = self._next[name]
        if start + data.nbytes > self._end[name]:
            raise ValueError(f"too many bytes for tensor {name}")
        self._file.seek(self._base + start)
        self._file.write(np.ascontiguousarray(data).data)
        self._next[name] = start + data.nbytes

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                self._finish()
        if kind is not None:
            self._part.unlink(missing_ok=True)

    def _finish(self) -> None:
        for name, at in self._next.items():
            if at != self._end[name]:
                raise ValueError(f"tensor {name} was not written whole")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._part.rename(self._path)
