"""The real application on a loopback port, the real registry, runners that are processes without a model."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from mlxo.core.paths import Paths
from mlxo.core.settings import Address, Settings
from mlxo.core.types import ModelSpec
from mlxo.server.app import init_app
from mlxo.server.child import Launch
from mlxo.server.policy import Limits
from mlxo.server.runner_proxy import RunnerProxy
from mlxo.server.scheduler import Scheduler
from mlxo.store.registry import Registry
from tests.models import QWEN3

FAKE = Path(__file__).parents[1] / "fakes" / "runner.py"
PATIENCE = 20.0  # seconds for anything that another process has to do


async def until(condition: Callable[[], object]) -> None:
    """Let the loop, threads and children run until something holds; the caller has a timeout."""
    while True:
        if condition():
            return
        await asyncio.sleep(0.001)


class Stage:
    """Where fake runners tell what reaches them, and wait for `go`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._writers: list[asyncio.StreamWriter] = []

    async def hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        try:
            while line := await reader.readline():
                self._seen.put_nowait(json.loads(line))
        except ConnectionError:
            pass  # killed
        finally:
            self._writers.remove(writer)
            writer.close()

    async def next(self, what: str) -> dict[str, Any]:
        """The next of that kind; others before it are dropped."""
        async with asyncio.timeout(PATIENCE):
            while (seen := await self._seen.get())["what"] != what:
                pass
        return seen

    def all(self) -> list[dict[str, Any]]:
        """What has come and was not asked for."""
        return [self._seen.get_nowait() for _ in range(self._seen.qsize())]

    def go(self) -> None:
        for writer in self._writers:
            writer.write(b"go\n")


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    found = Stage(tmp_path / "stage")
    server = await asyncio.start_unix_server(found.hear, found.path)
    yield found
    server.close()
    for writer in list(found._writers):
        writer.close()


@pytest.fixture
def launch(stage: Stage, home: Path) -> Launch:
    return Launch(command=(sys.executable, str(FAKE), str(stage.path)), home=str(home), blas="off", rows=4)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with models of every way to load; copied, since tests change theirs."""
    from mlxo.store.create import Recipe, create

    home = tmp_path_factory.mktemp("models")
    registry = Registry(Paths(home))
    blobs = {p.name: registry.blobs.add_file(p).digest for p in sorted(QWEN3.iterdir()) if p.is_file()}
    import threading

    for name in ("tiny", "slow", "crash", "broken", "mute"):
        recipe = Recipe(files=blobs, system=f"You are {name}.")  # a digest of its own
        create(registry, name, recipe, lambda _: None, threading.Event())
    return home


class Api:
    """The server under test, and a client of it."""

    def __init__(
        self, port: int, session: aiohttp.ClientSession, app_runner: web.AppRunner, home: Path
    ) -> None:
        self.port = port
        self.session = session
        self.app_runner = app_runner
        self.home = home

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    async def call(
        self, method: str, path: str, body: object = None, **more: Any
    ) -> tuple[int, Any, aiohttp.ClientResponse]:
        """(status, decoded body or text, response). A body that is no bytes is sent as JSON."""
        raw = body if isinstance(body, bytes) or body is None else msgspec.json.encode(body)
        data = None if raw is None else io.BytesIO(raw)
        async with self.session.request(method, self.url(path), data=data, **more) as response:
            text = await response.text()
            kind = response.content_type
            value: Any = text
            if kind == "application/json" and text:
                value = json.loads(text)
            elif kind == "application/x-ndjson":
                value = [json.loads(line) for line in text.splitlines()]
            return response.status, value, response

    async def post(self, path: str, body: object) -> tuple[int, Any]:
        status, value, _ = await self.call("POST", path, body)
        return status, value

    def open(self, path: str, body: object) -> Any:
        """A response to be read piece by piece."""
        return self.session.post(self.url(path), data=msgspec.json.encode(body))


@pytest.fixture
def settings(home: Path) -> Settings:
    """Overridden by tests that need others."""
    return Settings(home=home, address=Address("127.0.0.1", 1))


@pytest.fixture
async def api(settings: Settings, models: Path, home: Path, launch: Launch) -> AsyncIterator[Api]:
    shutil.copytree(models, home, symlinks=True)

    async def start(spec: ModelSpec) -> RunnerProxy:
        return await RunnerProxy.start(spec, launch)

    scheduler = Scheduler(
        start,
        lambda s: s.weights,
        Limits(settings.memory or 1 << 40, settings.max_loaded),
        keep_alive=settings.keep_alive,
        rows=settings.parallel,
        max_queue=settings.max_queue,
        patience=settings.load_timeout,
    )
    app = init_app(settings, Registry(Paths(home)), scheduler)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=2)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        yield Api(port, session, runner, home)
    await runner.cleanup()
