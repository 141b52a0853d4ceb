"""The prefix cache: what it finds and forgets, and what a request's answer says of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache

from mlxo.core.types import Failed, Message, Started
from mlxo.engine.engine import Engine
from mlxo.engine.prefix import LEAST, Prefixes
from tests import models
from tests.engine.ask import Answer, chat, complete, run, say
from tests.engine.conftest import spec

ROOMY = 1 << 30
FRANCE = "What is the capital of France?"
COUNT = "Count from 1 to 20."


# ---------------------------------------------------------------- the structure


def kept(ids: Sequence[int]) -> list[Any]:
    """One layer whose keys and values at a place are that place's token."""
    cache = KVCache()
    values = mx.array(list(ids), dtype=mx.float32).reshape(1, 1, -1, 1)
    cache.update_and_fetch(values, values)
    return [cache]


def held(layers: list[Any]) -> list[int]:
    return [int(x) for x in np.array(layers[0].keys_and_values()[0]).reshape(-1)]


def test_the_longest_common_beginning_is_found() -> None:
    prefixes = Prefixes(ROOMY)
    base = list(range(100, 200))
    for tail in ([1] * 5, [2] * 5, [3] * 5):
        ids = base[: 20 * tail[0]] + tail
        prefixes.keep(ids, kept(ids))
    for prompt, n in [
        ([*base[:20], 1, 1, 9], 22),
        ([*base[:60], 2], 60),
        (base, 60),
        (base[:40] + [2] * 5, 44),  # the whole entry: one token is left to feed
        (base[:40] + [2] * 8, 45),
        (base[:LEAST], 0),
        (base[: LEAST + 1], LEAST),
        ([7, *base], 0),
    ]:
        layers, cached = prefixes.take(prompt)
        assert cached == n
        assert (held(layers) if layers else []) == prompt[:n]


def test_what_is_taken_is_the_callers_own() -> None:
    prefixes = Prefixes(ROOMY)
    ids = list(range(100, 140))
    prefixes.keep(ids, kept(ids))
    first, _ = prefixes.take([*ids[:30], 7])
    second, _ = prefixes.take([*ids[:30], 8])
    assert first is not None
    assert second is not None
    for layers, token in ((first, 7), (second, 8)):
        more = mx.full((1, 1, 3, 1), token, dtype=mx.float32)
        layers[0].update_and_fetch(more, more)
    assert held(first) == [*ids[:30], 7, 7, 7]
    assert held(second) == [*ids[:30], 8, 8, 8]
    again, n = prefixes.take([*ids, 9])
    assert again is not None
    assert (held(again), n) == (ids, 40)


def test_an_extended_sequence_takes_the_place_of_its_beginning() -> None:
    prefixes = Prefixes(ROOMY)
    ids = list(range(100, 180))
    other = list(range(300, 340))
    for each in (ids[:40], other, ids, ids[:60], ids[:LEAST], ids):
        prefixes.keep(each, kept(each))
    assert len(prefixes) == 2
    assert prefixes.take([*ids, 1])[1] == 80
    prefixes.keep([1] * (LEAST - 1), kept([1] * (LEAST - 1)))
    assert len(prefixes) == 2


