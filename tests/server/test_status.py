"""Health, and requests that are ended from another connection."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import msgspec
import pytest

from mlxo.core.types import TextDelta
from mlxo.server.dialects import anthropic, ollama, openai
from mlxo.server.dialects.base import Answer, Dialect
from mlxo.server.handlers import status
from tests.server.conftest import PATIENCE, Api, Stage

CHAT = {"/api/chat": "error", "/v1/chat/completions": "message", "/v1/messages": "message"}


def body(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "max_tokens": 50, "messages": [{"role": "user", "content": text}]} | more


async def test_health(api: Api, stage: Stage) -> None:
    assert (await api.call("GET", "/health"))[:2] == (200, {"status": "ok", "models": {}})
    await api.post("/api/generate", {"model": "tiny"})
    pid = (await stage.next("load"))["pid"]
    assert (await api.call("GET", "/health"))[1]["models"] == {"tiny:latest": "idle"}
    async with api.open("/api/chat", body("forever")) as busy:
        await busy.content.readline()
        assert (await api.call("GET", "/health"))[1]["models"] == {"tiny:latest": "busy"}
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(PATIENCE):
        while (found := await api.call("GET", "/health"))[1]["models"]:
            assert found[0] == (503 if "dead" in found[1]["models"].values() else 200)


async def test_health_fails_when_an_engine_stands_still(
    api: Api, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the port is open, and nobody asks the model for anything."""
    monkeypatch.setattr(status, "SILENT", 0.1)
    await api.post("/api/generate", {"model": "tiny"})
    os.kill((await stage.next("load"))["pid"], signal.SIGSTOP)
    async with asyncio.timeout(PATIENCE):
        while (found := await api.call("GET", "/health"))[0] == 200:
            pass
    assert found[1] == {"status": "unhealthy", "models": {"tiny:latest": "stalled"}}
    assert int(found[2].headers["Retry-After"]) > 0


@pytest.mark.parametrize("path", CHAT)
async def test_a_stream_is_ended_by_the_id_in_its_head(api: Api, stage: Stage, path: str) -> None:
    async with api.open(path, body("forever", stream=True)) as answer:
        await answer.content.readline()
        id_ = answer.headers["X-Request-Id"]
        assert (await api.call("DELETE", f"/api/requests/{id_}"))[:2] == (200, {"status": "cancelled"})
        rest = await answer.text()
    assert "the request was cancelled" in rest.strip().splitlines()[-1]
    await stage.next("cancel")
    assert (await api.call("DELETE", f"/api/requests/{id_}"))[0] == 404


@pytest.mark.parametrize("path", CHAT)
async def test_a_request_is_ended_by_the_id_that_it_brought(api: Api, stage: Stage, path: str) -> None:
    headers = {"X-Request-Id": "mine-1"}
    asked = asyncio.create_task(api.call("POST", path, body("forever", stream=False), headers=headers))
    await stage.next("submit")
    assert (await api.call("DELETE", "/api/requests/mine-1"))[0] == 200
    code, value, response = await asked
    assert (code, response.headers["X-Request-Id"]) == (499, "mine-1")
    error = value["error"] if path == "/api/chat" else value["error"]["message"]
    assert error == "the request was cancelled"
    assert (await api.post(path, body("say x")))[0] == 200


async def test_a_load_is_given_up_with_its_request(api: Api, stage: Stage) -> None:
    headers = {"X-Request-Id": "mine-2"}
    asked = asyncio.create_task(api.call("POST", "/api/chat", body("say x", model="slow"), headers=headers))
    await stage.next("load")
    assert (await api.call("DELETE", "/api/requests/mine-2"))[0] == 200
    assert (await asked)[0] == 499


async def test_an_id_that_is_none_is_not_taken(api: Api) -> None:
    for bad in ("a b", "x" * 200, "é"):
        _, _, response = await api.call("GET", "/api/version", headers={"X-Request-Id": bad})
        assert response.headers["X-Request-Id"].startswith("r")
    assert (await api.call("DELETE", "/api/requests/nobody"))[0] == 404


@pytest.mark.parametrize(
    ("dialect", "line"),
    [
        (openai.CHAT, b": at work\n\n"),
        (anthropic.MESSAGES, b'event: ping\ndata: {"type":"ping"}\n\n'),
        (ollama.CHAT, b""),
    ],
)
def test_what_keeps_a_connection_open_while_there_is_nothing_to_tell(dialect: Dialect, line: bytes) -> None:
    answer = dialect.answer(dialect.parse(msgspec.json.encode(body("hi", stream=True)), "r1"))
    assert isinstance(answer, Answer)
    assert answer.encode([]) == line
    assert answer.encode([TextDelta(text="x")])
    assert answer.encode([]) == line
