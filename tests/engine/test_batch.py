"""The back ends: a sequence says the same alone, in a batch, and beside neighbours that come and go."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import CacheList, ConcatenateKVCache, KVCache, make_prompt_cache

from mlxo.core.options import Options
from mlxo.engine.batch import Batch, Guard
from mlxo.engine.prefix import Prefixes
from mlxo.engine.solo import Solo, mergeable
from tests.engine import families
from tests.engine.drive import GREEDY, drain, job, turn

CHUNK = 8


def prompts(seed: int, count: int, longest: int = 40) -> list[list[int]]:
    rng = random.Random(seed)
    return [
        [rng.randrange(2, families.VOCABULARY) for _ in range(rng.randint(1, longest))] for _ in range(count)
    ]


def steps(model: Any, rows: int, eos: Sequence[int] = (families.EOS,)) -> Batch | Solo:
    """A back end of the model's kind, without a prefix cache."""
    if mergeable(make_prompt_cache(model)):
        return Batch(model, eos, rows, CHUNK, 4 * CHUNK, Prefixes(0))
    return Solo(model, eos, rows, CHUNK, Prefixes(0))


@pytest.fixture(scope="module")
def llama() -> Any:
    return families.build(*families.FAMILIES["full attention"])


@pytest.mark.parametrize("family", [*families.FAMILIES, "chunked attention"])
def test_rows_say_what_they_say_alone(family: str) -> None:
    """Past a sliding window too: prompts and answers are longer than it is."""
    model = families.build(*families.FAMILIES.get(family, families.CHUNKED))
    asked = prompts(1, 6)
    alone: dict[str, list[int]] = {}
    for i, ids in enumerate(asked):
        alone |= drain(steps(model, 1), job(str(i), ids, 24))
    assert len({tuple(a) for a in alone.values()}) > 3, "the model ignores its prompt: nothing is tested"
    together = steps(model, 3)
    assert drain(together, *(job(str(i), ids, 24) for i, ids in enumerate(asked))) == alone


def test_chunked_caches_go_solo() -> None:
    model = families.build(*families.CHUNKED)
    assert isinstance(steps(model, 1), Solo)
    assert not mergeable([CacheList(KVCache(), ConcatenateKVCache())])
    assert mergeable([CacheList(KVCache(), KVCache())])


@pytest.mark.parametrize("family", ["full attention", "sliding window", "chunked attention"])
def test_joins_and_cancels_leave_the_others_alone(family: str) -> None:
    """Random schedules: jobs come and are taken out while others read or write."""
    model = families.build(*families.FAMILIES.get(family, families.CHUNKED))
    asked = prompts(2, 8)
    alone: dict[str, list[int]] = {}
    for i, ids in enumerate(asked):
        alone |= drain(steps(model, 1), job(str(i), ids, 16))
    for seed in range(6 if family == "full attention" else 2):
        rng = random.Random(seed)
        todo = list(range(len(asked)))
        rng.shuffle(todo)
        together = steps(model, rng.randint(2, 5))
        said: dict[str, list[int]] = {}
        cancelled = set()
        while todo or together.waiting or len(together):
            while todo and rng.random() < 0.4:
                i = todo.pop()
                together.add(job(str(i), asked[i], 16))
            if rng.random() < 0.08:
                victim = str(rng.randrange(len(asked)))
                if int(victim) not in todo:
                    together.remove(victim)
                    cancelled.add(victim)
            for out in turn(together):
                assert out.key not in cancelled or out.key in said
                said.setdefault(out.key, []).append(out.token)
        for key, tokens in alone.items():
            if key in cancelled:
                assert said.get(key, []) == tokens[: len(said.get(key, []))]
            else:
                assert said[key] == tokens, f"row {key} of schedule {seed}"


def test_reasons(llama: Any) -> None:
    ids = prompts(1, 6)
    together = steps(llama, 6)
    for i, each in enumerate(ids):
        together.add(job(str(i), each, 10))
    last: dict[str, str | None] = {}
    while len(together) or together.waiting:
        for out in turn(together):
            assert last.get(out.key) is None
            last[out.key] = out.reason
            if out.reason == "stop":
                assert out.token == families.EOS
    assert set(last.values()) == {"stop", "length"}


