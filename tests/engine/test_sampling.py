"""The sampler against plain Python, one rule at a time and all at once."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxo.core.options import Options
from mlxo.engine.sampling import Row, Rows, sample, uniform
from mlxo.engine.shaping import Penalties, Shape, shape


def allowed(logits: Sequence[float], row: Row, chance: float = 1.0) -> dict[int, float]:
    """The tokens that `row` may draw and their probabilities: one rule after another, plainly.

    `chance` is the draw's second number: XTC happens below xtc_probability.
    """
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    order = order[: row.top_k or len(order)]
    weights = shares({i: math.exp((logits[i] - max(logits)) / row.temperature) for i in order})
    if row.typical_p < 1.0:
        entropy = -sum(p * math.log(p) for p in weights.values() if p)
        weights = first(weights, row.typical_p, lambda i: abs(-math.log(weights[i] or 1e-300) - entropy))
    if row.top_p < 1.0:
        weights = first(weights, row.top_p, lambda i: -weights[i])
    floor = row.min_p * max(weights.values())
    weights = {i: w for i, w in weights.items() if w >= floor}
    if chance < row.xtc_probability and row.xtc_threshold <= 0.5:
        plain = shares({i: math.exp(logits[i] - max(logits)) for i in weights})
        top = [i for i, p in plain.items() if p >= row.xtc_threshold]
        least = min(top, key=plain.__getitem__, default=-1)
        weights = {i: w for i, w in weights.items() if i == least or i not in top}
    return shares(weights)


def shares(weights: dict[int, float]) -> dict[int, float]:
    total = sum(weights.values())
    return {i: w / total for i, w in weights.items()}


def first(weights: dict[int, float], mass: float, key: Callable[[int], float]) -> dict[int, float]:
    """The first by `key` until they make up `mass`, at least one; as shares of what they are."""
    kept: dict[int, float] = {}
    for i in sorted(weights, key=key):
        if kept and sum(kept.values()) >= mass:
            break
        kept[i] = weights[i]
    return shares(kept)


def inverse(probabilities: dict[int, float], number: float) -> tuple[int, float]:
    """The token at `number` of the cumulative distribution, and how far that is from the next border."""
    mass, near = 0.0, 1.0
    found = max(probabilities)
    for token in sorted(probabilities, reverse=True):
        mass += probabilities[token]
        near = min(near, abs(1.0 - mass - number))
        if 1.0 - mass <= number:
            found = token
            break
    return found, near


def draws(logits: list[list[float]], rows: list[Row], count: int) -> list[list[int]]:
    """`count` tokens of each row."""
    batch = Rows(rows)
    array = mx.array(logits)
    steps = [np.array(sample(array, batch)).tolist() for _ in range(count)]
    return [list(column) for column in zip(*steps, strict=True)]


def test_uniform_numbers() -> None:
    numbers = [uniform(Row(Options(seed=7)).key, n) for n in range(4000)]
    assert all(0.0 <= u < 1.0 for u in numbers)
    assert abs(sum(numbers) / len(numbers) - 0.5) < 0.02
    assert numbers[:3] == [uniform(Row(Options(seed=7)).key, n) for n in range(3)]
    # Neighbouring seeds and neighbouring draws have nothing to do with one another.
    keys = [Row(Options(seed=s)).key for s in range(2001)]
    both = [(uniform(a, 0), uniform(b, 0)) for a, b in itertools.pairwise(keys)]
    assert abs(float(np.corrcoef(np.array(both).T)[0, 1])) < 0.06
    assert abs(float(np.corrcoef(numbers[:-1], numbers[1:])[0, 1])) < 0.06


@pytest.mark.parametrize(
    "options",
    [
        Options(temperature=1.0, top_k=0, top_p=1.0),
        Options(temperature=0.5, top_k=0, top_p=1.0),
        Options(temperature=2.0, top_k=4, top_p=1.0),
        Options(temperature=1.0, top_k=0, top_p=0.7),
        Options(temperature=1.0, top_k=0, top_p=0.0),
        Options(temperature=1.5, top_k=0, top_p=1.0, min_p=0.3),
        Options(temperature=1.2, top_k=6, top_p=0.9, min_p=0.05),
        Options(temperature=1.0, top_k=0, top_p=1.0, typical_p=0.6),
    ],
)
def test_distributions(options: Options) -> None:
    rng = random.Random(5)
    logits = [rng.gauss(0, 2) for _ in range(12)]
    row = Row(options)
    wanted = allowed(logits, row)
    (drawn,) = draws([logits], [row], 3000)
    counted = Counter(drawn)
    assert set(counted) <= set(wanted)
    for token, p in wanted.items():
        assert abs(counted[token] / 3000 - p) < 0.035, (token, p)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    choices=st.lists(
        st.builds(
            Options,
            temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
            top_k=st.sampled_from([0, 1, 3, 17, 500]),
            top_p=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
            min_p=st.sampled_from([0.0, 0.1, 1.0]),
            xtc_probability=st.sampled_from([0.0, 1.0]),
            seed=st.integers(0, 99),
        ),
        min_size=1,
        max_size=5,
    ),
)
def test_rows_of_any_mix_draw_as_they_do_alone(seed: int, choices: list[Options]) -> None:
    rng = random.Random(seed)
    logits = [[rng.gauss(0, 3) for _ in range(40)] for _ in choices]
    together = draws(logits, [Row(o) for o in choices], 3)
    for values, options, drawn in zip(logits, choices, together, strict=True):
        row = Row(options)
        assert draws([values], [row], 3) == [drawn]
        best = max(range(40), key=values.__getitem__)
        wanted = {best} if row.greedy else set(allowed(values, row, 0.0)) | set(allowed(values, row))
        assert set(drawn) <= wanted


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    options=st.builds(
        Options,
        temperature=st.sampled_from([0.4, 1.0, 2.5]),
        top_k=st.sampled_from([0, 2, 7, 30, 400]),
        top_p=st.sampled_from([0.0, 0.4, 0.9, 1.0]),
        min_p=st.sampled_from([0.0, 0.05, 0.4]),
        typical_p=st.sampled_from([0.2, 0.7, 1.0, 1.0]),
        xtc_probability=st.sampled_from([0.0, 0.5, 1.0]),
        xtc_threshold=st.sampled_from([0.02, 0.1, 0.3, 0.6]),
        seed=st.integers(0, 99),
    ),
)
def test_every_draw_is_that_of_the_plain_rules(seed: int, options: Options) -> None:
    """Not by its distribution, token by token: the same numbers through the reference above."""
    rng = random.Random(seed)
    logits = [[rng.gauss(0, 2.5) for _ in range(40)] for _ in range(6)]
    rows = [Row(options) for _ in logits]
    drawn = np.array(sample(mx.array(logits), Rows(rows))).tolist()
    for values, row, token in zip(logits, rows, drawn, strict=True):
        values = np.array(values, dtype=np.float32).astype(float).tolist()
        wanted = allowed(values, row, uniform(row.key, 1 << 62))
        found, near = inverse(wanted, uniform(row.key, 0))
        assert token == found or near < 1e-5 or brittle(values, row)


def brittle(logits: list[float], row: Row) -> bool:
    """Whether rounding decides what a rule keeps: a little more or less of it keeps others."""
    kept = []
    for by in (1 - 1e-5, 1 + 1e-5):
        options = Options(
            temperature=row.temperature,
            top_k=row.top_k,
            top_p=row.top_p * by if row.top_p < 1 else 1.0,
            min_p=row.min_p * by,
            typical_p=row.typical_p * by if row.typical_p < 1 else 1.0,
            xtc_threshold=row.xtc_threshold * by,
            xtc_probability=row.xtc_probability,
        )
        kept.append(set(allowed(logits, Row(options), 0.0)) | set(allowed(logits, Row(options), 1.0)))
    return kept[0] != kept[1]


def test_xtc_takes_the_top_choices_away() -> None:
    logits = [math.log(p) for p in (0.5, 0.3, 0.15, 0.04, 0.01)]
    options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "xtc_threshold": 0.1}
    (always,) = draws([logits], [Row(Options(**options, xtc_probability=1.0, seed=1))], 400)  # type: ignore[arg-type]
    assert set(always) == {2, 3, 4}
    (half,) = draws([logits], [Row(Options(**options, xtc_probability=0.5, seed=1))], 1000)  # type: ignore[arg-type]
    wanted = 0.5 * 0.5
    assert abs(half.count(0) / 1000 - wanted) < 0.05
    # Only one choice is above this threshold: it stays.
    options["xtc_threshold"] = 0.45
    (one,) = draws([logits], [Row(Options(**options, xtc_probability=1.0, seed=1))], 200)  # type: ignore[arg-type]
    assert 0 in one


def test_typical_p_keeps_what_surprises_as_expected() -> None:
    # Entropy 1.47; the surprises are 1.05, 1.39, 1.61, 1.90 and 3.00.
    probabilities = [0.35, 0.25, 0.2, 0.15, 0.05]
    logits = [math.log(p) for p in probabilities]
    row = Row(Options(temperature=1.0, top_k=0, top_p=1.0, typical_p=0.4, seed=1))
    (drawn,) = draws([logits], [row], 300)
    assert set(drawn) == {1, 2}
    row = Row(Options(temperature=1.0, top_k=0, top_p=1.0, typical_p=0.9, seed=1))
    (drawn,) = draws([logits], [row], 300)
    assert set(drawn) == {0, 1, 2, 3}


def test_masked_tokens_are_never_drawn() -> None:
    logits = [-math.inf] * 64
    logits[5], logits[60] = 0.0, 1.0
    for options in (
        Options(temperature=3.0),
        Options(temperature=3.0, top_k=0, top_p=1.0),
        Options(temperature=0.0),
    ):
        (drawn,) = draws([logits], [Row(options)], 50)
        assert set(drawn) <= {5, 60}


@pytest.mark.parametrize(
    "options",
    [
        Options(temperature=-1.0),
        Options(temperature=1e-30),
        Options(temperature=1e30, seed=-5),
        Options(top_k=-3, seed=2**70),
        Options(top_k=2**40),
        Options(top_p=-1.0, min_p=7.0, typical_p=-2.0),
        Options(repeat_penalty=0.0, presence_penalty=math.inf, frequency_penalty=-math.inf, repeat_last_n=-9),
    ],
)
def test_senseless_options_still_give_tokens(options: Options) -> None:
    (drawn,) = draws([[0.5, 1.0, -2.0, 0.1]], [Row(options)], 5)
    assert all(0 <= t < 4 for t in drawn)
    penalty = shape(options, {}, 100, 4).penalties
    if penalty is not None:
        assert penalty.apply(mx.array([1, 2]), mx.array([[0.5, 1.0, -2.0, 0.1]])).shape == (1, 4)
    (drawn,) = draws([[math.nan] * 4], [Row(options)], 2)
    assert all(0 <= t < 4 for t in drawn)


def test_penalties_as_defined() -> None:
    logits = [2.0, -1.0, 0.5, 3.0]
    tokens = mx.array([3, 0, 1, 1], dtype=mx.int32)
    out = np.array(Penalties(2.0, 0.25, 0.5, 3).apply(tokens, mx.array([logits])))[0]
    # Token 3 lies outside the window of three; 0 once, 1 twice, 2 never.
    assert out.tolist() == pytest.approx([1.0 - 0.5 - 0.25, -2.0 - 1.0 - 0.25, 0.5, 3.0])


def test_penalties_are_made_only_when_they_matter() -> None:
    assert shape(Options(), {}, 100, 9) == Shape()
    assert shape(Options(repeat_penalty=1.5, repeat_last_n=0), {}, 100, 9) == Shape()
    for options, window in (
        (Options(repeat_penalty=1.5), 64),
        (Options(presence_penalty=1.0, repeat_last_n=-1), 100),
    ):
        made = shape(options, {}, 100, 9).penalties
        assert made is not None
        assert made.window == window


def test_rows_follow_the_batch() -> None:
    a, b, c = (Row(Options(seed=s)) for s in (1, 2, 3))
    rows = Rows.merge([Rows([a]), Rows([b])])
    plan = rows.plan
    assert rows.plan is plan
    rows.extend(Rows([c]))
    assert rows.rows == [a, b, c]
    assert rows.plan is not plan
    rows.filter([2, 0])
    assert rows.rows == [c, a]
    assert rows.extract(1).rows == [a]
