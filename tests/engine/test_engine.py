"""Whole requests through an engine with tiny trained models."""

from __future__ import annotations

import itertools

import pytest

from mlxo.core.options import Options
from mlxo.core.types import Call, Failed, Finished, Message, Request, Started, Touch
from mlxo.engine.engine import Engine
from tests import models
from tests.engine.ask import Answer, chat, complete, run, say
from tests.engine.conftest import spec

FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris."
COUNT = "Count from 1 to 20."


def test_answers_alone_and_together(qwen3: Engine, llama: Engine) -> None:
    for engine, answers in ((qwen3, models.ANSWERS), (llama, models.LLAMA_ANSWERS)):
        questions = list(answers)
        together = run(engine, *(chat(q) for q in questions))
        assert [a.text for a in together] == list(answers.values())
        assert say(engine, chat(questions[0])).text == answers[questions[0]]


def test_thinking_comes_apart(qwen3: Engine) -> None:
    answer = say(qwen3, chat(FRANCE, think=True))
    assert (answer.thinking, answer.text) == (models.THOUGHTS[FRANCE], PARIS)


def test_the_events_of_an_answer(qwen3: Engine) -> None:
    answer = say(qwen3, chat(FRANCE))
    assert isinstance(answer.events[0], Started)
    assert len([e for e in answer.events if isinstance(e, Started | Finished | Failed)]) == 2
    end = answer.finished
    assert (end.reason, end.stop, end.prompt_tokens) == ("stop", None, answer.started.prompt_tokens)
    # The end token is counted, as Ollama does, and is no part of the context.
    assert len(end.context) == end.prompt_tokens + end.tokens - 1
    assert end.prompt_ns > 0
    assert end.eval_ns > 0


def test_the_context_continues_a_completion(llama: Engine) -> None:
    whole = say(llama, complete("Once upon a time")).text
    assert whole == models.RAW["Once upon a time"]
    half = say(llama, complete("Once upon a time", options={"num_predict": 5}))
    rest = say(llama, complete("", task={"context": half.finished.context}))
    assert half.text + rest.text == whole


def test_a_chat_goes_on_after_a_context(qwen3: Engine, llama: Engine) -> None:
    first, second, reply = models.SECOND_TURN
    before = say(qwen3, chat(first)).finished.context
    end = tuple(qwen3._prompter.encode("<|im_end|>\n", opening=False))
    assert say(qwen3, chat(second, task={"context": before + end})).text == reply
    assert say(qwen3, chat(second)).text == models.ANSWERS[second]
    # llama's template begins with BOS: only the first turn may have it.
    before = say(llama, chat(first)).finished.context
    assert say(llama, chat(second, task={"context": before})).finished.context.count(1) == 1


def test_a_tool_call(qwen3: Engine) -> None:
    tools = (models.TOOLS["get_weather"],)
    answer = say(qwen3, chat("What is the weather in Paris?", task={"tools": tools}))
    (call,) = (e.call for e in answer.events if isinstance(e, Call))
    assert (call.function.name, call.function.arguments) == ("get_weather", {"city": "Paris"})
    assert answer.text == ""


def test_the_model_goes_on_with_a_started_answer(qwen3: Engine) -> None:
    messages = (Message(role="user", content=FRANCE), Message(role="assistant", content="The capital of"))
    answer = say(qwen3, chat(*messages, think=None, task={"prefill": True}))
    assert answer.text == " France is Paris."


# ---------------------------------------------------------------- stopping


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("e is Par", "The capital of Franc"),  # begins and ends inside a token
        ("capital of", "The "),  # spans tokens
        (" Paris.", "The capital of France is"),
        (".", "The capital of France is Paris"),
        ("Paris.x", PARIS),  # begins, and never completes
        ("London", PARIS),
        ("T", ""),
    ],
)
def test_stop_strings(qwen3: Engine, stop: str, text: str) -> None:
    answer = say(qwen3, chat(FRANCE, options={"stop": (stop,)}))
    assert answer.text == text
    assert answer.finished.reason == "stop"
    assert answer.finished.stop == (None if text == PARIS else stop)


