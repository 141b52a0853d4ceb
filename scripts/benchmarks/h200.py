"""The accelerator's table: mlxo over HTTP, mlxo's engine and a BatchGenerator in process, mlx_lm.server.

usage: h200.py --tokenizer DIR [--bits 0,8] [--streams 1,16,64] [--tokens 128] [--rounds 2] [--seconds 360]
               [--tiny]
Started by h200.sh. A model of Qwen3-0.6B's shape with random weights is made for each of `--bits`, so nothing
needs fetching. All contenders are up at once and take turns; the first round is not counted. Then the daemon
and the runner are profiled under the largest load. No round begins after `--seconds`. Into $OUT (else the
current folder): h200.json, profile.txt, and what the daemon logged.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pstats
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from typing import TextIO

sys.path.insert(0, str(Path(__file__).parent))

import compare
from compare import OURS, Daemon, Round, Rows
from load import Target

from mlxo.hardware import detect
from mlxo.hardware.blas import environment

HERE = Path(__file__).parent
OPENAI = "mlxo over HTTP, OpenAI's API"
ENGINE = "mlxo's engine in process"
GENERATOR = "BatchGenerator in process"
LIBRARY = "mlx_lm.server"
PROFILE_SECONDS = 25.0  # that the two profiled rounds need


def make(folder: Path, bits: int, a: argparse.Namespace) -> None:
    """The model's folder, and a Modelfile beside the model that names it."""
    words = [sys.executable, str(HERE / "make_qwen3.py"), str(folder), str(bits), str(a.tokenizer)]
    subprocess.run([*words, *(["tiny"] if a.tiny else [])], check=True)
    (folder / "Modelfile").write_text(f"FROM {folder}\n")


def guarded(label: str, one: Round) -> Round:
    """A round that fails is not a number; device time is too dear to end the run for it."""

    def round_(streams: int, seed: int) -> dict[str, float]:
        try:
            return one(streams, seed)
        except (RuntimeError, OSError, ValueError, LookupError):
            print(f"{label} failed:\n{traceback.format_exc(limit=-3)}", file=sys.stderr)
            return {"aggregate": float("nan")}

    return round_


def contenders(
    stack: contextlib.ExitStack, daemon: Daemon, a: argparse.Namespace, home: Path
) -> dict[str, Round]:
    fast = os.environ | environment("auto", home, os.environ)
    made: dict[str, Round] = {
        OURS: compare.over_http(Target(OURS, daemon.url, "bench", "ollama"), a),
        OPENAI: compare.over_http(Target(OPENAI, daemon.url, "bench", "openai"), a),
    }
    others: dict[str, AbstractContextManager[Round]] = {
        ENGINE: compare.in_process(daemon.folder, a, fast, "engine"),
        GENERATOR: compare.in_process(daemon.folder, a, fast, "generator"),
        LIBRARY: compare.mlx_lm(a, daemon.folder),
    }
    for label, other in others.items():
        try:
            made[label] = stack.enter_context(other)
        except (SystemExit, OSError) as e:
            print(f"{label} does not take part: {e}", file=sys.stderr)
    return {label: guarded(label, one) for label, one in made.items()}


