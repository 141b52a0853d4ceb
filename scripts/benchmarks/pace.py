"""How well running streams keep their pace while a long prompt is read, over HTTP.

usage: pace.py [--url http://127.0.0.1:11434] [--model smollm2] [--streams 4] [--prompt-tokens 4000]
               [--alone 150] [--short-tokens 100] [--json FILE]
STREAMS chats run; the gaps between their tokens are taken for ALONE tokens each, then from when a prompt
of PROMPT_TOKENS is sent until its first token. The bar is the ratio of the 99th percentiles, at most 3. With
--short-tokens a short prompt is sent a while into the long one: it must be answered first.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_serial = itertools.count(random.randrange(10**6))


def words(count: int) -> str:
    """About `count` tokens, distinct from the first word on, so that no prefix cache helps."""
    n = next(_serial)
    return " ".join(f"word{(n * 7919 + i * 31) % 9973}" for i in range(max(1, count // 5)))


async def chat(url: str, model: str, text: str, options: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The lines of one streamed chat. Closing the iterator hangs up, which ends the request."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=1 << 22)
    try:
        body = {"model": model, "messages": [{"role": "user", "content": text}], "options": options}
        data = json.dumps(body).encode()
        head = f"POST /api/chat HTTP/1.0\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        while (await reader.readline()).strip():
            pass
        async for line in reader:
            answer = json.loads(line)
            if "error" in answer:
                raise SystemExit(f"the server says: {answer['error']}")
            yield answer
    finally:
        writer.close()


class Streams:
    """Chats that never end, and the gaps between their tokens, in seconds."""

    def __init__(self, url: str, model: str, count: int) -> None:
        self.gaps: list[float] = []
        self.tokens = 0
        self._moved = asyncio.Event()
        self._tasks = [asyncio.create_task(self._run(url, model)) for _ in range(count)]

    async def _run(self, url: str, model: str) -> None:
        while True:
            text = f"Write a very long story about the sea and {words(20)}."
            last = 0.0
            async for _ in chat(url, model, text, {"temperature": 1.0, "num_predict": 4000}):
                now = time.perf_counter()
                if last:
                    self.gaps.append(now - last)
                    self.tokens += 1
                    self._moved.set()
                last = now

    async def progress(self, tokens: int) -> None:
        """Until so many more tokens have come."""
        goal = self.tokens + tokens
        while self.tokens < goal:
            failed = [t for t in self._tasks if t.done()]
            if failed:
                failed[0].result()
            self._moved.clear()
            await self._moved.wait()

    def cut(self) -> list[float]:
        gaps, self.gaps = self.gaps, []
        return gaps

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()


async def first_token(url: str, model: str, tokens: int) -> tuple[float, int]:
    """Seconds to the first token of a new prompt, and the tokens that the server counted in it."""
    start = time.perf_counter()
    first = 0.0
    async for line in chat(url, model, words(tokens), {"num_predict": 4, "num_ctx": tokens + 2048}):
        first = first or time.perf_counter() - start
        if line["done"]:
            return first, line["prompt_eval_count"]
    raise SystemExit("the server ended an answer before its last line")


def p99(gaps: list[float]) -> float:
    return statistics.quantiles(gaps, n=100)[98]


async def measure(a: argparse.Namespace) -> dict[str, float]:
    cold, counted = await first_token(a.url, a.model, a.prompt_tokens)
    streams = Streams(a.url, a.model, a.streams)
    await streams.progress(20 * a.streams)
    streams.cut()
    await streams.progress(a.alone * a.streams)
    alone = streams.cut()
    long = asyncio.create_task(first_token(a.url, a.model, a.prompt_tokens))
    short = 0.0
    if a.short_tokens:
        await streams.progress(10 * a.streams)
        short, _ = await first_token(a.url, a.model, a.short_tokens)
        overtook = not long.done()
    beside, _ = await long
    during = streams.cut()
    await streams.progress(20 * a.streams)
    after = streams.cut()
    streams.stop()
    found = {
        "prompt_tokens": counted,
        "ttft_alone_s": cold,
        "ttft_beside_s": beside,
        "p50_alone_ms": 1e3 * statistics.median(alone),
        "p99_alone_ms": 1e3 * p99(alone),
        "p50_during_ms": 1e3 * statistics.median(during),
        "p99_during_ms": 1e3 * p99(during),
        "max_during_ms": 1e3 * max(during),
        "max_after_ms": 1e3 * max(after),
        "gaps": len(during),
        "p99_ratio": p99(during) / p99(alone),
    }
    return found | ({"short_ttft_s": short, "short_overtook": overtook} if a.short_tokens else {})


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--url", default="http://127.0.0.1:11434")
    p.add_argument("--model", default="smollm2")
    p.add_argument("--streams", type=int, default=4)
    p.add_argument("--prompt-tokens", type=int, default=4000)
    p.add_argument("--alone", type=int, default=150, help="tokens a stream, before the long prompt")
    p.add_argument("--short-tokens", type=int, default=0)
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    found = asyncio.run(measure(a))
    for name, value in found.items():
        print(f"{name:16} {value:10.2f}")
    if a.json:
        a.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