def test_a_stop_string_ends_the_row_at_once(qwen3: Engine) -> None:
    whole = say(qwen3, chat(COUNT)).finished.tokens
    short = say(qwen3, chat(COUNT, options={"stop": ("3, 4",)}))
    assert short.text == "1, 2, "
    assert short.finished.tokens < whole / 2


def test_a_stop_string_in_the_thinking(qwen3: Engine) -> None:
    answer = say(qwen3, chat(FRANCE, think=True, options={"stop": ("Its",)}))
    assert (answer.thinking.rstrip(), answer.text) == ("The user asks about France.", "")
    assert answer.finished.stop == "Its"


def test_stops_of_one_row_leave_the_others_alone(qwen3: Engine) -> None:
    stops = ("a", "capital", " is", "zzz")
    answers = run(qwen3, *(chat(FRANCE, options={"stop": (s,)}) for s in stops))
    assert [a.text for a in answers] == ["The c", "The ", "The capital of France", PARIS]


def test_characters_that_span_tokens_come_whole(qwen3: Engine, llama: Engine) -> None:
    for engine in (qwen3, llama):
        answer = say(engine, chat("Reply with emoji."))
        assert answer.text == models.ANSWERS["Reply with emoji."]
        assert all("\ufffd" not in str(e) for e in answer.events)
        assert len(answer.text.encode()) > len(answer.text)


def test_a_character_cut_by_the_limit_is_marked(llama: Engine) -> None:
    cut = [say(llama, chat("Reply with emoji.", options={"num_predict": n})).text for n in range(1, 5)]
    assert any(t.endswith("\ufffd") for t in cut)


# ---------------------------------------------------------------- lengths


def test_num_predict(qwen3: Engine) -> None:
    answer = say(qwen3, chat(COUNT, options={"num_predict": 7}))
    assert (answer.finished.reason, answer.finished.tokens) == ("length", 7)
    assert models.ANSWERS[COUNT].startswith(answer.text)
    none = say(qwen3, chat(COUNT, options={"num_predict": 0}))
    assert (none.text, none.finished.reason, none.finished.tokens) == ("", "length", 0)


def test_num_ctx_bounds_prompt_and_answer(qwen3: Engine) -> None:
    answer = say(qwen3, chat(models.FOREVER, options={"num_ctx": 64}))
    assert answer.finished.reason == "length"
    assert answer.finished.prompt_tokens + answer.finished.tokens == 64
    # No larger than what the model was trained for.
    assert qwen3.context == 4096


def test_the_engine_may_have_a_smaller_context() -> None:
    engine = Engine(spec(models.LLAMA, context=512), rows=1, context=30)
    assert engine.context == 30
    answer = say(engine, chat(COUNT))
    assert answer.finished.reason == "length"
    assert answer.finished.prompt_tokens + answer.finished.tokens == 30
    assert say(engine, chat(COUNT, options={"num_ctx": 512})).text == models.ANSWERS[COUNT]
    engine.close()


def test_a_prompt_that_does_not_fit(qwen3: Engine) -> None:
    long = "word " * 200
    for request in (
        complete(long, options={"num_ctx": 64}, task={"truncate": False}),
        chat(long, options={"num_ctx": 64}, task={"truncate": False}),
    ):
        failed = say(qwen3, request).failed
        assert failed.code == "invalid_request"
        assert failed.message.startswith("the prompt is longer than the context length")


def test_a_completion_is_cut_in_the_middle(qwen3: Engine) -> None:
    ids = [*range(300, 400)]
    options = {"num_ctx": 32, "num_keep": 3, "num_predict": 4}
    answer = say(qwen3, complete("", task={"context": tuple(ids)}, options=options))
    assert answer.finished.context[:28] == (*ids[:3], *ids[-25:])
    assert answer.finished.tokens == 4
    assert answer.finished.cut == 72


def test_a_chat_loses_its_oldest_messages(qwen3: Engine) -> None:
    old = [Message(role=r, content="long ago " * 20) for r in ("user", "assistant") * 4]
    answer = say(qwen3, chat(*old, FRANCE, options={"num_ctx": 100}))
    assert answer.started.truncated == 8
    assert answer.finished.cut > 100
    assert answer.text == PARIS


