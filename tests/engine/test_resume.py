"""The back ends with a prefix cache: a sequence that resumes from another's caches says the same as alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache

from mlxo.core.options import Options
from mlxo.engine.batch import Batch, Guard
from mlxo.engine.layout import Layout
from mlxo.engine.prefix import Prefixes
from mlxo.engine.solo import Solo, mergeable
from tests.engine import families
from tests.engine.drive import drain, job, turn

CHUNK = 8
ROOMY = 1 << 30
FAMILIES = [*families.FAMILIES, "chunked attention"]
# Their caches go back to any earlier length.
TRIMMABLE = ("full attention", "mixture of experts")


def build(family: str) -> Any:
    return families.build(*families.FAMILIES.get(family, families.CHUNKED))


def steps(model: Any, rows: int, prefixes: Prefixes, eos: Sequence[int] = (families.EOS,)) -> Batch | Solo:
    if mergeable(make_prompt_cache(model)):
        return Batch(model, eos, rows, CHUNK, 4 * CHUNK, prefixes)
    return Solo(model, eos, rows, CHUNK, prefixes)


def random_ids(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(2, families.VOCABULARY) for _ in range(count)]


def alone(model: Any, ids: Sequence[int], limit: int = 20) -> list[int]:
    """What a fresh back end without a cache answers."""
    return drain(steps(model, 1, Prefixes(0)), job("x", ids, limit))["x"]


def ask(back_end: Batch | Solo, ids: Sequence[int], limit: int = 20) -> tuple[list[int], int]:
    """The answer, and how many tokens of the prompt were cached."""
    back_end.add(job("x", ids, limit))
    (cached,) = back_end.admit().values()
    return drain(back_end)["x"], cached


def exact(prefixes: Prefixes) -> None:
    """Every block holds as many tokens as it says, and the sum of them is right."""
    sizes = []
    for block in prefixes._held():
        assert block.parts is not None
        assert {a.shape[-2] for a in block.parts.every} <= {block.end - block.start}
        assert {a.shape[-2] for a in block.parts.window} <= {block.end - block.since}
        assert all(s is not None for s in block.parts.states or ())
        sizes.append(block.parts.nbytes)
    assert prefixes.nbytes == sum(sizes)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_goes_on(family: str) -> None:
    """Append-only, with others in between; every turn resumes from all that went before."""
    model = build(family)
    rng = random.Random(4)
    prefixes = Prefixes(ROOMY)
    back_end = steps(model, 2, prefixes)
    histories = [random_ids(rng, 20 + n) for n in range(3)]
    before = [0, 0, 0]
    for _ in range(3):
        for i, ids in enumerate(histories):
            answer, cached = ask(back_end, ids)
            assert answer == alone(model, ids)
            assert cached == before[i]
            before[i] = len(ids) + len(answer)
            histories[i] = [*ids, *answer, *random_ids(rng, rng.randint(1, 2 * CHUNK))]
    exact(prefixes)
    if family in TRIMMABLE:
        assert len(prefixes) == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_repeats_edits_and_shared_beginnings(family: str) -> None:
    """What does not trim must not pretend to: then there is no hit, and the answer is right all the same."""
    model = build(family)
    rng = random.Random(5)
    prefixes = Prefixes(ROOMY)
    back_end = steps(model, 2, prefixes)
    system = random_ids(rng, 40)
    first = [*system, *random_ids(rng, 9)]
    assert ask(back_end, first) == (alone(model, first), 0)
    for ids, cached in [
        (first, len(first) - 1),
        ([*first[:-3], 2, 3, 4, 5], len(first) - 3),
        ([*system, 2, 3], len(system)),
        (system, len(system) - 1),
        ([*system[:20], 5], 20),
    ]:
        answer, n = ask(back_end, ids)
        assert answer == alone(model, ids)
        assert n == cached or (n == 0 and family not in TRIMMABLE)
    exact(prefixes)


OPENING = 2  # a token that begins messages, as chat templates have one


@pytest.mark.parametrize("family", FAMILIES)
def test_chats_of_models_that_cannot_go_back(family: str) -> None:
    """A system message under other users, an edited last message, a repeat, a chat that returns."""
    model = build(family)
    rng = random.Random(21)
    layout = Layout(make_prompt_cache(model))
    back_end = steps(model, 2, Prefixes(ROOMY, block=16, layout=layout, turns=[OPENING]))

    def message(size: int) -> list[int]:
        return [OPENING, *(rng.randrange(3, families.VOCABULARY) for _ in range(size))]

    system, first = message(40), message(20)
    opening = [OPENING, 5, 6]
    chat = [*system, *first, *opening]
    asked: list[tuple[list[int], int]] = [(chat, 0)]
    asked += [([*system, *message(size), *opening], len(system)) for size in (17, 30)]
    answer = alone(model, chat)
    longer = [*chat, *answer, *message(18), *opening]
    asked.append((longer, len(chat) + len(answer)))
    before = len(longer) - 19 - len(opening)
    asked.append(([*longer[:before], *message(21), *opening], before))
    asked.append((longer, len(longer) - len(opening)))
    asked.append((chat, len(chat) - len(opening)))
    for ids, least in asked:
        said, cached = ask(back_end, ids)
        assert said == alone(model, ids)
        assert cached >= least
    assert ask(back_end, [*system[:30], 7])[1] in (0, 30)


@pytest.mark.parametrize("family", ["sliding window", "convolution and attention", "state space"])
def test_what_two_prompts_share_the_third_finds(family: str) -> None:
    """Without any messages to go by."""
    model = build(family)
    rng = random.Random(22)
    back_end = steps(model, 2, Prefixes(ROOMY, block=16, layout=Layout(make_prompt_cache(model))))
    common = random_ids(rng, 50)
    hits = []
    for _ in range(3):
        ids = [*common, *random_ids(rng, 30)]
        said, cached = ask(back_end, ids)
        assert said == alone(model, ids)
        hits.append(cached)
    assert hits[0] == 0
    assert hits[2] >= len(common)


@pytest.mark.parametrize("family", ["full attention", "convolution and attention"])
def test_prompts_that_begin_alike_are_read_once_when_they_come_together(family: str) -> None:
    model = build(family)
    rng = random.Random(23)
    back_end = steps(model, 4, Prefixes(ROOMY, block=16))
    common = random_ids(rng, 60)
    prompts = {f"{i}": [*common, *random_ids(rng, 3 + i)] for i in range(3)}
    prompts["other"] = random_ids(rng, 40)
    for key, ids in prompts.items():
        back_end.add(job(key, ids, 9))
    said: dict[str, list[int]] = {}
    cached = back_end.admit()
    assert list(cached) == ["0", "other"]
    while back_end.waiting or len(back_end):
        for out in back_end.step():
            said.setdefault(out.key, []).append(out.token)
        cached |= back_end.admit()
    assert cached == {"0": 0, "other": 0, "1": len(common), "2": len(common)}
    assert said == {key: alone(model, ids, 9) for key, ids in prompts.items()}


def test_many_users_of_one_system_message_share_its_memory() -> None:
    model = build("full attention")
    rng = random.Random(24)
    prefixes = Prefixes(ROOMY, block=16)
    back_end = steps(model, 2, prefixes)
    system = random_ids(rng, 160)
    ask(back_end, [*system, 3], limit=1)
    alone_bytes = prefixes.nbytes
    for _ in range(10):
        ask(back_end, [*system, *random_ids(rng, 4)], limit=1)
    exact(prefixes)
    assert prefixes.nbytes < 2 * alone_bytes


def test_a_last_answer_is_written_anew_without_trimming() -> None:
    """The turn before is still there: what grew out of it cannot stand in for it."""
    model = build("state space")
    back_end = steps(model, 1, Prefixes(ROOMY))
    ids = random_ids(random.Random(13), 20)
    answer, _ = ask(back_end, ids)
    second = [*ids, *answer, 5, 6, 7]
    assert ask(back_end, second) == (alone(model, second), len(ids) + len(answer))
    for _ in range(2):
        assert ask(back_end, second) == (alone(model, second), len(second) - 1)


def test_a_sliding_window_trims_until_it_slides() -> None:
    model = families.build(
        "gemma3_text", {"sliding_window": 64, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8}
    )
    rng = random.Random(6)
    back_end = steps(model, 2, Prefixes(ROOMY), [])
    ids = random_ids(rng, 30)
    assert ask(back_end, ids)[1] == 0
    edited = [*ids[:25], *random_ids(rng, 6)]
    assert ask(back_end, edited) == (alone_free(model, edited), 25)
    long = [*ids[:25], *random_ids(rng, 50)]
    answer, cached = ask(back_end, long)
    assert (answer, cached) == (alone_free(model, long), 25)
    # 95 tokens in a window of 64: what slid out was kept when the prompt had been read.
    edited = [*long[:70], 3, 4]
    assert ask(back_end, edited) == (alone_free(model, edited), 70)
    whole = [*long, *answer, 9, 8]
    assert ask(back_end, whole) == (alone_free(model, whole), 95)


def alone_free(model: Any, ids: Sequence[int]) -> list[int]:
    """The same where nothing ends an answer but its limit."""
    return drain(steps(model, 1, Prefixes(0), []), job("x", ids, 20))["x"]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_hit_one_entry_at_once(family: str) -> None:
    model = build(family)
    rng = random.Random(7)
    back_end = steps(model, 4, Prefixes(ROOMY))
    ids = random_ids(rng, 30)
    answer, _ = ask(back_end, ids)
    whole = [*ids, *answer]
    asked = [[*whole, *random_ids(rng, n)] for n in (1, 4, 20)]
    for i, each in enumerate(asked):
        back_end.add(job(str(i), each, 20))
    back_end.add(job("cold", random_ids(random.Random(8), 33), 20))
    assert back_end.admit() == {"0": len(whole), "1": len(whole), "2": len(whole), "cold": 0}
    said = drain(back_end)
    assert [said[str(i)] for i in range(3)] == [alone(model, each) for each in asked]
    assert said["cold"] == alone(model, random_ids(random.Random(8), 33))
    last = [*whole, 5]
    assert ask(back_end, last)[0] == alone(model, last)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_removed_row_is_resumed_from(family: str) -> None:
    """In its prefill and while it writes; what had only been admitted leaves nothing."""
    model = build(family)
    prefixes = Prefixes(ROOMY)
    back_end = steps(model, 2, prefixes)
    ids = random_ids(random.Random(9), 60)
    whole = alone(model, ids)
    back_end.add(job("a", ids, 20))
    back_end.admit()
    back_end.remove("a")
    assert len(prefixes) == 0
    back_end.add(job("a", ids, 20))
    turn(back_end)
    turn(back_end)
    back_end.remove("a")
    exact(prefixes)
    assert len(prefixes) == 1
    back_end.add(job("a", ids, 20))
    (cached,) = back_end.admit().values()
    assert CHUNK <= cached < len(ids)
    said = [o.token for _ in range(12) for o in turn(back_end)]
    assert said == whole[: len(said)]
    assert said
    back_end.remove("a")
    exact(prefixes)
    after = [*ids, *said]
    assert ask(back_end, [*after, 5]) == (alone(model, [*after, 5]), len(after))


@pytest.mark.parametrize(("family", "schedules"), [("full attention", 50), ("sliding window", 10)])
def test_random_schedules(family: str, schedules: int) -> None:
    """Turns of a few conversations over two system prompts, edits, repeats and cancels; few entries fit."""
    model = build(family)
    rng = random.Random(10)
    systems = [random_ids(rng, 24), random_ids(rng, 40)]
    asked = [[*rng.choice(systems), *random_ids(rng, rng.randint(1, 12))] for _ in range(8)]
    asked += [[*ids, *alone(model, ids, 10), *random_ids(rng, 5)] for ids in asked[:4]]
    asked += [[*ids[:-2], *random_ids(rng, 2)] for ids in asked[8:]]
    plain = [alone(model, ids, 10) for ids in asked]
    hits = 0
    for seed in range(schedules):
        rng = random.Random(seed)
        prefixes = Prefixes(ROOMY, arrays=4 * rng.randint(2, 16), block=rng.choice([8, 16, 256]))
        back_end = steps(model, rng.randint(2, 5), prefixes)
        todo = rng.choices(range(len(asked)), k=12)
        ask_of: dict[str, int] = {}
        said: dict[str, list[int]] = {}
        cancelled = set()
        while todo or back_end.waiting or len(back_end):
            while todo and rng.random() < 0.4:
                key = f"{len(ask_of)}"
                ask_of[key] = todo.pop()
                back_end.add(job(key, asked[ask_of[key]], 10))
            if ask_of and rng.random() < 0.08:
                victim = rng.choice(list(ask_of))
                back_end.remove(victim)
                cancelled.add(victim)
            hits += sum(1 for n in back_end.admit().values() if n)
            for out in back_end.step() if len(back_end) else ():
                said.setdefault(out.key, []).append(out.token)
            exact(prefixes)
        for key, i in ask_of.items():
            got = said.get(key, [])
            assert got == plain[i][: len(got) if key in cancelled else None], (seed, key)
    assert hits > schedules


def test_a_failed_processor_or_step_leaves_nothing() -> None:
    model = build("full attention")

    class Faulty:
        layers = model.layers
        broken = False

        def __call__(self, inputs: mx.array, cache: list[Any]) -> mx.array:
            if self.broken:
                raise RuntimeError("out of memory")
            logits: mx.array = model(inputs, cache=cache)
            return logits

    def failing(tokens: mx.array, logits: mx.array) -> mx.array:
        raise KeyError("broken")

    faulty = Faulty()
    prefixes = Prefixes(ROOMY)
    back_end = steps(faulty, 2, prefixes)
    ids = random_ids(random.Random(11), 30)
    drain(back_end, job("a", ids, 3, guard=Guard([failing])))
    assert len(prefixes) == 0
    back_end.add(job("a", ids, 20, guard=Guard([failing])))
    while not turn(back_end):
        pass
    back_end.remove("a")
    assert len(prefixes) == 0

    assert ask(back_end, ids)[1] == 0
    assert len(prefixes) == 1
    back_end.add(job("b", [*ids, 3], 8))
    turn(back_end)
    faulty.broken = True
    with pytest.raises(RuntimeError, match="out of memory"):
        turn(back_end)
    faulty.broken = False
    back_end.reset()
    assert len(prefixes) == 0
    assert ask(back_end, ids) == (alone(model, ids), 0)


@pytest.mark.parametrize("family", ["full attention", "chunked attention"])
def test_seeds_and_processors_do_not_see_the_cache(family: str) -> None:
    model = build(family)
    options = Options(temperature=3.0, seed=7, top_k=0, top_p=1.0)
    seen: list[list[int]] = []

    def watch(tokens: mx.array, logits: mx.array) -> mx.array:
        seen.append([int(t) for t in np.array(tokens)])
        return logits

    back_end = steps(model, 1, Prefixes(ROOMY), [])
    head = random_ids(random.Random(12), 30)
    answer, _ = ask(back_end, head)
    ids = [*head, *answer, 5, 6]
    plain = drain(steps(model, 1, Prefixes(0), []), job("x", ids, 12, options))["x"]
    back_end.add(job("x", ids, 12, options, Guard([watch])))
    assert back_end.admit() == {"x": 50}
    assert drain(back_end)["x"] == plain
    assert seen[:12] == [ids + plain[:n] for n in range(12)]
