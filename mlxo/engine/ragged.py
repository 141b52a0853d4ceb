"""A KV cache whose rows have lengths of their own: written at each row's end, read up to it.

mlx_lm's batch caches keep one write position for all rows, so all rows must take back the same number of
tokens. Here a row takes tokens back by a lower length; what stands beyond it is never read and gets
overwritten. A model takes the layers as it takes `BatchKVCache`: an array of offsets for the rotations, one
mask for all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import BatchKVCache, KVCache, make_prompt_cache

_STEP = 256  # columns by which the arrays grow


class Ragged:
    """`layers` go to the model; `lengths[b]` is how many tokens row b holds, the caller's to raise and lower.

    Write with `open(width)` before and a call of the model after: row b's tokens land behind its length.
    """

    def __init__(self, layers: int) -> None:
        self.layers = [_Layer(self) for _ in range(layers)]
        self.lengths: list[int] = []
        self.offset = mx.array([], dtype=mx.int32)  # [B]
        self.columns = 0  # that the next call reads
        self.index = mx.array([], dtype=mx.int32)  # [B, 1, W, 1]: where it writes

    def __len__(self) -> int:
        return len(self.lengths)

    def open(self, width: int) -> None:
        """Fix where the next call of the model, [B, width] tokens, writes and what it reads."""
        self.offset = mx.array(self.lengths, dtype=mx.int32)
        self.index = (self.offset[:, None] + mx.arange(width))[:, None, :, None]
        self.columns = max(self.lengths) + width

    def extend(self, layers: Sequence[Any], lengths: Sequence[int]) -> None:
        """Add rows at the end: layer caches of mlx_lm (KVCache of one row, BatchKVCache of several)."""
        columns = max(lengths, default=0)
        for layer, other in zip(self.layers, layers, strict=True):
            starts = other.left_padding.tolist() if isinstance(other, BatchKVCache) else [0] * len(lengths)
            layer.extend(other.keys, other.values, starts, lengths, columns)
        self.lengths += lengths

    def filter(self, keep: Sequence[int]) -> None:
        self.lengths = [self.lengths[i] for i in keep]
        for layer in self.layers:
            layer.filter(list(keep))

    def extract(self, row: int, length: int) -> list[KVCache]:
        """The first `length` tokens of a row, in caches of their own."""
        found = []
        for layer in self.layers:
            cache = KVCache()
            cache.keys = mx.contiguous(layer.keys[row : row + 1, :, :length])
            cache.values = mx.contiguous(layer.values[row : row + 1, :, :length])
            cache.offset = length
            found.append(cache)
        return found


class _Layer:
    """One layer's keys and values [B, heads, T, D], in the protocol that models use."""

    def __init__(self, owner: Ragged) -> None:
        self._owner = owner
        self.keys: Any = None
        self.values: Any = None

    @property
    def offset(self) -> mx.array:
        return self._owner.offset

    @property
    def state(self) -> list[mx.array]:
        return [] if self.keys is None else [self.keys, self.values]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.state)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Both [B, heads, W, D] in; all that any row has by now out, [B, heads, columns, D]."""
        columns = self._owner.columns
        if columns > self.keys.shape[2]:
            self.keys = _widened(self.keys, columns)
            self.values = _widened(self.values, columns)
        index = self._owner.index
        self.keys = mx.put_along_axis(self.keys, index, keys, axis=2)
        self.values = mx.put_along_axis(self.values, index, values, axis=2)
        return self.keys[..., :columns, :], self.values[..., :columns, :]

    def make_mask(self, width: int, window_size: int | None = None, **_: object) -> mx.array:
        """[B, 1, width, columns], true where a token may look: at its row's own past and itself."""
        last = (self._owner.offset[:, None] + mx.arange(width))[:, None, :, None]
        columns = mx.arange(self._owner.columns)
        mask = columns <= last
        return mask if window_size is None else mask & (columns > last - window_size)

    def extend(
        self, keys: mx.array, values: mx.array, starts: Sequence[int], lengths: Sequence[int], columns: int
    ) -> None:
        self.keys = _joined(self.keys, keys, starts, lengths, columns)
        self.values = _joined(self.values, values, starts, lengths, columns)

    def filter(self, keep: list[int]) -> None:
        if not keep:
            self.keys = self.values = None
        else:
            self.keys, self.values = self.keys[keep], self.values[keep]


def _widened(array: mx.array, columns: int) -> mx.array:
    missing = -(-columns // _STEP) * _STEP - array.shape[2]
    return mx.pad(array, [(0, 0), (0, 0), (0, missing), (0, 0)])


def _joined(
    old: mx.array | None, new: mx.array, starts: Sequence[int], lengths: Sequence[int], columns: int
) -> mx.array:
    """`new`'s rows, each from its start on, below those of `old`; as wide as both need."""
    wide = max(columns, 1) if old is None else max(columns, old.shape[2])
    wide = -(-wide // _STEP) * _STEP
    rows = [] if old is None else [old if old.shape[2] == wide else _widened(old, wide)]
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        rows.append(_widened(new[row : row + 1, :, start : start + length], wide))
    return mx.concatenate(rows)


def fits(model: Any) -> bool:
    """Whether a model computes the same with these caches as with its own, by trying it on a few tokens.

    It cannot when a layer keeps anything but plain keys and values, or takes offsets for one number.
    """
    if any(type(c) is not KVCache for c in make_prompt_cache(model)):
        return False
    text = mx.arange(1, 9)[None]
    own = make_prompt_cache(model)
    expected = model(text, cache=own)[:, -2:]
    rows = Ragged(len(own))
    for length in (6, 3):
        cache = make_prompt_cache(model)
        model(text[:, :length], cache=cache)
        rows.extend(cache, [length])
    try:
        rows.open(2)
        found = model(mx.concatenate([text[:, 6:], text[:, 3:5]]), cache=rows.layers)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return False
    error = mx.abs(found[:1] - expected).max()
    return bool((error <= 0.02 * mx.abs(expected).max()).item())
