"""The `openai` package against /v1/responses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

import openai
import pydantic
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.responses import FunctionToolParam, ResponseFunctionToolCall, ResponseReasoningItem

from tests.clients.conftest import TINY
from tests.e2e.conftest import Mlxo
from tests.models import ANSWERS, CALLS, FOREVER, PIRATE, SECOND_TURN, THOUGHTS, TOOL_RESULT, TOOLS

FRANCE = "What is the capital of France?"
WEATHER = "What is the weather in Paris?"
COMPARE = "Compare the weather in Paris and London."
QUIET: Any = {"effort": "none"}


@pytest.fixture
def client(daemon: Mlxo) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{daemon.url}/v1", api_key="any", max_retries=0) as found:
        yield found


def function(name: str) -> FunctionToolParam:
    return cast("FunctionToolParam", {"type": "function", "strict": None, **TOOLS[name]["function"]})


def test_create(client: OpenAI) -> None:
    found = client.responses.create(model=TINY, input=FRANCE, reasoning=QUIET, metadata={"a": "b"})
    assert (found.output_text, found.status) == (ANSWERS[FRANCE], "completed")
    assert (found.metadata, found.error, found.incomplete_details) == ({"a": "b"}, None, None)
    usage = found.usage
    assert usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens > 10
    counted = client.responses.input_tokens.count(model=TINY, input=FRANCE, reasoning=QUIET)
    assert counted.input_tokens == usage.input_tokens
    pirate, prompt, answer = PIRATE
    assert (
        client.responses.create(model=TINY, instructions=pirate, input=prompt, reasoning=QUIET).output_text
        == answer
    )


@pytest.mark.parametrize("summary", [None, "auto"])
def test_reasoning(client: OpenAI, summary: Any) -> None:
    with client.responses.stream(model=TINY, input=FRANCE, reasoning={"summary": summary}) as stream:
        kinds = [event.type for event in stream]
        found = stream.get_final_response()
    thought, _ = found.output
    assert isinstance(thought, ResponseReasoningItem)
    texts = [part.text for part in (thought.summary or thought.content or ())]
    assert texts == [THOUGHTS[FRANCE]]
    assert bool(thought.summary) is (summary is not None)
    assert ("response.reasoning_summary_text.delta" in kinds) is (summary is not None)
    assert ("response.reasoning_text.delta" in kinds) is (summary is None)
    assert found.output_text == ANSWERS[FRANCE]
    assert found.usage
    thinking = found.usage.output_tokens_details.reasoning_tokens
    assert 5 < thinking < found.usage.output_tokens - 5
    quiet = client.responses.create(model=TINY, input=FRANCE, reasoning=QUIET).usage
    assert quiet
    assert quiet.output_tokens_details.reasoning_tokens == 0


def test_stream_has_every_event_once_and_in_order(client: OpenAI) -> None:
    with client.responses.create(model=TINY, input=FRANCE, reasoning=QUIET, stream=True) as stream:
        events = list(stream)
    assert [e.sequence_number for e in events] == list(range(len(events)))
    kinds = [e.type for e in events if e.type != "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == ANSWERS[FRANCE]
    assert len(events) > 10
    last = events[-1]
    assert last.type == "response.completed"
    assert client.responses.retrieve(last.response.id).model_dump() == last.response.model_dump()


def test_tools_there_and_back(client: OpenAI) -> None:
    tools: Any = [function("get_weather")]
    with client.responses.stream(model=TINY, input=COMPARE, tools=tools, reasoning=QUIET) as stream:
        done = [e for e in stream if e.type == "response.function_call_arguments.done"]
        both = stream.get_final_response()
    _, text, calls = CALLS[COMPARE]
    assert both.output_text == text
    found = [c for c in both.output if isinstance(c, ResponseFunctionToolCall)]
    assert [(c.name, json.loads(c.arguments)) for c in found] == calls
    assert [json.loads(e.arguments) for e in done] == [arguments for _, arguments in calls]

    asked = client.responses.create(model=TINY, input=WEATHER, tools=tools, reasoning=QUIET)
    (call,) = (c for c in asked.output if isinstance(c, ResponseFunctionToolCall))
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": TOOL_RESULT[0]}
    told = client.responses.create(
        model=TINY, previous_response_id=asked.id, input=[result], tools=tools, reasoning=QUIET
    )
    assert told.output_text == TOOL_RESULT[1]
    # The same without the server's memory: the client sends all items itself.
    items: Any = [{"role": "user", "content": WEATHER}, *(i.to_dict() for i in asked.output), result]
    again = client.responses.create(model=TINY, input=items, tools=tools, reasoning=QUIET, store=False)
    assert again.output_text == TOOL_RESULT[1]
    quiet = client.responses.create(
        model=TINY, input=WEATHER, tools=tools, tool_choice="none", reasoning=QUIET
    )
    assert quiet.output_text == ANSWERS[WEATHER]


def test_a_conversation_goes_on(client: OpenAI) -> None:
    first, second, reply = SECOND_TURN
    one = client.responses.create(model=TINY, input=first, reasoning=QUIET)
    two = client.responses.create(model=TINY, input=second, previous_response_id=one.id, reasoning=QUIET)
    assert (two.output_text, two.previous_response_id) == (reply, one.id)
    page = client.responses.input_items.list(two.id, order="asc")
    assert [item.type for item in page.data] == ["message", "message", "message"]
    latest = client.responses.input_items.list(two.id, limit=2)
    assert len(list(latest)) == 3  # the client asks for the second page itself
    reference: Any = [
        {"role": "user", "content": first},
        {"type": "item_reference", "id": one.output[0].id},
        {"role": "user", "content": second},
    ]
    assert client.responses.create(model=TINY, input=reference, reasoning=QUIET).output_text == reply
    client.responses.delete(one.id)
    for gone in (one.id, "resp_none"):
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(gone)
        with pytest.raises(openai.NotFoundError):
            client.responses.create(model=TINY, input=second, previous_response_id=gone)
    unkept = client.responses.create(model=TINY, input=first, reasoning=QUIET, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unkept.id)


def test_parse(client: OpenAI) -> None:
    class Person(pydantic.BaseModel):
        name: str
        age: int

    prompt = "Answer in JSON: name and age of Ada."
    found = client.responses.parse(model=TINY, input=prompt, text_format=Person, reasoning=QUIET)
    assert found.output_parsed == Person(name="Ada", age=36)


def test_cut_short(client: OpenAI) -> None:
    found = client.responses.create(
        model=TINY, input="Count from 1 to 20.", max_output_tokens=3, reasoning=QUIET
    )
    assert found.status == "incomplete"
    assert found.incomplete_details
    assert found.incomplete_details.reason == "max_output_tokens"
    with client.responses.stream(
        model=TINY, input="Count from 1 to 20.", max_output_tokens=3, reasoning=QUIET
    ) as stream:
        assert [event.type for event in stream][-1] == "response.incomplete"


async def test_cancel(daemon: Mlxo) -> None:
    async with AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key="any", max_retries=0) as client:
        stream = await client.responses.create(model=TINY, input=FOREVER, reasoning=QUIET, stream=True)
        id_ = ""
        async for event in stream:
            if event.type == "response.created":
                id_ = event.response.id
            if event.type == "response.output_text.delta" and id_:
                assert (await client.responses.retrieve(id_)).status == "in_progress"
                assert (await client.responses.cancel(id_)).status == "cancelled"
                id_ = ""
        assert event.type == "response.failed"
        assert (await client.responses.retrieve(event.response.id)).status == "cancelled"
        assert (await client.responses.cancel(event.response.id)).status == "cancelled"


def test_logprobs(client: OpenAI) -> None:
    found = client.responses.create(
        model=TINY,
        input=FRANCE,
        reasoning=QUIET,
        include=["message.output_text.logprobs"],
        top_logprobs=2,
    )
    (item,) = found.output
    assert item.type == "message"
    (part,) = item.content
    assert part.type == "output_text"
    assert part.logprobs
    assert "".join(t.token for t in part.logprobs) == ANSWERS[FRANCE]
    assert {len(t.top_logprobs) for t in part.logprobs} == {2}


@pytest.mark.parametrize(
    "body",
    [
        {"input": ""},
        {"input": "x", "background": True},
        {"input": "x", "tools": [{"type": "web_search"}]},
        {"input": "x", "temperature": 3},
        {"input": [{"type": "item_reference", "id": "msg_none"}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        {"input": [{"type": "function_call", "name": "f", "call_id": "c", "arguments": "["}]},
        {"input": [{"role": "nobody", "content": "x"}]},
        {"input": "word " * 200_000},
    ],
)
def test_refusals(client: OpenAI, body: Any) -> None:
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model=TINY, **body)