def run(bits: int, a: argparse.Namespace, work: Path, out: Path, deadline: float) -> dict[str, Rows]:
    folder, home, profiles = work / f"model-{bits}", work / f"home-{bits}", work / f"profiles-{bits}"
    profiles.mkdir()
    make(folder, bits, a)
    # Nothing of mlxo is changed to be profiled: python itself imports sitecustomize from this folder.
    path = os.pathsep.join([str(HERE / "profiled"), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {"MLXO_PROFILE": str(profiles), "PYTHONPATH": path}
    verb = ["create", "bench", "-f", str(folder / "Modelfile")]
    with contextlib.ExitStack() as stack:
        log = out / f"daemon-{bits}.log"
        daemon = stack.enter_context(compare.mlxo("bench", verb, home, compare.rows(a), env, log))
        first = compare.over_http(Target(OURS, daemon.url, "bench", "ollama"), a)
        try:
            first(1, 0)
        except (RuntimeError, OSError):
            print(log.read_text()[-3000:], file=sys.stderr)
            raise  # without mlxo there is nothing to measure
        rounds = contenders(stack, daemon, a, home)
        results = compare.measure(rounds, a, deadline - PROFILE_SECONDS)
        with (out / "profile.txt").open("a") as text:
            print(f"======== {bits or 16} bits, {max(a.streams)} streams over HTTP", file=text)
            for number in (signal.SIGUSR1, signal.SIGUSR2):
                profile(daemon, rounds[OURS], max(a.streams), number, text)
            for file in sorted(profiles.iterdir()):
                report(file, text)
    return results


# ------------------------------------------------------------ profiles


def runners(daemon: int) -> Iterator[int]:
    """Process ids of a daemon's runners, out of /proc."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == daemon and b"_runner" in (folder / "cmdline").read_bytes().split(b"\0"):
                yield int(folder.name)


def profile(daemon: Daemon, one: Round, streams: int, number: signal.Signals, text: TextIO) -> None:
    processes = [daemon.pid, *runners(daemon.pid)]
    for process in processes:
        os.kill(process, number)
    row = one(streams, 700_000 + 1000 * number)
    for process in processes:
        os.kill(process, number)
    time.sleep(1.5)  # a signal handler in each writes its file
    kind = "sampled" if number == signal.SIGUSR1 else "with cProfile"
    print(f"-- {kind}, so slower than the table: {row['aggregate']:.0f} tok/s", file=text)


def report(file: Path, text: TextIO) -> None:
    print(f"\n-------- {file.name}", file=text)
    if file.suffix == ".calls":
        pstats.Stats(str(file), stream=text).sort_stats("tottime").print_stats(45)
        return
    stacks = json.loads(file.read_text())
    total = sum(seconds for seconds, _ in stacks)
    lines: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    for seconds, stack in stacks:
        if stack:
            lines[stack[0]] += seconds
        for function in {f"{frame.rpartition(':')[0]} {frame.split(' ', 1)[1]}" for frame in stack}:
            functions[function] += seconds
    for title, counter, most in (
        ("on this line itself", lines, 40),
        ("in this function and below", functions, 60),
    ):
        print(f"seconds of {total:.2f} {title}", file=text)
        for where, seconds in counter.most_common(most):
            print(f"{seconds:8.3f} {100 * seconds / total:5.1f} %  {where}", file=text)


# ------------------------------------------------------------ the table


def show(bits: int, results: dict[str, Rows], streams: list[int]) -> None:
    print(f"\n{'bf16' if not bits else f'{bits} bit'}: aggregate tok/s, TTFT s, the best round")
    compare.show(results, streams)
    row = next((r for rows in results[OURS].values() for r in rows if "prompt_tokens" in r), {})
    print(
        f"prompts of {row.get('prompt_tokens', 0):.0f} tokens; HTTP chunks of mlxo / tokens at each load: ",
        end="",
    )
    for n in streams:
        print(
            f"{compare.best(results[OURS][n], 'chunks'):.0f}/{compare.best(results[OURS][n], 'tokens'):.0f}",
            end="  ",
        )
    print(flush=True)


# Does MLX load, find the device and multiply? What the numbers are is no matter here.
_TRY = """
import mlx.core as mx
a = mx.random.normal((512, 512)).astype(mx.bfloat16)
print(mx.default_device(), mx.device_info(), float((a @ a).mean()))
"""


def machine() -> None:
    """What this run is about. Raises CalledProcessError when MLX does not work here."""
    print("python", sys.version.split()[0], "cores", os.cpu_count(), "back end", detect.backend())
    for name in ("mlx", "mlx-cuda-13", "mlx-lm", "transformers", "aiohttp"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            print(f"{name} {metadata.version(name)}", end="  ")
    print(flush=True)
    with contextlib.suppress(OSError):
        subprocess.run(["nvidia-smi", "-L"], check=False)
    subprocess.run([sys.executable, "-c", _TRY], check=True)


def numbers(text: str) -> list[int]:
    return [int(x) for x in text.split(",")]


def main() -> None:
    p = argparse.ArgumentParser(prog="h200.py")
    p.add_argument("--tokenizer", type=Path, required=True)
    p.add_argument("--bits", type=numbers, default=[0, 8])
    p.add_argument("--streams", type=numbers, default=[1, 16, 64])
    p.add_argument("--tokens", type=int, default=128)
    p.add_argument("--words", type=int, default=8)
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--seconds", type=float, default=360)
    p.add_argument("--tiny", action="store_true")
    a = p.parse_args()
    out = Path(os.environ.get("OUT", "."))
    start = time.monotonic()
    machine()
    results = {}
    with tempfile.TemporaryDirectory(prefix="mlxo-h200-") as folder:
        for i, bits in enumerate(a.bits, 1):
            deadline = start + a.seconds * i / len(a.bits)
            results[bits] = run(bits, a, Path(folder), out, deadline)
            (out / "h200.json").write_text(json.dumps(results, indent=1))
            show(bits, results[bits], a.streams)
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
