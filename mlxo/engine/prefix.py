"""The prefix cache: KV caches of what was read and written, for prompts that begin alike. Engine thread only.

An entry is one sequence's layer caches with the tokens that they hold, exactly. MLX arrays are values (a
write to one that is shared makes a copy), so an entry and the sequences resumed from it share buffers and
never see each other's tokens; only the Python objects around the arrays must be copied.
"""

from __future__ import annotations

import copy
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache, CacheList

# Tokens. Two prompts of one chat template always begin alike by a few, and those are read faster than copied.
LEAST = 16
# Entries. Each holds two buffers a layer, and Metal bounds the number of buffers, not only their bytes.
ENTRIES = 64
_WIDTH = 4  # bytes of a packed token


class _Entry(NamedTuple):
    """`trimmable`: any beginning of it can be resumed from; else the whole of it alone."""

    layers: list[Any]
    nbytes: int
    trimmable: bool


class Prefixes:
    """Kept sequences, the least recently used ones dropped beyond `budget` bytes or `entries`."""

    def __init__(self, budget: int, entries: int = ENTRIES) -> None:
        self._budget = budget
        self._most = entries
        # Packed tokens -> entry, in order of use, the latest last.
        self._entries: dict[bytes, _Entry] = {}
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def take(self, ids: Sequence[int]) -> tuple[list[Any] | None, int]:
        """Caches that hold the first n tokens of a prompt, the caller's own, and n; or None and 0.

        At least one token of the prompt is left over: a sequence starts by feeding one.
        """
        wanted = _pack(ids)
        found, most = b"", LEAST - 1
        for tokens, entry in self._entries.items():
            n = min(_common(tokens, wanted), len(ids) - 1)
            if n > most and (entry.trimmable or n * _WIDTH == len(tokens)):
                found, most = tokens, n
        if not found:
            return None, 0
        entry = self._touch(found)
        layers = copy.deepcopy(entry.layers)
        if (surplus := len(found) // _WIDTH - most) > 0:
            for layer in layers:
                layer.trim(surplus)
        return layers, most

    def keep(self, ids: Sequence[int], layers: list[Any]) -> None:
        """Take the layer caches that hold exactly `ids` in, the caller's no more. Does not wait for them."""
        if len(ids) < LEAST:
            return
        tokens = _pack(ids)
        for old, entry in self._entries.items():
            if entry.trimmable and old.startswith(tokens):
                self._touch(old)
                return
        nbytes = sum(layer.nbytes for layer in layers)
        if nbytes > self._budget:
            return
        # A chunked cache that lost its front trims, but to nothing that can be resumed from.
        trimmable = all(c.is_trimmable() and not getattr(c, "start_position", 0) for c in layers)
        # It serves all that its own beginnings would; unless it does not trim, then they are what is left.
        for old in [o for o in self._entries if tokens == o or (trimmable and tokens.startswith(o))]:
            self._drop(old)
        _detach(layers)
        mx.async_eval([layer.state for layer in layers])  # type: ignore[no-untyped-call]
        self._entries[tokens] = _Entry(layers, nbytes, trimmable)
        self.nbytes += nbytes
        while self.nbytes > self._budget or len(self._entries) > self._most:
            self._drop(next(iter(self._entries)))

    def clear(self) -> None:
        self._entries.clear()
        self.nbytes = 0

    def _touch(self, tokens: bytes) -> _Entry:
        entry = self._entries[tokens] = self._entries.pop(tokens)
        return entry

    def _drop(self, tokens: bytes) -> None:
        self.nbytes -= self._entries.pop(tokens).nbytes


def _pack(ids: Sequence[int]) -> bytes:
    return array("I", ids).tobytes()


def _common(a: bytes, b: bytes) -> int:
    """With how many equal tokens two packed sequences begin, by bisection: slices compare at memory speed."""
    low, high = 0, min(len(a), len(b)) // _WIDTH
    while low < high:
        middle = (low + high + 1) // 2
        part = slice(low * _WIDTH, middle * _WIDTH)
        if a[part] == b[part]:
            low = middle
        else:
            high = middle - 1
    return low


def _detach(layers: Sequence[Any]) -> None:
    """Cut recurrent states out of the batch they are views of, which they would keep alive."""
    for layer in layers:
        if isinstance(layer, CacheList):
            _detach(layer.caches)
        elif isinstance(layer, ArraysCache):
            layer.cache = [None if a is None else mx.contiguous(a) for a in layer.cache]
