"""logit_bias and penalties of a whole batch against plain loops, and the pasts that follow their rows."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxo.core.errors import InvalidRequest
from mlxo.core.options import Options
from mlxo.engine.sampling import Row, Rows, WithRows
from mlxo.engine.shaping import shape
from mlxo.engine.topk import top_k

V = 24


def shaped(logits: list[float], options: Options, bias: dict[int, float], past: list[int]) -> list[float]:
    """One row, one token after another."""
    out = list(logits)
    for token, value in bias.items():
        out[token] += value
    penalties = shape(options, bias, 1000, V).penalties
    if penalties is None:
        return out
    for token, count in Counter(past[-penalties.window :]).items():
        out[token] = out[token] / penalties.repeat if out[token] > 0 else out[token] * penalties.repeat
        out[token] -= penalties.presence + count * penalties.frequency
    return out


class Model:
    """Says the same logits [B, V] whatever it reads."""

    layers: tuple[Any, ...] = ()

    def __init__(self) -> None:
        self.logits = mx.zeros((1, V))

    def __call__(self, inputs: mx.array, cache: list[Any]) -> mx.array:
        return mx.repeat(self.logits[:, None], inputs.shape[1], axis=1)


OPTIONS = st.builds(
    Options,
    repeat_penalty=st.sampled_from([1.0, 1.3, 0.7]),
    presence_penalty=st.sampled_from([0.0, 0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.25, -0.5]),
    repeat_last_n=st.sampled_from([0, 1, 3, 64, -1]),
    temperature=st.sampled_from([0.0, 1.5]),
    seed=st.integers(0, 9),
)
BIASES = st.dictionaries(st.integers(0, V - 1), st.sampled_from([-100.0, -1.5, 2.0, 100.0]), max_size=3)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    asked=st.lists(st.tuples(OPTIONS, BIASES, st.integers(1, 9)), min_size=1, max_size=5),
    late=st.tuples(OPTIONS, BIASES, st.integers(1, 9)),
)
def test_a_batch_is_shaped_as_its_rows_are_alone(seed: int, asked: list[Any], late: Any) -> None:
    """Six steps; a row joins after two and one leaves after four."""
    rng = random.Random(seed)
    model = Model()
    batch = WithRows(model)

    def join(options: Options, bias: dict[int, float], size: int) -> Row:
        prompt = [rng.randrange(V) for _ in range(size)]
        row = Row(options, None, shape(options, bias, 1000, V), prompt)
        known[id(row)] = (options, bias, prompt, row)
        return row

    known: dict[int, Any] = {}
    rows = Rows([join(*a) for a in asked])
    for step in range(6):
        if step == 2:
            rows.extend(Rows([join(*late)]))
        if step == 4:
            rows.filter(list(range(1, len(rows.rows))))
        logits = [[rng.gauss(0, 2) for _ in range(V)] for _ in rows.rows]
        model.logits = mx.array(logits)
        found = batch(mx.zeros((len(rows.rows), 1), dtype=mx.int32), [rows])[:, -1]
        tokens = batch.sample(found - mx.logsumexp(found, axis=-1, keepdims=True)).tolist()
        for row, given_, out, token in zip(rows.rows, logits, np.array(found), tokens, strict=True):  # type: ignore[arg-type]
            options, bias, past, _ = known[id(row)]
            assert out.tolist() == pytest.approx(shaped(given_, options, bias, past), abs=1e-3)
            past.append(token)


def test_plain_rows_keep_the_very_logits() -> None:
    model = Model()
    batch = WithRows(model)
    plain = Row(Options(temperature=0.0))
    bent = Row(Options(temperature=0.0), None, shape(Options(repeat_penalty=2.0), {3: 5.0}, 9, V), [1])
    model.logits = mx.random.normal((2, V))
    found = np.array(batch(mx.zeros((2, 1), dtype=mx.int32), [Rows([plain, bent])])[:, -1])
    assert (found[0] == np.array(model.logits)[0]).all()
    assert (found[1] != np.array(model.logits)[1]).sum() == 2
    # A piece of a prompt draws nothing, and is not touched.
    piece = batch(mx.zeros((2, 4), dtype=mx.int32), [Rows([plain, bent])])
    assert (np.array(piece[:, -1]) == np.array(model.logits)).all()


def test_a_bias_of_no_token_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="logit_bias names token 24"):
        shape(Options(), {24: 1.0}, 9, V)
    assert [type(s).__name__ for s in shape(Options(repeat_penalty=2.0), {3: 5.0}, 9, V).steps] == [
        "method",
        "method",
    ]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 4),
    size=st.sampled_from([1, 63, 64, 200, 700, 1024, 5000]),
    k=st.sampled_from([1, 2, 5, 20, 63]),
    masked=st.sampled_from([0.0, 0.5, 0.999]),
)
def test_top_k(seed: int, rows: int, size: int, k: int, masked: float) -> None:
    """The largest values, and as many places as asked for, however many are masked."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, size)).astype(np.float32)
    values[rng.random((rows, size)) < masked] = -np.inf
    k = min(k, size)
    places = np.array(top_k(mx.array(values), k))
    assert all(len(set(row)) == k for row in places.tolist())
    assert places.max() < size
    found = np.sort(np.take_along_axis(values, places.astype(np.int64), axis=1), axis=1)
    assert (found == np.sort(values, axis=1)[:, -k:]).all()
