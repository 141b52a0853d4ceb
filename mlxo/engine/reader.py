"""Rows that read their prompts together, a piece a step. Engine thread only."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

import mlx.core as mx
from mlx_lm.models.cache import BatchKVCache, KVCache

from mlxo.engine.quantised import Batched, merge
from mlxo.engine.sampling import Rows, WithRows

# Caches that any number of tokens can be taken out of again.
_PADDABLE = (KVCache, BatchKVCache, Batched)
_LEAST = 16  # tokens that are fed at once, where that number is to be a power of two


class Reader:
    """A row of its own at first; then those that joined. All lists are in the order of the rows.

    `tokens` are those that the caches hold, `rest` those yet to be read: all but each prompt's last one,
    which is fed when the row begins to write. While there is one row its layer caches are as the model makes
    them: those need no mask and no padding. From the second on they are mlx_lm's batch caches.
    """

    def __init__(self, uid: int, ids: list[int], read: int, cache: list[Any], rows: Rows) -> None:
        self.uids = [uid]
        self.tokens = [ids[:read]]
        self.rest = [ids[read:-1]]
        self.cache = [*cache, rows]
        self._merged = False
        self._reserve(len(ids) + KVCache.step)

    def __len__(self) -> int:
        return len(self.uids)

    @property
    def depth(self) -> int:
        return max(map(len, self.tokens))

    @property
    def longest(self) -> int:
        return max(map(len, self.rest))

    def _reserve(self, size: int) -> None:
        """Let a cache that grows take the room for the prompt at once: growing copies all that it holds."""
        for layer in self.cache:
            if type(layer) is KVCache and size - layer.offset > layer.step:
                layer.step = size - layer.offset

    def merged(self) -> list[Any]:
        """The caches, of the kind that holds several rows."""
        if not self._merged:
            self.cache = [merge([layer]) for layer in self.cache]
            self._merged = True
        return self.cache

    def join(self, other: Self) -> None:
        """Take the other's rows in, behind these. The other is of no use then."""
        if self._merged or other._merged:
            for mine, theirs in zip(self.merged(), other.merged(), strict=True):
                mine.extend(theirs)
        else:
            self.cache = [merge([a, b]) for a, b in zip(self.cache, other.cache, strict=True)]
            self._merged = True
        self.uids += other.uids
        self.tokens += other.tokens
        self.rest += other.rest

    def extract(self, index: int) -> list[Any]:
        """One row's layer caches, its own."""
        if not self._merged:
            return copy.deepcopy(self.cache[:-1])
        return [layer.extract(index) for layer in self.cache[:-1]]

    def split(self, indices: Sequence[int]) -> Self:
        """These rows by themselves; they are no longer here. All of them: the reader itself, left empty."""
        parted = copy.copy(self)
        others = [i for i in range(len(self)) if i not in indices]
        if others:
            parted.cache = copy.deepcopy(self.cache)
            parted._keep(list(indices))
            self._keep(others)
        else:
            self.uids, self.tokens, self.rest, self.cache = [], [], [], []
        return parted

    def drop(self, index: int) -> None:
        if len(self) > 1:
            self._keep([i for i in range(len(self)) if i != index])
        else:
            self.split([index])

    def _keep(self, indices: list[int]) -> None:
        for layer in self.cache:
            layer.filter(indices)
        self.uids = [self.uids[i] for i in indices]
        self.tokens = [self.tokens[i] for i in indices]
        self.rest = [self.rest[i] for i in indices]

    def read(self, model: WithRows, width: int, even: bool = False) -> list[Any]:
        """Feed up to `width` tokens of every row, lazily: returns what is to be evaluated.

        `even`: pad what is fed to a power of two, where the caches allow.
        """
        pieces = [rest[:width] for rest in self.rest]
        lengths = [len(p) for p in pieces]
        longest = max(lengths)
        if even and all(type(layer) in _PADDABLE for layer in self.cache[:-1]):
            longest = max(_LEAST, 1 << (longest - 1).bit_length())
        padding = [longest - n for n in lengths]
        padded = max(padding) > 0
        if padded:
            pieces = [[*p, *[0] * n] for p, n in zip(pieces, padding, strict=True)]
            for layer in self.cache if self._merged else ():
                layer.prepare(lengths=lengths, right_padding=padding)
        model(mx.array(pieces), cache=self.cache)
        if padded:
            for layer in self.cache[:-1]:
                layer.finalize() if self._merged else layer.trim(padding[0])
        for i, n in enumerate(lengths):
            self.tokens[i] = self.tokens[i] + self.rest[i][:n]
            self.rest[i] = self.rest[i][n:]
        return [layer.state for layer in self.cache]
