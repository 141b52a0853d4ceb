"""logprobs: what the model itself thought of each token, each token once, with the text that it made."""

from __future__ import annotations

import random
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxo.chat.reasoning import Markers
from mlxo.chat.splitter import Splitter
from mlxo.chat.tools import HERMES
from mlxo.core.options import Options
from mlxo.core.types import Call, Event, Request, TextDelta, ThinkDelta, TokenLogprob
from mlxo.engine.batch import Batch
from mlxo.engine.engine import Engine
from mlxo.engine.logprobs import Ledger, Scores
from mlxo.engine.prefix import Prefixes
from mlxo.engine.sampling import Row
from mlxo.engine.solo import Solo
from tests import models
from tests.engine import families
from tests.engine.ask import Answer, chat, complete, run, say
from tests.engine.conftest import spec
from tests.engine.drive import job, turn

FRANCE = "What is the capital of France?"


def told(answer: Answer | list[Event]) -> list[TokenLogprob]:
    events = answer.events if isinstance(answer, Answer) else answer
    return [t for e in events if isinstance(e, TextDelta | ThinkDelta | Call) for t in e.logprobs]


def spoken(answer: Answer) -> str:
    tokens = [t.bytes for e in answer.events if isinstance(e, TextDelta) for t in e.logprobs if not t.silent]
    return b"".join(tokens).decode()


def reference(model: Any, ids: list[int], count: int) -> np.ndarray[Any, Any]:
    """Log-softmax [count, V] of the places that gave the last `count` of `ids`."""
    logits = model(mx.array([ids[:-1]]))[0, -count:].astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def check(engine: Engine, answer: Answer, width: int) -> None:
    """Every token of the answer against one plain pass of the model over prompt and answer."""
    tokens = told(answer)
    ids = list(answer.finished.context)
    answered = ids[answer.finished.prompt_tokens :]
    assert [t.bytes for t in tokens] == [engine._detokenizer.spell(i) for i in answered]
    wanted = reference(engine._steps._model, ids, len(answered))
    for token, id_, row in zip(tokens, answered, wanted, strict=True):
        assert token.logprob == pytest.approx(row[id_], abs=2e-3)
        best = np.sort(row)[::-1][:width]
        assert [t.logprob for t in token.top] == pytest.approx(best.tolist(), abs=2e-3)


def test_rows_of_all_sorts_at_once(qwen3: Engine) -> None:
    """What shapes the draw does not shape what is told; who does not ask is told nothing."""
    wild = {"temperature": 2.0, "num_predict": 12}
    asked: list[tuple[Request, int]] = [
        (chat(FRANCE, logprobs=0), 0),
        (chat(FRANCE, logprobs=20, options={**wild, "seed": 3}), 20),
        (chat(FRANCE, logprobs=2, options={**wild, "repeat_penalty": 1.5, "seed": 4}), 2),
        (chat("Say hello.", logprobs=3, format="json", options={**wild, "seed": 5}), 3),
        (chat("Say hello.", logprobs=1, logit_bias={40: 100.0}, options={"num_predict": 3}), 1),
        (complete("Once upon a time", logprobs=5), 5),
    ]
    plain = [chat(FRANCE), chat("Say hello.", think=True)]
    *answers, first, second = run(qwen3, *(r for r, _ in asked), *plain)
    for answer, (_, width) in zip(answers, asked, strict=True):
        check(qwen3, answer, width)
    assert not told(first)
    assert not told(second)
    assert answers[0].text == first.text == models.ANSWERS[FRANCE]


def test_thinking_calls_and_stops(qwen3: Engine, llama: Engine) -> None:
    answer = say(qwen3, chat(FRANCE, think=True, logprobs=0))
    check(qwen3, answer, 0)
    assert spoken(answer) == answer.text
    marks = b"".join(t.bytes for t in told(answer) if t.silent)
    assert marks.split() == [b"<think>", b"</think>"]
    called = say(
        qwen3,
        chat("What is the weather in Paris?", logprobs=0, task={"tools": (models.TOOLS["get_weather"],)}),
    )
    check(qwen3, called, 0)
    (call,) = [e for e in called.events if isinstance(e, Call)]
    assert b"get_weather" in b"".join(t.bytes for t in call.logprobs)
    for stop in (", 4", "4", "1"):
        stopped = say(qwen3, chat("Count from 1 to 20.", logprobs=0, options={"stop": (stop,)}))
        assert spoken(stopped) == stopped.text
        assert not stop.startswith(b"".join(t.bytes for t in told(stopped)).decode() or " ")
    # Parts of a character are told with it, or with the mark of a broken one.
    for count in range(1, 8):
        cut = say(llama, chat("Reply with emoji.", logprobs=0, options={"num_predict": count}))
        assert len(told(cut)) == count
        assert b"".join(t.bytes for t in told(cut)).decode(errors="replace") == cut.text


