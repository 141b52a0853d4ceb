"""A block of tokens in the tree of the prefix cache, and tokens packed into bytes. Engine thread only."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

from mlxo.engine.layout import Parts
from mlxo.engine.record import WIDTH


class Block:
    """`parts` is None when it is not in memory, `stored` whether it is on disk.

    `since` and `stateful` say what parts it has, wherever they are (see Parts; `since` is absolute).
    """

    __slots__ = (
        "children", "key", "known", "parent", "parts", "replaces", "since", "start", "stateful", "stored",
        "tokens", "used",
    )  # fmt: skip

    def __init__(self, parent: Block | None, key: bytes, tokens: bytes) -> None:
        self.parent = parent
        self.key = key
        self.tokens = tokens
        self.start = parent.end if parent else 0
        self.children: dict[bytes, Block] = {}
        self.known = False  # whether its children on disk are among `children`
        self.parts: Parts | None = None
        self.stored = False
        self.replaces: list[bytes] = []  # keys of what is to go from the disk once it is there
        self.since = self.end
        self.stateful = False
        self.used = 0

    @property
    def end(self) -> int:
        return self.start + len(self.tokens) // WIDTH

    def hold(self, parts: Parts) -> None:
        self.parts = parts
        self.since = parts.since
        self.stateful = parts.states is not None

    def path(self) -> Iterator[Block]:
        """Itself and what comes before it, back to the first."""
        at = self
        while at.parent is not None:
            yield at
            at = at.parent


def pack(ids: Sequence[int]) -> bytes:
    return array("I", ids).tobytes()


def common(a: bytes, b: bytes) -> int:
    """With how many equal tokens two packed sequences begin, by bisection: slices compare at memory speed."""
    low, high = 0, min(len(a), len(b)) // WIDTH
    while low < high:
        middle = (low + high + 1) // 2
        part = slice(low * WIDTH, middle * WIDTH)
        if a[part] == b[part]:
            low = middle
        else:
            high = middle - 1
    return low
