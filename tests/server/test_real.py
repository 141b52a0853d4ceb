"""The application with real runners and a tiny real model, made over HTTP as the command line makes it."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest

from mlxo.server.child import Launch
from tests.models import ANSWERS, CALLS, PIRATE, QWEN3, RAW, SECOND_TURN, THOUGHTS, TOOLS
from tests.server.conftest import PATIENCE, Api

FRANCE = "What is the capital of France?"


@pytest.fixture
def launch(settings: Any) -> Launch:
    return Launch.from_settings(settings)


@pytest.fixture
async def real(api: Api) -> Api:
    files = {}
    for path in sorted(QWEN3.iterdir()):
        data = path.read_bytes()
        files[path.name] = f"sha256:{hashlib.sha256(data).hexdigest()}"
        status, _, _ = await api.call("POST", f"/api/blobs/{files[path.name]}", data)
        assert status in (200, 201)
    opening = [
        {"role": "user", "content": SECOND_TURN[0]},
        {"role": "assistant", "content": ANSWERS[SECOND_TURN[0]]},
    ]
    for name, messages in (("real", []), ("opened", opening)):
        body = {"model": name, "files": files, "parameters": {"temperature": 0}, "messages": messages}
        assert (await api.post("/api/create", body))[1][-1] == {"status": "success"}
    return api


async def generate(api: Api, prompt: str, **more: Any) -> dict[str, Any]:
    body = {"model": "real", "prompt": prompt, "stream": False, "think": False} | more
    status, value = await api.post("/api/generate", body)
    assert status == 200, value
    result: dict[str, Any] = value
    return result


async def test_generate(real: Api) -> None:
    assert (await generate(real, FRANCE))["response"] == ANSWERS[FRANCE]
    thinking = await generate(real, FRANCE, think=None)
    assert (thinking["response"], thinking["thinking"].strip()) == (ANSWERS[FRANCE], THOUGHTS[FRANCE])
    system, prompt, answer = PIRATE
    assert (await generate(real, prompt, system=system))["response"] == answer
    for prompt, answer in RAW.items():
        raw = await generate(real, prompt, raw=True)
        assert raw["response"] == answer
        assert "context" not in raw
    # What went before, given back as token ids, is part of the next prompt.
    first = await generate(real, SECOND_TURN[0])
    second = await generate(real, SECOND_TURN[1], context=first["context"])
    assert second["response"] == SECOND_TURN[2]
    assert second["prompt_eval_count"] > first["prompt_eval_count"] + first["eval_count"] - 2
    status, value = await real.post("/api/generate", {"model": "real", "prompt": "x", "context": [10**6]})
    assert (status, "context" in value["error"]) == (400, True)
    limited = await generate(real, "Count from 1 to 20.", options={"num_predict": 3})
    assert (limited["done_reason"], limited["eval_count"]) == ("length", 3)


async def test_chat_tools_and_the_models_own_messages(real: Api) -> None:
    prompt, (_, _, [(name, arguments)]) = next((p, c) for p, c in CALLS.items() if len(c[2]) == 1)
    body: dict[str, Any] = {
        "model": "real",
        "messages": [{"role": "user", "content": prompt}],
        "tools": [TOOLS[name]],
    }
    _, lines = await real.post("/api/chat", body)
    (call,) = [c for line in lines for c in line["message"].get("tool_calls", ())]
    assert call["function"] == {"index": 0, "name": name, "arguments": arguments}
    assert "<tool_call>" not in "".join(line["message"]["content"] for line in lines)
    # The Modelfile's MESSAGEs stand before the conversation; a second model is loaded beside the first.
    body = {"model": "opened", "messages": [{"role": "user", "content": SECOND_TURN[1]}], "think": False}
    _, lines = await real.post("/api/chat", body)
    assert "".join(line["message"]["content"] for line in lines) == SECOND_TURN[2]
    _, value, _ = await real.call("GET", "/api/ps")
    assert {row["name"] for row in value["models"]} == {"real:latest", "opened:latest"}
    async with asyncio.timeout(PATIENCE):  # what they hold is told a moment after their last request
        while not all(row["prefix_cache_bytes"] > 0 for row in value["models"]):
            _, value, _ = await real.call("GET", "/api/ps")
    for name in ("real", "opened"):
        _, value = await real.post("/api/generate", {"model": name, "keep_alive": 0})
        assert value["done_reason"] == "unload"
    _, value, _ = await real.call("GET", "/api/ps")
    assert value == {"models": []}
