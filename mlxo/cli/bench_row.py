"""What a load comes to: a row of figures for a number of streams, and what the prefix cache saves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from mlxo.cli.bench_answer import Answer
from mlxo.core.errors import MlxoError


@dataclass(frozen=True)
class Row:
    """All rounds of one number of streams. Times are in seconds, rates in tokens a second.

    `gap` is the time between two pieces of text of one stream; `each` the median pace of a stream after its
    first text. `prefill` and `prompt_tokens` are None when the server counts no prompts.
    """

    streams: int
    requests: int
    tokens: int
    prompt_tokens: int | None
    seconds: float
    ttft_p50: float
    ttft_p99: float
    gap_p50: float
    gap_p99: float
    each: float
    aggregate: float
    prefill: float | None
    counted: bool

    @property
    def length(self) -> float:
        """Tokens of an answer, on average."""
        return self.tokens / self.requests


@dataclass(frozen=True)
class Cache:
    """The same prompt twice, the second time warm. Tokens are medians; `cached` is None when nobody says."""

    prompt_tokens: int | None
    cached_tokens: int | None
    cold_ttft: float
    warm_ttft: float

    @property
    def ratio(self) -> float:
        """Cold over warm."""
        return self.cold_ttft / self.warm_ttft


def row(rounds: Sequence[Sequence[Answer]]) -> Row:
    """Every round has the same number of streams. Raises MlxoError when no text came at all."""
    answers = [a for answers in rounds for a in answers]
    firsts = [a.first for a in answers if a.first is not None]
    if not firsts:
        raise MlxoError(
            "the model answered without any text, so there is nothing to time", "try --tokens 256"
        )
    gaps = [g for a in answers for g in a.gaps] or [0.0]
    seconds = sum(max(a.ended for a in r) - min(a.begun for a in r) for r in rounds)
    prompts = [a.prompt_tokens for a in answers if a.prompt_tokens]
    tokens = sum(a.tokens for a in answers)
    return Row(
        streams=len(rounds[0]),
        requests=len(answers),
        tokens=tokens,
        prompt_tokens=round(fmean(prompts)) if prompts else None,
        seconds=seconds,
        ttft_p50=percentile(firsts, 50),
        ttft_p99=percentile(firsts, 99),
        gap_p50=percentile(gaps, 50),
        gap_p99=percentile(gaps, 99),
        each=median([a.pace for a in answers if a.pace] or [0.0]),
        aggregate=tokens / seconds,
        prefill=sum(prompts) / sum(max(a.first or 0.0 for a in r) for r in rounds) if prompts else None,
        counted=all(a.counted for a in answers),
    )


def cache(pairs: Sequence[tuple[Answer, Answer]]) -> Cache | None:
    """`pairs` are (cold, warm). None when some answer had no text."""
    colds, warms = [c.first for c, _ in pairs if c.first], [w.first for _, w in pairs if w.first]
    if not colds or not warms:
        return None
    prompts = [w.prompt_tokens for _, w in pairs if w.prompt_tokens is not None]
    cached = [w.cached for _, w in pairs if w.cached is not None]
    return Cache(
        prompt_tokens=round(median(prompts)) if prompts else None,
        cached_tokens=round(median(cached)) if cached else None,
        cold_ttft=median(colds),
        warm_ttft=median(warms),
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: the smallest value that `percent` of them do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
