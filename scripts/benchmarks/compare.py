"""The side-by-side table: mlxo over HTTP / BatchGenerator in process / mlx_lm.server, one machine, one run.

usage: scripts/bench [--model NAME] [--streams 1,4,16] [--tokens 32] [--words 8] [--rounds 3] [--json FILE]
All three are up during the whole run and take turns, so that a noisy neighbour hurts them alike; each gets
one unmeasured round first (compiled kernels, page cache). mlx_lm.server runs as it comes, on the same folder.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from load import Target, load

from mlxo.core.paths import Paths
from mlxo.core.settings import load as load_settings
from mlxo.hardware.blas import environment
from mlxo.store.registry import Registry

HERE = Path(__file__).parent
OURS = "mlxo over HTTP"
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
def served(command: list[str], url: str, env: dict[str, str]) -> Iterator[None]:
    """`command` as a server, its output in a file that is shown when it fails."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        try:
            wait_for(url, process)
            yield
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
def in_process(folder: Path, a: argparse.Namespace, env: dict[str, str]) -> Iterator[Round]:
    words = [sys.executable, str(HERE / "inproc.py"), str(folder), str(a.tokens), str(a.words)]
    with subprocess.Popen(words, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        stdin, stdout = child.stdin, child.stdout
        assert stdin is not None
        assert stdout is not None

        def one(streams: int, seed: int) -> dict[str, float]:
            print(streams, seed, file=stdin, flush=True)
            return dict(json.loads(stdout.readline()))

        yield one


@contextlib.contextmanager
def mlxo(a: argparse.Namespace, home: Path) -> Iterator[tuple[Round, Path]]:
    """mlxo's server with the model pulled, and the folder that its runner loads."""
    port = free_port()
    env = os.environ | {"MLXO_HOST": f"127.0.0.1:{port}", "MLXO_HOME": str(home), "MLXO_KEEP_ALIVE": "-1"}
    url = f"http://127.0.0.1:{port}"
    with served([sys.executable, "-m", "mlxo", "serve"], url + "/api/version", env):
        pull = [sys.executable, "-m", "mlxo", "pull", a.model]
        subprocess.run(pull, env=env, check=True, stderr=subprocess.DEVNULL)
        folder = Path(Registry(Paths(home)).resolve(a.model).path)
        yield over_http(Target(OURS, url, a.model, "ollama"), a), folder


@contextlib.contextmanager
def mlx_lm(a: argparse.Namespace, folder: Path) -> Iterator[Round]:
    port = free_port()
    words = [sys.executable, "-m", "mlx_lm", "server", "--model", str(folder), "--port", str(port)]
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    url = f"http://127.0.0.1:{port}"
    with served([*words, "--host", "127.0.0.1"], url + "/health", env):
        yield over_http(Target("mlx_lm.server", url, "default_model", "openai"), a)


def measure(rounds: dict[str, Round], a: argparse.Namespace) -> dict[str, Rows]:
    results: dict[str, Rows] = {label: {n: [] for n in a.streams} for label in rounds}
    for turn in range(a.rounds + 1):
        for n in a.streams if turn else [max(a.streams)]:
            for label, one in rounds.items():
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
    print(f"{'':28}" + "".join(f"{n:>6} streams" for n in streams) + "   (aggregate tok/s; TTFT s)")
    for label, rows in results.items():
        cells = (f"{best(rows[n], 'aggregate'):>7.1f} {best(rows[n], 'ttft'):>6.2f}" for n in streams)
        print(f"{label:28}" + "".join(cells))
    ours = results[OURS]
    for label, rows in results.items():
        if rows is not ours:
            cells = (f"{best(ours[n], 'aggregate') / best(rows[n], 'aggregate'):>14.2f}" for n in streams)
            print(f"{'mlxo / ' + label:28}" + "".join(cells))


def main() -> None:
    p = argparse.ArgumentParser(prog="scripts/bench")
    p.add_argument("--model", default="smollm2")
    p.add_argument("--streams", type=lambda t: [int(x) for x in t.split(",")], default=[1, 4, 16])
    p.add_argument("--tokens", type=int, default=32)
    p.add_argument("--words", type=int, default=8, help="filler words in a prompt")
    p.add_argument("--rounds", type=int, default=3, help="measured rounds; the best counts")
    p.add_argument("--skip", default="", help="comma list of: inproc, mlx_lm")
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    settings = load_settings()
    fast = os.environ | environment(settings.blas, settings.home, os.environ)
    with contextlib.ExitStack() as stack:
        ours, folder = stack.enter_context(mlxo(a, settings.home))
        rounds = {OURS: ours}
        if "inproc" not in a.skip:
            rounds["in process"] = stack.enter_context(in_process(folder, a, fast))
        if "mlx_lm" not in a.skip:
            rounds["mlx_lm.server"] = stack.enter_context(mlx_lm(a, folder))
        results = measure(rounds, a)
    show(results, a.streams)
    if a.json:
        a.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
