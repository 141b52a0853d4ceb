"""Does anything leak? Mixed requests with cancels over HTTP against a daemon of its own, its memory watched.

usage: soak.py [--requests 2700] [--warm 700] [--parallel 8] [--model DIR_OR_NAME] [--home DIR] [--json FILE]
The model is a tiny one of the tests unless --model names another; --home is where that one may be already.
The resident sets of the daemon and of its runner after WARM requests and at the end are compared: the bar is
a growth of less than 5 %. The requests are of 120 kinds, seeded, so that the prefix cache, which may grow to
its budget, has seen them all when it counts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TINY = Path(__file__).parents[2] / "tests/models/tiny-qwen3"
WORDS = ("the", "sea", "a", "lamp", "of", "hello", "what", "is", "why", "tell", "count", "colour", "joke")
KINDS = 120


def resident(root: int) -> dict[str, int]:
    """Bytes of the daemon and of the runners under it, by `ps`."""
    listing = subprocess.run(
        ["ps", "-axo", "pid=,ppid=,rss=,args="], capture_output=True, text=True, check=True
    )
    found = {"daemon": 0, "runner": 0}
    for line in listing.stdout.splitlines():
        pid, parent, size, command = line.split(None, 3)
        if int(pid) == root:
            found["daemon"] += int(size) << 10
        elif int(parent) == root and "_runner" in command:
            found["runner"] += int(size) << 10
    return found


def body(rng: random.Random, model: str) -> tuple[str, dict[str, Any]]:
    """A request of any kind: long, short, sampled, shaped, cut, wrong."""
    text = " ".join(rng.choices(WORDS, k=rng.choice([3, 10, 30, 120])))
    if rng.random() < 0.3:
        text = "You are a helpful machine, and this is said to everybody alike. " * 4 + text
    options: dict[str, Any] = {"num_predict": rng.choice([1, 8, 20, 60]), "seed": rng.randrange(1000)}
    options["temperature"] = rng.choice([0.0, 0.8, 1.4])
    if rng.random() < 0.2:
        options |= {"repeat_penalty": 1.2, "top_k": rng.choice([0, 5, 40]), "min_p": 0.05}
    if rng.random() < 0.1:
        options["num_ctx"] = 64
    kind = rng.random()
    if kind < 0.45:
        request: dict[str, Any] = {"messages": [{"role": "user", "content": text}], "options": options}
        if rng.random() < 0.15:
            request["format"] = "json"
        if rng.random() < 0.15:
            request["logprobs"] = True
        return "/api/chat", request | {"model": model, "stream": rng.random() < 0.7}
    if kind < 0.75:
        return "/api/generate", {
            "model": model,
            "prompt": text,
            "options": options,
            "raw": rng.random() < 0.5,
        }
    if kind < 0.95:
        request = {"messages": [{"role": "user", "content": text}], "max_tokens": options["num_predict"]}
        request |= {"seed": options["seed"], "temperature": options["temperature"]}
        return "/v1/chat/completions", request | {"model": model, "stream": rng.random() < 0.5}
    return "/api/chat", {"model": rng.choice([model, "missing"]), "messages": "none"}


async def ask(port: int, rng: random.Random, model: str) -> str:
    """One request; a quarter of them hang up somewhere in the answer. What came of it, in a word."""
    path, request = body(random.Random(rng.randrange(KINDS)), model)
    patience = rng.randint(0, 6) if rng.random() < 0.25 else None
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    try:
        data = json.dumps(request).encode()
        head = f"POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        if patience == 0:
            await asyncio.sleep(rng.random() * 0.05)
            return "cancelled"
        status = (await reader.readline()).split()[1].decode()
        lines = 0
        async for _ in reader:
            lines += 1
            if lines == patience:
                return "cancelled"
        return status
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def soak(a: argparse.Namespace, port: int, daemon: int, model: str) -> dict[str, Any]:
    rng = random.Random(a.seed)
    outcomes: dict[str, int] = {}
    sizes = [(0, resident(daemon))]
    left = a.requests
    done = 0
    start = time.monotonic()

    async def work() -> None:
        nonlocal left, done
        while left > 0:
            left -= 1
            outcome = await ask(port, random.Random(rng.random()), model)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            done += 1
            if done == a.warm or done % 100 == 0:
                sizes.append((done, resident(daemon)))
                now = ", ".join(f"{k} {v >> 20} MiB" for k, v in sizes[-1][1].items())
                print(f"  {done}: {now}, {done / (time.monotonic() - start):.1f} requests/s", file=sys.stderr)

    await asyncio.gather(*(work() for _ in range(a.parallel)))
    warm = next(s for n, s in sizes if n >= a.warm)
    end = resident(daemon)
    growth = {k: end[k] / warm[k] - 1 for k in end}
    return {"requests": done, "outcomes": outcomes, "warm": warm, "end": end, "growth": growth}


def main() -> int:
    p = argparse.ArgumentParser()
    p.add_argument("--requests", type=int, default=2700)
    p.add_argument("--warm", type=int, default=700)
    p.add_argument("--parallel", type=int, default=8)
    p.add_argument("--model", default="")
    p.add_argument("--home", type=Path)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    with contextlib.ExitStack() as stack:
        home = a.home or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        env = os.environ | {"MLXO_HOST": f"127.0.0.1:{port}", "MLXO_HOME": str(home), "MLXO_SPARE": "0"}
        mlxo = [sys.executable, "-m", "mlxo"]
        log = stack.enter_context((home / "soak.log").open("wb"))
        server = subprocess.Popen([*mlxo, "serve"], env=env, stdout=log, stderr=log)
        stack.callback(server.wait)
        stack.callback(server.terminate)
        model = a.model
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        if not model:
            modelfile = home / "Modelfile"
            modelfile.write_text(f"FROM {TINY}\n")
            subprocess.run([*mlxo, "create", "tiny", "-f", str(modelfile)], env=env, check=True)
            model = "tiny"
        found = asyncio.run(soak(a, port, server.pid, model))
    print(json.dumps(found, indent=1))
    if a.json:
        a.json.write_text(json.dumps(found, indent=1))
    return int(max(found["growth"].values()) >= 0.05)


if __name__ == "__main__":
    sys.exit(main())
