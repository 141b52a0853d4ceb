"""Long operations: sharing, order, leaving, errors, shutdown."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from mlxo.core.errors import Busy, Cancelled, InvalidRequest
from mlxo.server.jobs import Job, Jobs
from mlxo.store.progress import Progress, Report, check
from tests.server.conftest import until

PATIENCE = 10.0


class Script:
    """A job whose thread goes on when the test says so."""

    def __init__(self) -> None:
        self.runs = 0
        self.gate = threading.Event()
        self.cancelled: threading.Event | None = None

    def __call__(self, report: Report, cancelled: threading.Event) -> int:
        self.runs += 1
        self.cancelled = cancelled
        for n in range(1, 4):
            report(Progress(status="pulling", digest="sha256:a", total=3, completed=n))
        report(Progress(status="writing"))
        while not self.gate.wait(0.001):
            check(cancelled)
        return 42


@pytest.fixture
async def jobs() -> AsyncIterator[Jobs]:
    async with asyncio.timeout(PATIENCE):
        found = Jobs()
        yield found
        await found.close(Busy("over"))


async def follow(job: Job) -> list[Progress]:
    return [p async for batch in job.follow() for p in batch]


async def test_progress_then_result(jobs: Jobs) -> None:
    script = Script()
    job = jobs.join("k", "t", script)
    script.gate.set()
    seen = await follow(job)
    assert seen[-1] == Progress(status="writing")
    assert Progress(status="pulling", digest="sha256:a", total=3, completed=3) in seen
    assert job.result() == 42


async def test_the_same_thing_is_shared_and_late_comers_see_where_it_is(jobs: Jobs) -> None:
    script = Script()
    first = jobs.join("k", "t", script)
    async with aclosing(first.follow()) as progress:
        async for batch in progress:
            if batch[-1].status == "writing":
                break
        second = jobs.join("k", "t", script)
        assert second is first
        late = asyncio.create_task(follow(second))
        script.gate.set()
        assert await late == [
            Progress(status="pulling", digest="sha256:a", total=3, completed=3),
            Progress(status="writing"),
        ]
    assert script.runs == 1
    again = jobs.join("k", "t", script)
    await follow(again)
    assert script.runs == 2


async def test_the_last_who_leaves_cancels(jobs: Jobs) -> None:
    script = Script()
    job = jobs.join("k", "t", script)
    watchers = [asyncio.create_task(follow(job)) for _ in range(2)]
    await until(lambda: script.cancelled)
    watchers[0].cancel()
    await asyncio.wait(watchers[:1])
    assert not job.cancelled.is_set()
    watchers[1].cancel()
    await asyncio.wait(watchers)
    assert job.cancelled.is_set()
    await asyncio.wait([job.task])
    with pytest.raises(Cancelled):
        job.result()


async def test_a_cancelled_job_is_not_joined(jobs: Jobs) -> None:
    old, new = Script(), Script()
    watcher = asyncio.create_task(follow(jobs.join("k", "t", old)))
    await until(lambda: old.cancelled)
    watcher.cancel()
    await asyncio.wait([watcher])
    new.gate.set()
    job = jobs.join("k", "t", new)
    await follow(job)
    assert job.result() == 42


async def test_one_name_at_a_time_and_other_names_meanwhile(jobs: Jobs) -> None:
    first, second, other = Script(), Script(), Script()
    one = asyncio.create_task(follow(jobs.join("k1", "name", first)))
    two = asyncio.create_task(follow(jobs.join("k2", "name", second)))
    three = asyncio.create_task(follow(jobs.join("k3", "another", other)))
    await until(lambda: first.runs and other.runs)
    assert second.runs == 0
    first.gate.set()
    await until(lambda: second.runs)
    second.gate.set()
    other.gate.set()
    await asyncio.gather(one, two, three)


async def test_what_the_work_raises_is_everybodys_error(jobs: Jobs) -> None:
    def work(report: Report, cancelled: threading.Event) -> None:
        report(Progress(status="parsing"))
        raise InvalidRequest("no good")

    job = jobs.join("k", "t", work)
    assert await follow(job) == [Progress(status="parsing")]
    with pytest.raises(InvalidRequest, match="no good"):
        job.result()


async def test_close_tells_everybody_and_stops_the_threads() -> None:
    jobs = Jobs()
    script = Script()
    job = jobs.join("k", "t", script)
    watcher = asyncio.create_task(follow(job))
    await until(lambda: script.cancelled)
    await jobs.close(Busy("shutting down"))
    with pytest.raises(Busy, match="shutting down"):
        await watcher
    assert job.task.done()
