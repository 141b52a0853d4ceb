"""The k largest of each row, some ten times faster than by a partition of all of them."""

from __future__ import annotations

import mlx.core as mx

_BLOCK = 64


def top_k(values: mx.array, k: int) -> mx.array:
    """[B, N] -> the places of k of the largest of each row, in no order, uint32 [B, k].

    They are in the k blocks that have the largest maxima: so all but these is looked at once. Of equals at
    the edge any may come. `k` is at least 1 and at most N.
    """
    rows, size = values.shape
    if k * _BLOCK * 2 > size:
        return _partition(values, k)
    whole = size - size % _BLOCK
    blocks = values[:, :whole].reshape(rows, -1, _BLOCK)
    best = _partition(blocks.max(axis=-1), k)
    inside = mx.take_along_axis(blocks, best[:, :, None], axis=1).reshape(rows, -1)
    places = (best[:, :, None] * _BLOCK + mx.arange(_BLOCK, dtype=best.dtype)).reshape(rows, -1)
    if whole < size:
        rest = mx.arange(whole, size, dtype=best.dtype)[None]
        inside = mx.concatenate([inside, values[:, whole:]], axis=1)
        places = mx.concatenate([places, mx.broadcast_to(rest, (rows, size - whole))], axis=1)
    return mx.take_along_axis(places, _partition(inside, k), axis=-1)


def _partition(values: mx.array, k: int) -> mx.array:
    return mx.argpartition(-values, kth=k - 1, axis=-1)[:, :k]
