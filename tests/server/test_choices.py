"""`n`: several answers to one request, from the runner's frames to the client's, in good times and bad."""

from __future__ import annotations

import json
from typing import Any

from tests.server.conftest import Api, Stage

ROUTE = "/v1/chat/completions"


def chat(prompt: str, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": prompt}], "n": 3} | more


def frames(text: str) -> list[Any]:
    """What is in the frames of a stream; its last one is [DONE], or it failed."""
    found = [part.removeprefix("data: ") for part in text.split("\n\n") if part]
    return [part if part == "[DONE]" else json.loads(part) for part in found]


async def test_each_copy_is_a_request_of_its_own(api: Api, stage: Stage) -> None:
    status, body = await api.post(ROUTE, chat("dump x", seed=5))
    assert status == 200
    requests = [json.loads(c["message"]["content"]) for c in body["choices"]]
    assert [c["index"] for c in body["choices"]] == [0, 1, 2]
    assert len({r["id"] for r in requests}) == 3
    assert [r["options"]["seed"] for r in requests] == [5, 6, 7]
    assert body["usage"]["prompt_tokens"] == 7
    assert body["usage"]["completion_tokens"] == 9
    assert body["usage"]["total_tokens"] == 16
    _, body = await api.post(ROUTE, chat("dump x"))
    assert {json.loads(c["message"]["content"])["options"]["seed"] for c in body["choices"]} == {-1}
    _, body = await api.post(ROUTE, chat("dump x", n=1, seed=5))
    assert json.loads(body["choices"][0]["message"]["content"])["options"]["seed"] == 5


async def test_a_stream_ends_once_with_the_usage_of_all(api: Api) -> None:
    _, text, _ = await api.call(
        "POST", ROUTE, chat("say a b c", stream=True, stream_options={"include_usage": True})
    )
    *chunks, usage, done = frames(text)
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 9
    said = ["", "", ""]
    roles = []
    for chunk in chunks:
        (choice,) = chunk["choices"]
        said[choice["index"]] += choice["delta"].get("content", "")
        roles += [choice["index"]] if "role" in choice["delta"] else []
    assert said == ["a b c"] * 3
    assert sorted(roles) == [0, 1, 2]
    assert sorted(c["choices"][0]["index"] for c in chunks if c["choices"][0]["finish_reason"]) == [0, 1, 2]


async def test_completions(api: Api) -> None:
    _, body = await api.post("/v1/completions", {"model": "tiny", "prompt": "say x", "n": 2, "echo": True})
    assert [(c["index"], c["text"]) for c in body["choices"]] == [(0, "say xx"), (1, "say xx")]


async def test_one_that_fails_fails_all(api: Api) -> None:
    status, body = await api.post(ROUTE, chat("refuse not so"))
    assert (status, body["error"]["message"]) == (400, "not so")
    status, body = await api.post(ROUTE, chat("break a b"))
    assert (status, body["error"]["message"]) == (500, "the model failed")
    _, text, _ = await api.call("POST", ROUTE, chat("break a b", stream=True))
    assert frames(text)[-1]["error"]["message"] == "the model failed"


async def test_a_client_that_leaves_cancels_all(api: Api, stage: Stage) -> None:
    async with api.open(ROUTE, chat("forever", stream=True)) as response:
        ids = {(await stage.next("submit"))["id"] for _ in range(3)}
        async for line in response.content:
            if b" x" in line:
                break
    assert {(await stage.next("cancel"))["id"] for _ in range(3)} == ids
