"""Drafts change no answer: whatever is drafted, each row says what it says without."""

from __future__ import annotations

import random
from typing import Any

import mlx.core as mx
import pytest

from mlxo.core.options import Options
from mlxo.engine.batch import Batch, Guard, Job
from mlxo.engine.ngram import Ngram
from mlxo.engine.prefix import Prefixes
from mlxo.engine.shaping import shape
from tests.engine import families
from tests.engine.drafts import CHUNK, Oracle, speculative
from tests.engine.drive import GREEDY, drain, job, turn

LIMIT = 16
SCHEDULES = 12
# Few tokens, so that there is something to look up.
FEW = 12
KINDS = (
    GREEDY,
    Options(temperature=1.0, seed=5, top_k=8),
    Options(temperature=0.7, seed=6, top_p=0.9),
    Options(temperature=0.0, repeat_penalty=1.4, presence_penalty=0.3, repeat_last_n=8),
    Options(temperature=1.2, seed=7, frequency_penalty=0.5),
)


def prompts(seed: int, count: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(2, FEW) for _ in range(rng.randint(1, 30))] for _ in range(count)]


def asked(key: str, ids: list[int], options: Options, limit: int = LIMIT) -> Job:
    shaped = shape(options, {}, 512, families.VOCABULARY).steps
    return job(key, ids, limit, options, Guard(list(shaped)) if shaped else None)


def alone(model: Any, each: Job) -> list[int]:
    return drain(Batch(model, {families.EOS}, 1, CHUNK, 4 * CHUNK, Prefixes(0)), each)[each.key]


def talkative(model: Any) -> tuple[list[int], list[int]]:
    """A prompt, and its answer, which does not end before the limit."""
    for ids in prompts(3, 50):
        said = alone(model, asked("x", ids, GREEDY))
        if len(said) == LIMIT and families.EOS not in said:
            return ids, said
    raise AssertionError("every answer ends early")


@pytest.fixture(scope="module")
def llama() -> Any:
    return families.build(*families.FAMILIES["full attention"])


@pytest.mark.parametrize("family", ["full attention", "mixture of experts"])
@pytest.mark.parametrize("wrong", [0.0, 0.3, 1.0])
def test_drafts_change_no_answer(family: str, wrong: float) -> None:
    model = families.build(*families.FAMILIES[family])
    every = [(f"{i}", ids, KINDS[i % len(KINDS)]) for i, ids in enumerate(prompts(1, 10))]
    plain = {key: alone(model, asked(key, ids, options)) for key, ids, options in every}
    jobs = [asked(*each) for each in every]
    assert drain(speculative(model, 4, Oracle(plain, wrong), rest=0.2), *jobs) == plain
    drafted = sum(j.drafting.drafted for j in jobs)
    accepted = sum(j.drafting.accepted for j in jobs)
    assert drafted > 60
    # A drafted end token ends the row, and counts as written by the model itself.
    low, high = {0.0: (0.95, 1.0), 0.3: (0.1, 0.9), 1.0: (0.0, 0.0)}[wrong]
    assert low <= accepted / drafted <= high


@pytest.mark.parametrize("source", ["oracle", "ngram"])
def test_random_schedules(llama: Any, source: str) -> None:
    """Jobs come and are taken out while others read, write and draft; prompts repeat and resume."""
    each = [(ids, KINDS[i % len(KINDS)]) for i, ids in enumerate(prompts(2, 10))]
    plain = [alone(llama, asked("x", ids, options)) for ids, options in each]
    each += [([*ids, *said, 5], GREEDY) for (ids, _), said in zip(each[:4], plain, strict=False)]
    plain += [alone(llama, asked("x", ids, options)) for ids, options in each[10:]]
    hits = drafted = accepted = 0
    for seed in range(SCHEDULES):
        rng = random.Random(seed)
        keys = {str(n): rng.randrange(len(each)) for n in range(12)}
        answers = {key: plain[i] for key, i in keys.items()}
        drafter = Oracle(answers, rng.random(), seed) if source == "oracle" else Ngram()
        together = speculative(llama, rng.randint(2, 5), drafter, Prefixes(1 << 24), rest=0.3)
        todo, cancelled = list(keys), set()
        jobs: list[Job] = []
        said: dict[str, list[int]] = {key: [] for key in keys}
        while todo or together.waiting or len(together):
            while todo and rng.random() < 0.4:
                key = todo.pop()
                jobs.append(asked(key, *each[keys[key]]))
                together.add(jobs[-1])
            if jobs and rng.random() < 0.08:
                victim = rng.choice(jobs).key
                cancelled.add(victim)
                together.remove(victim)
            hits += sum(1 for n in together.admit().values() if n)
            for out in together.step() if len(together) else ():
                said[out.key].append(out.token)
        for key, tokens in said.items():
            assert tokens == answers[key][: len(tokens) if key in cancelled else None], (seed, key)
        drafted += sum(j.drafting.drafted for j in jobs)
        accepted += sum(j.drafting.accepted for j in jobs)
    assert hits > SCHEDULES / 2
    assert drafted > SCHEDULES / 2
    assert accepted > SCHEDULES / 2 or source == "ngram"


