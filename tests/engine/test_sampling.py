"""The sampler against plain Python, one rule at a time and all at once."""

from __future__ import annotations

import math
import random
from collections import Counter

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxo.core.options import Options
from mlxo.engine.sampling import Penalties, Row, Rows, penalties, sample, uniform


def allowed(logits: list[float], row: Row) -> dict[int, float]:
    """The tokens that `row` may draw and their probabilities: one rule after another, plainly."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    order = order[: row.top_k or len(order)]
    weights = {i: math.exp((logits[i] - max(logits)) / row.temperature) for i in order}
    if row.top_p < 1.0:
        total, mass = sum(weights.values()), 0.0
        kept: dict[int, float] = {}
        for i in order:
            if kept and mass >= row.top_p * total:
                break
            kept[i] = weights[i]
            mass += weights[i]
        weights = kept
    floor = row.min_p * max(weights.values())
    weights = {i: w for i, w in weights.items() if w >= floor}
    total = sum(weights.values())
    return {i: w / total for i, w in weights.items()}


def draws(logits: list[list[float]], rows: list[Row], count: int) -> list[list[int]]:
    """`count` tokens of each row."""
    batch = Rows(rows)
    array = mx.array(logits)
    steps = [np.array(sample(array, batch)).tolist() for _ in range(count)]
    return [list(column) for column in zip(*steps, strict=True)]


def test_uniform_numbers() -> None:
    numbers = [uniform(7, n) for n in range(4000)]
    assert all(0.0 <= u < 1.0 for u in numbers)
    assert abs(sum(numbers) / len(numbers) - 0.5) < 0.02
    assert numbers[:3] == [uniform(7, n) for n in range(3)]
    # Neighbouring seeds and neighbouring draws have nothing to do with one another.
    both = [(uniform(s, 0), uniform(s + 1, 0)) for s in range(2000)]
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
    ],
)
def test_each_rule_draws_what_it_should(options: Options) -> None:
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
        wanted = {best} if row.greedy else set(allowed(values, row))
        assert set(drawn) <= wanted


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
    penalty = penalties(options, 100)
    if penalty is not None:
        assert penalty(mx.array([1, 2]), mx.array([[0.5, 1.0, -2.0, 0.1]])).shape == (1, 4)
    (drawn,) = draws([[math.nan] * 4], [Row(options)], 2)
    assert all(0 <= t < 4 for t in drawn)


def test_penalties_as_defined() -> None:
    logits = [2.0, -1.0, 0.5, 3.0]
    tokens = mx.array([3, 0, 1, 1], dtype=mx.int32)
    out = np.array(Penalties(2.0, 0.25, 0.5, 3)(tokens, mx.array([logits])))[0]
    # Token 3 lies outside the window of three; 0 once, 1 twice, 2 never.
    assert out.tolist() == pytest.approx([1.0 - 0.5 - 0.25, -2.0 - 1.0 - 0.25, 0.5, 3.0])


def test_penalties_are_made_only_when_they_matter() -> None:
    assert penalties(Options(), 100) is None
    assert penalties(Options(repeat_penalty=1.5, repeat_last_n=0), 100) is None
    for options, window in (
        (Options(repeat_penalty=1.5), 64),
        (Options(presence_penalty=1.0, repeat_last_n=-1), 100),
    ):
        made = penalties(options, 100)
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
