"""Residency: sharing, expiry, eviction, the queue. Runners here are objects that record it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from mlxo.core.errors import Busy, LoadFailed, MlxoError, TooLarge
from mlxo.core.types import ModelSpec, Request, RunnerStats
from mlxo.hardware.estimate import PROCESS
from mlxo.server.policy import Limits
from mlxo.server.scheduler import Resident, Scheduler
from mlxo.server.stream import EventStream
from tests.server.conftest import until

PATIENCE = 5.0


class FakeRunner:
    def __init__(self, spec: ModelSpec, active: int) -> None:
        self.spec = spec
        self.stats = RunnerStats(active_bytes=active)
        self.context = 4096
        self.load_ns = 1
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.aborted: MlxoError | None = None
        self.pings = 0
        self.alive = True
        self.silent = 0.0

    def submit(self, request: Request) -> EventStream:
        return EventStream(lambda: None)

    def ping(self) -> None:
        self.pings += 1

    def abort(self, error: MlxoError) -> None:
        self.aborted = error

    async def close(self) -> None:
        await asyncio.sleep(0)
        if not self.gone.done():
            self.gone.set_result(None)


class Machine:
    """Makes runners; `gates` hold a model's load until they are set, `broken` models do not load."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.runners: dict[str, FakeRunner] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.broken: set[str] = set()
        self.cancelled: list[str] = []
        self.active: dict[str, int] = {}
        self.memory = 0  # bytes of the machine; 0: nobody looks
        self.idle: list[bool] = []

    async def start(self, spec: ModelSpec) -> FakeRunner:
        self.started.append(spec.name)
        try:
            if spec.name in self.gates:
                await self.gates[spec.name].wait()
        except asyncio.CancelledError:
            self.cancelled.append(spec.name)
            raise
        if spec.name in self.broken:
            raise LoadFailed(f"{spec.name} is broken")
        runner = self.runners[spec.name] = FakeRunner(spec, self.active.get(spec.name, 0))
        return runner

    def scheduler(
        self,
        budget: int = 100,
        models: int = 0,
        keep_alive: float = 300.0,
        rows: int = 16,
        max_queue: int = 512,
        most: int = 0,
        patience: float = 0,
    ) -> Scheduler:
        return Scheduler(
            self.start,
            lambda s: s.weights,
            Limits(budget, models, most),
            keep_alive=keep_alive,
            rows=rows,
            max_queue=max_queue,
            patience=patience,
            free=(lambda: self.memory - sum(self.held())) if self.memory else None,
            idle=self.idle.append,
        )

    def held(self) -> list[int]:
        """What the runners take of `memory`."""
        alive = (r for r in self.runners.values() if not r.gone.done())
        return [r.spec.weights for r in alive]


@pytest.fixture
async def machine() -> AsyncIterator[Machine]:
    async with asyncio.timeout(PATIENCE):
        yield Machine()


def spec(name: str, size: int = 40, digest: str = "", keep_alive: float | None = None) -> ModelSpec:
    return ModelSpec(name=name, digest=digest or name, path="/nowhere", weights=size, keep_alive=keep_alive)


def names(scheduler: Scheduler) -> list[str]:
    return [r.spec.name for r in scheduler.residents()]


async def use(scheduler: Scheduler, model: ModelSpec, keep_alive: float | None = None) -> None:
    async with scheduler.lease(model, keep_alive):
        pass


async def until_gone(machine: Machine, name: str) -> None:
    await machine.runners[name].gone
    await asyncio.sleep(0)


