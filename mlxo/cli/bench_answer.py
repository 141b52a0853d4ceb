"""One streamed answer of an OpenAI-compatible server: bytes and the times of their arrival to figures."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

from mlxo.cli.output import clean
from mlxo.core.errors import Forbidden, InvalidRequest, MlxoError, NotFound, ServerUnreachable

_ERRORS: dict[int, type[MlxoError]] = {400: InvalidRequest, 401: Forbidden, 403: Forbidden, 404: NotFound}
_TEXT = ("content", "reasoning", "reasoning_content")  # fields of a delta; the last two depend on the server
Part = tuple[float, bytes]  # when it came, by perf_counter, and what


@dataclass(frozen=True)
class Answer:
    """Times are perf_counter's. `texts` are those of the pieces that brought text, one or more tokens each.

    With `counted` the tokens are the server's own count; without, `tokens` is the number of pieces.
    `cached` is None when the server does not say.
    """

    begun: float
    ended: float
    texts: Sequence[float]
    tokens: int
    prompt_tokens: int | None
    cached: int | None
    counted: bool

    @property
    def first(self) -> float | None:
        """Seconds to the first text."""
        return self.texts[0] - self.begun if self.texts else None

    @property
    def gaps(self) -> list[float]:
        """Seconds between a piece of text and the next."""
        return [b - a for a, b in pairwise(self.texts)]

    @property
    def pace(self) -> float | None:
        """Tokens a second after the first one."""
        took = self.texts[-1] - self.texts[0] if self.texts else 0.0
        return (self.tokens - 1) / took if took > 0 and self.tokens > 1 else None


def reason(e: Exception) -> str:
    """An error of a connection in the system's own words; asyncio hides them behind addresses and numbers."""
    number = re.search(r"\[Errno (\d+)\]", str(e))
    return os.strerror(int(number[1])) if number else getattr(e, "strerror", None) or "no answer in time"


def read(host: str, begun: float, parts: list[Part]) -> Answer:
    """Raises EOFError when the answer stops before its end, and what the server's error amounts to."""
    status, kind, body = _head(host, parts)
    if status != 200:
        raise _refused(host, status, b"".join(data for _, data in body))
    if not kind.startswith("text/event-stream"):
        raise MlxoError(
            f"{host} answers in one piece ({kind or 'of no type'}): without a stream there is nothing to time"
        )
    texts: list[float] = []
    usage: dict[str, Any] = {}
    over = False
    for when, event in _events(body):
        if event == b"[DONE]":
            over = True
            break
        chunk = _object(host, event)
        if chunk.get("error"):
            raise _refused(host, 500, event)
        usage = chunk["usage"] if isinstance(chunk.get("usage"), dict) else usage
        choices = chunk.get("choices") or [None]
        choice = choices[0] if isinstance(choices, list) and isinstance(choices[0], dict) else {}
        delta = choice.get("delta")
        over = over or bool(choice.get("finish_reason"))
        if isinstance(delta, dict) and any(map(delta.get, _TEXT)):
            texts.append(when)
    if not over:
        raise EOFError
    details = usage.get("prompt_tokens_details")
    return Answer(
        begun=begun,
        ended=parts[-1][0],
        texts=texts,
        tokens=_count(usage, "completion_tokens") or len(texts),
        prompt_tokens=_count(usage, "prompt_tokens"),
        cached=_count(details, "cached_tokens"),
        counted=bool(usage),
    )


def _count(usage: object, key: str) -> int | None:
    value = usage.get(key) if isinstance(usage, dict) else None
    return value if isinstance(value, int) else None


def _object(host: str, event: bytes) -> dict[str, Any]:
    try:
        value = json.loads(event)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise MlxoError(f"{host} streams something that is not OpenAI's: {_shown(event)}")
    return value


def _refused(host: str, status: int, body: bytes) -> MlxoError:
    """What OpenAI's {"error": {"message"}}, FastAPI's {"detail"} or anything else says."""
    try:
        value = json.loads(body)
        said = value.get("error") or value.get("detail") or value.get("message")
        said = said.get("message") if isinstance(said, dict) else said
    except (ValueError, RecursionError, AttributeError):
        said = None
    hint = "give it with --api-key" if status in (401, 403) else None
    if status == 404:
        hint = f"what it has is listed under {host}/v1/models"
    cls = _ERRORS.get(status, MlxoError)
    return cls(
        f"{host} answered {status}: {clean(said)[:500] if isinstance(said, str) else _shown(body)}", hint
    )


def _shown(raw: bytes) -> str:
    return clean(raw[:200].decode("utf-8", "replace")).strip() or "nothing"


def _head(host: str, parts: list[Part]) -> tuple[int, str, Iterator[Part]]:
    """(status, content type, body without its chunks)."""
    rest = iter(parts)
    when, head = 0.0, b""
    while b"\r\n\r\n" not in head:
        found = next(rest, None)
        if found is None:
            if head and not head.startswith(b"HTTP/"):
                break
            raise EOFError
        when, head = found[0], head + found[1]
    head, _, body = head.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split()
    if not (first.startswith("HTTP/1.") and len(words) > 1 and words[1].isdecimal()):
        raise ServerUnreachable(f"the program that listens on {host} does not speak HTTP")
    headers = {k.strip().lower(): v.strip().lower() for k, _, v in (line.partition(":") for line in lines)}
    stream: Iterator[Part] = chain([(when, body)], rest)
    if headers.get("transfer-encoding") == "chunked":
        stream = _unchunk(host, stream)
    return int(words[1]), headers.get("content-type", ""), stream


def _unchunk(host: str, parts: Iterable[Part]) -> Iterator[Part]:
    """Source: RFC 9112, section 7.1. Ends at the last chunk or where the bytes end."""
    data, left = b"", 0
    for when, more in parts:
        data += more
        while data:
            if not left:
                line, found, after = data.lstrip(b"\r\n").partition(b"\r\n")
                if not found:
                    break
                try:
                    left = int(line.partition(b";")[0], 16)
                except ValueError:
                    raise ServerUnreachable(
                        f"the program that listens on {host} does not speak HTTP"
                    ) from None
                if left <= 0:
                    return
                data = after
            piece, data = data[:left], data[left:]
            left -= len(piece)
            if piece:
                yield when, piece


def _events(parts: Iterable[Part]) -> Iterator[Part]:
    """The data of every server-sent event, stamped with the time at which its line was whole."""
    data = b""
    for when, more in parts:
        *lines, data = (data + more).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield when, line[5:].strip()