def test_each_request_has_its_own_context(qwen3: Engine) -> None:
    """At once, on one loaded model: none sees the other's num_ctx."""
    long = tuple(range(300, 400))
    asked = [
        complete("", task={"context": long}, options={"num_ctx": n, "num_predict": 200})
        for n in (120, 110, 60)
    ]
    wide, tight, cut = run(qwen3, *asked)
    for answer, room in ((wide, 20), (tight, 10)):
        assert answer.finished.cut == 0
        assert answer.finished.prompt_tokens == 100
        assert answer.finished.tokens <= room
    assert cut.finished.cut == 100 - cut.finished.prompt_tokens > 0


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (chat(Message(role="user", content="see", images=(b"x",))), "cannot see images"),
        (complete(""), "the prompt is empty"),
        (complete("x", task={"context": (5, 99999)}), "no tokens of this model"),
        (complete("x", task={"context": (-1,)}), "no tokens of this model"),
        (chat("x", task={"context": (10**6,)}), "no tokens of this model"),
        (chat("x", format="yaml"), "invalid format"),
        (chat("x", format={"type": "strin"}), "Invalid type: strin"),
        (chat("x", format={"type": "integer", "minimum": 5, "maximum": 1}), "greater than maximum"),
        (chat("x", template="{% if %}"), "template"),
    ],
)
def test_refusals_come_as_events(qwen3: Engine, request_: Request, words: str) -> None:
    answer = say(qwen3, request_)
    assert len(answer.events) == 1
    assert answer.failed.code == "invalid_request"
    assert words in answer.failed.message
    assert "\n" not in answer.failed.message


def test_touch_generates_nothing(qwen3: Engine) -> None:
    answer = say(qwen3, Request(id="t", model="m", task=Touch(), options=Options()))
    assert [type(e) for e in answer.events] == [Finished]
    assert answer.finished.reason == "load"


# ---------------------------------------------------------------- the model's own part


def test_system_messages_and_template_of_the_model() -> None:
    system, question, reply = models.PIRATE
    engine = Engine(spec(models.QWEN3, system=system), rows=2)
    assert say(engine, chat(question)).text == reply
    own = chat(Message(role="system", content="Be brief."), question)
    assert say(engine, own).text == models.ANSWERS[question]
    engine.close()

    first, second, reply = models.SECOND_TURN
    before = (
        Message(role="user", content=first),
        Message(role="assistant", content=models.ANSWERS[first]),
    )
    engine = Engine(spec(models.QWEN3, messages=before), rows=2)
    assert say(engine, chat(second)).text == reply
    engine.close()

    plain = "{% for m in messages %}{{ m.content }}{% endfor %}"
    prompt, reply = next(iter(models.RAW.items()))
    engine = Engine(spec(models.QWEN3, template=plain), rows=2)
    assert say(engine, chat(prompt)).text == reply
    engine.close()


def test_a_request_may_bring_its_template(qwen3: Engine) -> None:
    prompt, reply = next(iter(models.RAW.items()))
    request = chat(prompt, template="{{ messages[0].content }}")
    assert say(qwen3, request).text == reply
    assert say(qwen3, chat(FRANCE)).text == PARIS


def test_bos_comes_once(llama: Engine) -> None:
    """The tokenizer adds it to plain text; the chat template writes it itself."""
    for request in (complete("Say"), complete("<s>Say"), chat("Say hello.")):
        ids = say(llama, request).finished.context
        assert ids[0] == 1
        assert 1 not in ids[1:]


# ---------------------------------------------------------------- cancelling


def _until_text(engine: Engine, id_: str) -> None:
    while not any(i == id_ and type(e).__name__ == "TextDelta" for i, e in engine.step()):
        assert engine.busy


