"""A load of N concurrent chats against any server that streams, measured from outside.

Two dialects: Ollama's /api/chat (NDJSON) and OpenAI's /v1/chat/completions (SSE). Tokens are counted from the
server's own usage figures; times are taken here, so all servers are measured by the same clock.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Target:
    """`dialect` is "ollama" or "openai"; `url` has no path."""

    label: str
    url: str
    model: str
    dialect: str


@dataclass(frozen=True)
class Answer:
    """Seconds since the load began; `chunks` counts the pieces in which `text` came."""

    first: float
    last: float
    chunks: int
    tokens: int
    prompt_tokens: int
    text: str


def prompt(i: int, words: int) -> str:
    """Distinct from the first word on, so that no prefix cache helps anybody."""
    filler = " ".join(f"item{i}x{j}" for j in range(words))
    return f"Request {i}. {filler}. Write a very long story about the sea, with many details."


def _body(target: Target, text: str, tokens: int) -> tuple[str, dict[str, Any]]:
    messages = [{"role": "user", "content": text}]
    if target.dialect == "ollama":
        options = {"temperature": 0, "repeat_penalty": 1.0, "num_predict": tokens, "stop": []}
        return "/api/chat", {"model": target.model, "messages": messages, "options": options}
    return "/v1/chat/completions", {
        "model": target.model,
        "messages": messages,
        "stream": True,
        "max_tokens": tokens,
        "temperature": 0.0,
        "stream_options": {"include_usage": True},
    }


def _read(dialect: str, line: bytes) -> tuple[str, tuple[int, int] | None]:
    """(text delta, (tokens, prompt tokens) when the line carries usage)."""
    if dialect == "openai":
        if not line.startswith(b"data:") or line[5:].strip() == b"[DONE]":
            return "", None
        chunk = json.loads(line[5:])
        usage = chunk.get("usage")
        choices = chunk.get("choices") or [{}]
        delta = choices[0].get("delta") or {}
        text = (delta.get("content") or "") + (delta.get("reasoning") or "")
        return text, (usage["completion_tokens"], usage["prompt_tokens"]) if usage else None
    chunk = json.loads(line)
    if "error" in chunk:
        raise RuntimeError(chunk["error"])
    text = chunk["message"].get("content", "") + chunk["message"].get("thinking", "")
    return text, (chunk.get("eval_count", 0), chunk.get("prompt_eval_count", 0)) if chunk["done"] else None


async def ask(target: Target, text: str, tokens: int, start: float) -> Answer:
    """One streamed chat over a connection of its own. Raises RuntimeError on any answer but 200."""
    path, body = _body(target, text, tokens)
    address = urlsplit(target.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=1 << 22)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.0\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    status = (await reader.readline()).split()
    while (await reader.readline()).strip():
        pass
    if status[1] != b"200":
        raise RuntimeError(f"{target.label} answered {status!r}: {(await reader.read())[:300]!r}")
    first = last = 0.0
    parts: list[str] = []
    usage = (0, 0)
    async for line in reader:
        if not line.strip():
            continue
        delta, counted = _read(target.dialect, line)
        usage = counted or usage
        if delta:
            last = time.perf_counter() - start
            first = first or last
            parts.append(delta)
    writer.close()
    return Answer(first, last, len(parts), usage[0], usage[1], "".join(parts))


async def load(target: Target, streams: int, tokens: int, words: int, seed: int) -> dict[str, float]:
    """One round: `streams` chats at once. Aggregate is all tokens over the wall time of the round."""
    start = time.perf_counter()
    asks = (ask(target, prompt(seed + i, words), tokens, start) for i in range(streams))
    answers = await asyncio.gather(*asks)
    wall = time.perf_counter() - start
    pace = [(a.tokens - 1) / (a.last - a.first) for a in answers if a.tokens > 1 and a.last > a.first]
    return {
        "streams": streams,
        "tokens": sum(a.tokens for a in answers),
        "prompt_tokens": max(a.prompt_tokens for a in answers),
        "chunks": sum(a.chunks for a in answers),
        "wall": wall,
        "aggregate": sum(a.tokens for a in answers) / wall,
        "decode": statistics.median(pace) if pace else 0.0,
        "ttft": statistics.median(a.first for a in answers),
    }
