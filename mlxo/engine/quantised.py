"""Keys and values at 4 or 8 bits, for rows that share a batch as for those that do not.

mlx_lm has the cache of one sequence, `QuantizedKVCache`, and an attention that takes whatever has `bits`.
What it lacks is a batch of them: `Batched`, with the ways of its `BatchKVCache`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import mlx.core as mx
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import BatchKVCache, KVCache, QuantizedKVCache, dynamic_roll, make_prompt_cache

from mlxo.core.errors import LoadFailed

BITS = (4, 8)
_GROUPS = (64, 32)  # numbers that share a scale, the better ones first: they must divide a head's width
_STEP = 256  # tokens by which the arrays grow


def quantise(model: Any, bits: int, name: str) -> None:
    """Let the model make quantised caches from now on. Raises LoadFailed when it cannot use them."""
    if bits not in BITS:
        raise LoadFailed(
            f"the model {name} has PARAMETER kv_bits {bits}",
            "kv_bits is 4, 8 or 16, which is no quantisation",
        )
    caches = make_prompt_cache(model)
    if any(type(c) is not KVCache for c in caches):
        raise LoadFailed(
            f"the model {name} cannot quantise its keys and values: not all of its layers keep every token",
            "remove PARAMETER kv_bits from its Modelfile",
        )
    model(mx.zeros((1, 1), dtype=mx.int32), cache=caches)
    widths = {side.shape[-1] for c in caches for side in (c.keys, c.values)}
    group = next((g for g in _GROUPS if all(w % g == 0 for w in widths)), None)
    made = [QuantizedKVCache(group or _GROUPS[0], bits) for _ in caches]
    try:
        if group is None:
            raise ValueError(f"heads of {min(widths)} numbers")
        model(mx.zeros((1, 1), dtype=mx.int32), cache=made)
    except (AttributeError, TypeError, ValueError) as e:
        raise LoadFailed(
            f"the model {name} cannot quantise its keys and values: its attention does not take them ({e})",
            "remove PARAMETER kv_bits from its Modelfile",
        ) from e
    model.make_cache = lambda: [QuantizedKVCache(group, bits) for _ in caches]


def merge(layers: Sequence[Any]) -> Any:
    """Layer caches of one row each as one of several, in order."""
    if type(layers[0]) is QuantizedKVCache:
        return Batched.merge(layers)
    if len(layers) == 1 and type(layers[0]) is KVCache and layers[0].keys is not None:
        return _alone(layers[0])
    return layers[0].merge(layers)


def _alone(layer: KVCache) -> BatchKVCache:
    """Its row as the only one of several, without the copy that merging makes."""
    batch = BatchKVCache([0])
    batch.keys, batch.values = layer.keys, layer.values
    batch.offset, batch._idx = mx.array([layer.offset]), layer.offset
    return batch


class Batched:
    """Rows of `QuantizedKVCache`s, padded at the left to one length.

    `sides` are the arrays [B, heads, room, width] of the keys (packed, scales, biases), then of the values;
    none while no row holds anything. Tokens stand up to `_idx`, those of row b from `left_padding[b]` on.
    """

    def __init__(self, padding: list[int], group_size: int, bits: int) -> None:
        self.group_size = group_size
        self.bits = bits
        self.sides: list[mx.array] = []
        self.left_padding = mx.array(padding)
        self.offset = mx.array([-n for n in padding])
        self._idx = 0
        self._right_padding: mx.array | None = None

    @classmethod
    def merge(cls, layers: Sequence[QuantizedKVCache]) -> Self:
        longest = max(layer.offset for layer in layers)
        merged = cls([longest - layer.offset for layer in layers], layers[0].group_size, layers[0].bits)
        full = [_sides(layer) for layer in layers if layer.offset]
        if not full:
            return merged
        for at, some in enumerate(full[0]):
            rows = []
            for layer in layers:
                side = _sides(layer)[at] if layer.offset else some[..., :0, :]
                rows.append(_padded(side, longest - layer.offset, 0))
            merged.sides.append(mx.concatenate(rows))
        merged.offset += longest
        merged._idx = longest
        return merged

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        fresh = [
            side
            for a in (keys, values)
            for side in mx.quantize(a, group_size=self.group_size, bits=self.bits)
        ]
        before, self._idx = self._idx, self._idx + keys.shape[2]
        if not self.sides or self._idx > self.sides[0].shape[2]:
            room = -(-keys.shape[2] // _STEP) * _STEP
            held = [s[..., :before, :] for s in self.sides] or [f[..., :0, :] for f in fresh]
            self.sides = [_padded(s, 0, room) for s in held]
        for side, new in zip(self.sides, fresh, strict=True):
            side[..., before : self._idx, :] = new
        self.offset = self.offset + keys.shape[2]
        return self.keys_and_values()

    def keys_and_values(self) -> tuple[Any, Any]:
        held = [s[..., : self._idx, :] for s in self.sides]
        return tuple(held[:3]), tuple(held[3:])

    def make_mask(self, width: int, return_array: bool = False, **window: Any) -> mx.array:
        mask: mx.array = create_causal_mask(width, offset=self._idx, left_padding=self.left_padding, **window)
        return mask

    def prepare(self, *, right_padding: Sequence[int] | None = None, **_: object) -> None:
        if right_padding is not None and max(right_padding) > 0:
            self._right_padding = mx.array(list(right_padding))

    def finalize(self) -> None:
        """Move the padding behind the rows' latest tokens before their first ones."""
        padding, self._right_padding = self._right_padding, None
        if padding is None:
            return
        # Up to where tokens stand: what lies behind that is no padding, but room.
        self.sides = [dynamic_roll(s[..., : self._idx, :], padding[:, None], axis=2) for s in self.sides]
        self.offset = self.offset - padding
        self.left_padding = self.left_padding + padding

    def filter(self, keep: Sequence[int]) -> None:
        some = mx.array(list(keep))
        self.offset, self.left_padding = self.offset[some], self.left_padding[some]
        spare: int = self.left_padding.min().item()  # type: ignore[assignment]
        self.sides = [s[some][..., spare:, :] for s in self.sides]
        self._idx -= spare
        self.left_padding = self.left_padding - spare

    def extend(self, other: Self) -> None:
        longest = max(self._idx, other._idx)
        sides = [
            s or [a[:0, :, :0] for a in o] for s, o in ((self.sides, other.sides), (other.sides, self.sides))
        ]
        rows = (self.offset.size, other.offset.size)
        held = (self._idx, other._idx)
        joined = []
        for pair in zip(*sides, strict=True):
            parts = []
            for side, count, size in zip(pair, rows, held, strict=True):
                if side.shape[0] != count:
                    side = mx.zeros((count, *side.shape[1:]), dtype=side.dtype)
                parts.append(_padded(side[..., :size, :], longest - size, 0))
            joined.append(mx.concatenate(parts))
        self.sides = joined
        padding = [c.left_padding + (longest - c._idx) for c in (self, other)]
        self.left_padding = mx.concatenate(padding)
        self.offset = mx.concatenate([self.offset, other.offset])
        self._idx = longest

    def extract(self, index: int) -> QuantizedKVCache:
        layer = QuantizedKVCache(self.group_size, self.bits)
        start: int = self.left_padding[index].item()  # type: ignore[assignment]
        held = [mx.contiguous(s[index : index + 1, :, start : self._idx]) for s in self.sides]
        if held:
            layer.keys, layer.values = tuple(held[:3]), tuple(held[3:])
            layer.offset = self._idx - start
        return layer

    def size(self) -> int:
        return self._idx

    def empty(self) -> bool:
        return not self.sides

    @property
    def state(self) -> list[mx.array]:
        return [*self.sides, self.offset, self.left_padding]

    @property
    def nbytes(self) -> int:
        return sum(s.nbytes for s in self.sides)


def _sides(layer: QuantizedKVCache) -> list[mx.array]:
    return [s[..., : layer.offset, :] for s in (*layer.keys, *layer.values)]


def _padded(side: mx.array, left: int, right: int) -> mx.array:
    return mx.pad(side, [(0, 0), (0, 0), (left, right), (0, 0)]) if left or right else side
