"""The `anthropic` package against /v1/messages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic
from anthropic.types import MessageParam

from tests.e2e.conftest import Mlxo
from tests.models import ANSWERS, CALLS, PIRATE, SECOND_TURN, THOUGHTS, TOOL_RESULT, TOOLS

FRANCE = "What is the capital of France?"
WEATHER = "What is the weather in Paris?"
PLAIN: Any = {"type": "disabled"}
THINK: Any = {"type": "enabled", "budget_tokens": 1024}


@pytest.fixture
def client(daemon: Mlxo) -> Iterator[Anthropic]:
    with Anthropic(base_url=daemon.url, api_key="any", max_retries=0) as found:
        yield found


@pytest.fixture
async def later(daemon: Mlxo) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=daemon.url, api_key="any", max_retries=0) as found:
        yield found


def user(text: str) -> list[MessageParam]:
    return [{"role": "user", "content": text}]


def body(error: anthropic.APIStatusError) -> Any:
    return error.body


def tool(name: str) -> Any:
    function = TOOLS[name]["function"]
    return {
        "name": name,
        "description": function["description"],
        "input_schema": function["parameters"],
        "cache_control": {"type": "ephemeral"},
    }


def test_create_and_stream(client: Any) -> None:
    for prompt in (FRANCE, "Reply with emoji."):
        whole = client.messages.create(model="tiny", max_tokens=200, messages=user(prompt), thinking=PLAIN)
        assert [b.to_dict() for b in whole.content] == [{"type": "text", "text": ANSWERS[prompt]}]
        assert (whole.stop_reason, whole.stop_sequence, whole.role) == ("end_turn", None, "assistant")
        assert whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0) > 5
        with client.messages.stream(
            model="tiny", max_tokens=200, messages=user(prompt), thinking=PLAIN
        ) as stream:
            assert "".join(stream.text_stream) == ANSWERS[prompt]
            final = stream.get_final_message()
        assert final.stop_reason == "end_turn"
        assert final.usage.output_tokens == whole.usage.output_tokens > 0


async def test_async(later: AsyncAnthropic) -> None:
    async with later.messages.stream(
        model="tiny", max_tokens=200, messages=user(FRANCE), thinking=PLAIN
    ) as stream:
        assert "".join([text async for text in stream.text_stream]) == ANSWERS[FRANCE]


def test_the_order_of_events(client: Any) -> None:
    with client.messages.create(
        model="tiny", max_tokens=200, messages=user(FRANCE), thinking=THINK, stream=True
    ) as stream:
        events = [e.to_dict() for e in stream]
    kinds = [e["type"] for e in events]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert [
        (e["index"], e["content_block"]["type"]) for e in events if e["type"] == "content_block_start"
    ] == [
        (0, "thinking"),
        (1, "text"),
    ]
    assert [e["index"] for e in events if e["type"] == "content_block_stop"] == [0, 1]
    assert "signature_delta" in [e["delta"]["type"] for e in events if e["type"] == "content_block_delta"]


def test_system_and_turns(client: Any) -> None:
    system, prompt, answer = PIRATE
    for given in (system, [{"type": "text", "text": system, "cache_control": {"type": "ephemeral"}}]):
        found = client.messages.create(
            model="tiny",
            max_tokens=200,
            system=given,
            messages=user(prompt),
            thinking=PLAIN,
        )
        assert found.content[0].text == answer
    said, asked, answer = SECOND_TURN
    messages: list[MessageParam] = [
        {"role": "user", "content": [{"type": "text", "text": said}]},
        {"role": "assistant", "content": ANSWERS[said]},
        {"role": "user", "content": asked},
    ]
    found = client.messages.create(model="tiny", max_tokens=200, messages=messages, thinking=PLAIN)
    assert found.content[0].text == answer
    # The last turn may be the start of the answer.
    messages = [*user(FRANCE), {"role": "assistant", "content": "The capital of France"}]
    found = client.messages.create(model="tiny", max_tokens=200, messages=messages, thinking=PLAIN)
    assert found.content[0].text == " is Paris."


def test_thinking(client: Any) -> None:
    whole = client.messages.create(model="tiny", max_tokens=200, messages=user(FRANCE), thinking=THINK)
    with client.messages.stream(
        model="tiny", max_tokens=200, messages=user(FRANCE), thinking=THINK
    ) as stream:
        final = stream.get_final_message()
    for message in (whole, final):
        thought, text = message.content
        assert (thought.type, text.type) == ("thinking", "text")
        assert thought.thinking.strip() == THOUGHTS[FRANCE]
        assert thought.signature
        assert text.text == ANSWERS[FRANCE]
    assert whole.content[0] == final.content[0]


def test_tools_and_their_results(client: Any) -> None:
    for prompt in (WEATHER, "Compare the weather in Paris and London."):
        _, before, expected = CALLS[prompt]
        more: Any = {"model": "tiny", "max_tokens": 300, "tools": [tool("get_weather")], "thinking": PLAIN}
        whole = client.messages.create(messages=user(prompt), **more)
        with client.messages.stream(messages=user(prompt), **more) as stream:
            final = stream.get_final_message()
        for message in (whole, final):
            assert message.stop_reason == "tool_use"
            assert [(b.name, b.input) for b in message.content if b.type == "tool_use"] == expected
            texts = [b.text.strip() for b in message.content if b.type == "text"]
            assert texts == ([before] if before else [])
    first = client.messages.create(messages=user(WEATHER), **more)
    call = first.content[-1]
    assert call.type == "tool_use"
    result, answer = TOOL_RESULT
    for content in (result, [{"type": "text", "text": result}]):
        answered: Any = [{"type": "tool_result", "tool_use_id": call.id, "content": content}]
        second = client.messages.create(
            messages=[
                *user(WEATHER),
                {"role": "assistant", "content": first.content},
                {"role": "user", "content": answered},
            ],
            **more,
        )
        assert second.content[0].text == answer
    silent = client.messages.create(messages=user(WEATHER), tool_choice={"type": "none"}, **more)
    assert silent.content[0].text == ANSWERS[WEATHER]


def test_why_it_stopped(client: Any) -> None:
    more: Any = {"model": "tiny", "messages": user("Count from 1 to 20."), "thinking": PLAIN}
    limited = client.messages.create(max_tokens=3, **more)
    assert (limited.stop_reason, limited.usage.output_tokens) == ("max_tokens", 3)
    stopped = client.messages.create(max_tokens=99, stop_sequences=["never", ", 4"], **more)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", ", 4")
    assert stopped.content[0].text == "1, 2, 3"


def test_structured_output(client: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    found = client.messages.create(
        model="tiny",
        max_tokens=100,
        messages=user("Answer in JSON: name and age of Ada."),
        thinking=PLAIN,
        extra_body={"output_config": {"format": {"type": "json_schema", "schema": schema}}},
    )
    assert found.content[0].text == ANSWERS["Answer in JSON: name and age of Ada."]


PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": 0}, "max_tokens"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"tool_choice": {"type": "tool", "name": "x"}}, "tool_choice"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
    ({"messages": [{"role": "user", "content": [PICTURE]}]}, "image"),
    ({"messages": []}, "messages"),
]


@pytest.mark.parametrize(("more", "named"), REFUSED, ids=lambda v: v if isinstance(v, str) else "")
def test_what_cannot_be_done_is_refused_by_name(client: Any, more: dict[str, Any], named: str) -> None:
    with pytest.raises(anthropic.BadRequestError, match=named) as refused:
        client.messages.create(model="tiny", max_tokens=9, messages=user("hi"), extra_body=more)
    assert body(refused.value)["error"]["type"] == "invalid_request_error"


def test_a_model_that_is_not_there(client: Any) -> None:
    with pytest.raises(anthropic.NotFoundError, match="model 'nobody' not found") as missing:
        client.messages.create(model="nobody", max_tokens=9, messages=user("hi"))
    assert body(missing.value)["error"]["type"] == "not_found_error"
