"""Tokens without an answer: what is counted is what would be read."""

from __future__ import annotations

import pytest

from mlxo.core.options import Options
from mlxo.core.types import (
    Chat,
    Complete,
    Detokenize,
    Failed,
    Message,
    Request,
    Task,
    TextDelta,
    Tokenize,
    Tokens,
)
from mlxo.engine.engine import Engine
from tests import models
from tests.engine.ask import Answer, chat, complete, say


def ask(engine: Engine, task: Task) -> Answer:
    return say(engine, Request(id="t", model="m", task=task, options=Options()))


def tokens(engine: Engine, task: Tokenize) -> Tokens:
    found = ask(engine, task).events[0]
    assert isinstance(found, Tokens), found
    return found


@pytest.mark.parametrize("think", [True, False])
def test_a_conversation_counts_what_its_answer_reads(qwen3: Engine, think: bool) -> None:
    tools = (models.TOOLS["get_weather"],)
    request = chat(
        Message(role="system", content="You are kind."), "What is 2 + 2?", think=think, task={"tools": tools}
    )
    assert isinstance(request.task, Chat)
    told = tokens(qwen3, Tokenize(of=request.task))
    answer = say(qwen3, request).finished
    assert told.ids == answer.context[: answer.prompt_tokens]
    assert len(told.ids) == answer.prompt_tokens > 60
    assert told.context == qwen3.context


def test_a_prompt_counts_what_its_continuation_reads(llama: Engine) -> None:
    request = complete("Once upon a time")
    assert isinstance(request.task, Complete)
    answer = say(llama, request).finished
    whole = tokens(llama, Tokenize(of=request.task, names=True))
    assert whole.ids == answer.context[: answer.prompt_tokens]
    assert whole.names[0] == "<s>"
    bare = tokens(llama, Tokenize(of=request.task, special=False))
    assert bare.ids == whole.ids[1:]
    assert bare.names == ()


def test_a_prompt_is_counted_beyond_the_context(qwen3: Engine) -> None:
    long = "word " * (qwen3.context + 100)
    assert len(tokens(qwen3, Tokenize(of=Complete(prompt=long))).ids) > qwen3.context


@pytest.mark.parametrize("text", [*models.ANSWERS.values(), "<|im_start|>user\n", "", " a  b\n"])
def test_text_comes_back(qwen3: Engine, text: str) -> None:
    ids = tokens(qwen3, Tokenize(of=Complete(prompt=text), special=False)).ids
    answer = ask(qwen3, Detokenize(ids=ids))
    assert answer.events[0] == TextDelta(text=text)
    assert answer.finished.prompt_tokens == len(ids)
    assert bool(ids) == bool(text)


def test_what_is_no_token_is_refused(qwen3: Engine) -> None:
    for wrong in (-1, 1 << 30):
        failed = ask(qwen3, Detokenize(ids=(1, wrong))).failed
        assert (failed.code, str(wrong) in failed.message) == ("invalid_request", True)


def test_counting_waits_for_nobody(qwen3: Engine) -> None:
    for i in range(5):  # more than there are rows
        qwen3.submit(chat(models.FOREVER, options={"num_predict": 20}) if i else chat(models.FOREVER))
    qwen3.step()
    qwen3.submit(Request(id="t", model="m", task=Tokenize(of=Complete(prompt="a")), options=Options()))
    assert [e for key, e in qwen3.step() if key == "t" and isinstance(e, Tokens)]
    for key in list(qwen3._sequences):
        qwen3.cancel(key)
    assert all(isinstance(e, Failed) for _, e in qwen3.step())
