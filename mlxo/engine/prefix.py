"""The prefix cache: what was read and written, for prompts that begin alike. Engine thread only.

A tree of blocks: each holds what the model's layers keep of `block` tokens or, at the end of a sequence, of
fewer. Sequences that begin alike share their blocks. A block can be in memory, on disk, or both. MLX arrays
are values, so a block and the sequences resumed from it never see each other's tokens.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import mlx.core as mx

from mlxo.engine.block import Block, common, pack
from mlxo.engine.layout import Layout, Parts
from mlxo.engine.record import WIDTH, Head, digest, storable
from mlxo.engine.spill import Spill, Store

# Tokens. Two prompts of one chat template always begin alike by a few, and those are read faster than copied.
LEAST = 16
# Tokens of a block.
BLOCK = 256
# Arrays in memory: Metal bounds the number of buffers, not only their bytes, at about 500,000.
ARRAYS = 100_000
# Tokens of an answer for which there is room in caches that are resumed from.
_ROOM = 256
_BACKLOG = 256  # sequences that may wait for the disk; the eldest are not written
# Tokens that a template may write after the start of the answer, such as those that open its thinking.
_TAIL = 64
_DIGEST = re.compile("[0-9a-f]{64}")


class Prefixes:
    """Blocks, the least recently used ones dropped from memory beyond `budget` bytes or `arrays`.

    `layout` is the model's; without one it is that of the first layers that come. `turns` are the tokens
    that may begin a message: those that no text makes.
    """

    def __init__(
        self,
        budget: int,
        arrays: int = ARRAYS,
        block: int = BLOCK,
        layout: Layout | None = None,
        turns: Collection[int] = (),
    ) -> None:
        self._budget = budget
        self._most = arrays
        self._block = block
        self._layout = layout
        self._turns = frozenset(turns)
        self._spill: Spill | None = None
        self._roots: dict[bytes, Block] = {}
        self._clock = 0
        self._unsaved: list[Block] = []  # the ends of sequences
        self.nbytes = 0
        self._arrays = 0

    def __len__(self) -> int:
        """How many blocks are in memory."""
        return sum(1 for _ in self._held())

    # ------------------------------------------------------------ finding

    def take(self, ids: Sequence[int], salt: bytes = b"") -> tuple[list[Any] | None, int]:
        """Caches that hold the first n tokens of a prompt, the caller's own, and n; or None and 0.

        At least one token of the prompt is left over: a sequence starts by feeding one. `salt` stands for
        whatever else the caches depend on; what was kept with another one is not found.
        """
        wanted = pack(ids)
        while True:
            last, n, _ = self._find(wanted, len(ids) - 1, salt)
            if last is None or n < LEAST:
                return None, 0
            path = list(last.path())[::-1]
            if all(self._fetch(block) for block in path):
                break
        assert self._layout is not None
        self._touch(path)
        self._used(path)
        room = len(ids) - n + _ROOM
        layers = self._layout.join([(b.start, b.parts) for b in path if b.parts], n, room)
        self._shrink()
        return layers, n

    def marks(self, ids: Sequence[int], read: int, salt: bytes = b"") -> list[int]:
        """At which lengths the reading of a prompt should pause for a `keep`, in order, all beyond `read`.

        Only where its end alone is of no use to others: for layers that cannot go back. What others may share
        is the system message, all but the last message, all but the answer; and whatever two have shared.
        """
        if self._layout is None or not (self._layout.stateful or self._layout.window):
            return []
        last = len(ids) - 1
        wanted = {self._find(pack(ids), last, salt)[2]}
        opening = next((t for t in reversed(ids) if t in self._turns), None)
        starts = [i for i, t in enumerate(ids) if t == opening]
        wanted |= {*starts[1:2], *starts[-2:-1]}
        wanted.add(starts[-1] if starts and last - starts[-1] <= _TAIL else last)
        found: list[int] = []
        for mark in sorted(m for m in wanted if m <= last):
            if mark >= LEAST and mark - max([read, *found[-1:]]) >= (1 if mark == last else LEAST):
                found.append(mark)
        return found

    def shared(self, ids: Sequence[int], others: Sequence[int]) -> int:
        """How many tokens of a prompt could be taken once `others` has been read; 0 when nothing is kept."""
        if not self._budget:
            return 0
        return min(common(pack(ids), pack(others)), len(ids) - 1, len(others) - 1)

    def _find(self, wanted: bytes, limit: int, salt: bytes) -> tuple[Block | None, int, int]:
        """The block in which the longest usable beginning of at most `limit` tokens ends, and its length.

        And how many tokens there are a beginning of, usable or not.
        """
        best: Block | None = None
        most = along = 0
        at = self._root(salt)
        while True:
            rest = wanted[at.end * WIDTH : (at.end + self._block) * WIDTH]
            whole = None
            for child in self._children(at):
                more = (max(most, at.end) - at.end + 1) * WIDTH
                if child.tokens[:more] != rest[:more]:
                    continue  # no more than the best has
                n = at.end + min(common(child.tokens, rest), limit - at.end)
                along = max(along, n)
                if n == at.end + self._block:
                    whole = child
                if n > max(most, at.end) and self._usable(child, n):
                    best, most = child, n
            if whole is None:
                return best, most, along
            at = whole

    def _usable(self, last: Block, n: int) -> bool:
        """Whether the layers as they were after `n` tokens, the last of them in `last`, are there."""
        layout = self._layout
        if layout is None or (layout.stateful and not (last.stateful and n == last.end)):
            return False
        for block in last.path():
            if block.end <= n - layout.window:
                break
            if block.since > max(block.start, n - layout.window) and layout.window:
                return False
        return True

    def _root(self, salt: bytes) -> Block:
        root = self._roots.get(salt)
        if root is None:
            key = hashlib.sha256(b"mlxo " + salt).digest()[:16]
            root = self._roots[salt] = Block(None, key, b"")
        return root

    def _children(self, block: Block) -> list[Block]:
        """Those in memory and on disk."""
        if self._spill and not block.known:
            block.known = True
            for head in self._spill.children(block.key, self._block):
                if head.tokens not in block.children:
                    child = Block(block, digest(block.key, head.tokens), head.tokens)
                    child.since, child.stateful = child.start + head.since, head.stateful
                    child.stored = True
                    block.children[head.tokens] = child
        return list(block.children.values())

    def _fetch(self, block: Block) -> bool:
        """See to it that a block is in memory; if it cannot be, it is forgotten."""
        if block.parts is not None:
            return True
        assert block.parent is not None
        parts = self._spill.load(block.parent.key, block.key, block.start) if self._spill else None
        if parts is None:
            self._forget(block)
            return False
        self._hold(block, parts)
        return True

    # ------------------------------------------------------------ keeping

    def keep(self, ids: Sequence[int], layers: Sequence[Any], salt: bytes = b"") -> None:
        """Take in what the layer caches hold, which is exactly `ids`. Does not wait for them."""
        n = len(ids)
        if n < LEAST or sum(layer.nbytes for layer in layers) > self._budget:
            return
        if self._layout is None:
            self._layout = Layout(layers)
        wanted = pack(ids)
        oldest = n - self._layout.held(layers)
        at, fresh, path = self._root(salt), [], []
        for start in range(0, n, self._block):
            end = min(start + self._block, n)
            tokens = wanted[start * WIDTH : end * WIDTH]
            at, new = self._place(at, tokens, layers, n, oldest)
            path.append(at)
            fresh += new
        self._touch(path)
        for block in path:
            self._supersede(block)
        mx.async_eval([p.lazy for p in fresh])  # type: ignore[no-untyped-call]
        if self._spill and n >= self._block // 2:
            self._unsaved = [*self._unsaved[-_BACKLOG:], at]
        self._shrink()

    def _place(
        self, parent: Block, tokens: bytes, layers: Sequence[Any], n: int, oldest: int
    ) -> tuple[Block, list[Parts]]:
        """The child of `parent` with these tokens, and what had to be made for it."""
        layout = self._layout
        assert layout is not None
        found = next((c for c in self._children(parent) if c.tokens == tokens), None)
        start, end = parent.end, parent.end + len(tokens) // WIDTH
        if found is None and end == n and not layout.stateful and not layout.window:
            found = next((c for c in parent.children.values() if c.tokens.startswith(tokens)), None)
        if found is not None and found.end > n:
            return found, []
        if found is not None:
            since = min(max(start, oldest), end) if layout.window else end
            gains = since < found.since or (layout.stateful and end == n and not found.stateful)
            loses = since > found.since or (found.stateful and end != n)
            if not gains and (found.parts is not None or loses):
                return found, []
        else:
            found = parent.children[tokens] = Block(parent, digest(parent.key, tokens), tokens)
        parts = layout.cut(layers, n, start, found.end)
        if (old := found.parts) is not None:
            if old.since < parts.since:
                parts = parts._replace(window=old.window, since=old.since)
            parts = parts._replace(every=old.every, states=parts.states or old.states)
        found.stored = False
        self._hold(found, parts)
        return found, [parts]

    def _supersede(self, block: Block) -> None:
        """Drop those beside `block` that hold nothing but beginnings of it."""
        assert block.parent is not None
        assert self._layout is not None
        for old in list(block.parent.children.values()):
            if len(old.tokens) >= len(block.tokens) or not block.tokens.startswith(old.tokens):
                continue
            if not old.stateful and (not self._layout.window or old.since >= block.since):
                block.replaces += [*old.replaces, *([old.key] if old.stored else [])]
                self._forget(old)

    def _hold(self, block: Block, parts: Parts) -> None:
        self._release(block)
        block.hold(parts)
        self.nbytes += parts.nbytes
        self._arrays += len(parts.arrays)

    def _release(self, block: Block) -> None:
        if block.parts is not None:
            self.nbytes -= block.parts.nbytes
            self._arrays -= len(block.parts.arrays)
            block.parts = None

    def _touch(self, path: Sequence[Block]) -> None:
        self._clock += 1
        for block in path:
            block.used = self._clock

    def _held(self) -> Iterator[Block]:
        todo = list(self._roots.values())
        while todo:
            block = todo.pop()
            todo += block.children.values()
            if block.parts is not None:
                yield block

    def _shrink(self) -> None:
        """Ends of sequences go before their beginnings; some more of the arrays than must, to sort rarely."""
        if self.nbytes <= self._budget and self._arrays <= self._most:
            return
        for block in sorted(self._held(), key=lambda b: (b.used, -b.start)):
            if self.nbytes <= self._budget and self._arrays <= self._most - self._most // 16:
                break
            self._release(block)
            if not block.stored:
                self._forget(block)

    def shrink(self, most: int) -> None:
        """Let go of memory until no more than `most` bytes are held."""
        budget, self._budget = self._budget, min(most, self._budget)
        self._shrink()
        self._budget = budget

    def _forget(self, block: Block) -> None:
        """Take a block out of the tree, with all that follows it."""
        assert block.parent is not None
        block.parent.children.pop(block.tokens, None)
        todo = [block]
        while todo:
            gone = todo.pop()
            todo += gone.children.values()
            self._release(gone)

    def clear(self) -> None:
        """Forget all that is in memory: the latest blocks may hang on a step that failed."""
        self._roots.clear()
        self._unsaved.clear()
        self.nbytes = self._arrays = 0

    # ------------------------------------------------------------ the disk

    def spill_to(self, store: Store, model: str, dtype: str) -> None:
        """Keep blocks on disk too, where the layout allows.

        `model` is its digest, `dtype` what it computes in.
        """
        if self._layout is not None and _DIGEST.fullmatch(model) and storable(self._layout.specs):
            self._spill = Spill(store, model, dtype, self._layout)

    @property
    def unsaved(self) -> bool:
        """Whether `save` has anything to do."""
        return bool(self._unsaved)

    def save(self, most: int | None = None) -> None:
        """Hand what came in lately to the disk, at most so many sequences. Waits for the blocks' arrays."""
        unsaved = self._unsaved[:most]
        del self._unsaved[: len(unsaved)]
        for last in unsaved if self._spill else ():
            path = list(last.path())[::-1]
            for block in path:
                self._save(block)
            self._used(path)

    def _save(self, block: Block) -> None:
        if self._spill is None or block.parent is None or block.parts is None or block.stored:
            return
        head = Head(block.tokens, block.since - block.start, block.stateful)
        block.stored = self._spill.save(block.parent.key, block.key, head, block.parts, block.replaces)
        if block.stored:
            block.replaces = []

    def _used(self, path: Sequence[Block]) -> None:
        """On the disk too what begins a sequence goes after what ends it."""
        if self._spill is not None:
            self._spill.used([(b.parent.key, b.key) for b in reversed(path) if b.parent and b.stored])

    def close(self, seconds: float) -> None:
        """Write what is to be written, for at most so long."""
        self.save()
        if self._spill is not None:
            self._spill.close(seconds)
        self.clear()
