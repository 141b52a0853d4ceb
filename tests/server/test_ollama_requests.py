"""Ollama's requests to ours, and every way they can be wrong, in Ollama's words."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxo.core.errors import InvalidRequest, MlxoError, ModelNotFound
from mlxo.core.types import Chat, Complete, ModelSpec, Touch
from mlxo.server.dialects.base import Parsed
from mlxo.server.dialects.ollama import parse_chat, parse_generate
from mlxo.server.handlers.generate import complete

USER = {"role": "user", "content": "hi"}


def generate(**body: Any) -> Parsed:
    return parse_generate(msgspec.json.encode({"model": "m", "prompt": "hi"} | body), "r1")


def chat(**body: Any) -> Parsed:
    return parse_chat(msgspec.json.encode({"model": "m", "messages": [USER]} | body), "r1")


def spec(*capabilities: str) -> ModelSpec:
    return ModelSpec(name="m:latest", digest="d", path="/", capabilities=capabilities)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"model": ""}, 404, "model '' not found"),
        ({"model": None}, 404, "model '' not found"),
        ({"raw": True, "system": "s"}, 400, "raw mode does not support template, system, or context"),
        ({"raw": True, "template": "t"}, 400, "raw mode does not support template, system, or context"),
        ({"raw": True, "context": [1]}, 400, "raw mode does not support template, system, or context"),
        ({"top_logprobs": 21}, 400, "top_logprobs must be between 0 and 20"),
        ({"top_logprobs": -1}, 400, "top_logprobs must be between 0 and 20"),
        ({"think": "loud"}, 400, 'invalid think value: "loud"'),
        ({"think": 1}, 400, "invalid think value: 1"),
        ({"keep_alive": "300"}, 400, 'time: missing unit in duration "300"'),
        ({"keep_alive": "soon"}, 400, 'time: invalid duration "soon"'),
        ({"keep_alive": True}, 400, "Unsupported type: 'bool'"),
        ({"keep_alive": {}}, 400, "Unsupported type: 'dict'"),
        ({"format": "xml"}, 400, 'invalid format: "xml"; expected "json" or a valid JSON Schema object'),
        (
            {"format": {"items": {"not": {}}}},
            400,
            'the schema in format has "not" at #/items, which mlxo cannot enforce',
        ),
        ({"format": {"regex": 1}}, 400, "format.regex must be text of 1 to 32768 characters"),
        ({"format": [1]}, 400, 'invalid format: [1]; expected "json" or a valid JSON Schema object'),
        ({"options": {"top_k": "x"}}, 400, 'option "top_k" must be of type integer'),
        ({"options": {"seed": 2**70}}, 400, 'option "seed" must be of type integer'),
        ({"options": {"temperature": []}}, 400, 'option "temperature" must be of type float32'),
        ({"options": {"stop": 1}}, 400, 'option "stop" must be of type array'),
        ({"options": []}, 400, "json: cannot unmarshal array into field options of type object"),
        ({"model": 5}, 400, "json: cannot unmarshal number into field model of type string"),
        ({"prompt": ["a"]}, 400, "json: cannot unmarshal array into field prompt of type string"),
        ({"stream": "no"}, 400, "json: cannot unmarshal string into field stream of type bool"),
        ({"context": [-1]}, 400, "context"),
        ({"context": [2**31]}, 400, "context"),
        ({"images": ["not base64"]}, 400, "Invalid base64 encoded string - at `$.images[0]`"),
    ],
)
def test_refused_generates(body: dict[str, Any], status: int, words: str) -> None:
    with pytest.raises(MlxoError) as caught:
        generate(**body)
    assert caught.value.status == status
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"model": "  "}, "model is required"),
        ({"messages": {}}, "json: cannot unmarshal object into field messages of type array"),
        ({"messages": [{"role": "user", "content": [1]}]}, "field messages[0].content of type string"),
        (
            {"messages": [{"tool_calls": [{"function": {"arguments": "{}"}}]}]},
            "cannot unmarshal string into field",
        ),
        ({"messages": [{"tool_calls": [{}]}]}, "missing required field `function`"),
        ({"tools": [1]}, "json: cannot unmarshal number into field tools[0] of type object"),
    ],
)
def test_refused_chats(body: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(**body)
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "missing request body"),
        (b" \n", "missing request body"),
        (b"nope", "the request body is no JSON"),
        (b'{"model": "m"', "the request body is no JSON"),
        (b"[]", "json: cannot unmarshal array into field . of type object"),
        (b"\xff\xfe\x00", "the request body is no JSON"),
        (b'{"format": ' + b"[" * 100_000, "the request body is nested too deeply"),
        (
            b'{"model":"m","prompt":"x","format":' + b'{"a":' * 100 + b"1" + b"}" * 101,
            "format is nested too deeply",
        ),
    ],
)
def test_refused_bytes(body: bytes, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_generate(body, "r1")
    assert words in caught.value.message


@pytest.mark.parametrize("nested", [{"tools": "deep"}, {"messages": [{"tool_calls": "deep"}]}])
def test_deep_values_never_reach_a_runner(nested: dict[str, Any]) -> None:
    deep: dict[str, Any] = {}
    for _ in range(100):
        deep = {"a": [deep]}
    if "tools" in nested:
        nested = {"tools": [deep]}
    else:
        nested = {"messages": [{"tool_calls": [{"function": {"arguments": deep}}]}]}
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        chat(**nested)


def test_half_an_emoji_reads_as_a_placeholder() -> None:
    parsed = parse_generate(b'{"model":"m","prompt":"a\\ud83d","raw":true}', "r1")
    assert parsed.request.task == Complete(prompt="a?")
    parsed = parse_generate(b'{"model":"m","prompt":"a\xff","raw":true}', "r1")
    assert parsed.request.task == Complete(prompt="a\ufffd")


def test_null_is_absent() -> None:
    names = (
        "stream",
        "format",
        "keep_alive",
        "options",
        "think",
        "suffix",
        "system",
        "template",
        "context",
        "raw",
    )
    assert generate(**dict.fromkeys(names)) == generate()
    assert generate().request.stream is True
    assert chat(tools=None, messages=None).request.task == Touch()


def test_an_empty_prompt_is_a_touch_whatever_else_is_there() -> None:
    parsed = generate(prompt="", images=["aGk="], suffix="s", system="s", think=True)
    assert parsed.request.task == Touch()
    assert parsed.needs == ()


def test_messages_keep_everything() -> None:
    call = {"id": "call_1", "function": {"name": "f", "index": 2, "arguments": {"z": 1, "a": 2}}}
    sent = [
        {"role": "USER", "content": "look", "images": [base64.b64encode(b"png").decode()]},
        {"role": "assistant", "content": None, "thinking": "hm", "tool_calls": [call]},
        {"role": "tool", "content": "4", "tool_name": "f", "tool_call_id": "call_1"},
    ]
    task = chat(messages=sent).request.task
    assert isinstance(task, Chat)
    user, assistant, tool = task.messages
    assert (user.role, user.images) == ("user", (b"png",))
    assert (assistant.content, assistant.thinking) == ("", "hm")
    assert list(assistant.tool_calls[0].function.arguments) == ["z", "a"]
    assert (tool.tool_name, tool.tool_call_id) == ("f", "call_1")


@pytest.mark.parametrize(
    ("last", "prefill"),
    [
        (USER, False),
        ({"role": "assistant", "content": "Once"}, True),
        ({"role": "assistant", "content": ""}, False),
        ({"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}, False),
    ],
)
def test_a_last_assistant_message_is_gone_on_with(last: dict[str, Any], prefill: bool) -> None:
    task = chat(messages=[USER, last]).request.task
    assert isinstance(task, Chat)
    assert task.prefill is prefill


@pytest.mark.parametrize(
    ("parsed", "able", "complaint"),
    [
        (chat(), (), '"m" does not support chat'),
        (generate(), (), '"m" does not support generate'),
        (chat(think=True), (), '"m" does not support thinking'),
        (chat(think="low"), (), '"m" does not support thinking'),
        (chat(tools=[{}]), (), "registry.ollama.ai/library/m:latest does not support tools"),
        (generate(suffix="s"), (), "registry.ollama.ai/library/m:latest does not support insert"),
        (generate(images=["aGk="]), (), "registry.ollama.ai/library/m:latest does not support vision"),
        (chat(messages=[USER | {"images": ["aGk="]}]), (), "does not support vision"),
    ],
)
def test_what_a_model_cannot_do(parsed: Parsed, able: tuple[str, ...], complaint: str) -> None:
    need = next(n for n in parsed.needs if complaint in n.complaint)
    others = [n.capability for n in parsed.needs if n is not need]
    with pytest.raises(InvalidRequest, match="does not support"):
        complete(parsed, spec(*others, *able))
    complete(parsed, spec(*others, need.capability))


def test_thinking_is_on_by_default_where_there_is_any() -> None:
    def think(parsed: Parsed, *capabilities: str) -> object:
        task = complete(parsed, spec("completion", *capabilities)).task
        assert isinstance(task, Chat)
        return task.think

    assert think(chat(), "thinking") is True
    assert think(generate(), "thinking") is True
    assert think(chat()) is None
    assert think(chat(think=False), "thinking") is False
    assert think(chat(think=False)) is False
    assert think(chat(think="low"), "thinking") == "low"


def test_options_of_the_request_over_the_models_over_the_defaults() -> None:
    model = msgspec.structs.replace(
        spec("completion"), options=chat(options={"top_k": 7, "seed": 3}).request.options
    )
    options = complete(chat(options={"seed": 4.0, "bogus": 1}), model).options
    assert (options.seed, options.top_k, options.top_p, options.num_ctx) == (4, 7, 0.9, None)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = (
    *("model", "prompt", "messages", "stream", "format", "keep_alive", "options", "think", "tools"),
    *("suffix", "system", "template", "context", "raw", "images", "truncate", "logprobs", "top_logprobs"),
)


@given(st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=6))
def test_no_body_gets_past_with_anything_but_a_clean_error(body: dict[str, Any]) -> None:
    for parse in (parse_generate, parse_chat):
        with contextlib.suppress(InvalidRequest, ModelNotFound):
            parse(json.dumps(body).encode(), "r1")


def test_forms_beside_schemas() -> None:
    for form in (
        "json",
        {"type": "object"},
        {"regex": "a+"},
        {"grammar": 'start: "a"'},
        {"choice": ["a", "b"]},
    ):
        assert generate(format=form).request.format == form
    lax = {"type": "array", "uniqueItems": False}
    assert chat(format=lax).request.format == {"type": "array"}
