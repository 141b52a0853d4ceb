"""How many tokens of a prompt to read in one step, by measurement: rows that write must keep their pace.

A step that reads takes longer than one that only writes, and all rows that write wait for it. So the reading
may take about as long as the writing does: the gap between two tokens about doubles, whatever the model, the
machine and the depth of the prompt. Where more rows read than write it is their time that counts more,
and the share grows with their number. While nobody writes pieces are as wide as the device likes them.
"""

from __future__ import annotations

# What a piece may take of the time that a step writes.
_SHARE = 1.25
# Seconds. While nobody writes a piece holds up only those who come next, and cancels.
_ALONE = 1.0
_RECENT = 0.25  # the weight of the latest step in the measured time of a step


class _Width:
    """Tokens a piece, steered towards a time."""

    def __init__(self, first: int, least: int, most: int, growth: float) -> None:
        self.tokens = first
        self._least = least
        self._most = most
        self._growth = growth
        self._last = 0.0

    def steer(self, taken: float, wanted: float) -> None:
        """A piece of `tokens` took `taken` seconds. What costs the same at any width is no matter: it
        settles where the two are equal, or at the least.
        """
        # Twice in a row, or it was something else on this machine.
        taken, self._last = min(taken, self._last or taken), taken
        factor = min(max(wanted / max(taken, 1e-6), 0.4), self._growth)
        changed = max(self.tokens + 1, self.tokens * factor) if factor > 1.0 else self.tokens * factor
        self.tokens = int(min(max(changed, self._least), self._most))

    def narrow(self) -> bool:
        before, self._most = self._most, max(self._least, self._most // 2)
        self.tokens = min(self.tokens, self._most)
        return self._most < before


class Pace:
    """`chunk` is a width that suits the device. Times are seconds. Engine thread only."""

    def __init__(self, chunk: int) -> None:
        self._alone = _Width(2 * chunk, chunk // 2, 4 * chunk, 2.0)
        self._beside = _Width(max(chunk // 4, 1), max(chunk // 16, 1), 4 * chunk, 1.2)
        self._writing = 0.0

    def width(self, writers: int) -> int:
        """Tokens of the next piece of a prompt, beside so many rows that write."""
        return (self._beside if writers else self._alone).tokens

    def narrow(self) -> bool:
        """Halve the widest piece there may be; False: it is as narrow as it gets."""
        return any([self._alone.narrow(), self._beside.narrow()])

    def wrote(self, seconds: float) -> None:
        """A step wrote and did nothing else, or wrote for so long before it read."""
        self._writing += _RECENT * (seconds - self._writing) if self._writing else seconds

    def read(self, tokens: int, seconds: float, writers: int, readers: int) -> None:
        """A piece of `tokens`, one row's, took so long beside `writers` rows; `readers` still read."""
        width = self._beside if writers else self._alone
        if tokens < width.tokens:
            return  # a prompt's end: what it took says little of a whole piece
        wanted = _SHARE * self._writing * max(1.0, 2.0 * readers / writers) if writers else _ALONE
        width.steer(seconds, wanted)
