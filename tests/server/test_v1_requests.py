"""What OpenAI's and Anthropic's bodies become: the internal Request, or a sentence that names the field."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxo.core.errors import InvalidRequest
from mlxo.core.options import Options
from mlxo.core.types import Chat, Complete, Message, Request
from mlxo.server.dialects import anthropic, openai
from mlxo.server.dialects.base import Parsed
from tests.models import TOOLS

WEATHER = TOOLS["get_weather"]
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Oslo", "a": [1]}'},
}


def chat(**body: Any) -> Request:
    full = {"model": "m", "messages": [{"role": "user", "content": "hi"}]} | body
    return openai.parse_chat(msgspec.json.encode(full), "r1").request


def completion(**body: Any) -> Parsed:
    return openai.parse_completion(msgspec.json.encode({"model": "m", "prompt": "p"} | body), "r1")


def claude(**body: Any) -> Request:
    full = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]} | body
    return anthropic.parse(msgspec.json.encode(full), "r1").request


def task(request: Request) -> Chat:
    assert isinstance(request.task, Chat)
    return request.task


def test_what_is_absent_is_left_to_the_model() -> None:
    assert chat().options == Options()
    assert claude().options == Options(num_predict=5)
    assert completion().request.options == Options()
    assert (chat().stream, claude().stream, completion().request.stream) == (False, False, False)
    assert (task(chat()).think, task(claude()).think, chat().keep_alive, chat().format) == (None,) * 4


def test_sampling_and_extras() -> None:
    sent = {
        "temperature": 0.5,
        "top_p": 0.6,
        "top_k": 7,
        "min_p": 0.1,
        "seed": 8,
        "frequency_penalty": 0.2,
        "presence_penalty": 0.3,
    }
    wanted = Options(**sent)  # type: ignore[arg-type]
    more: dict[str, Any] = {
        "max_tokens": 9,
        "stop": "x",
        "options": {"num_ctx": 64, "seed": 1},
        "keep_alive": "1m",
    }
    wanted = Options(num_predict=9, stop=("x",), num_ctx=64).over(wanted)
    for request in (chat(**sent, **more), completion(**sent, **more).request):
        assert request.options == wanted
        assert request.keep_alive == 60
    assert chat(max_tokens=3, max_completion_tokens=4).options.num_predict == 4
    assert chat(max_tokens=-1).options.num_predict == -1
    found = claude(temperature=0.5, top_p=0.6, top_k=7, stop_sequences=["x", "y"], options={"min_p": 0.1})
    assert found.options == Options(
        temperature=0.5, top_p=0.6, top_k=7, stop=("x", "y"), min_p=0.1, num_predict=5
    )


def test_options_have_ollama_s_ranges() -> None:
    sent = {"temperature": 3.0, "frequency_penalty": 5.0, "xtc_probability": 0.5, "xtc_threshold": 0.2}
    assert chat(options=sent).options == Options(**sent)  # type: ignore[arg-type]


def test_logprobs_and_choices() -> None:
    assert chat().logprobs is chat(logprobs=False).logprobs is None
    assert chat(logprobs=True).logprobs == chat(logprobs=True, top_logprobs=0).logprobs == 0
    assert chat(logprobs=True, top_logprobs=20).logprobs == 20
    assert completion(logprobs=0).request.logprobs == 0
    assert completion(logprobs=False).request.logprobs is None
    assert completion(logprobs=20).request.logprobs == 20
    assert chat().logit_bias == chat(logit_bias=None).logit_bias == {}
    assert chat(logit_bias={"5": -100, "70": 0.5}).logit_bias == {5: -100.0, 70: 0.5}
    assert completion(n=3, best_of=3).copies == 3
    assert completion().copies == completion(n=None, best_of=1).copies == 1


@pytest.mark.parametrize(
    ("body", "think"),
    [
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "minimal"}, "low"),
        ({"reasoning_effort": "xhigh"}, "max"),
        ({"reasoning": {"effort": "medium"}}, "medium"),
        ({"reasoning": {}}, None),
        ({"think": True, "reasoning_effort": "none"}, True),
        ({"think": False}, False),
    ],
)
def test_openai_think(body: dict[str, Any], think: object) -> None:
    assert task(chat(**body)).think == think


@pytest.mark.parametrize(
    ("body", "think"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, True),
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "high"}}, False),
        ({"thinking": {"type": "adaptive"}}, None),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, "low"),
    ],
)
def test_anthropic_think(body: dict[str, Any], think: object) -> None:
    assert task(claude(**body)).think == think


def test_formats() -> None:
    schema = {"type": "object"}
    sent = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    assert chat(response_format=sent).format == schema
    assert chat(response_format={"type": "json_object"}).format == "json"
    assert chat(response_format={"type": "text"}).format is None
    form = {"type": "json_schema", "schema": schema}
    assert claude(output_config={"format": form}).format == schema


def test_openai_messages() -> None:
    request = chat(
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None, "reasoning": "hm", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "cold"},
            {"role": "assistant", "content": "It is"},
        ]
    )
    system, user, calling, tool, last = task(request).messages
    assert (system, user) == (
        Message(role="system", content="be brief"),
        Message(role="user", content="a\nb"),
    )
    assert calling.thinking == "hm"
    assert calling.tool_calls[0].function.arguments == {"city": "Oslo", "a": [1]}
    assert tool == Message(role="tool", content="cold", tool_call_id="c1", tool_name="get_weather")
    assert last.content == "It is"
    assert task(request).prefill


def test_anthropic_messages() -> None:
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "cold"}]}
    request = claude(
        system=[{"type": "text", "text": "be"}, {"type": "text", "text": "brief"}],
        messages=[
            {"role": "user", "content": "hi"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "text", "text": "wait"},
                    {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "Oslo"}},
                ],
            },
            {"role": "user", "content": [result, {"type": "text", "text": "and?"}]},
        ],
    )
    system, _, calling, tool, user = task(request).messages
    assert system == Message(role="system", content="be\nbrief")
    assert (calling.thinking, calling.content, calling.tool_calls[0].id) == ("hm", "wait", "t1")
    assert tool == Message(role="tool", content="cold", tool_call_id="t1", tool_name="get_weather")
    assert user == Message(role="user", content="and?")
    assert not task(request).prefill


def test_tools() -> None:
    assert task(chat(tools=[WEATHER])).tools == (WEATHER,)
    assert task(chat(tools=[WEATHER], tool_choice="none")).tools == ()
    function = WEATHER["function"]
    mine = {
        "name": function["name"],
        "description": function["description"],
        "input_schema": function["parameters"],
    }
    assert task(claude(tools=[mine], tool_choice={"type": "auto"})).tools == (WEATHER,)
    assert task(claude(tools=[mine], tool_choice={"type": "none"})).tools == ()


def test_tool_choice() -> None:
    tools = [WEATHER, TOOLS["get_time"]]
    mine = [{"name": t["function"]["name"], "input_schema": t["function"]["parameters"]} for t in tools]
    names = ("get_weather", "get_time")

    def forced(request: Request) -> tuple[tuple[str, ...], bool]:
        return task(request).force, task(request).single

    named = {"type": "function", "function": {"name": "get_time"}}
    assert forced(chat(tools=tools)) == ((), False)
    assert forced(chat(tools=tools, parallel_tool_calls=False)) == ((), True)
    assert forced(chat(tools=tools, tool_choice="required")) == (names, False)
    assert forced(chat(tools=tools, tool_choice=named)) == (("get_time",), True)
    assert len(task(chat(tools=tools, tool_choice=named)).tools) == 2
    allowed = {"mode": "required", "tools": [named]}
    only = chat(tools=tools, tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    assert (task(only).tools, task(only).force) == ((TOOLS["get_time"],), ("get_time",))
    assert forced(claude(tools=mine, tool_choice={"type": "any"})) == (names, False)
    assert forced(claude(tools=mine, tool_choice={"type": "tool", "name": "get_time"})) == (
        ("get_time",),
        True,
    )
    assert forced(claude(tools=mine, tool_choice={"type": "auto", "disable_parallel_tool_use": True})) == (
        (),
        True,
    )


def test_a_budget_for_thinking() -> None:
    assert task(chat(thinking_budget=5)).think_budget == 5
    assert task(chat(reasoning={"max_tokens": 6})).think_budget == 6
    assert task(claude(thinking={"type": "enabled", "budget_tokens": 1024})).think_budget == 1024


def test_structured_outputs() -> None:
    for form in ({"regex": "a+"}, {"grammar": 'start: "a"'}, {"choice": ["a", "b"]}):
        assert chat(structured_outputs=form).format == form
        assert completion(structured_outputs=form).request.format == form
    assert chat(structured_outputs={"json": '{"type": "object"}'}).format == {"type": "object"}
    assert chat(structured_outputs={"json_object": True}).format == "json"


def test_completions() -> None:
    parsed = completion(prompt=["p"], echo=True, stream_options={"include_usage": True})
    assert parsed.request.task == Complete(prompt="p")
    assert parsed.wishes == {"echo", "usage"}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"model": ""}, "model"),
        ({"messages": [{"role": "robot", "content": "x"}]}, r"messages\[0\].role"),
        (
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1"}}]}
                ]
            },
            r"messages\[0\].tool_calls\[0\].function.arguments",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            r"content\[0\] of type input_audio",
        ),
        ({"tools": [{"type": "web_search"}]}, r"tools\[0\]"),
        ({"tools": [{"type": "function", "function": {}}]}, r"tools\[0\].function.name"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"items": {"not": {}}}}}},
            'response_format.json_schema.schema has "not" at #/items',
        ),
        (
            {
                "tools": [
                    {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"if": {}}}}
                ]
            },
            r'tools\[0\].function.parameters has "if"',
        ),
        ({"tools": [WEATHER], "tool_choice": {"type": "custom"}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex"),
        ({"structured_outputs": {"grammar": "start: %json {}"}}, "%json"),
        ({"structured_outputs": {"choice": [1]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"json": "x"}}, "structured_outputs.json"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "exclude"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"functions": [{}]}, "functions"),
        ({"logprobs": 0}, "logprobs must be true or false"),
        ({"top_logprobs": 3}, "top_logprobs is only allowed when logprobs is true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs must be between 0 and 20"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs must be between 0 and 20"),
        ({"temperature": 2.1}, "temperature must be between 0 and 2"),
        ({"temperature": -0.1}, "temperature must be between 0 and 2"),
        ({"top_p": 1.5}, "top_p must be between 0 and 1"),
        ({"min_p": -1}, "min_p must be between 0 and 1"),
        ({"frequency_penalty": 3}, "frequency_penalty must be between -2 and 2"),
        ({"presence_penalty": -2.5}, "presence_penalty must be between -2 and 2"),
        ({"n": 0}, "n must be between 1 and 16"),
        ({"logit_bias": {"1": 100.5}}, r"logit_bias\[1\] must be between -100 and 100"),
        ({"logit_bias": {"1": "x"}}, "logit_bias"),
        ({"logit_bias": {"hi": 1}}, 'logit_bias: "hi" is no token id'),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 10: 1}}, "logit_bias"),
        ({"logit_bias": dict.fromkeys(map(str, range(4097)), 1)}, "logit_bias may name at most 4096"),
        ({"n": 17}, "n must be between 1 and 16"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"seed": 1 << 70}, "seed"),
        ({"reasoning": {"effort": "x"}}, "reasoning.effort"),
    ],
)
def test_openai_refusals(body: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        chat(**body)


@pytest.mark.parametrize(
    "body",
    [
        {"suffix": "x"},
        {"best_of": 2},
        {"best_of": 2, "n": 3},
        {"logprobs": 21},
        {"logprobs": -1},
        {"logprobs": True},
        {"logprobs": 1, "echo": True},
        {"n": 0},
        {"prompt": ["a", "b"]},
    ],
)
def test_completion_refusals(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(body))):
        completion(**body)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"model": None}, "model"),
        ({"max_tokens": None}, "max_tokens"),
        ({"thinking": {"type": "some"}}, "thinking.type"),
        (
            {"tool_choice": {"type": "tool", "name": "y"}, "tools": [{"name": "x"}]},
            "tool_choice",
        ),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"output_config": {"effort": "x"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": 5}]}]}, "content"),
        ({"system": [{"type": "image"}]}, "image"),
    ],
)
def test_anthropic_refusals(body: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        claude(**body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KINDS: dict[str, tuple[Callable[[bytes, str], Parsed], type[msgspec.Struct]]] = {
    "openai": (openai.parse_chat, openai.ChatBody),
    "completion": (openai.parse_completion, openai.CompletionBody),
    "anthropic": (anthropic.parse, anthropic.MessagesBody),
}


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(data=st.data())
def test_any_field_of_any_value_parses_or_is_refused(kind: str, data: st.DataObject) -> None:
    parse, body = KINDS[kind]
    field = data.draw(st.sampled_from([f.name for f in msgspec.structs.fields(body)]))
    good = {"model": "m", "max_tokens": 5, "prompt": "p", "messages": [{"role": "user", "content": "hi"}]}
    with contextlib.suppress(InvalidRequest):
        parse(msgspec.json.encode(good | {field: data.draw(JSON)}), "r1")
