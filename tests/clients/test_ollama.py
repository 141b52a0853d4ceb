"""The `ollama` package, its plain and its asynchronous client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import ollama
import pytest
from ollama import AsyncClient, Client

from tests.clients.conftest import HUB_MODEL, SPACED, TINY
from tests.e2e.conftest import Mlxo
from tests.models import ANSWERS, CALLS, LLAMA, LLAMA_ANSWERS, QWEN3, RAW, THOUGHTS, TOOL_RESULT, TOOLS

FRANCE = "What is the capital of France?"
WEATHER = "What is the weather in Paris?"


@pytest.fixture
def client(daemon: Mlxo) -> Iterator[Client]:
    with Client(host=daemon.url) as found:
        yield found


@pytest.fixture
async def later(daemon: Mlxo) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(host=daemon.url) as found:
        yield found


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def test_list_show_and_ps(client: Client) -> None:
    assert {m.model for m in client.list().models} >= {TINY, SPACED}
    shown = client.show("tiny")
    assert shown.capabilities is not None
    assert {"completion", "tools", "thinking"} <= set(shown.capabilities)
    assert shown.details is not None
    assert (shown.details.format, shown.license) == ("safetensors", "free")
    client.generate(model="tiny", keep_alive="5m")
    (row,) = [m for m in client.ps().models if m.model == TINY]
    assert row.context_length
    assert row.expires_at
    done = client.generate(model="tiny", keep_alive=0)
    assert done.done_reason == "unload"
    assert TINY not in [m.model for m in client.ps().models]


def test_chat(client: Client) -> None:
    whole = client.chat(model="tiny", messages=user(FRANCE))
    assert whole.message.content == ANSWERS[FRANCE]
    assert (whole.message.thinking or "").strip() == THOUGHTS[FRANCE]
    assert whole.eval_count
    parts = list(client.chat(model="tiny", messages=user(FRANCE), think=False, stream=True))
    assert "".join(p.message.content or "" for p in parts) == ANSWERS[FRANCE]
    assert [p.done for p in parts] == [False] * (len(parts) - 1) + [True]


def test_tools(client: Client) -> None:
    tools: Any = [TOOLS["get_weather"]]
    first = client.chat(model="tiny", messages=user(WEATHER), tools=tools, think=False)
    assert first.message.tool_calls
    calls = [(c.function.name, dict(c.function.arguments)) for c in first.message.tool_calls]
    assert calls == CALLS[WEATHER][2]
    result, answer = TOOL_RESULT
    told = {"role": "tool", "content": result, "tool_name": "get_weather"}
    second = client.chat(
        model="tiny", messages=[*user(WEATHER), first.message, told], tools=tools, think=False
    )
    assert second.message.content == answer


def test_generate(client: Client) -> None:
    for prompt, answer in RAW.items():
        assert client.generate(model="tiny", prompt=prompt, raw=True).response == answer
    limited = client.generate(model="tiny", prompt=FRANCE, think=False, options={"num_predict": 2})
    assert (limited.done_reason, limited.eval_count) == ("length", 2)
    parts = list(client.generate(model="tiny", prompt=FRANCE, think=False, stream=True))
    assert "".join(p.response or "" for p in parts) == ANSWERS[FRANCE]
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    bound = client.generate(model="tiny", prompt="Say hello.", format=schema, think=False)
    assert '"age"' in (bound.response or "")


def test_create_copy_and_delete(client: Client) -> None:
    files = {p.name: client.create_blob(p) for p in sorted(QWEN3.iterdir()) if p.is_file()}
    steps = list(
        client.create(
            model="made", files=files, system="You are a pirate.", parameters={"temperature": 0}, stream=True
        )
    )
    assert steps[-1].status == "success"
    assert client.generate(model="made", prompt="Say hello.", think=False).response == "Ahoy, matey!"
    assert client.create(model="again", from_="made", stream=False).status == "success"
    assert client.copy("again", "third").status == "success"
    for name in ("made", "again", "third"):
        assert client.delete(name).status == "success"
        with pytest.raises(ollama.ResponseError) as gone:
            client.show(name)
        assert gone.value.status_code == 404


def test_pull_tells_its_progress(client: Client) -> None:
    steps = list(client.pull(HUB_MODEL, stream=True))
    assert steps[-1].status == "success"
    weights = (LLAMA / "model.safetensors").stat().st_size
    assert [s.completed for s in steps if s.total == weights][-1] == weights
    assert client.pull(HUB_MODEL, stream=False).status == "success"
    answer = client.generate(model=HUB_MODEL, prompt="Who are you?", options={"temperature": 0})
    assert answer.response == LLAMA_ANSWERS["Who are you?"]
    client.delete(HUB_MODEL)
    with pytest.raises(ollama.ResponseError) as missing:
        list(client.pull("nobody-has-this", stream=True))
    assert missing.value.status_code == 404


def test_errors(client: Client) -> None:
    said: dict[Any, str] = {client.generate: "nobody", client.chat: "nobody", client.show: "nobody:latest"}
    for ask, name in said.items():
        with pytest.raises(ollama.ResponseError) as missing:
            ask(model="nobody")
        assert missing.value.status_code == 404
        assert missing.value.error == f"model '{name}' not found"
    with pytest.raises(ollama.ResponseError) as absent:
        client.embed(model="nobody", input="hi")
    assert absent.value.status_code == 404
    assert absent.value.error == 'model "nobody" not found, try pulling it first'


async def test_async(later: AsyncClient) -> None:
    prompts = ["What is 2 + 2?", FRANCE, "Say hello."]
    answers = await asyncio.gather(
        *(later.chat(model="tiny", messages=user(p), think=False) for p in prompts)
    )
    assert [a.message.content for a in answers] == [ANSWERS[p] for p in prompts]
    stream = await later.generate(model="tiny", prompt=FRANCE, think=False, stream=True)
    assert "".join([part.response or "" async for part in stream]) == ANSWERS[FRANCE]
    assert TINY in [m.model for m in (await later.list()).models]
    assert (await later.show("tiny")).details
    assert TINY in [m.model for m in (await later.ps()).models]
    steps = await later.create(model="later", from_="tiny", stream=True)
    assert [s.status async for s in steps][-1] == "success"
    await later.copy("later", "even-later")
    for name in ("later", "even-later"):
        await later.delete(name)
    with pytest.raises(ollama.ResponseError, match="model 'later:latest' not found"):
        await later.show("later")
