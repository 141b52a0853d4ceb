"""What the benchmarks share: servers as children, a BatchGenerator in process, rounds in turn, a table.

All contenders are up during the whole run and take turns, so that a noisy neighbour hurts them alike; each
gets one unmeasured round first (compiled kernels, page cache). mlx_lm.server runs as it comes, on the same
folder.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from load import Target, load, prompt

from mlxo.core.paths import Paths
from mlxo.store.registry import Registry

HERE = Path(__file__).parent
OURS = "mlxo over HTTP"
MLXO = [sys.executable, "-P", "-m", "mlxo"]  # -P: the installed one, whatever the current folder holds
Rows = dict[int, list[dict[str, float]]]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Until the URL answers anything at all; a server has no other way to say that it is ready."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the server of {url} exited with {process.returncode}")
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=2).close()
            return
        time.sleep(0.2)
    raise SystemExit(f"{url} did not answer in 120 s")


@contextlib.contextmanager
def served(command: list[str], url: str, env: dict[str, str], output: Path | None = None) -> Iterator[int]:
    """`command` as a server, and its process id. What it prints goes to the file `output`, and the end of it
    is shown when it does not start.
    """
    with output.open("w+b") if output else tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        try:
            try:
                wait_for(url, process)
            except SystemExit:
                log.seek(0)
                sys.stderr.write(log.read()[-4000:].decode(errors="replace"))
                raise
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


Round = Callable[[int, int], dict[str, float]]  # (streams, seed of the prompts) -> one row of figures


def over_http(target: Target, a: argparse.Namespace) -> Round:
    return lambda streams, seed: asyncio.run(load(target, streams, a.tokens, a.words, seed))


@contextlib.contextmanager
def asked(
    folder: Path, a: argparse.Namespace, env: dict[str, str], what: str = "generator"
) -> Iterator[Callable[[list[str]], dict[str, float]]]:
    """inproc.py as a child: a row of figures for each list of prompts."""
    words = [sys.executable, str(HERE / "inproc.py"), str(folder), str(a.tokens), str(rows(a)), what]
    with subprocess.Popen(words, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        stdin, stdout = child.stdin, child.stdout
        assert stdin is not None
        assert stdout is not None

        def one(texts: list[str]) -> dict[str, float]:
            print(json.dumps(texts), file=stdin, flush=True)
            return dict(json.loads(stdout.readline()))

        yield one


@contextlib.contextmanager
def in_process(
    folder: Path, a: argparse.Namespace, env: dict[str, str], what: str = "generator"
) -> Iterator[Round]:
    with asked(folder, a, env, what) as one:
        yield lambda streams, seed: one([prompt(seed + i, a.words) for i in range(streams)])


def rows(a: argparse.Namespace) -> int:
    """Sequences that step together: mlxo's default, or as many as the largest load has streams."""
    return max(16, *a.streams)


@dataclass(frozen=True)
class Daemon:
    """A running mlxo server: `folder` is what its runner loads of the model."""

    url: str
    pid: int
    folder: Path


@contextlib.contextmanager
def mlxo(
    model: str,
    verb: list[str],
    home: Path,
    parallel: int,
    env: dict[str, str] | None = None,
    output: Path | None = None,
) -> Iterator[Daemon]:
    """mlxo's server with the model that `verb` (pull or create) brings."""
    port = free_port()
    env = dict(os.environ) | {
        "MLXO_HOST": f"127.0.0.1:{port}",
        "MLXO_HOME": str(home),
        "MLXO_KEEP_ALIVE": "-1",
        "MLXO_NUM_PARALLEL": str(parallel),
        **(env or {}),
    }
    url = f"http://127.0.0.1:{port}"
    with served([*MLXO, "serve"], url + "/api/version", env, output) as pid:
        done = subprocess.run([*MLXO, *verb], env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"mlxo {verb[0]} failed: {done.stderr[-2000:]}")
        yield Daemon(url, pid, Path(Registry(Paths(home)).resolve(model).path))


@contextlib.contextmanager
def mlx_lm(a: argparse.Namespace, folder: Path) -> Iterator[Round]:
    port = free_port()
    words = [sys.executable, "-m", "mlx_lm", "server", "--model", str(folder), "--port", str(port)]
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    url = f"http://127.0.0.1:{port}"
    with served([*words, "--host", "127.0.0.1"], url + "/health", env):
        yield over_http(Target("mlx_lm.server", url, "default_model", "openai"), a)


def measure(rounds: dict[str, Round], a: argparse.Namespace, deadline: float = math.inf) -> dict[str, Rows]:
    """`a.rounds` measured rounds after a warm one; none is begun after `deadline` (time.monotonic)."""
    results: dict[str, Rows] = {label: {n: [] for n in a.streams} for label in rounds}
    for turn in range(a.rounds + 1):
        for n in a.streams:
            for label, one in rounds.items():
                if turn and time.monotonic() > deadline:
                    return results
                row = one(n, turn * 1000 + n * 100)
                print(
                    f"  {turn or 'warm'}: {label} {n} streams: {row['aggregate']:.1f} tok/s", file=sys.stderr
                )
                if turn:
                    results[label][n].append(row)
    return results


def best(rows: list[dict[str, float]], key: str) -> float:
    """The best round: on a shared machine noise only ever takes away."""
    values = [r[key] for r in rows if key in r]
    if not values:
        return float("nan")
    return min(values) if key == "ttft" else max(values)


def show(results: dict[str, Rows], streams: list[int]) -> None:
    width = 8 + max(len(label) for label in results)
    print(" " * width + "".join(f"{n:>6} streams" for n in streams) + "   (aggregate tok/s; TTFT s)")
    for label, rows in results.items():
        cells = (f"{best(rows[n], 'aggregate'):>7.1f} {best(rows[n], 'ttft'):>6.2f}" for n in streams)
        print(f"{label:{width}}" + "".join(cells))
    ours = results[OURS]
    for label, rows in results.items():
        if rows is not ours:
            cells = (f"{best(ours[n], 'aggregate') / best(rows[n], 'aggregate'):>14.2f}" for n in streams)
            print(f"{'mlxo / ' + label:{width}}" + "".join(cells))