def test_cancel_frees_the_row_within_one_step(qwen3: Engine) -> None:
    requests = [chat(models.FOREVER) for _ in range(4)]  # all the rows
    for r in requests:
        qwen3.submit(r)
    _until_text(qwen3, requests[0].id)
    waiting = chat(FRANCE)
    qwen3.submit(waiting)
    qwen3.step()
    assert (qwen3.stats().rows, qwen3.stats().waiting) == (4, 1)
    qwen3.cancel(requests[1].id)
    events = qwen3.step()
    assert (requests[1].id, Failed(message="the request was cancelled", code="cancelled")) in events
    assert (waiting.id, "Started") in [(i, type(e).__name__) for i, e in events]
    for r in requests:
        qwen3.cancel(r.id)
    seen: list[tuple[str, object]] = []
    while qwen3.busy:
        seen += qwen3.step()
    assert Answer([e for i, e in seen if i == waiting.id]).text == PARIS  # type: ignore[misc]


def test_cancel_in_the_prefill_and_in_the_queue(qwen3: Engine) -> None:
    long = complete("word " * 800)
    qwen3.submit(long)
    first = [type(e) for _, e in qwen3.step()]
    assert first == [Started]
    qwen3.cancel(long.id)
    assert [type(e) for _, e in qwen3.step()] == [Failed]
    assert (qwen3.stats().rows, qwen3.busy) == (0, False)
    qwen3.cancel("nobody")
    assert not qwen3.busy


# ---------------------------------------------------------------- options


def test_one_seed_one_text(qwen3: Engine) -> None:
    wild = [
        {"temperature": 4.0, "seed": 3, "top_k": 0, "top_p": 1.0},
        {"temperature": 4.0, "seed": 4, "top_k": 0, "top_p": 1.0},
        {"temperature": 5.0, "seed": 3, "top_k": 60, "top_p": 0.95, "repeat_penalty": 1.3},
        {"temperature": 0.0},
    ]
    requests = [chat("Tell me a joke.", options={"num_predict": 30, **o}) for o in wild]
    alone = [say(qwen3, r).text for r in requests]
    assert [a.text for a in run(qwen3, *requests)] == alone
    assert len(set(alone)) == 4


@pytest.mark.parametrize(
    "penalty", [{"repeat_penalty": 8.0}, {"presence_penalty": 40.0}, {"frequency_penalty": 8.0}]
)
def test_penalties_break_a_loop(qwen3: Engine, penalty: dict[str, float]) -> None:
    options = {"num_predict": 40, "repeat_last_n": -1}
    plain, held, off = run(
        qwen3,
        chat(models.FOREVER, options=options),
        chat(models.FOREVER, options={**options, **penalty}),
        chat(models.FOREVER, options={**options, **penalty, "repeat_last_n": 0}),
    )
    assert plain.text.count("banana") > 15
    assert held.text.count("banana") < 8
    assert off.text == plain.text


def test_a_waiting_request_gets_its_turn_in_order(qwen3: Engine) -> None:
    requests = [chat(q) for q in itertools.islice(models.ANSWERS, 9)]
    started = []
    for r in requests:
        qwen3.submit(r)
    while qwen3.busy:
        started += [i for i, e in qwen3.step() if isinstance(e, Started)]
    assert started == [r.id for r in requests]


def test_abort_fails_the_running_and_keeps_the_waiting(qwen3: Engine) -> None:
    """What the runner does when a step raises."""
    requests = [chat(FRANCE) for _ in range(6)]
    for r in requests:
        qwen3.submit(r)
    qwen3.step()
    qwen3.abort("the model failed (RuntimeError)")
    got: dict[str, list[object]] = {r.id: [] for r in requests}
    while qwen3.busy:
        for i, e in qwen3.step():
            got[i].append(e)
    ends = [type(got[r.id][-1]) for r in requests]
    assert ends == [Failed] * 4 + [Finished] * 2


def test_stats(qwen3: Engine) -> None:
    before = qwen3.stats()
    say(qwen3, chat(FRANCE))
    after = qwen3.stats()
    assert after.tokens - before.tokens == 8
    assert (after.rows, after.waiting) == (0, 0)
    assert after.active_bytes > 500_000
    assert after.peak_bytes >= after.active_bytes
