"""What a model's layer caches are made of, for cutting them into blocks of tokens and joining them again.

Three kinds of layer. One that keeps every token is cut anywhere. A sliding window keeps the last `max_size`
tokens: a beginning of n tokens needs those right before n. What is left (recurrent states, unknown classes)
is whole or nothing: a beginning needs the state as it was at its very end.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ConcatenateKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
)

_EVERY = (KVCache, QuantizedKVCache, ConcatenateKVCache)


class Parts(NamedTuple):
    """What the layers hold of the tokens [start, end), in the order of the layers.

    `every` spans all of them, `window` those from `since` on; `states` are as after the last one, or None.
    A state is the list of an ArraysCache's arrays, some None, or a layer cache of a class unknown here.
    """

    every: list[mx.array]
    window: list[mx.array]
    since: int
    states: list[Any] | None

    @property
    def arrays(self) -> list[mx.array]:
        states = (a for s in self.states or () if isinstance(s, list) for a in s if a is not None)
        return [*self.every, *self.window, *states]

    @property
    def lazy(self) -> list[Any]:
        """All that may not be computed yet."""
        return [self.arrays, [s.state for s in self.states or () if not isinstance(s, list)]]

    @property
    def nbytes(self) -> int:
        others = sum(s.nbytes for s in self.states or () if not isinstance(s, list))
        return int(sum(a.nbytes for a in self.arrays) + others)


class Spec(NamedTuple):
    """An array; `shape` has 0 where its tokens are counted, at the last side but one, if it has tokens."""

    shape: tuple[int, ...]
    dtype: mx.Dtype


class Specs(NamedTuple):
    """Of the arrays of every Parts of one model; `states` has a None where an ArraysCache has one."""

    every: list[Spec]
    window: list[Spec]
    states: list[list[Spec | None]]


class Layout:
    """Made of layer caches of the model. `specs` is None when they are empty, or of a class unknown here.

    `window` is how many tokens before its end a beginning needs of the sliding layers; 0 without any.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        leaves = list(_leaves(layers))
        self._every = [i for i, c in enumerate(leaves) if type(c) in _EVERY]
        self._window = [i for i, c in enumerate(leaves) if type(c) is RotatingKVCache and not c.keep]
        self._states = [i for i in range(len(leaves)) if i not in {*self._every, *self._window}]
        self.window = max((leaves[i].max_size for i in self._window), default=0)
        self.stateful = bool(self._states)
        self.specs = self._measure(leaves)
        self._shell = [_hollow(layer) for layer in layers]

    def _measure(self, leaves: Sequence[Any]) -> Specs | None:
        if any(c.keys is None for c in (leaves[i] for i in (*self._every, *self._window))):
            return None
        states = [leaves[i] for i in self._states]
        if any(type(c) is not ArraysCache or c.cache[0] is None for c in states):
            return None
        return Specs(
            [_spec(a) for i in self._every for a in _sides(leaves[i])],
            [_spec(a) for i in self._window for a in _sides(leaves[i])],
            [[None if a is None else Spec(tuple(a.shape), a.dtype) for a in c.cache] for c in states],
        )

    def describe(self) -> str:
        """All that must be alike for the parts of one process to be of use to another."""
        return repr((self.specs, [*map(repr, map(type, _leaves(self._shell)))], self.window))

    def held(self, layers: Sequence[Any]) -> int:
        """How many of the last tokens the sliding layers hold; any number without such layers."""
        leaves = list(_leaves(layers))
        sizes = [leaves[i]._temporal_order(leaves[i].keys).shape[-2] for i in self._window]
        return min(sizes, default=1 << 62)

    def cut(self, layers: Sequence[Any], n: int, start: int, end: int) -> Parts:
        """The tokens [start, end) of layers that hold n, lazily, in buffers of their own."""
        leaves = list(_leaves(layers))
        every = [_copy(a[..., start:end, :]) for i in self._every for a in _sides(leaves[i])]
        windows = [leaves[i]._temporal_order(a) for i in self._window for a in _sides(leaves[i])]
        # They may hold unequal numbers of tokens, so these count from the end.
        held = min((w.shape[-2] for w in windows), default=0)
        since = min(max(start, n - held), end)
        window = []
        if since < end:
            window = [_copy(w[..., w.shape[-2] - (n - since) : w.shape[-2] - (n - end), :]) for w in windows]
        states = [_state(leaves[i]) for i in self._states] if end == n and self.stateful else None
        return Parts(every, window, since, states)

    def join(self, blocks: Sequence[tuple[int, Parts]], n: int, room: int = 0) -> list[Any]:
        """Layer caches of the first `n` tokens: `blocks` in order, each with the place of its first token.

        Layers that grow get room for `room` tokens more: growing copies all that they hold.
        """
        shell = copy.deepcopy(self._shell)
        leaves = list(_leaves(shell))
        place = 0
        for i in self._every:
            count = 6 if type(leaves[i]) is QuantizedKVCache else 2
            sides = [
                _joined([p.every[at][..., : n - start, :] for start, p in blocks], room)
                for at in range(place, place + count)
            ]
            place += count
            half = count // 2
            keys, values = tuple(sides[:half]), tuple(sides[half:])
            leaves[i].keys, leaves[i].values = (keys, values) if half > 1 else (keys[0], values[0])
            leaves[i].offset = n
        for place, i in enumerate(self._window):
            leaf = leaves[i]
            first = max(0, n - leaf.max_size)
            inside = [p for start, p in blocks if p.window and p.since + p.window[0].shape[-2] > first]
            leaf.keys, leaf.values = (
                mx.concatenate(
                    [p.window[at][..., max(first - p.since, 0) : n - p.since, :] for p in inside], axis=-2
                )
                for at in (2 * place, 2 * place + 1)
            )
            leaf.offset, leaf._idx = n, n - first
        for place, i in enumerate(self._states):
            states = blocks[-1][1].states
            assert states is not None
            _restore(leaves[i], states[place])
        return shell


