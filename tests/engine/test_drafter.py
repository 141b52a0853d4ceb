"""A model that drafts: it says of every row what it would say of the row's text alone."""

from __future__ import annotations

import random
from typing import Any

import pytest

from mlxo.core.options import Options
from mlxo.engine.batch import Batch
from mlxo.engine.drafter import DraftModel
from mlxo.engine.prefix import Prefixes
from tests.engine import families
from tests.engine.drafts import CHUNK, speculative
from tests.engine.drive import GREEDY, drain, job


@pytest.fixture(scope="module")
def llama() -> Any:
    return families.build(*families.FAMILIES["full attention"])


def text(seed: int, count: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(2, families.VOCABULARY) for _ in range(count)]


def expected(model: Any, tokens: list[int], count: int) -> list[int]:
    """Greedy, over end tokens."""
    return drain(Batch(model, (), 1, 64, 64, Prefixes(0)), job("x", tokens, count))["x"]


def drafted(drafter: DraftModel, *keys: str) -> dict[str, list[int]]:
    """What is drafted once all rows are caught up with."""
    for _ in range(40):
        drafts = drafter.draft(dict.fromkeys(keys, 4))
        if drafter.steady:
            return drafts
    raise AssertionError("it never catches up")


def test_rows_are_caught_up_with_in_chunks_and_drafted_together(llama: Any) -> None:
    drafter = DraftModel(llama, CHUNK)
    texts = {"a": text(1, 30), "b": text(2, 3), "c": text(3, 1)}
    for key, tokens in texts.items():
        drafter.join(job(key, tokens, 50))
        drafter.feed(key, [9])
        tokens.append(9)
    assert drafter.draft({"a": 4, "b": 4, "c": 4}) == {}, "one chunk of one row a step"
    assert not drafter.steady
    assert drafted(drafter, *texts) == {k: expected(llama, t, 4) for k, t in texts.items()}


def test_what_was_wrong_is_taken_back(llama: Any) -> None:
    drafter = DraftModel(llama, CHUNK)
    texts = {"a": text(4, 9), "b": text(5, 12)}
    for key, tokens in texts.items():
        drafter.join(job(key, tokens, 50))
    for right in (0, 1, 2, 3, 4):
        drafts = drafted(drafter, *texts)
        for key, tokens in texts.items():
            assert drafts[key] == expected(llama, tokens, 4), (right, key)
            other = (drafts[key][right] + 1) % families.VOCABULARY if right < 4 else 7
            said = [*drafts[key][:right], other]
            assert drafter.feed(key, said) == (right, min(right + 1, 4))
            tokens += said


def test_a_row_that_fell_behind_reads_alone_again(llama: Any) -> None:
    drafter = DraftModel(llama, CHUNK)
    texts = {"a": text(6, 5), "b": text(7, 6)}
    for key, tokens in texts.items():
        drafter.join(job(key, tokens, 50))
    drafted(drafter, *texts)
    more = text(8, 20)
    for token in more:
        assert drafter.feed("a", [token])[1] <= 1
    drafter.feed("b", more[:1])
    texts = {"a": [*texts["a"], *more], "b": [*texts["b"], more[0]]}
    assert set(drafter.draft({"a": 4, "b": 4})) == {"b"}
    drafter.feed("b", more[1:2])
    texts["b"].append(more[1])
    assert drafted(drafter, *texts) == {k: expected(llama, t, 4) for k, t in texts.items()}


def test_rows_leave(llama: Any) -> None:
    drafter = DraftModel(llama, CHUNK)
    for key in ("a", "b", "c"):
        drafter.join(job(key, text(9, 6), 50))
    drafted(drafter, "a", "b")
    for key in ("a", "c", "nobody"):
        drafter.leave(key)
    assert drafted(drafter, "b") == {"b": expected(llama, text(9, 6), 4)}


def test_a_model_that_drafts_for_itself_is_right(llama: Any) -> None:
    """Sampled rows too: the draft is drawn with the very numbers that the row draws with."""
    kinds = [GREEDY, Options(temperature=1.0, seed=3), Options(temperature=1.5, seed=4, top_k=0, top_p=0.95)]
    jobs = [job(f"{i}", text(20 + i, 12), 40, kinds[i % 3]) for i in range(6)]
    again = [job(f"{i}", text(20 + i, 12), 40, kinds[i % 3]) for i in range(6)]
    plain = drain(Batch(llama, {families.EOS}, 3, CHUNK, 4 * CHUNK, Prefixes(0)), *jobs)
    assert drain(speculative(llama, 3, DraftModel(llama, CHUNK), rest=0.3), *again) == plain
    accepted = sum(j.drafting.accepted for j in again)
    assert accepted > 30
    # All but what was drafted behind an end.
    assert accepted > 0.7 * sum(j.drafting.drafted for j in again)
