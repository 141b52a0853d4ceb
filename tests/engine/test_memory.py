"""The memory guard: who joins, who waits, who is told that it never will, and who must go."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import pytest

from mlxo.core.errors import InvalidRequest
from mlxo.engine.engine import Engine
from mlxo.engine.memory import ANSWER, Memory
from tests import models
from tests.engine.ask import Answer, chat, complete, run, say

KB = 1 << 10


@pytest.fixture
def engine(qwen3_engine: Engine) -> Iterator[Engine]:
    memory, pace = qwen3_engine._memory, qwen3_engine._steps
    yield qwen3_engine
    qwen3_engine._memory = pace.memory = memory
    assert not qwen3_engine.busy


def limited(engine: Engine, tokens: int | None = None) -> Memory:
    """A limit far above what is really held, with room for so many tokens, or for any number."""
    old, limit = engine._memory, 1 << 40
    held = 0 if tokens is None else int(limit * 15 / 16) - tokens * old._rate - old._fixed
    engine._memory = engine._steps.memory = Memory(limit, held, old._fixed, old._rate)
    return engine._memory


def test_arithmetic() -> None:
    memory = Memory(limit=1600 * KB, held=500 * KB, fixed=10 * KB, rate=KB)  # 990 tokens for the first
    memory.check(900, 90)
    with pytest.raises(InvalidRequest, match="990 tokens at most") as e:
        memory.check(900, 91)
    assert e.value.hint == "set num_ctx to 990 or less"
    assert memory.admits(5000, 1)  # alone: `check` is who refuses
    memory.join("a", 300, 100)
    assert memory.admits(300, 280)
    assert not memory.admits(300, 281)
    memory.leave("a")
    memory.leave("a")
    wide = Memory(limit=1 << 41, held=0, fixed=0, rate=1 << 30)  # 1920 tokens
    wide.check(1, 10**6)  # of an answer only so much is counted
    with pytest.raises(InvalidRequest):
        wide.check(1921 - ANSWER, 10**6)
    with pytest.raises(InvalidRequest, match=" 0 tokens at most"):
        Memory(limit=KB, held=KB, fixed=0, rate=1).check(1, 1)


def test_requests_wait_for_memory(engine: Engine) -> None:
    """One at a time where there is room for one and a half, and all are answered."""
    questions = list(models.ANSWERS)[:4]
    asked = [chat(q, options={"num_predict": 60}) for q in questions]
    one = max(len(engine._prompter.prepare(r).ids) for r in asked) + 60
    limited(engine, one * 3 // 2)
    most = 0
    events: dict[str, list[object]] = {r.id: [] for r in asked}
    for request in asked:
        engine.submit(request)
    while engine.busy:
        for key, event in engine.step():
            events[key].append(event)
        most = max(most, len(engine._steps))
    said = [Answer(events[r.id]) for r in asked]  # type: ignore[arg-type]
    assert [a.text for a in said] == [models.ANSWERS[q] for q in questions]
    assert most == 1


def test_what_never_fits_is_refused(engine: Engine) -> None:
    limited(engine, 100)
    failed = say(engine, complete("one two three " * 100)).failed
    assert failed.code == "invalid_request"
    assert "do not fit the memory" in failed.message


def test_under_pressure_the_newest_goes_and_the_others_stay(engine: Engine) -> None:
    first = chat("Count from 1 to 20.")
    second = chat("Write a haiku about the sea.")
    engine.submit(first)
    got: dict[str, list[object]] = {first.id: [], second.id: []}

    def step() -> None:
        for key, event in engine.step():
            got[key].append(event)

    step()
    engine.submit(second)
    while len(engine._steps) < 2:
        step()
    step()
    memory = limited(engine)
    memory.limit = int(mx.get_active_memory()) // 2
    while len(got[second.id]) == 0 or second.id in engine._sequences:
        step()
    memory.limit = 1 << 40
    while engine.busy:
        step()
    failed = Answer(got[second.id]).failed  # type: ignore[arg-type]
    assert (failed.code, failed.hint) == ("busy", "try again later, or with less num_ctx")
    assert Answer(got[first.id]).text == models.ANSWERS["Count from 1 to 20."]  # type: ignore[arg-type]


def test_what_is_kept_for_later_goes_before_anybody(engine: Engine) -> None:
    run(engine, chat("Tell me a joke."))
    assert engine._prefixes.nbytes > 0
    memory = limited(engine)
    engine.submit(chat("Who are you?"))
    memory.limit = int(mx.get_active_memory()) - engine._prefixes.nbytes // 2
    events = engine.step()
    memory.limit = 1 << 40
    while engine.busy:
        events += engine.step()
    assert Answer([e for _, e in events]).text == models.ANSWERS["Who are you?"]