def test_the_least_recently_used_goes_first() -> None:
    sequences = [[n] * 256 for n in range(2, 6)]
    each = kept(sequences[0])[0].nbytes
    for prefixes in (Prefixes(ROOMY, arrays=6), Prefixes(3 * each + each // 2)):
        for ids in sequences[:3]:
            prefixes.keep(ids, kept(ids))
        assert prefixes.take(sequences[0])[1] == 255
        prefixes.keep(sequences[3], kept(sequences[3]))
        assert [bool(prefixes.take(ids)[1]) for ids in sequences] == [True, False, True, True]
        assert prefixes.nbytes == 3 * each
        prefixes.clear()
        assert (len(prefixes), prefixes.nbytes) == (0, 0)
        assert prefixes.take(sequences[0]) == (None, 0)
    small = Prefixes(each)
    small.keep(sequences[0], kept(sequences[0]))
    small.keep(sequences[1] * 2, kept(sequences[1] * 2))
    assert small.take(sequences[0])[1] == 255, "what can never fit pushed another out"


def test_an_entry_does_not_keep_its_batch_alive() -> None:
    rows, width = 32, 1 << 16
    prefixes = Prefixes(ROOMY)
    batch = ArraysCache(1)
    batch[0] = mx.ones((rows, width))
    mx.eval(batch[0])
    before = mx.get_active_memory()
    prefixes.keep([7] * LEAST, [CacheList(batch.extract(0))])
    mx.synchronize()
    del batch
    assert mx.get_active_memory() <= before - 4 * width * (rows - 2)
    assert prefixes.nbytes == 4 * width


# ---------------------------------------------------------------- whole requests


@pytest.fixture(params=["qwen3", "llama"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """A cold engine, the model's own answers."""
    return Engine(spec(models.QWEN3 if request.param == "qwen3" else models.LLAMA), rows=4)


def check(answer: Answer, least: int) -> None:
    """At least `least` of the prompt was cached, and both ends of the answer say so."""
    started, finished = answer.started, answer.finished
    assert started.cached_tokens == finished.cached_tokens
    assert least <= started.cached_tokens < started.prompt_tokens
    assert started.prompt_tokens == finished.prompt_tokens


def test_exact_repeats(engine: Engine) -> None:
    cold = say(engine, chat(COUNT))
    check(cold, 0)
    assert cold.started.cached_tokens == 0
    n = cold.started.prompt_tokens - 1
    for warm in run(engine, *(chat(COUNT) for _ in range(3))):
        assert (warm.text, warm.finished.context) == (cold.text, cold.finished.context)
        check(warm, n)
    engine.close()


def test_chats_grow_and_share_a_system_prompt() -> None:
    """Every answer is what an engine without anything cached says, and most of its prompt is cached."""
    system = Message(role="system", content="Be short, and be kind to everybody who asks. " * 3)
    questions = list(models.ANSWERS)[:4]
    requests: list[tuple[list[Message], int]] = []
    engine = Engine(spec(models.QWEN3), rows=4)
    for n, question in enumerate(questions):
        turns = [system, Message(role="user", content=question)]
        first = say(engine, chat(*turns))
        check(first, 30 if n else 0)
        requests.append((turns, 0))
        turns = [*turns, Message(role="assistant", content=first.text), Message(role="user", content=COUNT)]
        # The template writes an empty thinking before an answer, and leaves it out of the history.
        least = first.started.prompt_tokens - 8
        check(say(engine, chat(*turns)), least)
        edited = [*turns[:-1], Message(role="user", content=FRANCE)]
        requests += [(turns, least), (edited, least)]
    for turns, least in requests:
        cold = Engine(spec(models.QWEN3), rows=1)
        plain = say(cold, chat(*turns))
        cold.close()
        again = say(engine, chat(*turns))
        assert again.finished.context == plain.finished.context
        check(again, max(least, 30))
    engine.close()


def test_a_stop_string_and_a_cancel_leave_a_beginning(engine: Engine) -> None:
    plain = say(engine, chat(COUNT)).finished
    engine.abort("forget")
    stopped = say(engine, chat(COUNT, options={"stop": ("3, 4",)})).finished
    assert stopped.tokens < plain.tokens
    goes_on = plain.context[: len(stopped.context)]
    assert stopped.context == goes_on
    warm = say(engine, complete("", task={"context": goes_on}))
    assert warm.finished.context == plain.context
    check(warm, len(goes_on) - 1)

    engine.abort("forget")
    request = chat(COUNT)
    engine.submit(request)
    seen: list[object] = []
    while len(seen) < 4:
        seen += [e for i, e in engine.step() if i == request.id]
    assert isinstance(seen[0], Started)
    engine.cancel(request.id)
    while engine.busy:
        seen += [e for _, e in engine.step()]
    assert isinstance(seen[-1], Failed)
    warm = say(engine, chat(COUNT))
    assert warm.finished.context == plain.context
    check(warm, plain.prompt_tokens - 1)
    engine.close()


def test_penalties_seeds_and_formats_are_the_same_warm(qwen3: Engine) -> None:
    wild = {"temperature": 4.0, "seed": 3, "top_k": 0, "top_p": 1.0, "num_predict": 20}
    asked: list[dict[str, Any]] = [
        {"options": wild},
        {"options": {**wild, "repeat_penalty": 1.5, "repeat_last_n": -1}},
        {"options": {"repeat_penalty": 3.0, "num_predict": 20}},
        {"format": "json"},
    ]
    question = "Answer in JSON: name and age of Ada."
    cold = []
    for fields in asked:
        qwen3.abort("forget")
        cold.append(say(qwen3, chat(question, **fields)))
        assert cold[-1].started.cached_tokens == 0
    warm = run(qwen3, *(chat(question, **fields) for fields in asked))
    assert [w.finished.context for w in warm] == [c.finished.context for c in cold]
    for each in warm:
        check(each, each.started.prompt_tokens - 1)


def test_nothing_is_cached_for_what_generates_nothing(qwen3: Engine) -> None:
    say(qwen3, chat(COUNT))
    none = say(qwen3, chat(COUNT, options={"num_predict": 0}))
    assert none.finished.cached_tokens == 0
