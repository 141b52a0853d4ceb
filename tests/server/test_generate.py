"""Answers over HTTP: streamed and whole, errors before and after the first line, deaths, leaving clients."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from typing import Any

import pytest

from mlxo.core.settings import Settings
from mlxo.server import keys
from tests.server.conftest import PATIENCE, Api, Stage


def chat(prompt: str, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": prompt}]} | more


async def ps(api: Api) -> list[dict[str, Any]]:
    _, value, _ = await api.call("GET", "/api/ps")
    rows: list[dict[str, Any]] = value["models"]
    return rows


async def lines_until(response: Any, text: str) -> None:
    async for line in response.content:
        if text in line.decode():
            return


async def test_streams_by_default_and_ends_with_metrics(api: Api) -> None:
    status, lines, response = await api.call("POST", "/api/chat", chat("think a b"))
    assert (status, response.content_type) == (200, "application/x-ndjson")
    assert [line["message"].get("thinking") for line in lines] == ["hm", None, None, None]
    assert "".join(line["message"]["content"] for line in lines) == "a b"
    assert [line["done"] for line in lines] == [False, False, False, True]
    last = lines[-1]
    assert last["done_reason"] == "stop"
    assert (last["prompt_eval_count"], last["eval_count"]) == (7, 3)
    assert last["total_duration"] > last["load_duration"] > 0
    assert "context" not in last
    assert {line["model"] for line in lines} == {"tiny"}


async def test_one_object_when_not_streaming(api: Api) -> None:
    body = {"model": "TINY:latest", "prompt": "say a b", "stream": False}
    status, value, response = await api.call("POST", "/api/generate", body)
    assert (status, response.content_type) == (200, "application/json")
    assert (value["model"], value["response"], value["done"]) == ("TINY:latest", "a b", True)
    assert value["context"] == [1, 2, 3]


async def test_what_the_runner_gets(api: Api, stage: Stage) -> None:
    body = chat(
        "say x",
        options={"temperature": 0.5, "stop": "END", "num_ctx": 512, "unknown": 1},
        format={"type": "object", "properties": {"b": {}, "a": {}}},
        tools=[{"type": "function", "function": {"name": "f"}}],
        keep_alive="1h",
    )
    await api.post("/api/chat", body)
    request = (await stage.next("submit"))["request"]
    assert request["options"]["temperature"] == 0.5
    assert request["options"]["stop"] == ["END"]
    assert request["options"]["num_ctx"] == 512
    assert request["options"]["top_k"] == 40  # the defaults are filled in
    assert list(request["format"]["properties"]) == ["b", "a"]
    assert request["task"]["tools"][0]["function"]["name"] == "f"
    assert request["task"]["think"] is True  # on by default, since the model can
    await api.post("/api/chat", chat("say x", think=False))
    assert (await stage.next("submit"))["request"]["task"]["think"] is False


async def test_generate_goes_through_the_template_and_raw_does_not(api: Api, stage: Stage) -> None:
    body = {
        "model": "tiny",
        "prompt": "say x",
        "system": "Be kind.",
        "context": [4, 5],
        "template": "{{ x }}",
    }
    await api.post("/api/generate", body)
    request = (await stage.next("submit"))["request"]
    assert request["task"]["type"] == "chat"
    assert request["task"]["context"] == [4, 5]
    assert [m["role"] for m in request["task"]["messages"]] == ["system", "user"]
    assert request["template"] == "{{ x }}"
    await api.post("/api/generate", {"model": "tiny", "prompt": "say x", "raw": True})
    assert (await stage.next("submit"))["request"]["task"]["type"] == "complete"


async def test_a_tool_call_keeps_its_argument_order_and_gets_an_id(api: Api) -> None:
    _, lines = await api.post("/api/chat", chat("call f"))
    (call,) = next(line["message"]["tool_calls"] for line in lines if "tool_calls" in line["message"])
    assert call["id"].startswith("call_")
    assert len(call["id"]) == 13
    assert call["function"]["name"] == "f"
    assert list(call["function"]["arguments"]) == ["b", "a"]


@pytest.mark.parametrize(
    ("path", "empty"), [("/api/generate", {"prompt": ""}), ("/api/chat", {"messages": []})]
)
async def test_load_and_unload(api: Api, path: str, empty: dict[str, Any]) -> None:
    status, value = await api.post(path, {"model": "tiny"} | empty)
    assert (status, value["done"], value["done_reason"]) == (200, True, "load")
    assert value.get("response", value.get("message", {}).get("content")) == ""
    (row,) = await ps(api)
    assert (row["name"], row["context_length"], row["backend"]) == ("tiny:latest", 2048, "cpu")
    _, value = await api.post(path, {"model": "tiny", "keep_alive": 0} | empty)
    assert value["done_reason"] == "unload"
    assert await ps(api) == []


async def test_an_error_before_the_first_line_has_its_status(api: Api) -> None:
    status, value = await api.post("/api/chat", chat("refuse no way"))
    assert (status, value) == (400, {"error": "no way", "hint": "hint"})


async def test_an_error_after_the_first_line_is_the_last_line(api: Api) -> None:
    status, lines = await api.post("/api/chat", chat("break a b"))
    assert status == 200
    assert lines[-1] == {"error": "the model failed"}
    assert [line["message"]["content"] for line in lines[:-1]] == ["a", " b"]
    status, value = await api.post("/api/chat", chat("break a b", stream=False))
    assert (status, value) == (500, {"error": "the model failed"})


async def test_a_killed_runner_tells_every_client_within_a_second_and_is_reloaded(
    api: Api, stage: Stage
) -> None:
    async with asyncio.timeout(PATIENCE):
        responses = [await api.open("/api/chat", chat("forever")) for _ in range(5)]
        for response in responses:
            await lines_until(response, " x")
        killed = time.monotonic()
        os.kill((await stage.next("load"))["pid"], signal.SIGKILL)
        for response in responses:
            last = json.loads((await response.read()).splitlines()[-1])
            assert "killed by signal 9 (SIGKILL)" in last["error"]
        assert time.monotonic() - killed < 1
    assert await ps(api) == []
    status, lines = await api.post("/api/chat", chat("say again"))
    assert (status, lines[-1]["done"]) == (200, True)
    await stage.next("load")


async def test_a_client_that_leaves_cancels(api: Api, stage: Stage) -> None:
    async with api.open("/api/chat", chat("forever")) as response:
        await lines_until(response, " x")
        response.close()
    id_ = (await stage.next("submit"))["id"]
    assert (await stage.next("cancel"))["id"] == id_


async def test_a_client_that_leaves_before_the_first_line_cancels(api: Api, stage: Stage) -> None:
    task = asyncio.create_task(api.post("/api/chat", chat("forever", stream=False)))
    id_ = (await stage.next("submit"))["id"]
    task.cancel()
    assert (await stage.next("cancel"))["id"] == id_


async def test_a_slow_reader_does_not_hold_up_its_neighbour(api: Api) -> None:
    async with api.open("/api/chat", chat("forever")) as slow:
        await lines_until(slow, " x")
        for _ in range(3):
            status, _ = await api.post("/api/chat", chat("say " + "word " * 200))
            assert status == 200


async def test_many_clients_share_one_load(api: Api, stage: Stage) -> None:
    tasks = [asyncio.create_task(api.post("/api/chat", chat("say hi", model="slow"))) for _ in range(8)]
    await stage.next("load")
    stage.go()
    for status, lines in await asyncio.gather(*tasks):
        assert (status, lines[-1]["done"]) == (200, True)
    assert not [s for s in stage.all() if s["what"] == "load"]


@pytest.mark.parametrize(
    ("model", "status", "words"),
    [("crash", 500, "is no good"), ("broken", 400, "broken weights")],
)
async def test_a_model_that_does_not_load_says_why(api: Api, model: str, status: int, words: str) -> None:
    got, value = await api.post("/api/chat", chat("say x", model=model))
    assert got == status
    assert words in value["error"]
    assert await ps(api) == []


async def test_a_model_that_is_replaced_during_its_load_answers_as_the_new_one(
    api: Api, stage: Stage
) -> None:
    request = asyncio.create_task(api.post("/api/chat", chat("say hi", model="slow", stream=False)))
    first = await stage.next("load")
    await api.post("/api/copy", {"source": "tiny", "destination": "slow"})
    os.kill(first["pid"], signal.SIGKILL)  # as a loader ends that misses its files
    await stage.next("load")
    stage.go()
    status, value = await request
    assert (status, value["message"]["content"]) == (200, "hi")


async def test_a_model_that_is_deleted_during_its_load_is_not_found(api: Api, stage: Stage) -> None:
    request = asyncio.create_task(api.post("/api/chat", chat("say hi", model="slow")))
    first = await stage.next("load")
    api.app_runner.app[keys.REGISTRY].delete("slow")
    os.kill(first["pid"], signal.SIGKILL)
    status, value = await request
    assert (status, value["error"]) == (404, "model 'slow' not found")


async def test_keep_alive_zero_unloads_after_the_answer(api: Api, stage: Stage) -> None:
    await api.post("/api/chat", chat("say x", keep_alive=0))
    await stage.next("shutdown")


async def test_ps_row_and_forever(api: Api) -> None:
    await api.post("/api/chat", chat("say x", keep_alive=-1))
    (row,) = await ps(api)
    assert set(row) == {
        *(
            "name",
            "model",
            "size",
            "digest",
            "details",
            "expires_at",
            "size_vram",
            "context_length",
            "backend",
            "running",
            "waiting",
            "prefix_cache_bytes",
        )
    }
    assert row["size_vram"] == 0
    assert row["details"]["family"] == "qwen3"
    assert 2300 < int(row["expires_at"][:4]) < 9999


async def test_a_recreated_name_is_reloaded(api: Api, stage: Stage) -> None:
    await api.post("/api/chat", chat("say x"))
    first = await stage.next("load")
    status, _ = await api.post("/api/create", {"model": "tiny", "from": "tiny", "system": "You are new."})
    assert status == 200
    await api.post("/api/chat", chat("say x"))
    assert (await stage.next("load"))["pid"] != first["pid"]
    assert len(await ps(api)) == 1


async def test_delete_unloads_first(api: Api, stage: Stage) -> None:
    await api.post("/api/chat", chat("say x"))
    status, _, _ = await api.call("DELETE", "/api/delete", {"model": "tiny"})
    assert status == 200
    await stage.next("shutdown")
    assert await ps(api) == []
    status, value = await api.post("/api/chat", chat("say x"))
    assert (status, value["error"]) == (404, "model 'tiny' not found")


async def test_shutdown_ends_streams_with_an_error_line(api: Api, stage: Stage) -> None:
    async with api.open("/api/chat", chat("forever")) as response:
        await lines_until(response, " x")
        cleanup = asyncio.create_task(api.app_runner.cleanup())
        last = json.loads((await response.read()).splitlines()[-1])
        assert last["error"] == "the server is shutting down"
        await stage.next("shutdown")
        await cleanup


class TestFull:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        import msgspec

        return msgspec.structs.replace(settings, max_queue=1)

    async def test_is_503_with_ollamas_words(self, api: Api, stage: Stage) -> None:
        waiting = asyncio.create_task(api.post("/api/chat", chat("say hi", model="slow")))
        await stage.next("load")
        status, value, response = await api.call("POST", "/api/chat", chat("say hi", model="slow"))
        assert status == 503
        assert int(response.headers["Retry-After"]) > 0
        assert value["error"] == "server busy, please try again.  maximum pending requests exceeded"
        stage.go()
        assert (await waiting)[0] == 200
