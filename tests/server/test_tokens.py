"""The token routes: fields to requests, events to bodies, and over HTTP with a runner that counts nothing."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mlxo.core.errors import InvalidRequest
from mlxo.core.types import Chat, Complete, Detokenize, Finished, TextDelta, Tokenize, Tokens
from mlxo.server.dialects import anthropic, tokens
from mlxo.server.dialects.base import Dialect, Parsed

IDS = [Tokens(ids=(3, 1), context=2048, names=("a", "b")), Finished(reason="stop", prompt_tokens=2)]
SAY = [{"role": "user", "content": "hi"}]


def parse(dialect: Dialect, **body: Any) -> Parsed:
    return dialect.parse(msgspec.json.encode(body), "r1")


def fold(dialect: Dialect, events: Any, **body: Any) -> Any:
    return msgspec.json.decode(dialect.answer(parse(dialect, **body)).collect(events))


def test_api() -> None:
    for field in ("content", "prompt"):
        parsed = parse(tokens.TOKENIZE, **{"model": "m ", field: "x", "keep_alive": "5s"})
        assert parsed.request.task == Tokenize(of=Complete(prompt="x"), special=False)
        assert (parsed.request.model, parsed.request.keep_alive, parsed.request.stream) == ("m", 5, False)
    assert parse(tokens.TOKENIZE, model="m", content="x", add_special=True).request.task == Tokenize(
        of=Complete(prompt="x")
    )
    assert fold(tokens.TOKENIZE, IDS, model="m", content="") == {"tokens": [3, 1]}
    assert parse(tokens.DETOKENIZE, model="m", tokens=[3, 1]).request.task == Detokenize(ids=(3, 1))
    assert fold(tokens.DETOKENIZE, [TextDelta(text="x")], model="m", tokens=[]) == {"content": "x"}


def test_v1() -> None:
    told = {"count": 2, "max_model_len": 2048, "tokens": [3, 1], "token_strs": ["a", "b"]}
    assert fold(tokens.V1_TOKENIZE, IDS, model="m", prompt="x") == told
    assert parse(tokens.V1_TOKENIZE, model="m", prompt="x", return_token_strs=True).request.task == Tokenize(
        of=Complete(prompt="x"), names=True
    )
    bare = parse(tokens.V1_TOKENIZE, model="m", prompt="x", add_special_tokens=False).request.task
    assert bare == Tokenize(of=Complete(prompt="x"), special=False)
    tools = [{"type": "function", "function": {"name": "f"}}]
    parsed = parse(tokens.V1_TOKENIZE, model="m", messages=SAY, tools=tools, stream=True)
    task = parsed.request.task
    assert isinstance(task, Tokenize)
    assert isinstance(task.of, Chat)
    assert (task.of.messages[0].content, task.of.tools, parsed.request.stream) == ("hi", tuple(tools), False)
    assert {n.capability for n in parsed.needs} == {"completion", "tools"}
    assert fold(tokens.V1_DETOKENIZE, [TextDelta(text="x")], model="m", tokens=[1]) == {"prompt": "x"}


def test_anthropic() -> None:
    parsed = parse(anthropic.COUNT, model="m", messages=SAY, system="s", stream=True)
    task = parsed.request.task
    assert isinstance(task, Tokenize)
    assert isinstance(task.of, Chat)
    assert [m.content for m in task.of.messages] == ["s", "hi"]
    assert not parsed.request.stream
    assert fold(anthropic.COUNT, IDS, model="m", messages=SAY) == {"input_tokens": 2}


@pytest.mark.parametrize(
    ("dialect", "body", "said"),
    [
        (tokens.TOKENIZE, {"content": "x"}, "model is required"),
        (tokens.TOKENIZE, {"model": "m"}, "content is required"),
        (tokens.TOKENIZE, {"model": "m", "content": 5}, "content"),
        (tokens.DETOKENIZE, {"model": "m"}, "tokens is required"),
        (tokens.DETOKENIZE, {"model": "m", "tokens": [-1]}, "tokens"),
        (tokens.DETOKENIZE, {"model": "m", "tokens": [1 << 40]}, "tokens"),
        (tokens.V1_TOKENIZE, {"model": "m"}, "prompt or messages"),
        (tokens.V1_TOKENIZE, {"model": "m", "messages": SAY, "add_generation_prompt": False}, "generation"),
        (tokens.V1_TOKENIZE, {"model": "m", "messages": []}, "messages"),
        (anthropic.COUNT, {"model": "m"}, "messages is required"),
    ],
)
def test_refusals(dialect: Dialect, body: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        parse(dialect, **body)
