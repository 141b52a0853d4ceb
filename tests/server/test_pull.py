"""Pulls over HTTP from a hub on this machine: progress, sharing, leaving, errors."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from mlxo.server import keys
from tests.fakes.hub import FakeHub, Repo
from tests.models import LLAMA
from tests.server.conftest import PATIENCE, Api, until

BODY = {"model": "hf.co/org/tiny"}
GATE = 200_000  # bytes of the weights that come before the hub holds its breath


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    from huggingface_hub.utils import close_session  # type: ignore[attr-defined]

    with FakeHub() as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        fake.repos["org/tiny"] = Repo({p.name: p.read_bytes() for p in LLAMA.iterdir()})
        yield fake
        close_session()


async def until_line(response: aiohttp.ClientResponse, key: str) -> dict[str, Any]:
    """The first line that has `key`."""
    async for raw in response.content:
        line: dict[str, Any] = json.loads(raw)
        if key in line:
            return line
    raise AssertionError(f"the stream ended without {key}")


async def rest(response: aiohttp.ClientResponse) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (await response.read()).splitlines()]


async def test_progress_by_digest_then_success(api: Api, hub: FakeHub) -> None:
    status, lines = await api.post("/api/pull", BODY)
    assert status == 200
    assert lines[0]["status"] == "pulling manifest"
    assert lines[-1] == {"status": "success"}
    (weights,) = {
        line["digest"] for line in lines if line.get("total") == (LLAMA / "model.safetensors").stat().st_size
    }
    last = [line for line in lines if line.get("digest") == weights][-1]
    assert last["completed"] == last["total"]
    assert last["status"] == f"pulling {weights.removeprefix('sha256:')[:12]}"
    status, value = await api.post("/api/show", BODY)
    assert (status, value["details"]["family"]) == (200, "llama")


async def test_two_clients_share_one_download(api: Api, hub: FakeHub) -> None:
    hub.gate, hub.gate_after = threading.Event(), GATE
    async with api.open("/api/pull", BODY) as first, api.open("/api/pull", BODY) as second:
        await until_line(first, "completed")
        await until_line(second, "completed")
        hub.gate.set()
        for response in (first, second):
            assert (await rest(response))[-1] == {"status": "success"}
    assert len([s for s in hub.gets("model.safetensors") if s.path.startswith("/storage/")]) == 1


async def test_one_of_two_may_leave(api: Api, hub: FakeHub) -> None:
    hub.gate, hub.gate_after = threading.Event(), GATE
    async with api.open("/api/pull", BODY) as stays:
        async with api.open("/api/pull", BODY) as leaves:
            await until_line(leaves, "completed")
        hub.gate.set()
        assert (await rest(stays))[-1] == {"status": "success"}


async def test_the_last_who_leaves_stops_it_and_the_next_goes_on(api: Api, hub: FakeHub) -> None:
    hub.gate, hub.gate_after = threading.Event(), GATE
    jobs = api.app_runner.app[keys.JOBS]
    async with api.open("/api/pull", BODY) as response:
        await until_line(response, "completed")
        response.close()
    async with asyncio.timeout(PATIENCE):
        await until(lambda: all(job.cancelled.is_set() for job in jobs.running()))
        hub.gate.set()
        await until(lambda: not jobs.running())
    status, lines = await api.post("/api/pull", BODY)
    assert (status, lines[-1]) == (200, {"status": "success"})
    assert hub.gets("model.safetensors")[-1].range is not None


async def test_a_hubs_refusal_is_an_error_line(api: Api, hub: FakeHub) -> None:
    hub.repos["org/tiny"].status = 404
    status, value = await api.post("/api/pull", BODY)
    last = value[-1] if isinstance(value, list) else value
    assert status in (200, 404)
    assert "error" in last
    status, value = await api.post("/api/pull", BODY | {"stream": False})
    assert status == 404
    assert "error" in value


async def test_shutdown_ends_a_pull_with_an_error_line(api: Api, hub: FakeHub) -> None:
    hub.gate, hub.gate_after = threading.Event(), GATE
    async with api.open("/api/pull", BODY) as response:
        await until_line(response, "completed")
        cleanup = asyncio.create_task(api.app_runner.cleanup())
        assert (await rest(response))[-1] == {"error": "the server is shutting down"}
        hub.gate.set()
        await cleanup
