"""Whether drafting pays, and how far: what steps of each shape cost here, and how often drafts come true.

A step of `width` tokens a row costs more than one of a single token, and how much more depends on the
machine, on the model and on how many rows there are. So both are measured as they run, and what was measured
is believed for a while only.
"""

from __future__ import annotations

from collections.abc import Sequence

# Tokens a row in one step: itself and what is drafted behind it.
WIDTHS = (1, 2, 3, 4, 5, 7, 9, 13, 17)
MOST = WIDTHS[-1] - 1
_LIFE = 256  # steps after which a cost is forgotten, and with it the verdict that it was too high
_ENOUGH = 3  # measurements before a cost counts
_NEW = 0.25  # the weight of the latest measurement
_SLOPE = 0.05  # of a plain step: what one more token a row costs before anything was measured
_MARGIN = 1.03  # how much better than plain drafting must look
_FAIR = 1.5  # how much longer than plain a row may wait for a token because others draft


class Chance:
    """How likely the next drafted token of one row is right. Old trials fade."""

    def __init__(self) -> None:
        self._right = 1.0
        self._tried = 2.0

    @property
    def likely(self) -> float:
        return self._right / self._tried

    def note(self, right: int, tried: int) -> None:
        fade = 0.9**tried
        self._right = self._right * fade + right
        self._tried = self._tried * fade + tried

    def forget(self) -> None:
        """One step without a trial: back towards not knowing, in some hundred of them."""
        self._right += (1.0 - self._right) * 0.01
        self._tried += (2.0 - self._tried) * 0.01

    def expect(self, drafted: int) -> float:
        """How many of `drafted` tokens will be accepted on average: each counts only if all before it do."""
        p = min(self.likely, 0.995)
        return p * (1 - p**drafted) / (1 - p)


class _Cost:
    def __init__(self) -> None:
        self.seconds = 0.0
        self.count = 0
        self.born = 0

    def note(self, seconds: float) -> None:
        if self.count:
            # A step that was held up by something else on the machine says little.
            seconds = min(seconds, 3 * self.seconds)
        weight = max(_NEW, 1 / (self.count + 1))
        self.seconds += (seconds - self.seconds) * weight
        self.count += 1


class Gauge:
    """Seconds a step by (rows, width)."""

    def __init__(self) -> None:
        self._costs: dict[tuple[int, int], _Cost] = {}
        self._steps = 0

    def note(self, rows: int, width: int, seconds: float) -> None:
        self._steps += 1
        key = (_bucket(rows), width)
        cost = self._costs.get(key)
        if cost is None or self._steps - cost.born > _LIFE:
            cost = self._costs[key] = _Cost()
            cost.born = self._steps
        cost.note(seconds)

    def width(self, offers: Sequence[tuple[Chance, int]]) -> int:
        """The width that makes the most tokens a second, and slows no row down by more than it should. One
        offer a row: its chance, and the tokens it can draft.

        1 while a plain step is not measured. Widths grow by little over what was measured, lest a first
        trial hold all rows up for long.
        """
        rows = len(offers)
        longest = max(n for _, n in offers)
        plain = self._known(rows, 1)
        if longest == 0 or plain is None:
            return 1
        best, rate = 1, rows / plain * _MARGIN
        for width, cost in self._guess(rows, plain):
            if width > longest + 1:
                break
            tokens = [1 + (chance.expect(min(n, width - 1)) if n else 0.0) for chance, n in offers]
            if sum(tokens) / cost > rate and cost <= _FAIR * plain * min(tokens):
                best, rate = width, sum(tokens) / cost
        return best

    def _known(self, rows: int, width: int) -> float | None:
        cost = self._costs.get((_bucket(rows), width))
        if cost is None or self._steps - cost.born > _LIFE or cost.count < (_ENOUGH if width == 1 else 1):
            return None
        return cost.seconds

    def _guess(self, rows: int, plain: float) -> list[tuple[int, float]]:
        """Widths that may be tried and their costs: measured, or on the line through the widest measured."""
        widest, slope = 1, plain * _SLOPE
        costs = []
        for width in WIDTHS[1:]:
            known = self._known(rows, width)
            if known is not None:
                widest, slope = width, max(known - plain, 0.0) / (width - 1)
            elif width > 2 * widest + 1:
                break
            costs.append((width, plain + slope * (width - 1) if known is None else known))
        return costs


def _bucket(rows: int) -> int:
    """Row counts that cost about the same."""
    return rows if rows <= 4 else -(-rows // 4) * 4
