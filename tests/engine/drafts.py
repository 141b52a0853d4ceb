"""Drafts that come true as often as a test wants, and a gauge that always lets them be tried."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from mlxo.engine.batch import Job
from mlxo.engine.gain import Chance, Gauge
from mlxo.engine.prefix import Prefixes
from mlxo.engine.speculate import Drafter, Speculative
from tests.engine import families

CHUNK = 8


class Oracle:
    """Drafts what each job will answer, a token of it in `wrong` replaced by another. 0 is always right."""

    def __init__(self, answers: Mapping[str, Sequence[int]], wrong: float = 0.0, seed: int = 0) -> None:
        self.steady = True
        self.longest = 0
        self._answers = answers
        self._wrong = wrong
        self._random = random.Random(seed)
        self._at: dict[str, int] = {}

    def join(self, job: Job) -> None:
        self._at[job.key] = 0

    def feed(self, key: str, tokens: Sequence[int]) -> tuple[int, int]:
        self._at[key] += len(tokens)
        return 0, 0

    def leave(self, key: str) -> None:
        del self._at[key]

    def offer(self, key: str, most: int) -> int:
        return min(most, len(self._answers[key]) - self._at[key])

    def draft(self, wants: dict[str, int]) -> dict[str, list[int]]:
        self.longest = max(self.longest, *wants.values())
        return {key: self._some(key, n) for key, n in wants.items()}

    def _some(self, key: str, count: int) -> list[int]:
        right = self._answers[key][self._at[key] : self._at[key] + count]
        return [t if self._random.random() >= self._wrong else (t + 1) % families.VOCABULARY for t in right]


class Eager(Gauge):
    """Drafts as far as any row can, but in `rest` of all steps, where it does not at all."""

    def __init__(self, rest: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        self._rest = rest
        self._random = random.Random(seed)

    def width(self, offers: Sequence[tuple[Chance, int]]) -> int:
        return 1 if self._random.random() < self._rest else 1 + max(n for _, n in offers)


def speculative(
    model: Any, rows: int, drafter: Drafter, prefixes: Prefixes | None = None, rest: float = 0.0
) -> Speculative:
    prefixes = Prefixes(0) if prefixes is None else prefixes
    steps = Speculative(model, {families.EOS}, rows, CHUNK, 4 * CHUNK, prefixes, lambda: drafter)
    steps._gauge = Eager(rest)
    return steps
