"""Drafting without a model: what followed the last time the text went like this (prompt lookup).

Answers that quote, edit or repeat their prompt are full of such places. A row keeps, for every run of a few
tokens, where it last ended; that costs some dictionary entries a token and nothing on the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mlxo.engine.batch import Job

# Lengths of the runs that are looked up, the longest first: the longer, the likelier it goes on alike.
_RUNS = (5, 3, 2)
_TEST = 8  # tokens of a lookup that are compared with what came


class Lookup:
    """One row's tokens, prompt and answer."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self._tokens: list[int] = []
        # Per length: run -> the position behind its latest occurrence that something follows.
        self._ends: tuple[dict[tuple[int, ...], int], ...] = tuple({} for _ in _RUNS)
        self.feed(tokens)

    def feed(self, tokens: Iterable[int]) -> None:
        text = self._tokens
        for token in tokens:
            # Only now: at the end of the text a run would find itself.
            for run, ends in zip(_RUNS, self._ends, strict=True):
                if len(text) >= run:
                    ends[tuple(text[-run:])] = len(text)
            text.append(token)

    def propose(self, most: int) -> list[int]:
        """Up to `most` tokens that may come next; none when the text's end is new."""
        text = self._tokens
        for run, ends in zip(_RUNS, self._ends, strict=True):
            position = ends.get(tuple(text[-run:])) if len(text) >= run else None
            if position is None:
                continue
            draft: list[int] = []
            for i in range(position, position + most):
                # Behind the end of the text the draft follows itself: a loop goes on as a loop.
                draft.append(text[i] if i < len(text) else draft[i - len(text)])
            return draft
        return []


class Ngram:
    """A drafter of lookups. It puts every draft to the test, made use of or not: the test costs nothing."""

    def __init__(self) -> None:
        self.steady = True
        self._rows: dict[str, Lookup] = {}
        # What each row would write next by its latest lookup, as far as that is not refuted.
        self._expected: dict[str, list[int]] = {}

    def join(self, job: Job) -> None:
        self._rows[job.key] = Lookup(job.ids)
        self._expected[job.key] = []

    def feed(self, key: str, tokens: Sequence[int]) -> tuple[int, int]:
        right = tried = 0
        row, expected = self._rows[key], self._expected[key]
        for token in tokens:
            if expected:
                tried += 1
                hit = expected.pop(0) == token
                right += hit
                if not hit:
                    expected.clear()
            row.feed([token])
            if not expected:
                expected += row.propose(_TEST)
        return right, tried

    def leave(self, key: str) -> None:
        self._rows.pop(key, None)
        self._expected.pop(key, None)

    def offer(self, key: str, most: int) -> int:
        return most if most and self._rows[key].propose(1) else 0

    def draft(self, wants: dict[str, int]) -> dict[str, list[int]]:
        return {key: self._rows[key].propose(n) for key, n in wants.items()}
