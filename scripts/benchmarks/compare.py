"""The side-by-side table: mlxo over HTTP / BatchGenerator in process / mlx_lm.server, one machine, one run.

usage: scripts/bench [--model NAME] [--streams 1,4,16] [--tokens 32] [--words 8] [--rounds 2] [--json FILE]
Every server gets one unmeasured round first (compiled kernels, page cache). mlx_lm.server runs as it comes,
on the same model folder; --mlx-lm-blas also gives it the BLAS that the runners of mlxo get.
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
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from load import Target, load
from mlxo.hardware.blas import environment
from mlxo.store.registry import Registry

from mlxo.core.paths import Paths
from mlxo.core.settings import load as load_settings

HERE = Path(__file__).parent
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


def measure(target: Target, a: argparse.Namespace) -> Rows:
    rows: Rows = {n: [] for n in a.streams}
    for turn in range(a.rounds + 1):
        for n in a.streams:
            row = asyncio.run(load(target, n, a.tokens, a.words, turn * 1000 + n * 100))
            if turn:
                rows[n].append(row)
                print(f"  {target.label} {n} streams: {row['aggregate']:.1f} tok/s", file=sys.stderr)
    return rows


def in_process(folder: Path, a: argparse.Namespace, env: dict[str, str]) -> Rows:
    streams = ",".join(map(str, a.streams))
    words = [
        sys.executable,
        str(HERE / "inproc.py"),
        str(folder),
        streams,
        *map(str, (a.tokens, a.words, a.rounds)),
    ]
    out = subprocess.run(words, env=env, stdout=subprocess.PIPE, check=True).stdout
    rows: Rows = {n: [] for n in a.streams}
    for line in out.splitlines():
        row = json.loads(line)
        rows[int(row["streams"])].append(row)
        print(f"  in process {row['streams']} streams: {row['aggregate']:.1f} tok/s", file=sys.stderr)
    return rows


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
    ours = results["mlxo over HTTP"]
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
    p.add_argument("--rounds", type=int, default=2, help="measured rounds; the best counts")
    p.add_argument("--skip", default="", help="comma list of: inproc, mlx_lm")
    p.add_argument("--mlx-lm-blas", action="store_true")
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    settings = load_settings()
    env = dict(os.environ)
    fast = env | environment(settings.blas, settings.home, env)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    results: dict[str, Rows] = {}
    ours = env | {"MLXO_HOST": f"127.0.0.1:{port}", "MLXO_HOME": str(settings.home)}
    with served([sys.executable, "-m", "mlxo", "serve"], url + "/api/version", ours):
        subprocess.run(
            [sys.executable, "-m", "mlxo", "pull", a.model], env=ours, check=True, stderr=subprocess.DEVNULL
        )
        results["mlxo over HTTP"] = measure(Target("mlxo over HTTP", url, a.model, "ollama"), a)
    folder = Path(Registry(Paths(settings.home)).resolve(a.model).path)
    if "inproc" not in a.skip:
        results["in process"] = in_process(folder, a, fast)
    if "mlx_lm" not in a.skip:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        words = [sys.executable, "-m", "mlx_lm", "server", "--model", str(folder), "--port", str(port)]
        offline = (fast if a.mlx_lm_blas else env) | {"HF_HUB_OFFLINE": "1"}
        with served([*words, "--host", "127.0.0.1"], url + "/health", offline):
            target = Target("mlx_lm.server", url, "default_model", "openai")
            results["mlx_lm.server"] = measure(target, a)
    show(results, a.streams)
    if a.json:
        a.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
