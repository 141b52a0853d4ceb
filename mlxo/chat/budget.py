"""What one render of a stranger's template may cost: time, memory, and the size of every value.

Lists and dicts are immutable in the sandbox, but one may hold another many times over: forty steps of
`[x, x]` are few bytes and a terabyte of text. So a value is weighed as it would be written, all the way down,
when it is made; from then on its weight does not change.
"""

from __future__ import annotations

import sys
import time
from collections.abc import ItemsView, Iterable, Iterator, KeysView, ValuesView
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.runtime import LoopContext

MAX_SECONDS = 5.0
MAX_CHARS = 32_000_000  # of the prompt, and of any value on the way as it would be written
_MAX_WRITTEN = 1 << 27  # characters that all blocks and macros write
_MAX_MADE = 1 << 30  # bytes of all values that one render makes
_MAX_PRODUCT = 1 << 28  # of the two largest operands of one call
_SMALL = _MAX_PRODUCT // MAX_CHARS  # beside an operand below this the heaviest value is no danger
MAX_BITS = 4096  # of a number
_ITEM = 16  # characters that an item of a list counts for, so that a list of nothing weighs something

_TEXTS = (str, bytes)
_GROUPS = (list, tuple, dict, set, frozenset, ItemsView, KeysView, ValuesView)


class Budget:
    """What is left of a render's time and memory. `start` it before each render."""

    def __init__(self) -> None:
        self._deadline = 0.0
        self._made = 0
        self._written = 0

    def start(self) -> None:
        self._deadline = time.monotonic() + MAX_SECONDS
        self._made = 0
        self._written = 0

    def tick(self) -> None:
        if time.monotonic() > self._deadline:
            raise SecurityError(f"it ran for more than {MAX_SECONDS:g} seconds")

    def before(self, operands: Iterable[Any]) -> None:
        """Refuse an operation that could make too much: `'x'.ljust(10**12)`, `s.replace('x', s)`."""
        self.tick()
        sizes: list[int] = []
        groups: list[Any] = []
        for operand in operands:
            if isinstance(operand, _TEXTS):
                sizes.append(len(operand))
            elif isinstance(operand, int):  # a width or a count
                sizes.append(abs(operand))
            elif isinstance(operand, _GROUPS):
                groups.append(operand)
            elif isinstance(operand, range):
                sizes.append(len(operand))
        if groups and (len(groups) > 1 or max(sizes, default=0) >= _SMALL):
            sizes += map(self.weigh, groups)
        sizes = sorted(sizes, reverse=True)[:2]
        if sizes and (sizes[0] > MAX_CHARS or (len(sizes) > 1 and sizes[0] * sizes[1] > _MAX_PRODUCT)):
            raise SecurityError("it asks for a value that is too large")

    def made(self, value: Any) -> Any:
        """Count and weigh a value that an operation made; returns it, or the list of an iterator's items."""
        if isinstance(value, Iterator) and not isinstance(value, LoopContext):
            value = self._collected(value)
        if isinstance(value, int):
            if value.bit_length() > MAX_BITS:
                raise SecurityError("it makes a number that is too large")
        elif isinstance(value, _TEXTS):
            self._count(value, len(value))
        elif isinstance(value, _GROUPS):
            self._count(value, self.weigh(value))
        return value

    def text(self, value: Any) -> str:
        """What a template writes, here or into a block or a macro's result."""
        self.tick()
        text = str(value)
        self._written += len(text)
        if self._written > _MAX_WRITTEN:
            raise SecurityError("it writes too much")
        return text

    def concat(self, values: Iterable[Any]) -> str:
        """The operands of `~` as one string."""
        texts = [str(value) for value in values]
        if sum(map(len, texts)) > MAX_CHARS:
            raise SecurityError("it makes values that are too large")
        return str(self.made("".join(texts)))

    def weigh(self, value: Any) -> int:
        """Characters to write `value`: what it holds twice counts twice. Refuses what is too heavy."""
        total = 0
        stack = [value]
        while stack:
            item = stack.pop()
            total += _ITEM
            if isinstance(item, _TEXTS):
                total += len(item)
            elif isinstance(item, _GROUPS):
                stack.extend(item)
                if isinstance(item, dict):
                    stack.extend(item.values())
            if total + len(stack) > MAX_CHARS:
                raise SecurityError("it makes values that are too large")
        return total

    def _collected(self, items: Iterator[Any]) -> list[Any]:
        """An iterator could run for ever inside one operation; a list has been through here."""
        found = []
        weight = 0
        for item in items:
            self.tick()
            weight += self.weigh(item) if isinstance(item, _GROUPS) else _ITEM
            if weight > MAX_CHARS:
                raise SecurityError("it makes values that are too large")
            found.append(item)
        return found

    def _count(self, value: Any, weight: int) -> None:
        self._made += sys.getsizeof(value)
        if weight > MAX_CHARS or self._made > _MAX_MADE:
            raise SecurityError("it makes values that are too large")
