"""The OpenAI and Anthropic routes over HTTP with fake runners: shapes of errors, streams that fail midway."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import msgspec
import pytest

from mlxo.core.settings import Settings
from mlxo.server.child import Launch
from tests.server.conftest import Api, Stage

OPENAI = "/v1/chat/completions"
ANTHROPIC = "/v1/messages"


def body(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "max_tokens": 50, "messages": [{"role": "user", "content": text}]} | more


def frames(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


async def test_errors_have_the_shape_of_their_api(api: Api) -> None:
    status, value = await api.post(OPENAI, body("hi", model="nobody"))
    error = {"message": "model 'nobody' not found", "type": "not_found_error", "param": None}
    assert (status, value["error"] | error) == (404, value["error"])
    status, value = await api.post(ANTHROPIC, body("hi", model="nobody"))
    assert (status, value["type"], value["error"]["type"]) == (404, "error", "not_found_error")
    status, value, _ = await api.call("GET", "/v1/models/nobody")
    assert (status, value["error"]["code"]) == (404, "model_not_found")
    for path in (OPENAI, "/v1/completions", ANTHROPIC):
        status, value, _ = await api.call("POST", path, b"{")
        assert (status, value["error"]["type"]) == (400, "invalid_request_error")
        status, value, _ = await api.call("GET", path)
        assert (status, value) == (405, "405 method not allowed")
    # A runner that refuses has a status of its own even when a stream was asked for.
    for path in (OPENAI, ANTHROPIC):
        status, value = await api.post(path, body("refuse no such thing", stream=True))
        assert (status, value["error"]["message"]) == (400, "no such thing")
    status, value = await api.post("/api/chat", body("hi", model="nobody"))
    assert (status, value["error"]) == (404, "model 'nobody' not found")


@pytest.mark.parametrize(("verb", "said"), [("break", "the model failed"), ("die", "last words")])
async def test_a_stream_that_fails_midway_says_so(api: Api, verb: str, said: str) -> None:
    status, text, response = await api.call("POST", OPENAI, body(f"{verb} a b", stream=True))
    assert (status, response.content_type) == (200, "text/event-stream")
    chunks = frames(text)
    assert said in chunks[-1]["error"]["message"]
    assert chunks[-2]["choices"][0]["delta"]["content"] == " b"
    status, text, response = await api.call("POST", ANTHROPIC, body(f"{verb} a b", stream=True))
    assert (status, response.content_type) == (200, "text/event-stream")
    assert "event: error\n" in text
    assert said in frames(text)[-1]["error"]["message"]


async def test_streams(api: Api) -> None:
    _, text, _ = await api.call("POST", OPENAI, body("say a b", stream=True))
    assert frames(text)[-1] == "[DONE]"
    _, text, _ = await api.call("POST", "/v1/completions", {"model": "tiny", "prompt": "say a b"})
    assert text["choices"][0]["text"] == "a b"
    _, text, _ = await api.call("POST", ANTHROPIC, body("say a b", stream=True))
    assert frames(text)[-1] == {"type": "message_stop"}


class TestBusy:
    """A model that does not fit beside the one in use, and nobody waits for long."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return msgspec.structs.replace(settings, max_loaded=1, load_timeout=0.1)

    @pytest.mark.parametrize(
        ("path", "kind"),
        [(OPENAI, "api_error"), (ANTHROPIC, "overloaded_error"), ("/api/chat", None)],
    )
    async def test_says_when_to_come_again(self, api: Api, path: str, kind: str | None) -> None:
        """In every API's own shape; openai's and anthropic's clients wait as long as the header says."""
        async with api.open("/api/generate", {"model": "tiny", "prompt": "forever"}) as busy:
            await busy.content.readline()
            status, value, response = await api.call("POST", path, body("say x", model="crash"))
        assert (status, response.headers["Retry-After"]) == (503, "30")
        error = value["error"]
        assert "does not fit beside what is in use: tiny" in str(error)
        if kind is not None:
            assert error["type"] == kind


class TestStall:
    @pytest.fixture
    def launch(self, launch: Launch) -> Launch:
        return msgspec.structs.replace(launch, stall=0.2)

    async def test_a_runner_that_stands_still_is_told_of_and_replaced(self, api: Api, stage: Stage) -> None:
        await api.post("/api/generate", {"model": "tiny"})
        first = (await stage.next("load"))["pid"]
        os.kill(first, signal.SIGSTOP)
        status, value, response = await api.call("POST", OPENAI, body("say x", stream=True))
        assert (status, value["error"]["code"], response.headers["Retry-After"]) == (503, "stalled", "5")
        assert "made no progress" in value["error"]["message"]
        status, value = await api.post(OPENAI, body("say x"))
        assert (status, value["choices"][0]["message"]["content"]) == (200, "x")
        assert (await stage.next("load"))["pid"] != first


async def test_pages_may_send_anthropics_headers(api: Api) -> None:
    headers = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
    _, _, response = await api.call("OPTIONS", ANTHROPIC, headers=headers)
    allowed = response.headers["Access-Control-Allow-Headers"].lower()
    for name in ("x-api-key", "anthropic-version", "anthropic-beta"):
        assert name in allowed