@pytest.mark.parametrize("limit", range(1, 9))
def test_a_limit_inside_a_draft(llama: Any, limit: int) -> None:
    ids, plain = talkative(llama)
    steps = speculative(llama, 1, Oracle({"x": plain}))
    steps.add(asked("x", ids, GREEDY, limit))
    outs = []
    while len(steps) or steps.waiting:
        outs += turn(steps)
    assert [out.token for out in outs] == plain[:limit]
    assert [out.reason for out in outs] == [None] * (limit - 1) + ["length"]


def test_an_end_inside_a_draft(llama: Any) -> None:
    """Nothing behind the end comes out, and what the row leaves behind holds nothing of it."""
    (ids, plain) = next(
        (ids, said)
        for ids in prompts(4, 200)
        if 3 < len(said := alone(llama, asked("x", ids, GREEDY))) < LIMIT
    )
    prefixes = Prefixes(1 << 24)
    steps = speculative(llama, 1, Oracle({"x": [*plain, 7, 7, 7]}), prefixes)
    steps.add(asked("x", ids, GREEDY, 40))
    outs = []
    while len(steps) or steps.waiting:
        outs += turn(steps)
    assert [out.token for out in outs] == plain
    assert outs[-1].reason == "stop"
    again = [*ids, *plain, 9, 4]
    expected = alone(llama, asked("x", again, GREEDY))
    assert drain(speculative(llama, 1, Oracle({"x": expected}), prefixes), asked("x", again, GREEDY)) == {
        "x": expected
    }


def test_several_tokens_come_of_one_step(llama: Any) -> None:
    ids, plain = talkative(llama)
    steps = speculative(llama, 1, Oracle({"x": plain}))
    steps.add(asked("x", ids, GREEDY))
    sizes = []
    while len(steps) or steps.waiting:
        sizes.append(len(turn(steps)))
    assert sum(sizes) == len(plain)
    assert max(sizes) > 8


@pytest.mark.parametrize("most", [0, 2])
def test_a_request_bounds_its_drafts(llama: Any, most: int) -> None:
    ids, plain = talkative(llama)
    oracle = Oracle({"x": plain})
    bounded = asked("x", ids, Options(temperature=0.0, draft_num_predict=most))
    assert drain(speculative(llama, 1, oracle), bounded) == {"x": plain}
    assert oracle.longest == most
    assert (bounded.drafting.drafted > 0) == (most > 0)


def test_a_guard_sees_what_was_written_and_nothing_else(llama: Any) -> None:
    """Once a token, in order, with the text so far: what a grammar needs to keep its place."""
    ids, plain = talkative(llama)
    seen: list[list[int]] = []

    def watch(tokens: mx.array, logits: mx.array) -> mx.array:
        seen.append(tokens.tolist())  # type: ignore[arg-type]
        return logits

    watched = job("x", ids, LIMIT, GREEDY, Guard([watch]))
    steps = speculative(llama, 1, Oracle({"x": plain}, 0.5))
    assert drain(steps, watched) == {"x": plain}
    text = [*ids, *plain]
    assert seen[: len(plain)] == [text[: len(ids) + i] for i in range(len(plain))]
    assert len(seen) <= len(plain) + 1
    assert 0 < watched.drafting.accepted < watched.drafting.drafted


def test_a_failed_guard_ends_its_row_alone(llama: Any) -> None:
    one, two = prompts(7, 2)
    plain = {"one": alone(llama, asked("one", one, GREEDY)), "two": alone(llama, asked("two", two, GREEDY))}

    def fail(tokens: mx.array, logits: mx.array) -> mx.array:
        if len(tokens) > len(one) + 3:
            raise ValueError("enough")
        return logits

    failing = job("one", one, LIMIT, GREEDY, Guard([fail]))
    steps = speculative(llama, 2, Oracle(plain))
    steps.add(failing)
    steps.add(asked("two", two, GREEDY))
    said: dict[str, list[int]] = {}
    while len(steps) or steps.waiting:
        for out in turn(steps):
            said.setdefault(out.key, []).append(out.token)
        if failing.guard and failing.guard.error:
            steps.remove("one")
    assert not failing.sound
    assert said["two"] == plain["two"]
    assert said["one"] == plain["one"][: len(said["one"])]


def test_reset_forgets_the_rows(llama: Any) -> None:
    ids, plain = talkative(llama)
    steps = speculative(llama, 2, Oracle({"x": plain, "y": plain}))
    steps.add(asked("y", ids, GREEDY))
    while not turn(steps):
        pass
    assert steps.reset() == ["y"]
    assert drain(steps, asked("x", ids, GREEDY)) == {"x": plain}
