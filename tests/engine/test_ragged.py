"""The cache whose rows have lengths of their own: what a row says depends on its own tokens alone."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import BatchKVCache, make_prompt_cache

from mlxo.engine.ragged import Ragged, fits
from tests.engine import families

TEXTS = ([5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17])


@pytest.fixture(scope="module")
def llama() -> Any:
    return families.build(*families.FAMILIES["full attention"])


def read(model: Any, tokens: list[int]) -> Any:
    cache = make_prompt_cache(model)
    model(mx.array([tokens]), cache=cache)
    return cache


def rows_of(model: Any) -> Ragged:
    rows = Ragged(len(model.layers))
    for text in TEXTS:
        rows.extend(read(model, text), [len(text)])
    return rows


def expected(model: Any, tokens: list[int], last: int) -> Any:
    return np.array(model(mx.array([tokens]))[0, -last:])


def step(model: Any, rows: Ragged, inputs: list[list[int]]) -> Any:
    rows.open(len(inputs[0]))
    return np.array(model(mx.array(inputs), cache=rows.layers))


def test_rows_of_any_lengths(llama: Any) -> None:
    said = step(llama, rows_of(llama), [[20, 21, 22]] * 3)
    for text, row in zip(TEXTS, said, strict=True):
        np.testing.assert_allclose(row, expected(llama, [*text, 20, 21, 22], 3), atol=1e-4)


def test_each_row_takes_back_what_it_likes(llama: Any) -> None:
    rows = rows_of(llama)
    step(llama, rows, [[20, 21, 22]] * 3)
    kept = (0, 1, 3)
    rows.lengths = [n + k for n, k in zip(rows.lengths, kept, strict=True)]
    said = step(llama, rows, [[30, 31]] * 3)
    for text, keep, row in zip(TEXTS, kept, said, strict=True):
        tokens = [*text, *[20, 21, 22][:keep], 30, 31]
        np.testing.assert_allclose(row, expected(llama, tokens, 2), atol=1e-4)


def test_rows_leave_and_join(llama: Any) -> None:
    rows = rows_of(llama)
    rows.filter([0, 2])
    long = [i % 60 for i in range(300)]
    rows.extend(read(llama, long), [len(long)])
    said = step(llama, rows, [[33]] * 3)
    for text, row in zip((TEXTS[0], TEXTS[2], long), said, strict=True):
        np.testing.assert_allclose(row, expected(llama, [*text, 33], 1), atol=1e-4)
    rows.filter([])
    assert len(rows) == 0


def test_rows_come_out_of_a_padded_batch(llama: Any) -> None:
    caches = [read(llama, text) for text in TEXTS]
    merged = [BatchKVCache.merge(list(layer)) for layer in zip(*caches, strict=True)]
    rows = Ragged(len(merged))
    rows.extend(merged, [len(t) for t in TEXTS])
    for text, row in zip(TEXTS, step(llama, rows, [[20]] * 3), strict=True):
        np.testing.assert_allclose(row, expected(llama, [*text, 20], 1), atol=1e-4)


def test_a_row_comes_out_as_a_cache_of_its_own(llama: Any) -> None:
    rows = rows_of(llama)
    step(llama, rows, [[20, 21]] * 3)
    cache: Any = rows.extract(1, 3)
    said = np.array(llama(mx.array([[40]]), cache=cache))[0]
    np.testing.assert_allclose(said, expected(llama, [*TEXTS[1], 20, 40], 1), atol=1e-4)


@pytest.mark.parametrize(
    ("family", "fitting"),
    [
        ("full attention", True),
        ("mixture of experts", True),
        ("sliding window", False),
        ("convolution and attention", False),
        ("state space", False),
    ],
)
def test_who_can_use_it(family: str, fitting: bool) -> None:
    assert fits(families.build(*families.FAMILIES[family])) is fitting
