"""Concurrent chats on an OpenAI-compatible server: the load of `mlxo bench` and of scripts/bench.

Bytes are stamped as they come and read when the round is over: at 64 streams JSON would hold up the clock.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from mlxo.cli.bench_answer import Answer, Part, read, reason
from mlxo.core.errors import MlxoError, ServerUnreachable

PULSE = 0.2  # seconds between two reports while a round runs
CONNECT_SECONDS = 10.0
PATIENCE = 600.0  # seconds in which no stream brings a byte; a model may be loading
MAX_ANSWER = 64 << 20  # bytes

# One token each, with the blank before them, in the usual vocabularies.
_WORDS = """
sea ship wind wave sand rock moon star rain snow fire road hill tree leaf bird fish boat sail rope
deck crew land isle port town gold coin salt wood iron glass stone light night day morning evening
summer winter north south east west river lake bridge house door window table chair paper letter
story song voice hand heart mind king
"""


@dataclass(frozen=True)
class Target:
    """`url` with or without /v1; `fields` are added to each request's body."""

    url: str
    model: str
    key: str = ""
    fields: tuple[tuple[str, Any], ...] = ()

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    def request(self, prompt: str, tokens: int) -> bytes:
        """The bytes of one streamed, greedy chat."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": tokens,
            "temperature": 0.0,
            **dict(self.fields),
        }
        data = json.dumps(body).encode()
        path = urlsplit(self.url).path.rstrip("/").removesuffix("/v1")
        head = [
            f"POST {path}/v1/chat/completions HTTP/1.1",
            f"Host: {self.host}",
            "Content-Type: application/json",
            "Accept: text/event-stream",
            "Connection: close",
            f"Content-Length: {len(data)}",
        ]
        if self.key:
            head.append(f"Authorization: Bearer {self.key}")
        return "\r\n".join(head).encode() + b"\r\n\r\n" + data


def prompt(seed: str, words: int) -> str:
    """A request for a long story, of `words` and some twenty tokens. Another seed gives other words."""
    chosen = random.Random(seed).choices(_WORDS.split(), k=words)
    return f"{' '.join(chosen)}. Write a very long story about the sea with these words and many details."


async def ask(
    target: Target,
    prompts: Sequence[str],
    tokens: int,
    report: Callable[[int], None] = lambda _: None,
    patience: float = PATIENCE,
) -> list[Answer]:
    """All `prompts` at once, each over a connection of its own; the answers in their order.

    `report` is told now and then how many pieces have come so far. Raises ServerUnreachable, or the MlxoError
    that an answer amounts to.
    """
    streams = [_Stream(target, target.request(text, tokens)) for text in prompts]
    try:
        await asyncio.gather(*(s.open() for s in streams))
        pending = {s.closed for s in streams}
        while pending:
            _, pending = await asyncio.wait(pending, timeout=PULSE)
            report(sum(s.pieces for s in streams))
            if pending and perf_counter() - max(s.last for s in streams) > patience:
                raise MlxoError(f"{target.host} sent nothing for {patience:.0f} seconds")
        return [s.answer() for s in streams]
    finally:
        for s in streams:
            s.abort()


async def measure_words(target: Target, seed: str, tokens: int) -> int:
    """How many words make a prompt of `tokens` tokens for this server; its first requests, not measured."""
    few, many = 1, max(tokens, 16)
    (short,) = await ask(target, [prompt(seed + "short", few)], 2)
    (long,) = await ask(target, [prompt(seed + "long", many)], 2)
    if short.prompt_tokens is None or long.prompt_tokens is None or long.prompt_tokens <= short.prompt_tokens:
        return tokens
    each = (long.prompt_tokens - short.prompt_tokens) / (many - few)
    return max(1, few + round((tokens - short.prompt_tokens) / each))


class _Stream(asyncio.Protocol):
    """One request and its answer. `closed` is done when the answer is over, however it ended."""

    def __init__(self, target: Target, request: bytes) -> None:
        self._target = target
        self._request = request
        self._parts: list[Part] = []
        self._size = 0
        self._transport: asyncio.Transport | None = None
        self._error: Exception | None = None
        self.pieces = 0
        self.begun = self.last = perf_counter()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def open(self) -> None:
        url = urlsplit(self._target.url)
        secure = url.scheme == "https"
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await asyncio.get_running_loop().create_connection(
                    lambda: self, str(url.hostname), url.port or (443 if secure else 80), ssl=secure
                )
        except (OSError, UnicodeError) as e:
            raise ServerUnreachable(
                f"no server answers on {self._target.host}: {reason(e)}", "start it, or mend its address"
            ) from e

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.last = perf_counter()
        self._parts.append((self.last, data))
        self._size += len(data)
        self.pieces += data.count(b"data:")
        over = b"[DONE]" in data or self._size > MAX_ANSWER
        if over and self._transport is not None:  # some servers would keep the connection
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._error = exc
        if not self.closed.done():
            self.closed.set_result(None)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def answer(self) -> Answer:
        if self._size > MAX_ANSWER:
            raise MlxoError(f"{self._target.host} sent more than {MAX_ANSWER >> 20} MiB for one answer")
        try:
            return read(self._target.host, self.begun, self._parts)
        except EOFError:
            why = f": {reason(self._error)}" if self._error else ""
            raise MlxoError(
                f"{self._target.host} closed the connection in the middle of an answer{why}", "see its log"
            ) from None