def test_a_cancel_frees_the_row_at_once(llama: Any) -> None:
    together = steps(llama, 1)
    long, short = [5] * (CHUNK * 6), [7, 8, 9]
    together.add(job("long", long, 50))
    together.add(job("short", short, 3))
    turn(together)
    turn(together)
    assert (len(together), together.waiting) == (1, 1)
    together.remove("long")  # in its prefill
    assert list(together.admit()) == ["short"]
    assert [o.key for _ in range(3) for o in turn(together)][-1] == "short"
    together.add(job("again", long, 50))
    together.remove("short")  # while it writes
    assert list(together.admit()) == ["again"]
    together.add(job("never", short, 3))
    together.remove("never")  # while it waits
    together.remove("again")
    together.remove("unknown")
    assert (len(together), together.waiting) == (0, 0)


def test_a_long_prompt_holds_running_rows_up_for_one_chunk_a_token(llama: Any) -> None:
    together = steps(llama, 4)
    together.add(job("writer", [3, 4], 40))
    while not turn(together):
        pass
    together.add(job("reader", [5] * (CHUNK * 10), 4))
    before_reader = []
    while "reader" not in (keys := [o.key for o in turn(together)]):
        before_reader.append(keys)
    assert len(before_reader) >= 10
    assert all(k == ["writer"] for k in before_reader)


def test_short_prompts_join_in_order_within_the_budget(llama: Any) -> None:
    """Eight chunks' worth of short prompts at a time, padding counts; long ones take no part in that."""
    together = steps(llama, 20)
    for i in range(20):
        together.add(job(str(i), [5] * (CHUNK + 1 if i == 2 else 3), 9))
    assert list(together.admit()) == [str(i) for i in range(8)]
    together = steps(llama, 20)
    for i in range(12):
        together.add(job(str(i), [5] * (CHUNK * 3), 9))
    assert len(together.admit()) == 12


@pytest.mark.parametrize("writing", [False, True])
def test_a_short_prompt_overtakes_a_long_one_and_neither_starves(llama: Any, writing: bool) -> None:
    together = steps(llama, 8, [])
    if writing:
        together.add(job("writer", [3, 4], 400))
        while not turn(together):
            pass
    together.add(job("long", [5] * 400, 2))
    turn(together)
    keys: list[str] = []
    shorts = 0
    while "long" not in keys:
        if shorts < 200:
            together.add(job(f"short{shorts}", [7] * (CHUNK * 2), 2))
            shorts += 1
        keys += [o.key for o in turn(together)]
    assert keys.index("short0") < keys.index("long")
    assert shorts < 200, "the long prompt waited for all the short ones"
    while len(together) or together.waiting:
        turn(together)


def test_a_row_that_has_read_nothing_is_taken_out_of_company(llama: Any) -> None:
    together = steps(llama, 4)
    for key in "abc":
        together.add(job(key, [3, 4, 5], 4))
    assert len(together.admit()) == 3
    together.remove("b")
    assert set(drain(together)) == {"a", "c"}


def test_rows_of_very_different_lengths_write_in_lanes(llama: Any) -> None:
    """Together they would attend over the padding of the long one; and they say the same."""
    asked = [[5] * 300, [7, 8, 9], [9, 8, 7, 6], [6] * 290]
    alone: dict[str, list[int]] = {}
    for i, ids in enumerate(asked):
        alone |= drain(steps(llama, 1, []), job(str(i), ids, 60))
    together = Batch(llama, [], 4, CHUNK, 4 * CHUNK, Prefixes(0), slack=100)
    for i, ids in enumerate(asked):
        together.add(job(str(i), ids, 60))
    said: dict[str, list[int]] = {}
    most = 0
    while len(together) or together.waiting:
        for out in turn(together):
            said.setdefault(out.key, []).append(out.token)
        lengths = [[len(t) for t in lane.tokens] for lane in together._lanes]
        assert all(max(n) * len(n) - sum(n) <= 100 for n in lengths)
        most = max(most, len(lengths))
    assert said == alone
    assert most == 2