def _leaves(layers: Sequence[Any]) -> Iterator[Any]:
    for layer in layers:
        if isinstance(layer, CacheList):
            yield from _leaves(layer.caches)
        else:
            yield layer


def _sides(leaf: Any) -> list[mx.array]:
    """Its arrays with a token a row: keys and values, or what a quantised layer keeps of each."""
    if isinstance(leaf.keys, mx.array):
        return [leaf.keys, leaf.values]
    return [*leaf.keys, *leaf.values]


def _spec(array: mx.array) -> Spec:
    return Spec((*array.shape[:-2], 0, array.shape[-1]), array.dtype)


def _joined(pieces: list[mx.array], room: int) -> mx.array:
    *shape, _, width = pieces[0].shape
    spare = [mx.zeros((*shape, room, width), dtype=pieces[0].dtype)] if room else []
    joined: mx.array = mx.concatenate([*pieces, *spare], axis=-2)
    return joined


def _copy(array: mx.array) -> mx.array:
    """Out of the buffer that it is a view of, and would keep alive."""
    copied: mx.array = mx.contiguous(array)
    return copied


def _hollow(layer: Any) -> Any:
    """The layer without what it holds."""
    if isinstance(layer, CacheList):
        return CacheList(*(_hollow(c) for c in layer.caches))
    shell = copy.copy(layer)
    if type(layer) is ArraysCache:
        shell.cache = [None] * len(layer.cache)
        shell.left_padding = shell.lengths = None
    elif hasattr(layer, "keys"):
        shell.keys = shell.values = None
    return shell


def _state(leaf: Any) -> Any:
    if type(leaf) is ArraysCache:
        return [None if a is None else _copy(a) for a in leaf.cache]
    return copy.deepcopy(leaf)


def _restore(leaf: Any, state: Any) -> None:
    if isinstance(state, list):
        leaf.cache = list(state)
    else:
        leaf.__dict__.update(copy.deepcopy(state).__dict__)
