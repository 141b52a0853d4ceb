"""The warm spare: made when it is quiet, handed the next model, replaced, bounded. Real processes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from mlxo.core.errors import UnsupportedModel
from mlxo.core.types import ModelSpec
from mlxo.server.child import Launch
from mlxo.server.runner_proxy import RunnerProxy
from mlxo.server.spare import DEATHS, Spares
from tests.server.conftest import PATIENCE, Stage, until


def spec(name: str = "tiny") -> ModelSpec:
    return ModelSpec(name=name, digest=name, path="/nowhere")


class Pool(Spares):
    """`memory` is what the test says of the machine's."""

    memory: bool = True

    def __init__(self, launch: Launch) -> None:
        super().__init__(launch, lambda: self.memory, quiet=0.01)

    async def filled(self) -> RunnerProxy:
        self.idle(True)
        await until(lambda: self.spare)
        assert self.spare is not None
        await self.spare.warm
        return self.spare


@pytest.fixture
async def pool(launch: Launch) -> AsyncIterator[Pool]:
    found = Pool(launch)
    async with asyncio.timeout(PATIENCE):
        yield found
        await found.close()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def test_the_spare_is_warm_and_becomes_the_next_model(pool: Pool, stage: Stage) -> None:
    spare = await pool.filled()
    assert spare.warm.result() == 4096
    proxy = await pool.start(spec())
    assert (await stage.next("load"))["pid"] == spare.pid == proxy.pid
    again = await pool.filled()  # another one, now that it is quiet
    assert again.pid != spare.pid
    await proxy.close()  # a model that leaves takes no spare with it
    assert pool.spare is again
    assert again.alive


async def test_none_is_made_while_requests_are_open_or_memory_is_short(pool: Pool) -> None:
    pool.idle(True)
    pool.idle(False)
    pool.memory = False
    await asyncio.sleep(0.05)
    assert pool.spare is None
    pool.idle(True)
    await asyncio.sleep(0.05)
    assert pool.spare is None
    pool.memory = True
    spare = await pool.filled()
    pool.memory = False
    pool.idle(True)
    await spare.gone
    assert pool.spare is not spare
    assert gone(spare.pid)


async def test_a_dead_spare_is_not_handed_out_and_replaced(pool: Pool) -> None:
    first = await pool.filled()
    os.kill(first.pid, signal.SIGKILL)
    await until(lambda: not first.alive)  # before the event loop has a word of it
    proxy = await pool.start(spec())
    assert proxy.pid != first.pid
    await proxy.close()
    second = await pool.filled()
    os.kill(second.pid, signal.SIGKILL)
    await until(lambda: pool.spare not in (None, second))


async def test_spares_that_die_one_after_another_are_given_up(launch: Launch, tmp_path: Path) -> None:
    births = tmp_path / "births"
    script = f'echo x >> "{births}"'
    pool = Pool(msgspec.structs.replace(launch, command=("/bin/sh", "-c", script)))
    pool.idle(True)
    async with asyncio.timeout(PATIENCE):
        await until(lambda: pool._deaths == DEATHS)
        for _ in range(3):
            pool.idle(True)
            await asyncio.sleep(0.02 * 2**DEATHS)
        await pool.close()
    assert births.read_text().count("x") == DEATHS


async def test_a_model_that_does_not_load_says_why_through_the_spare(pool: Pool) -> None:
    spare = await pool.filled()
    with pytest.raises(UnsupportedModel, match="broken weights"):
        await pool.start(spec("broken"))
    assert gone(spare.pid)


async def test_close_leaves_no_process(pool: Pool) -> None:
    spare = await pool.filled()
    await pool.close()
    assert gone(spare.pid)
    pool.idle(True)
    await asyncio.sleep(0.05)
    assert pool.spare is None
