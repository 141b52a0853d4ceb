"""Which models leave memory so that another fits. Pure: values in, keys out.

Least recently used goes first and an idle model always before a busy one. Nothing leaves that need not:
without any one of the victims the new model would not fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Held(NamedTuple):
    """A resident model. `size` is bytes, `last_used` a monotonic time; `busy`: requests are open on it."""

    key: str
    size: int
    last_used: float
    busy: bool


class Limits(NamedTuple):
    """`budget` is bytes for all models together, `models` how many of them (0: no limit).

    A model of more than `most` bytes is refused, whatever else could leave (0: every model is tried).
    """

    budget: int
    models: int = 0
    most: int = 0


def fits(held: Sequence[Held], need: int, limits: Limits) -> bool:
    """Whether a model of `need` bytes may join. An only model is always tried, whatever its size."""
    if not held:
        return True
    if limits.models and len(held) >= limits.models:
        return False
    return sum(h.size for h in held) + need <= limits.budget


def victims(held: Sequence[Held], need: int, limits: Limits) -> tuple[Held, ...]:
    """Who must leave before a model of `need` bytes is loaded, in the order of leaving."""
    stay = sorted(held, key=lambda h: (h.busy, h.last_used))
    leave: list[Held] = []
    while not fits(stay, need, limits):
        leave.append(stay.pop(0))
    for spared in sorted(leave, key=lambda h: (not h.busy, -h.last_used)):
        if fits([*stay, spared], need, limits):
            leave.remove(spared)
            stay.append(spared)
    return tuple(leave)