@pytest.mark.parametrize("family", ["full attention", "sliding window", "chunked attention"])
def test_back_ends(family: str) -> None:
    """Both of them, rows that join late, and the wait for the device that a finished row leaves behind."""
    model = families.build(*families.FAMILIES.get(family, families.CHUNKED))
    solo = family == "chunked attention"
    steps = Solo(model, [], 3, 8, Prefixes(0)) if solo else Batch(model, [], 3, 8, 32, Prefixes(0))
    free = Options(temperature=1.5)
    rng = random.Random(3)
    jobs = {}
    for i in range(5):
        made = job(str(i), [rng.randrange(2, 64) for _ in range(5 + 7 * i)], 6 + i, free)
        jobs[made.key] = made._replace(row=Row(free, i if i % 2 == 0 else None))
        steps.add(jobs[made.key])
    said: dict[str, list[tuple[int, Scores | None]]] = {}
    while steps.waiting or len(steps):
        for out in turn(steps):
            said.setdefault(out.key, []).append((out.token, out.scores))
    for i in range(5):
        ids = [*jobs[str(i)].ids, *(t for t, _ in said[str(i)])]
        wanted = reference(model, ids, 6 + i)
        for (token, scores), row in zip(said[str(i)], wanted, strict=True):
            if i % 2:
                assert scores is None
                continue
            assert scores is not None
            assert scores.logprob == pytest.approx(row[token], abs=1e-3)
            assert [p for _, p in scores.top] == pytest.approx(np.sort(row)[::-1][:i].tolist(), abs=1e-3)
            assert [row[t] for t, _ in scores.top] == pytest.approx([p for _, p in scores.top], abs=1e-3)


PIECES = ["<think>", "</think>", "<tool_call>", "</tool_call>", '{"name":"f","arguments":{}}', "STOP", "ST"]
PIECES += [" ", "\n\n", "a", "word", "é", "🦊", "<", "</"]


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(st.sampled_from(PIECES), max_size=14),
    cuts=st.lists(st.integers(1, 7), min_size=1, max_size=9),
    thinks=st.booleans(),
    tools=st.booleans(),
    stops=st.sampled_from([(), ("STOP",), ("a<", "word")]),
)
def test_each_token_is_told_once_with_its_text(
    pieces: list[str], cuts: list[int], thinks: bool, tools: bool, stops: tuple[str, ...]
) -> None:
    """Tokens of any bytes, cut anywhere: in order, none twice, none lost but those of a stop string."""
    import codecs

    raw = "".join(pieces).encode()
    tokens = []
    for i in range(len(raw)):
        size = cuts[i % len(cuts)]
        if raw:
            tokens.append(raw[:size])
            raw = raw[size:]
    marks = Markers("<think>", "</think>") if thinks else None
    splitter = Splitter(stops, marks, HERMES if tools else None, False)
    ledger = Ledger(splitter, lambda i: tokens[i])
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    events: list[Event] = []
    for i, token in enumerate(tokens):
        text = decode(token)
        made: list[Event] = [*splitter.feed(text)]
        ledger.add(i, Scores(-1.0 * i, ()), text)
        if splitter.stopped is not None:
            events += ledger.tell(made, "")
            break
        events += ledger.tell(made)
    else:
        events += ledger.tell([*splitter.finish()], "")
    found = told(events)
    assert [t.logprob for t in found] == [-1.0 * i for i in range(len(found))]
    if splitter.stopped is None:
        assert len(found) == len(tokens)
    else:
        passed = "".join(pieces).split(splitter.stopped)[0].encode()
        assert b"".join(t.bytes for t in found).startswith(passed) or len(stops) > 1
    for event in events:
        if isinstance(event, TextDelta | ThinkDelta):
            mine = b"".join(t.bytes for t in event.logprobs if not t.silent)
            # A token may begin in one event and end in the next.
            assert not mine or set(mine.decode(errors="ignore")) & set(event.text) or mine[0] >= 128


def test_one_seed_one_text_alone_in_company_and_warm() -> None:
    engine = Engine(spec(models.QWEN3), rows=16)
    question = "Tell me a joke. " * 30
    kinds: list[dict[str, Any]] = [
        {"top_k": 40},
        {"top_k": 0, "top_p": 0.95},
        {"top_k": 30, "repeat_penalty": 1.2, "frequency_penalty": 0.1},
        {"top_k": 0, "top_p": 1.0, "min_p": 0.02, "xtc_probability": 0.5, "xtc_threshold": 0.05},
        {"top_k": 200, "typical_p": 0.8, "presence_penalty": 0.4, "repeat_last_n": -1},
    ]

    def ask(i: int) -> Request:
        options = {"temperature": 3.0, "seed": i, "num_predict": 20, **kinds[i % len(kinds)]}
        return chat(question, options=options, logprobs=i % 3 or None, logit_bias={50: 2.0} if i % 4 else {})

    cold = [say(engine, ask(i)) for i in range(16)]
    assert len({a.text for a in cold}) == 16
    together = run(engine, *(ask(i) for i in range(16)))
    assert [a.text for a in together] == [a.text for a in cold]
    assert all(a.started.cached_tokens > 100 for a in together)
    engine.close()