async def settle() -> None:
    """Let everything run that needs no event from outside and no thread."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_one_load_serves_all_who_wait_for_it(machine: Machine) -> None:
    scheduler = machine.scheduler()
    gate = machine.gates["a"] = asyncio.Event()
    waiters = [asyncio.create_task(use(scheduler, spec("a"))) for _ in range(20)]
    await until(lambda: machine.started == ["a"])
    assert not any(w.done() for w in waiters)
    gate.set()
    await asyncio.gather(*waiters)
    assert machine.started == ["a"]
    assert names(scheduler) == ["a"]


async def test_different_models_load_at_the_same_time(machine: Machine) -> None:
    scheduler = machine.scheduler()
    for name in "ab":
        machine.gates[name] = asyncio.Event()
    both = [asyncio.create_task(use(scheduler, spec(name))) for name in "ab"]
    await until(lambda: machine.started == ["a", "b"])
    machine.gates["b"].set()
    await both[1]
    machine.gates["a"].set()
    await both[0]


async def test_two_names_of_one_digest_share_a_runner(machine: Machine) -> None:
    scheduler = machine.scheduler()
    await use(scheduler, spec("a", digest="d"))
    await use(scheduler, spec("b", digest="d"))
    assert machine.started == ["a"]


async def test_a_failed_load_is_everybodys_error_and_the_next_request_tries_again(machine: Machine) -> None:
    scheduler = machine.scheduler()
    machine.broken.add("a")
    gate = machine.gates["a"] = asyncio.Event()
    waiters = [asyncio.create_task(use(scheduler, spec("a"))) for _ in range(3)]
    await settle()
    gate.set()
    for result in await asyncio.gather(*waiters, return_exceptions=True):
        assert isinstance(result, LoadFailed)
    assert names(scheduler) == []
    machine.broken.clear()
    await use(scheduler, spec("a"))
    assert machine.started == ["a", "a"]


async def test_the_least_recently_used_idle_model_leaves(machine: Machine) -> None:
    scheduler = machine.scheduler(budget=100)
    await use(scheduler, spec("a"))
    await use(scheduler, spec("b"))
    await use(scheduler, spec("a"))
    await use(scheduler, spec("c"))
    assert sorted(names(scheduler)) == ["a", "c"]
    assert machine.runners["b"].gone.done()


async def test_max_loaded_counts_models(machine: Machine) -> None:
    scheduler = machine.scheduler(budget=10**9, models=2)
    for name in "abc":
        await use(scheduler, spec(name, size=1))
    assert sorted(names(scheduler)) == ["b", "c"]


async def test_a_runners_own_count_replaces_the_estimate(machine: Machine) -> None:
    machine.active["a"] = 70
    scheduler = machine.scheduler(budget=100 + PROCESS)
    await use(scheduler, spec("a", size=1))
    assert scheduler.residents()[0].size == 70 + PROCESS
    await use(scheduler, spec("b", size=31))
    assert names(scheduler) == ["b"]


async def test_when_all_are_busy_the_newcomer_waits_and_is_not_starved(machine: Machine) -> None:
    scheduler = machine.scheduler(budget=50)
    async with contextlib.AsyncExitStack() as busy:
        await busy.enter_async_context(scheduler.lease(spec("a")))
        newcomer = asyncio.create_task(use(scheduler, spec("b")))
        await until(lambda: scheduler.residents()[0].draining)
        assert not newcomer.done()
        # It is promised the memory: a later request for `a` has to wait behind it.
        late = asyncio.create_task(use(scheduler, spec("a")))
        await settle()
        assert machine.started == ["a"]
    await newcomer
    await late
    assert machine.started == ["a", "b", "a"]


async def test_a_newcomer_that_leaves_gives_the_busy_model_back(machine: Machine) -> None:
    scheduler = machine.scheduler(budget=50)
    async with scheduler.lease(spec("a")):
        newcomer = asyncio.create_task(use(scheduler, spec("b")))
        await until(lambda: scheduler.residents()[0].draining)
        newcomer.cancel()
        await asyncio.wait([newcomer])
        await use(scheduler, spec("a"))
    assert machine.started == ["a"]
    assert names(scheduler) == ["a"]


async def test_keep_alive_expires_after_the_last_request(machine: Machine) -> None:
    scheduler = machine.scheduler()
    async with scheduler.lease(spec("a"), 0.01):
        await use(scheduler, spec("a"))
        await asyncio.sleep(0.03)
        assert names(scheduler) == ["a"]  # in use: the clock has not started
    assert scheduler.residents()[0].expires_at is not None
    await until_gone(machine, "a")
    await settle()
    assert names(scheduler) == []


async def test_a_request_within_the_time_starts_the_clock_anew(machine: Machine) -> None:
    scheduler = machine.scheduler()
    await use(scheduler, spec("a"), 0.01)
    await use(scheduler, spec("a"), 300)
    await asyncio.sleep(0.03)
    assert names(scheduler) == ["a"]


@pytest.mark.parametrize(("model_says", "request_says", "stays"), [(0.0, None, False), (0.0, -1.0, True)])
async def test_whose_keep_alive_counts(
    machine: Machine, model_says: float, request_says: float | None, stays: bool
) -> None:
    scheduler = machine.scheduler(keep_alive=-1)
    await use(scheduler, spec("a", keep_alive=model_says), request_says)
    await settle()
    assert bool(names(scheduler)) is stays
    assert machine.runners["a"].gone.done() is not stays


async def test_negative_is_for_ever_and_the_last_word_stays(machine: Machine) -> None:
    scheduler = machine.scheduler(keep_alive=0)
    await use(scheduler, spec("a"), -1)
    await use(scheduler, spec("a"))
    await settle()
    (resident,) = scheduler.residents()
    assert resident.expires_at is None
    assert resident.until > 2**32


async def test_unload_is_over_when_the_runner_is(machine: Machine) -> None:
    scheduler = machine.scheduler()
    await use(scheduler, spec("a"))
    await scheduler.unload("a", "a")
    assert machine.runners["a"].gone.done()
    assert names(scheduler) == []
    await scheduler.unload("a", "a")  # not loaded: no error


async def test_unload_of_a_busy_model_waits_for_its_last_request(machine: Machine) -> None:
    scheduler = machine.scheduler()
    async with scheduler.lease(spec("a")):
        await scheduler.unload("a", "a")
        await settle()
        assert not machine.runners["a"].gone.done()
    await until_gone(machine, "a")


async def test_unload_takes_what_the_name_meant_before(machine: Machine) -> None:
    scheduler = machine.scheduler()
    await use(scheduler, spec("a", digest="old"))
    await scheduler.unload("a", "new")
    assert names(scheduler) == []


async def test_a_name_with_another_digest_is_another_model(machine: Machine) -> None:
    scheduler = machine.scheduler(budget=1000)
    async with scheduler.lease(spec("a", digest="old")):
        old = machine.runners["a"]
        await use(scheduler, spec("a", digest="new"))
        assert machine.runners["a"] is not old
        assert not old.gone.done()  # somebody still reads its answer
    await old.gone
    assert [r.spec.digest for r in scheduler.residents()] == ["new"]


async def test_a_runner_that_dies_is_forgotten_and_loaded_again(machine: Machine) -> None:
    scheduler = machine.scheduler()
    async with scheduler.lease(spec("a")):
        machine.runners["a"].gone.set_result(None)
        await settle()
        assert names(scheduler) == []
        await use(scheduler, spec("a"))
        assert machine.started == ["a", "a"]
    assert names(scheduler) == ["a"]  # the end of the first lease did not touch the second runner


async def test_a_runner_that_is_about_to_be_gone_gets_no_more_requests(machine: Machine) -> None:
    scheduler = machine.scheduler()
    async with scheduler.lease(spec("a")):
        dying = machine.runners["a"]
        dying.alive = False
        late = asyncio.create_task(use(scheduler, spec("a")))
        await until(lambda: scheduler.residents()[0].draining)
        assert machine.started == ["a"]
        dying.gone.set_result(None)
        await late
    assert machine.started == ["a", "a"]


async def test_a_load_that_nobody_waits_for_any_more_is_given_up(machine: Machine) -> None:
    scheduler = machine.scheduler()
    machine.gates["a"] = asyncio.Event()
    waiters = [asyncio.create_task(use(scheduler, spec("a"))) for _ in range(2)]
    await until(lambda: machine.started == ["a"])
    waiters[0].cancel()
    await settle()
    assert machine.cancelled == []
    waiters[1].cancel()
    await until(lambda: machine.cancelled == ["a"])
    await until(lambda: not names(scheduler))
    machine.gates["a"].set()
    await use(scheduler, spec("a"))


async def test_too_many_waiters_are_refused_and_running_ones_are_not(machine: Machine) -> None:
    scheduler = machine.scheduler(max_queue=2, rows=1)
    gate = machine.gates["a"] = asyncio.Event()
    waiters = [asyncio.create_task(use(scheduler, spec("a"))) for _ in range(2)]
    await settle()
    with pytest.raises(Busy, match=r"server busy, please try again\.  maximum pending requests exceeded"):
        await use(scheduler, spec("a"))
    gate.set()
    await asyncio.gather(*waiters)
    # One row runs, two wait in the runner's own queue, the next is refused.
    async with contextlib.AsyncExitStack() as held:
        for _ in range(3):
            await held.enter_async_context(scheduler.lease(spec("a")))
        with pytest.raises(Busy):
            await use(scheduler, spec("a"))
    await use(scheduler, spec("a"))


async def test_close_ends_requests_loads_and_runners(machine: Machine) -> None:
    scheduler = machine.scheduler()
    machine.gates["b"] = asyncio.Event()
    loading = asyncio.create_task(use(scheduler, spec("b")))
    async with scheduler.lease(spec("a")):
        await until(lambda: "b" in machine.started)
        await scheduler.close(Busy("the server is shutting down"))
        assert str(machine.runners["a"].aborted) == "the server is shutting down"
    with pytest.raises(Busy):
        await loading
    assert machine.runners["a"].gone.done()
    with pytest.raises(Busy, match="shutting down"):
        await use(scheduler, spec("c"))


async def test_idle_runners_are_asked_for_their_memory(machine: Machine) -> None:
    scheduler = machine.scheduler()
    await use(scheduler, spec("a"))
    assert machine.runners["a"].pings == 1


def test_a_resident_that_loads_counts_by_its_estimate() -> None:
    assert Resident(spec("a"), 123, 1.0).size == 123


async def test_a_model_that_can_never_fit_is_refused_for_good_and_nobody_leaves_for_it(
    machine: Machine,
) -> None:
    scheduler = machine.scheduler(budget=100, most=120)
    await use(scheduler, spec("a"))
    with pytest.raises(TooLarge, match=r"^big needs about 0\.0 GB of memory, and models may take") as caught:
        await use(scheduler, spec("big", size=121))
    assert (caught.value.status, caught.value.code) == (400, "too_large")
    assert "quantisation" in str(caught.value.hint)
    assert names(scheduler) == ["a"]
    await use(scheduler, spec("large", size=120))  # beyond the budget alone: it is tried
    assert names(scheduler) == ["large"]


async def test_who_waits_too_long_for_memory_is_told_to_come_again(machine: Machine) -> None:
    scheduler = machine.scheduler(budget=50, patience=0.05)
    async with scheduler.lease(spec("a")):
        with pytest.raises(Busy, match="b does not fit beside what is in use: a") as caught:
            await use(scheduler, spec("b"))
        assert caught.value.retry_after == 30
        await use(scheduler, spec("a"))  # not draining any more
    await use(scheduler, spec("b"))
    assert names(scheduler) == ["b"]


async def test_an_idle_model_leaves_when_other_programs_take_the_memory(machine: Machine) -> None:
    machine.memory = 100
    scheduler = machine.scheduler(budget=1000)
    await use(scheduler, spec("a"))
    await use(scheduler, spec("b"))
    machine.memory = 90  # 10 are left: one of the two has to go for a third of 40
    await use(scheduler, spec("c"))
    assert sorted(names(scheduler)) == ["b", "c"]


async def test_a_model_that_loads_has_its_memory_promised(machine: Machine) -> None:
    machine.memory = 100
    scheduler = machine.scheduler(budget=1000)
    gate = machine.gates["a"] = asyncio.Event()
    first = asyncio.create_task(use(scheduler, spec("a", size=60)))
    await until(lambda: machine.started == ["a"])
    second = asyncio.create_task(use(scheduler, spec("b", size=60)))
    await until(lambda: any(r.draining for r in scheduler.residents()))
    assert machine.started == ["a"]
    gate.set()
    await asyncio.gather(first, second)
    assert names(scheduler) == ["b"]


async def test_other_programs_have_the_memory(machine: Machine) -> None:
    machine.memory = 60
    scheduler = machine.scheduler(budget=1000)
    await use(scheduler, spec("a"))
    with pytest.raises(Busy, match=r"b needs about .* and other programs leave") as caught:
        await use(scheduler, spec("b", size=61))
    assert caught.value.retry_after == 30
    assert names(scheduler) == ["a"]  # it would have left in vain
    machine.memory = 70
    await use(scheduler, spec("b", size=61))
    assert names(scheduler) == ["b"]


async def test_whether_anybody_has_or_waits_for_a_lease_is_told(machine: Machine) -> None:
    scheduler = machine.scheduler()
    async with scheduler.lease(spec("a")):
        await use(scheduler, spec("b"))
        assert machine.idle == [False]
    assert machine.idle == [False, True]
    machine.broken.add("c")
    with pytest.raises(LoadFailed):
        await use(scheduler, spec("c"))
    assert machine.idle == [False, True, False, True]
