"""Embeddings: Ollama's /api/embed and /api/embeddings, OpenAI's /v1/embeddings.

Sources: https://github.com/ollama/ollama/blob/main/docs/api.md and
https://platform.openai.com/docs/api-reference/embeddings. Vectors have length one, but for those of
/api/embeddings, which Ollama leaves as they are.
"""

from __future__ import annotations

import array
import base64
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import msgspec

from mlxo.core import duration
from mlxo.core.errors import InvalidRequest
from mlxo.core.options import from_json
from mlxo.core.types import Embed, Event, Finished, Request, Task, Touch, Vectors
from mlxo.server.dialects import ollama_lines, openai_lines
from mlxo.server.dialects.base import Clock, Dialect, Need, Parsed
from mlxo.server.dialects.body import decode
from mlxo.server.dialects.ollama import Token

_encode = msgspec.json.Encoder().encode
_MOST = 2048  # inputs of a request to /v1

Json = dict[str, Any]
Inputs = tuple[str | tuple[int, ...], ...]
Route = Literal["embed", "embeddings", "v1"]


class _Common(msgspec.Struct):
    """Every field may be null."""

    model: str | None = None
    dimensions: int | None = None
    truncate: bool | None = None
    keep_alive: Any = None
    options: dict[str, Any] | None = None


class EmbedBody(_Common):
    input: Any = None


class EmbeddingsBody(_Common):
    prompt: str | None = None


class V1Body(_Common):
    input: Any = None
    encoding_format: str | None = None


def parse_embed(body: bytes, id_: str) -> Parsed:
    """POST /api/embed. No input is a Touch. Raises InvalidRequest."""
    sent = decode(body, EmbedBody)
    given = sent.input
    if given is None or given in ("", []):
        return _parsed(sent, id_, Touch())
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
        raise InvalidRequest("invalid input type")
    return _parsed(sent, id_, _task(sent, tuple(texts)))


def parse_embeddings(body: bytes, id_: str) -> Parsed:
    """POST /api/embeddings, for one text. An empty one is a Touch. Raises InvalidRequest."""
    sent = decode(body, EmbeddingsBody)
    return _parsed(sent, id_, _task(sent, (sent.prompt,), normalise=False) if sent.prompt else Touch())


def parse_v1(body: bytes, id_: str) -> Parsed:
    """POST /v1/embeddings. Raises InvalidRequest."""
    sent = decode(body, V1Body)
    if sent.encoding_format not in (None, "float", "base64"):
        raise InvalidRequest(f"encoding_format must be float or base64: {sent.encoding_format[:80]!r}")
    parsed = _parsed(sent, id_, _task(sent, _inputs(sent.input)))
    return parsed._replace(wishes=frozenset(("base64",) if sent.encoding_format == "base64" else ()))


def _inputs(sent: Any) -> Inputs:
    """A text, a list of them, the token ids of a text, or a list of such."""
    try:
        found = msgspec.convert(sent, str | list[str | Token | list[Token]])
    except msgspec.ValidationError:
        raise InvalidRequest("invalid input", "it is text or token ids, or a list of them") from None
    if isinstance(found, str):
        return (found,)
    if found and all(isinstance(i, int) for i in found):
        return (tuple(i for i in found if isinstance(i, int)),)
    if not found or any(isinstance(i, int) for i in found):
        raise InvalidRequest("invalid input", "it is text or token ids, or a list of them")
    if len(found) > _MOST:
        raise InvalidRequest(f"input may have {_MOST} entries at most", "send several requests")
    return tuple(i if isinstance(i, str) else tuple(i) for i in found if not isinstance(i, int))


def _task(sent: _Common, inputs: Inputs, *, normalise: bool = True) -> Embed:
    dimensions = sent.dimensions or 0
    if dimensions < 0:
        raise InvalidRequest("dimensions must be at least 1")
    truncate = sent.truncate is not False
    return Embed(inputs=inputs, truncate=truncate, dimensions=dimensions, normalise=normalise)


def _parsed(sent: _Common, id_: str, task: Task) -> Parsed:
    model = (sent.model or "").strip()
    if not model:
        raise InvalidRequest("model is required")
    request = Request(
        id=id_,
        model=model,
        task=task,
        options=from_json(sent.options or {}),
        stream=False,
        keep_alive=duration.keep_alive(sent.keep_alive),
    )
    return Parsed(request, (Need("embedding", f'"{model}" does not support embeddings'),))


class EmbeddingAnswer:
    """One response of the three routes, made when its request arrives."""

    def __init__(self, route: Route, parsed: Parsed, clock: Clock | None = None) -> None:
        self._route = route
        self._model = parsed.request.model
        self._base64 = "base64" in parsed.wishes
        self._clock = clock or Clock()
        self._started = self._clock.monotonic()
        self._load_ns = 0

    def loaded(self) -> None:
        self._load_ns = self._clock.monotonic() - self._started

    def collect(self, events: Sequence[Event]) -> bytes:
        counted = sum(e.prompt_tokens for e in events if isinstance(e, Finished))
        if self._route == "v1":
            return _encode(self._v1(_gathered(events, _base64 if self._base64 else _floats), counted))
        vectors = _gathered(events, _floats)
        if self._route == "embeddings":
            return _encode({"embedding": vectors[0] if vectors else []})
        body: Json = {"model": self._model, "embeddings": vectors}
        if vectors:
            body["total_duration"] = self._clock.monotonic() - self._started
            body["load_duration"] = self._load_ns
            body["prompt_eval_count"] = counted
        return _encode(body)

    def _v1(self, vectors: list[Any], counted: int) -> Json:
        data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
        usage = {"prompt_tokens": counted, "total_tokens": counted}
        return {"object": "list", "data": data, "model": self._model, "usage": usage}


def _gathered(events: Sequence[Event], read: Callable[[bytes], Any]) -> list[Any]:
    """The vectors in the order of the inputs."""
    found: dict[int, Any] = {}
    for event in events:
        if isinstance(event, Vectors):
            size = 4 * event.width
            for i, place in enumerate(event.places):
                found[place] = read(event.data[i * size : (i + 1) * size])
    return [found[place] for place in sorted(found)]


def _floats(data: bytes) -> list[float]:
    """As they are, 32 bits written with the digits of 64."""
    return array.array("f", data).tolist()


def _base64(data: bytes) -> str:
    """OpenAI's bytes are little-endian."""
    numbers = array.array("f", data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()


_MISSING = 'model "{}" not found, try pulling it first'
EMBED = Dialect(parse_embed, partial(EmbeddingAnswer, "embed"), ollama_lines.error, _MISSING)
EMBEDDINGS = Dialect(parse_embeddings, partial(EmbeddingAnswer, "embeddings"), ollama_lines.error, _MISSING)
V1_EMBEDDINGS = Dialect(parse_v1, partial(EmbeddingAnswer, "v1"), openai_lines.error)
