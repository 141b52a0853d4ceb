"""What `mlxo run` costs beside the model: with a warm spare and without, in turns, on daemons that are up.

usage: .venv/bin/python scripts/benchmarks/spare.py FOLDER [--rounds 5]

FOLDER is a model as mlx-lm reads it. A round unloads it, waits for the spare, and times `mlxo run` from its
start to its first byte of text. `rest` is that less the runner's own load and the prefill; what a load spends
on the tokenizer, which is no weight, is measured apart and told with it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

from compare import MLXO, free_port

from mlxo.core import duration

READY = "a spare runner is ready"
TOKENIZER = """
import json, sys, time
from mlxo.engine import warm
from mlx_lm.utils import load_tokenizer
from pathlib import Path
for step in warm.STEPS:
    step()
start = time.perf_counter()
load_tokenizer(Path(sys.argv[1]))
print(time.perf_counter() - start)
"""


class Daemon(NamedTuple):
    env: dict[str, str]
    log: Path

    def run(self, *words: str) -> None:
        subprocess.run([*MLXO, *words], env=self.env, check=True, capture_output=True)

    def said(self, what: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if what in line]


class Row(NamedTuple):
    """Seconds."""

    first: float
    load: float
    prefill: float

    @property
    def rest(self) -> float:
        return self.first - self.load - self.prefill


@contextlib.contextmanager
def daemon(home: Path, spare: str) -> Iterator[Daemon]:
    port = free_port()
    env = {**os.environ, "MLXO_HOME": str(home), "MLXO_HOST": f"127.0.0.1:{port}", "MLXO_SPARE": spare}
    one = Daemon(env, home / "log" / "daemon.log")
    one.run("ls")
    found = list(home.rglob("daemon.log"))
    one = one._replace(log=found[0])
    try:
        yield one
    finally:
        one.run("daemon", "stop")


def ask(one: Daemon) -> Row:
    start = time.perf_counter()
    words = [*MLXO, "run", "m", "Tell me about the sea.", "--verbose"]
    with subprocess.Popen(words, env=one.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.read(1)
        first = time.perf_counter() - start
        child.stdout.read()
        summary = child.stderr.read().decode()
    prefill = re.search(r"prompt eval duration:\s*(\S+)", summary)
    load = re.search(r"loaded \S+ in ([^,]+),", one.said("loaded ")[-1])
    assert prefill, summary
    assert load
    return Row(first, duration.parse(load[1]), duration.parse(prefill[1]))


def measure(one: Daemon, rounds_done: int, spare: bool) -> Row:
    one.run("stop", "m")
    deadline = time.monotonic() + 60
    while spare and len(one.said(READY)) <= rounds_done and time.monotonic() < deadline:
        time.sleep(0.1)
    return ask(one)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    a = parser.parse_args()
    rows: dict[str, list[Row]] = {"warm spare": [], "no spare": []}
    tokenizers = []
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        ones = {}
        for label, spare in (("warm spare", "1"), ("no spare", "0")):
            home = Path(place, spare)
            one = ones[label] = stack.enter_context(daemon(home, spare))
            modelfile = home / "Modelfile"
            modelfile.write_text(f"FROM {a.folder.absolute()}\nPARAMETER num_predict 4\n")
            one.run("create", "m", "-f", str(modelfile))
            ask(one)  # compiled kernels, page cache
        for i in range(a.rounds):
            for label, one in ones.items():
                rows[label].append(measure(one, i, label == "warm spare"))
            words = [sys.executable, "-c", TOKENIZER, str(a.folder)]
            tokenizers.append(float(subprocess.run(words, check=True, capture_output=True).stdout))
    for label, found in rows.items():
        middle = {
            f: round(statistics.median(getattr(r, f) for r in found), 3) for f in (*Row._fields, "rest")
        }
        print(f"{label:12} {json.dumps(middle)}  rest of each: {[round(r.rest, 2) for r in found]}")
    print(f"of the load, the tokenizer: {statistics.median(tokenizers):.3f} s")


if __name__ == "__main__":
    main()
