"""What the daemon's HTTP path costs: a runner without a model writes tokens to N streams, steps in one write.

usage: .venv/bin/python scripts/benchmarks/fanout.py [--streams 64] [--tokens 1000] [--pace 4000] [--rounds 3]
       [--profile]

For OpenAI's and Ollama's chat streams: the processor time the daemon takes for a token when tokens come at
`pace` a second (so that nothing piles up), as a share of a core; and how many tokens a second one core can
push when they come as fast as they go. Time is the daemon's processor time, so that a busy machine and the
reader's own cost do not count. --profile prints where the daemon's time goes.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import os
import pstats
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mlxo.core import wire
from mlxo.core.types import Finished, RunnerStats, Started, TextDelta

PATHS = {"openai": "/v1/chat/completions", "ollama": "/api/chat"}
TEXT = {PATHS["openai"]: b'"content":', PATHS["ollama"]: b'"content":'}
END = b"\r\n0\r\n\r\n"  # of a chunked body
WORDS = (" the", " sea", ",", " and", ' "so"', " é", "\n", " longer")


# ---------------------------------------------------------------- the runner


def runner(fd: int, tokens: int, pace: float) -> None:
    """One event for every stream a step; `pace` is tokens a second over all streams, 0 as fast as it goes.

    Begins when all streams are there, so that every step is as wide.
    """
    end = socket.socket(fileno=fd)
    unpacker = wire.to_runner()
    streams = int(os.environ["FANOUT_STREAMS"])
    ids: list[str] = []
    while data := end.recv(1 << 20):
        for frame in unpacker.feed(data):
            if isinstance(frame, wire.Load):
                end.sendall(wire.pack([wire.Ready(stats=RunnerStats(), context=4096, load_ns=1)]))
            elif isinstance(frame, wire.Submit):
                ids.append(frame.request.id)
        if len(ids) < streams:
            continue
        end.sendall(wire.pack([wire.Emit(id=i, event=Started(prompt_tokens=7)) for i in ids]))
        due = time.perf_counter()
        for n in range(tokens):
            text = WORDS[n % len(WORDS)]
            end.sendall(wire.pack([wire.Emit(id=i, event=TextDelta(text=text)) for i in ids]))
            if pace:
                due += streams / pace
                time.sleep(max(0.0, due - time.perf_counter()))
        last = Finished(reason="stop", prompt_tokens=7, tokens=tokens)
        end.sendall(wire.pack([wire.Emit(id=i, event=last) for i in ids]))
        ids.clear()


# ---------------------------------------------------------------- the daemon


async def server(port: int, command: list[str], profile: cProfile.Profile | None) -> None:
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

    class OneModel(Registry):
        def resolve(self, name: str) -> ModelSpec:
            return ModelSpec(name="m", digest="m", path="/nowhere", capabilities=("completion",))

    with tempfile.TemporaryDirectory() as home:
        launch = Launch(command=tuple(command), home=home, blas="off")
        scheduler = Scheduler(lambda s: RunnerProxy.start(s, launch), lambda _: 0, Limits(1 << 40))
        settings = Settings(home=Path(home), address=Address("127.0.0.1", port))
        app = web.AppRunner(
            init_app(settings, OneModel(Paths(Path(home))), scheduler),
            handler_cancellation=True,
            access_log=None,
        )
        await app.setup()
        await web.TCPSite(app, "127.0.0.1", port).start()
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        print("ready", flush=True)
        if profile is not None:
            profile.enable()
        await stop.wait()
        if profile is not None:
            profile.disable()
            pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(28)
        await app.cleanup()


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far; Linux, and elsewhere by ps."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.exists():
        fields = stat.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    out = subprocess.run(["ps", "-o", "time=", "-p", str(pid)], capture_output=True, text=True, check=True)
    *minutes, seconds = out.stdout.strip().split(":")
    return float(seconds) + sum(int(m) * 60.0**i for i, m in enumerate(reversed(minutes), 1))


# ---------------------------------------------------------------- the clients


def load(port: int, path: str, streams: int, tokens: int) -> float:
    """Open all streams, read them to their ends; seconds it took."""
    body = json.dumps(
        {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    ).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    selector = selectors.DefaultSelector()
    events: dict[socket.socket, int] = {}
    tails: dict[socket.socket, bytes] = {}
    for _ in range(streams):
        link = socket.create_connection(("127.0.0.1", port))
        link.sendall(head + body)
        selector.register(link, selectors.EVENT_READ)
    start = time.perf_counter()
    while selector.get_map():
        for key, _ in selector.select(60):
            assert isinstance(key.fileobj, socket.socket)
            link = key.fileobj
            data = link.recv(1 << 18)
            events[link] = events.get(link, 0) + data.count(TEXT[path])
            tails[link] = (tails.get(link, b"") + data)[-len(END) :]
            if not data or tails[link] == END:
                selector.unregister(link)
                link.close()
    took = time.perf_counter() - start
    # One that a read cut in two is not counted.
    assert sum(events.values()) > 0.9 * streams * tokens, data
    return took


def measure(a: argparse.Namespace, dialect: str, pace: float) -> tuple[float, float]:
    """(the daemon's processor seconds a token, tokens a second by the clock), the medians of the rounds."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = int(s.getsockname()[1])
    words = [sys.executable, __file__, "--tokens", str(a.tokens), "--streams", str(a.streams)]
    words += ["--pace", str(pace), "--serve", str(port)] + ["--profile"] * a.profile
    env = {**os.environ, "FANOUT_STREAMS": str(a.streams)}
    costs, rates = [], []
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=env) as child:
        assert child.stdout is not None
        child.stdout.readline()
        for i in range(a.rounds + 1):
            before = cpu_seconds(child.pid)
            took = load(port, PATHS[dialect], a.streams, a.tokens)
            if i:  # the first one starts the runner
                costs.append((cpu_seconds(child.pid) - before) / a.streams / a.tokens)
                rates.append(a.streams * a.tokens / took)
        child.terminate()
    return statistics.median(costs), statistics.median(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=1000, help="of each stream")
    parser.add_argument("--pace", type=float, default=4000.0, help="tokens a second over all streams")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--runner", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("fd", nargs="?", type=int, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.runner:
        runner(a.fd, a.tokens, a.pace)
        return
    if a.serve:
        command = [sys.executable, __file__, "--runner", "--tokens", str(a.tokens), "--pace", str(a.pace)]
        asyncio.run(server(a.serve, command, cProfile.Profile() if a.profile else None))
        return
    for dialect in PATHS:
        paced, _ = measure(a, dialect, a.pace)
        flat, rate = measure(a, dialect, 0)
        print(
            f"{dialect}: at {a.pace:.0f} tok/s {paced * 1e6:.0f} us of the daemon a token, "
            f"{paced * a.pace:.2f} of a core; flat out {flat * 1e6:.0f} us, "
            f"{1 / flat:.0f} tok/s a core ({rate:.0f} by the clock)"
        )


if __name__ == "__main__":
    main()
