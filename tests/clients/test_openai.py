"""The `openai` package against /v1. The model is greedy by its Modelfile: no temperature is ever sent."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pydantic
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.clients.conftest import SPACED, TINY
from tests.e2e.conftest import Mlxo
from tests.models import ANSWERS, CALLS, PIRATE, RAW, SECOND_TURN, THOUGHTS, TOOL_RESULT, TOOLS

FRANCE = "What is the capital of France?"
WEATHER = "What is the weather in Paris?"
PLAIN: dict[str, Any] = {"think": False}


@pytest.fixture
def client(daemon: Mlxo) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{daemon.url}/v1", api_key="any", max_retries=0) as found:
        yield found


@pytest.fixture
async def later(daemon: Mlxo) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key="any", max_retries=0) as found:
        yield found


def user(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("prompt", [FRANCE, "Reply with emoji.", "Name three colours."])
def test_chat(client: OpenAI, prompt: str) -> None:
    whole = client.chat.completions.create(model="tiny", messages=user(prompt), reasoning_effort="none")
    choice = whole.choices[0]
    assert (choice.message.content, choice.finish_reason) == (ANSWERS[prompt], "stop")
    assert whole.usage
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens > 5
    assert whole.usage.prompt_tokens_details
    assert not hasattr(choice.message, "reasoning")
    with client.chat.completions.create(
        model="tiny",
        messages=user(prompt),
        stream=True,
        stream_options={"include_usage": True},
        extra_body=PLAIN,
    ) as stream:
        chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == ANSWERS[prompt]
    assert len(chunks) > 4
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert len({c.id for c in chunks}) == 1


async def test_many_at_once(later: AsyncOpenAI) -> None:
    import asyncio

    async def ask(prompt: str) -> str | None:
        answer = await later.chat.completions.create(
            model="tiny", messages=user(prompt), reasoning_effort="none"
        )
        return answer.choices[0].message.content

    prompts = ["What is 2 + 2?", FRANCE, "Say hello.", "Who are you?"]
    assert await asyncio.gather(*map(ask, prompts)) == [ANSWERS[p] for p in prompts]
    stream = await later.chat.completions.create(
        model="tiny", messages=user(FRANCE), stream=True, reasoning_effort="none"
    )
    assert "".join([c.choices[0].delta.content or "" async for c in stream]) == ANSWERS[FRANCE]


def test_turns_parts_and_system_messages_reach_the_model(client: OpenAI) -> None:
    said, asked, answer = SECOND_TURN
    messages: list[ChatCompletionMessageParam] = [
        {"role": "user", "content": [{"type": "text", "text": said}]},
        {"role": "assistant", "content": [{"type": "text", "text": ANSWERS[said]}]},
        {"role": "user", "content": asked},
    ]
    found = client.chat.completions.create(model="tiny", messages=messages, reasoning_effort="none")
    assert found.choices[0].message.content == answer
    system, prompt, answer = PIRATE
    for opening in ("system", "developer"):
        messages = [{"role": opening, "content": system}, *user(prompt)]  # type: ignore[list-item, misc]
        found = client.chat.completions.create(model="tiny", messages=messages, reasoning_effort="none")
        assert found.choices[0].message.content == answer


def test_thinking_stands_apart(client: OpenAI) -> None:
    message = client.chat.completions.create(model="tiny", messages=user(FRANCE)).choices[0].message
    assert message.content == ANSWERS[FRANCE]
    assert message.reasoning.strip() == THOUGHTS[FRANCE]  # type: ignore[attr-defined]
    thought = text = ""
    for chunk in client.chat.completions.create(
        model="tiny", messages=user(FRANCE), stream=True, reasoning_effort="high"
    ):
        delta = chunk.choices[0].delta
        thought += getattr(delta, "reasoning", "")
        text += delta.content or ""
    assert (thought.strip(), text) == (THOUGHTS[FRANCE], ANSWERS[FRANCE])


@pytest.mark.parametrize("prompt", [WEATHER, "Compare the weather in Paris and London."])
def test_tools(client: OpenAI, prompt: str) -> None:
    _, before, expected = CALLS[prompt]
    tools: Any = [TOOLS["get_weather"]]
    whole = client.chat.completions.create(
        model="tiny", messages=user(prompt), tools=tools, reasoning_effort="none"
    ).choices[0]
    assert whole.finish_reason == "tool_calls"
    assert (whole.message.content or "").strip() == before
    calls = whole.message.tool_calls
    assert calls
    assert [(c.function.name, json.loads(c.function.arguments)) for c in calls] == expected  # type: ignore[union-attr]
    assert len({c.id for c in calls}) == len(expected)
    with client.chat.completions.stream(
        model="tiny", messages=user(prompt), tools=tools, reasoning_effort="none"
    ) as stream:
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    assert final.message.tool_calls
    streamed = [(c.function.name, json.loads(c.function.arguments)) for c in final.message.tool_calls]
    assert streamed == expected


def test_a_tool_result_is_answered(client: OpenAI) -> None:
    tools: Any = [TOOLS["get_weather"]]
    messages = user(WEATHER)
    first = client.chat.completions.create(
        model="tiny", messages=messages, tools=tools, reasoning_effort="none"
    )
    message = first.choices[0].message
    assert message.tool_calls
    result, answer = TOOL_RESULT
    messages.append(message.to_dict())  # type: ignore[arg-type]
    messages.append({"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": result})
    second = client.chat.completions.create(
        model="tiny", messages=messages, tools=tools, reasoning_effort="none"
    )
    assert second.choices[0].message.content == answer
    silent = client.chat.completions.create(
        model="tiny", messages=user(WEATHER), tools=tools, tool_choice="none", reasoning_effort="none"
    )
    assert silent.choices[0].message.content == ANSWERS[WEATHER]


class Person(pydantic.BaseModel):
    name: str
    age: int


def test_structured_output(client: OpenAI) -> None:
    prompt = user("Answer in JSON: name and age of Ada.")
    parsed = client.chat.completions.parse(
        model="tiny", messages=prompt, response_format=Person, reasoning_effort="none"
    )
    assert parsed.choices[0].message.parsed == Person(name="Ada", age=36)
    # A schema binds where the model would say something else.
    forced = client.chat.completions.parse(
        model="tiny", messages=user("Say hello."), response_format=Person, max_tokens=60, extra_body=PLAIN
    )
    assert isinstance(forced.choices[0].message.parsed, Person)
    whole = client.chat.completions.create(
        model="tiny", messages=prompt, response_format={"type": "json_object"}, reasoning_effort="none"
    )
    assert json.loads(whole.choices[0].message.content or "") == {"name": "Ada", "age": 36}


def test_limits_and_stops(client: OpenAI) -> None:
    prompt = user("Count from 1 to 20.")
    for field in ("max_tokens", "max_completion_tokens"):
        limited = client.chat.completions.create(
            model="tiny", messages=prompt, reasoning_effort="none", extra_body={field: 3}
        )
        assert limited.choices[0].finish_reason == "length"
        assert limited.usage
        assert limited.usage.completion_tokens == 3
    for stop in (", 4", ["never", ", 4"]):
        stopped = client.chat.completions.create(
            model="tiny", messages=prompt, stop=stop, reasoning_effort="none"
        )
        assert stopped.choices[0].finish_reason == "stop"
        assert stopped.choices[0].message.content == "1, 2, 3"
    options = client.chat.completions.create(
        model="tiny", messages=prompt, extra_body={"options": {"num_predict": 4}, "think": False}
    )
    assert options.usage
    assert options.usage.completion_tokens == 4


def test_completions(client: OpenAI) -> None:
    for prompt, answer in RAW.items():
        whole = client.completions.create(model="tiny", prompt=prompt)
        assert (whole.choices[0].text, whole.choices[0].finish_reason) == (answer, "stop")
        assert client.completions.create(model="tiny", prompt=[prompt], echo=True).choices[0].text == (
            prompt + answer
        )
        chunks = list(client.completions.create(model="tiny", prompt=prompt, stream=True, echo=True))
        assert "".join(c.choices[0].text for c in chunks) == prompt + answer


def test_models(client: OpenAI) -> None:
    found = {m.id: m for m in client.models.list()}
    assert set(found) == {TINY, SPACED}
    assert found[SPACED].owned_by == "you"
    for name in ("tiny", TINY, "you/tiny", SPACED):
        model = client.models.retrieve(name)
        assert model == found[SPACED if "you" in name else TINY]
        assert model.context_length > 100  # type: ignore[attr-defined]
        assert "tools" in model.capabilities  # type: ignore[attr-defined]
    for name in ("nobody", "no/body", "a/b/c/d/e", "a b"):
        with pytest.raises(openai.NotFoundError) as missing:
            client.models.retrieve(name)
        assert missing.value.code == "model_not_found"


REFUSED: list[dict[str, Any]] = [
    {"n": 17},
    {"top_logprobs": 3},
    {"logprobs": True, "top_logprobs": 21},
    {"audio": {"voice": "alloy", "format": "wav"}},
    {"modalities": ["text", "audio"]},
    {"tool_choice": "required"},
    {
        "tools": [TOOLS["get_weather"]],
        "tool_choice": {"type": "function", "function": {"name": "tool_choice?"}},
    },
    {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "response_format", "schema": {"not": {}}},
        }
    },
    {"structured_outputs": {"regex": "a", "choice": ["b"]}},
    {"max_tokens": 0},
    {"reasoning_effort": "much"},
    {"temperature": "hot"},
    {"stop": 3},
]


@pytest.mark.parametrize("more", REFUSED, ids=lambda m: list(m)[-1])
def test_what_cannot_be_done_is_refused_by_name(client: OpenAI, more: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=user("hi"), extra_body=more)
    assert refused.value.type == "invalid_request_error"
    assert list(more)[-1] in str(refused.value)


def test_a_call_that_is_forced(client: OpenAI) -> None:
    tools: list[Any] = [TOOLS["get_weather"], TOOLS["calculator"]]
    choices: list[Any] = ["required", {"type": "function", "function": {"name": "calculator"}}]
    for choice in choices:
        answer = client.chat.completions.create(
            model="tiny",
            messages=user("Tell me a joke."),
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=False,
            max_tokens=60,
        )
        (call,) = answer.choices[0].message.tool_calls or []
        assert answer.choices[0].finish_reason == "tool_calls"
        assert call.type == "function"
        assert call.function.name == "calculator" or choice == "required"
        assert isinstance(json.loads(call.function.arguments), dict)


def test_structured_outputs_of_vllm(client: OpenAI) -> None:
    def ask(**form: Any) -> str:
        answer = client.chat.completions.create(
            model="tiny",
            messages=user("Tell me a joke."),
            max_tokens=60,
            extra_body={"structured_outputs": form, "reasoning_effort": "none"},
        )
        return answer.choices[0].message.content or ""

    assert ask(choice=["left", "right"]) in ("left", "right")
    assert re.fullmatch("[a-f]+-[0-9]{2}", ask(regex="[a-f]+-[0-9]{2}"))
    assert ask(grammar='start: "x" "y"?') in ("x", "xy")
    assert json.loads(ask(json={"enum": [7]})) == 7


def test_errors(client: OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.NotFoundError) as missing:
            client.chat.completions.create(model="nobody", messages=user("hi"), stream=stream)
        assert (missing.value.type, missing.value.code) == ("not_found_error", "model_not_found")
        assert "model 'nobody' not found" in missing.value.message
    picture: Any = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
    with pytest.raises(openai.BadRequestError, match=r"messages\[0\].content\[0\] of type image_url"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": picture}])
    with pytest.raises(openai.BadRequestError, match="too short"):
        client.chat.completions.create(model="tiny", messages=[])
    with pytest.raises(openai.BadRequestError, match="suffix"):
        client.completions.create(model="tiny", prompt="a", suffix="b")
    with pytest.raises(openai.BadRequestError, match="prompt must be one string"):
        client.completions.create(model="tiny", prompt=[1, 2])
