"""The daemon's end of a runner against a real child process."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import msgspec
import pytest

from mlxo.core.errors import (
    Busy,
    InvalidRequest,
    LoadFailed,
    MlxoError,
    RunnerDied,
    Stalled,
    UnsupportedModel,
)
from mlxo.core.options import Options
from mlxo.core.types import Chat, Event, Finished, Message, ModelSpec, Request, Started, TextDelta, ThinkDelta
from mlxo.server import runner_proxy
from mlxo.server.child import Launch
from mlxo.server.runner_proxy import RunnerProxy
from mlxo.server.stream import EventStream
from tests.server.conftest import PATIENCE, Stage


def spec(name: str = "tiny") -> ModelSpec:
    return ModelSpec(name=name, digest=name, path="/nowhere")


def request(id_: str, prompt: str) -> Request:
    return Request(
        id=id_, model="tiny", task=Chat(messages=(Message(role="user", content=prompt),)), options=Options()
    )


async def events(proxy: RunnerProxy, id_: str, prompt: str) -> list[Event]:
    found: list[Event] = []
    with proxy.submit(request(id_, prompt)) as stream:
        async for batch in stream:
            found += batch
    return found


async def first_text(stream: EventStream) -> None:
    async for batch in stream:
        if any(isinstance(e, TextDelta) for e in batch):
            return


async def test_events_come_in_order_and_end(launch: Launch, stage: Stage) -> None:
    proxy = await RunnerProxy.start(spec(), launch)
    loaded = await stage.next("load")
    assert (loaded["rows"], proxy.context, proxy.load_ns) == (4, 2048, 5)
    one, two = await asyncio.gather(events(proxy, "1", "say a b"), events(proxy, "2", "think c"))
    assert isinstance(one[0], Started)
    assert one[1:3] == [TextDelta(text="a"), TextDelta(text=" b")]
    assert two[1:3] == [ThinkDelta(text="hm"), TextDelta(text="c")]
    assert isinstance(one[-1], Finished)
    assert isinstance(two[-1], Finished)
    await proxy.close()
    await stage.next("shutdown")
    assert proxy.gone.done()


async def test_leaving_early_cancels_in_the_runner(launch: Launch, stage: Stage) -> None:
    proxy = await RunnerProxy.start(spec(), launch)
    with proxy.submit(request("r1", "forever")) as stream:
        await first_text(stream)
    assert (await stage.next("cancel"))["id"] == "r1"
    await events(proxy, "r2", "say done")  # the neighbours go on
    await proxy.close()
    assert not [s for s in stage.all() if s["what"] == "cancel"]


async def test_failed_is_raised_with_its_kind(launch: Launch) -> None:
    proxy = await RunnerProxy.start(spec(), launch)
    with pytest.raises(InvalidRequest, match="no such thing") as caught:
        await events(proxy, "1", "refuse no such thing")
    assert caught.value.hint == "hint"
    await proxy.close()


async def test_a_killed_runner_fails_every_request_within_a_second(launch: Launch) -> None:
    proxy = await RunnerProxy.start(spec(), launch)
    streams = [proxy.submit(request(str(i), "forever")) for i in range(5)]
    for stream in streams:
        await first_text(stream)

    async def drain(stream: EventStream) -> None:
        async for _ in stream:
            pass

    killed = time.monotonic()
    os.kill(proxy.pid, signal.SIGKILL)
    for result in await asyncio.gather(*map(drain, streams), return_exceptions=True):
        assert isinstance(result, RunnerDied)
        assert "killed by signal 9 (SIGKILL)" in result.message
        assert "memory" in str(result.hint)
    assert time.monotonic() - killed < 1
    async with asyncio.timeout(PATIENCE):
        await proxy.gone
    with pytest.raises(RunnerDied):
        await events(proxy, "late", "say x")
    await proxy.close()


async def test_the_last_line_of_its_output_is_told_and_logged(
    launch: Launch, capfd: pytest.CaptureFixture[str]
) -> None:
    proxy = await RunnerProxy.start(spec(), launch)
    with pytest.raises(RunnerDied, match="last words"):
        await events(proxy, "1", "die now")
    await proxy.close()
    assert "last words" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("crash", LoadFailed, "exit code 3; its last line was: is no good"),
        ("broken", UnsupportedModel, "broken weights"),
        ("mute", LoadFailed, "mute did not load within 1s"),
    ],
)
async def test_a_failed_load_says_why_and_leaves_no_process(
    launch: Launch, stage: Stage, name: str, kind: type[MlxoError], words: str
) -> None:
    timeout = 1.0 if name == "mute" else 20
    with pytest.raises(kind, match=words):
        await RunnerProxy.start(spec(name), msgspec.structs.replace(launch, timeout=timeout))
    pid = (await stage.next("load"))["pid"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_cancelled_load_leaves_no_process(launch: Launch, stage: Stage) -> None:
    loading = asyncio.create_task(RunnerProxy.start(spec("slow"), launch))
    pid = (await stage.next("load"))["pid"]
    loading.cancel()
    await asyncio.wait([loading])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_program_that_cannot_be_started_is_no_traceback(launch: Launch, tmp_path: Path) -> None:
    broken = msgspec.structs.replace(launch, command=(str(tmp_path / "nothing"),))
    with pytest.raises(LoadFailed, match="cannot be started"):
        await RunnerProxy.start(spec(), broken)


async def test_abort_ends_requests_and_keeps_the_runner(launch: Launch, stage: Stage) -> None:
    proxy = await RunnerProxy.start(spec(), launch)
    stream = proxy.submit(request("1", "forever"))
    await first_text(stream)
    proxy.abort(Busy("stop it"))
    with pytest.raises(Busy, match="stop it"):
        async for _ in stream:
            pass
    await stage.next("cancel")
    await events(proxy, "2", "say still here")
    await proxy.close()


async def test_a_runner_that_ignores_shutdown_is_killed(launch: Launch, stage: Stage) -> None:
    proxy = await RunnerProxy.start(spec(), launch)
    pid = (await stage.next("load"))["pid"]
    os.kill(pid, signal.SIGSTOP)
    started = time.monotonic()
    await proxy.close(grace=0.1)
    assert time.monotonic() - started < 2
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_numbers_that_do_not_fit_the_pipe_are_the_clients_error(launch: Launch) -> None:
    proxy = await RunnerProxy.start(spec(), launch)
    bad = msgspec.structs.replace(request("1", "say x"), format={"maximum": 10**30})
    with pytest.raises(InvalidRequest, match="64 bits"):
        proxy.submit(bad)
    await events(proxy, "2", "say fine")
    await proxy.close()


async def test_an_idle_runner_that_owes_an_answer_to_a_ping_is_replaced(launch: Launch) -> None:
    proxy = await RunnerProxy.start(spec(), msgspec.structs.replace(launch, stall=0.2))
    os.kill(proxy.pid, signal.SIGSTOP)
    assert proxy.silent == 0
    proxy.ping()
    async with asyncio.timeout(PATIENCE):
        await proxy.gone


async def test_a_stream_without_events_is_told_that_the_engine_is_at_work(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_proxy, "BEAT", 0.0)
    proxy = await RunnerProxy.start(spec(), launch)
    with proxy.submit(request("1", "silence")) as stream:
        await anext(stream)  # Started
        proxy.ping()  # the fake does not beat by itself
        async with asyncio.timeout(PATIENCE):
            assert await anext(stream) == []
    await proxy.close()


async def test_ping_brings_fresh_numbers(launch: Launch) -> None:
    proxy = await RunnerProxy.start(spec(), launch)
    assert proxy.stats.active_bytes == 1000
    stream = proxy.submit(request("1", "forever"))
    await first_text(stream)
    proxy.ping()
    async with asyncio.timeout(PATIENCE):
        while proxy.stats.active_bytes == 1000:
            await stream.__anext__()
    assert proxy.stats.active_bytes == 1001
    await proxy.close()


async def test_a_runner_that_stands_still_is_ended_and_its_clients_told(launch: Launch, stage: Stage) -> None:
    proxy = await RunnerProxy.start(spec(), msgspec.structs.replace(launch, stall=0.2))
    streams = [proxy.submit(request(str(i), "forever")) for i in range(2)]
    for stream in streams:
        await first_text(stream)
    os.kill(proxy.pid, signal.SIGSTOP)
    for stream in streams:
        with pytest.raises(Stalled, match="tiny made no progress for 200ms and was ended") as caught:
            async for _ in stream:
                pass
        assert caught.value.status == 503
        assert "ask again" in str(caught.value.hint)
    async with asyncio.timeout(PATIENCE):
        await proxy.gone
    with pytest.raises(ProcessLookupError):
        os.kill(proxy.pid, 0)


async def test_a_client_that_leaves_a_runner_that_stands_still_does_not_save_it(launch: Launch) -> None:
    proxy = await RunnerProxy.start(spec(), msgspec.structs.replace(launch, stall=0.2))
    with proxy.submit(request("1", "forever")) as stream:
        await first_text(stream)
        os.kill(proxy.pid, signal.SIGSTOP)
    async with asyncio.timeout(PATIENCE):
        await proxy.gone


async def test_a_runner_that_moves_or_has_nothing_to_do_is_left_alone(launch: Launch) -> None:
    """Longer than the limit: with a stream that goes on, and with none."""
    proxy = await RunnerProxy.start(spec(), msgspec.structs.replace(launch, stall=0.2))
    loop = asyncio.get_running_loop()
    with proxy.submit(request("1", "forever")) as stream:
        end = loop.time() + 0.5
        async for _ in stream:
            if loop.time() > end:
                break
    await events(proxy, "2", "say x")  # by now the runner has owned up to the cancel, too
    os.kill(proxy.pid, signal.SIGSTOP)
    await asyncio.sleep(0.5)
    assert not proxy.gone.done()
    os.kill(proxy.pid, signal.SIGCONT)
    await events(proxy, "3", "say x")
    await proxy.close()
