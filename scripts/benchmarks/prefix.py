"""Time to the first token of a long prefix: cold, warm in memory, and from disk after the daemon restarted.

usage: scripts/benchmarks/prefix.py [--model smollm2:135m] [--tokens 2000] [--rounds 3] [--json FILE]
The daemon is this script's own, on a port and with a cache folder of its own. Every round takes a prefix
that nobody has seen, asks a question behind it (cold), another one (warm), restarts the daemon, and asks a
third (disk). Each is the time until the first piece of the answer is here; the model is loaded before.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

MLXO = [sys.executable, "-P", "-m", "mlxo"]
QUESTIONS = ("Who went to sea?", "What was the weather like?", "How does the story end?")
BARS = {"warm": 1 / 25, "disk": 1 / 10}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def prefix(words: int) -> str:
    """Unlike any other from the first word on."""
    nonce = os.urandom(4).hex()
    return f"Story {nonce}. " + " ".join(f"On day {i} the ship sailed on." for i in range(words))


class Server:
    def __init__(self, model: str) -> None:
        port = free_port()
        self._model = model
        self._url = f"http://127.0.0.1:{port}"
        self._environment = {**os.environ, "MLXO_HOST": f"127.0.0.1:{port}", "MLXO_SPARE": "0"}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen([*MLXO, "serve"], env=self._environment, stderr=subprocess.DEVNULL)
        for _ in range(300):
            try:
                urllib.request.urlopen(self._url, timeout=2).close()
                break
            except OSError:
                if self._process.poll() is not None:
                    raise SystemExit("the server did not start: another one may use this MLXO_HOME") from None
                time.sleep(0.1)
        # Load the model, and let it step once: kernels are compiled then.
        self.ask("", "Hello", 4)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)

    def ask(self, system: str, question: str, tokens: int = 4) -> tuple[float, dict[str, Any]]:
        """Seconds to the first piece of the answer, and the last line, which has the counts."""
        messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
        body = {
            "model": self._model,
            "messages": messages,
            "options": {"temperature": 0, "num_predict": tokens},
        }
        request = urllib.request.Request(f"{self._url}/api/chat", json.dumps(body).encode())
        begin = time.perf_counter()
        with urllib.request.urlopen(request, timeout=600) as answer:
            first = answer.readline()
            elapsed = time.perf_counter() - begin
            last = (first, *answer.readlines())[-1]
        return elapsed, json.loads(last)


def measure(server: Server, words: int) -> dict[str, float]:
    system = prefix(words)
    cold, answer = server.ask(system, QUESTIONS[0])
    warm, again = server.ask(system, QUESTIONS[1])
    server.stop()
    server.start()
    disk, restored = server.ask(system, QUESTIONS[2])
    return {
        "tokens": answer["prompt_eval_count"],
        "cold": cold,
        "warm": warm,
        "disk": disk,
        "warm cached": again.get("cached_tokens", 0),
        "disk cached": restored.get("cached_tokens", 0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    server = Server(args.model)
    try:
        server.start()
        _, probe = server.ask(prefix(20), QUESTIONS[0])
        words = round(args.tokens * 20 / probe["prompt_eval_count"])
        rounds = []
        for _ in range(args.rounds):
            rounds.append(measure(server, words))
            print("  ".join(f"{k} {v:.3g}" for k, v in rounds[-1].items()), flush=True)
    finally:
        server.stop()
    ratios = {k: statistics.median(r[k] / r["cold"] for r in rounds) for k in BARS}
    for kind, ratio in ratios.items():
        print(f"{kind} / cold: 1/{1 / ratio:.1f}, at most 1/{1 / BARS[kind]:.0f} wanted")
    if args.json:
        args.json.write_text(json.dumps({"rounds": rounds, "ratios": ratios}, indent=1))


if __name__ == "__main__":
    main()