def test_a_failing_processor_takes_nobody_with_it(llama: Any) -> None:
    asked = prompts(3, 3)
    alone: dict[str, list[int]] = {}
    for i, ids in enumerate(asked):
        alone |= drain(steps(llama, 1), job(str(i), ids, 20))
    calls = 0

    def failing(tokens: mx.array, logits: mx.array) -> mx.array:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyError("broken")
        return logits

    guard = Guard([failing])
    together = steps(llama, 3)
    said: dict[str, list[int]] = {}
    for i, ids in enumerate(asked):
        together.add(job(str(i), ids, 20, guard=guard if i == 1 else None))
    while len(together) or together.waiting:
        for out in turn(together):
            said.setdefault(out.key, []).append(out.token)
        if guard.error:
            together.remove("1")
    assert guard.error is not None
    assert guard.error.message == "the answer could not be shaped: 'broken'"
    assert calls == 4
    assert (said["0"], said["2"]) == (alone["0"], alone["2"])


@pytest.mark.parametrize("module", ["batch", "solo"])
def test_processors_see_prompt_and_answer(llama: Any, module: str) -> None:
    seen: list[list[int]] = []

    def watch(tokens: mx.array, logits: mx.array) -> mx.array:
        seen.append([int(t) for t in np.array(tokens)])
        return logits

    ids = prompts(5, 1)[0] * 2
    one = (
        Batch(llama, [families.EOS], 1, CHUNK, CHUNK, Prefixes(0))
        if module == "batch"
        else Solo(llama, [families.EOS], 1, CHUNK, Prefixes(0))
    )
    (tokens,) = drain(one, job("a", ids, 5, guard=Guard([watch]))).values()
    assert seen[: len(tokens)] == [ids + tokens[:n] for n in range(len(tokens))]


def test_a_model_that_raises_can_be_used_again(llama: Any) -> None:
    class Faulty:
        """The real model, until `broken` is set."""

        layers = llama.layers
        broken = False

        def __call__(self, inputs: mx.array, cache: list[Any]) -> mx.array:
            if self.broken:
                raise RuntimeError("out of memory")
            logits: mx.array = llama(inputs, cache=cache)
            return logits

    model = Faulty()
    together = steps(model, 2)
    (whole,) = drain(together, job("a", [3, 4, 5], 8)).values()
    together.add(job("b", [3, 4, 5], 8))
    together.add(job("c", [3, 4, 5], 8))
    together.add(job("waits", [3, 4, 5], 8))
    turn(together)
    model.broken = True
    with pytest.raises(RuntimeError, match="out of memory"):
        turn(together)
    model.broken = False
    assert together.reset() == ["b", "c"]
    assert drain(together) == {"waits": whole}


DRAWN = (
    Options(temperature=3.0, seed=7, top_k=0, top_p=1.0),
    Options(temperature=3.0, seed=8, top_k=0, top_p=1.0),
    Options(temperature=2.0, seed=8, top_k=20, top_p=0.8),
    Options(temperature=4.0, seed=7, top_k=5, top_p=1.0, min_p=0.1),
    Options(temperature=5.0, seed=9, top_k=30, typical_p=0.6),
    GREEDY,
)


@pytest.mark.parametrize("family", ["full attention", "chunked attention"])
def test_a_seed_gives_the_same_text_alone_and_in_company(family: str) -> None:
    model = families.build(*families.FAMILIES.get(family, families.CHUNKED))
    ids = [9, 8, 7, 6]
    alone = [drain(steps(model, 1, []), job("x", ids, 24, o))["x"] for o in DRAWN]
    assert len({tuple(a) for a in alone}) == len(DRAWN)
    assert [drain(steps(model, 1, []), job("x", ids, 24, o))["x"] for o in DRAWN] == alone
    said = drain(steps(model, 4, []), *(job(str(i), ids, 24, o) for i, o in enumerate(DRAWN)))
    assert [said[str(i)] for i in range(len(DRAWN))] == alone


def test_without_a_seed_texts_differ(llama: Any) -> None:
    free = Options(temperature=1.5, top_k=0, top_p=1.0)
    said = drain(steps(llama, 4), *(job(str(i), [9, 8], 20, free) for i in range(4)))
    assert len({tuple(t) for t in said.values()}) == 4
