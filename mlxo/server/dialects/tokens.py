"""Text to token ids and back: under /api as llama.cpp's server has it, under /v1 as vLLM has it.

Sources: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md and
https://docs.vllm.ai/en/latest/serving/openai_compatible_server/#tokenizer-api.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from mlxo.core import duration
from mlxo.core.errors import InvalidRequest
from mlxo.core.options import Options
from mlxo.core.types import Chat, Complete, Detokenize, Event, Request, Task, TextDelta, Tokenize, Tokens
from mlxo.server.dialects import ollama_lines, openai, openai_lines
from mlxo.server.dialects.base import Dialect, Folded, Parsed
from mlxo.server.dialects.body import decode
from mlxo.server.dialects.ollama import Token

Json = dict[str, Any]


class TokenizeBody(msgspec.Struct):
    """`prompt` is another word for `content`."""

    model: str | None = None
    content: str | None = None
    prompt: str | None = None
    add_special: bool | None = None
    keep_alive: Any = None


class V1TokenizeBody(msgspec.Struct):
    """Has a prompt, or all that a chat has."""

    model: str | None = None
    prompt: str | None = None
    messages: Any = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None
    keep_alive: Any = None


class DetokenizeBody(msgspec.Struct):
    model: str | None = None
    tokens: list[Token] | None = None
    keep_alive: Any = None


def parse_tokenize(body: bytes, id_: str) -> Parsed:
    """POST /api/tokenize. Special tokens in the text are read as such. Raises InvalidRequest."""
    sent = decode(body, TokenizeBody)
    text = sent.prompt if sent.content is None else sent.content
    if text is None:
        raise InvalidRequest("content is required")
    return _parsed(sent, id_, Tokenize(of=Complete(prompt=text), special=bool(sent.add_special)))


def parse_v1_tokenize(body: bytes, id_: str) -> Parsed:
    """POST /v1/tokenize. Raises InvalidRequest."""
    sent = decode(body, V1TokenizeBody)
    names = bool(sent.return_token_strs)
    if sent.messages is None:
        if sent.prompt is None:
            raise InvalidRequest("prompt or messages is required")
        special = sent.add_special_tokens is not False
        return _parsed(sent, id_, Tokenize(of=Complete(prompt=sent.prompt), special=special, names=names))
    if sent.add_generation_prompt is False:
        raise InvalidRequest(
            "mlxo does not support add_generation_prompt false",
            "end with a turn of the assistant to go on with",
        )
    parsed = openai.parse_chat(body, id_)
    assert isinstance(parsed.request.task, Chat)
    task = Tokenize(of=parsed.request.task, names=names)
    return Parsed(msgspec.structs.replace(parsed.request, task=task, stream=False), parsed.needs)


def parse_detokenize(body: bytes, id_: str) -> Parsed:
    """POST /api/detokenize and /v1/detokenize. Raises InvalidRequest."""
    sent = decode(body, DetokenizeBody)
    if sent.tokens is None:
        raise InvalidRequest("tokens is required")
    return _parsed(sent, id_, Detokenize(ids=tuple(sent.tokens)))


def _parsed(sent: TokenizeBody | V1TokenizeBody | DetokenizeBody, id_: str, task: Task) -> Parsed:
    model = (sent.model or "").strip()
    if not model:
        raise InvalidRequest("model is required")
    keep_alive = duration.keep_alive(sent.keep_alive)
    return Parsed(
        Request(id=id_, model=model, task=task, options=Options(), stream=False, keep_alive=keep_alive)
    )


def ids(events: Sequence[Event]) -> Json:
    return {"tokens": _told(events).ids}


def v1_ids(events: Sequence[Event]) -> Json:
    told = _told(events)
    return {
        "count": len(told.ids),
        "max_model_len": told.context,
        "tokens": told.ids,
        "token_strs": told.names or None,
    }


def content(events: Sequence[Event]) -> Json:
    return {"content": _text(events)}


def v1_prompt(events: Sequence[Event]) -> Json:
    return {"prompt": _text(events)}


def _told(events: Sequence[Event]) -> Tokens:
    (told,) = (e for e in events if isinstance(e, Tokens))
    return told


def _text(events: Sequence[Event]) -> str:
    return "".join(e.text for e in events if isinstance(e, TextDelta))


TOKENIZE = Dialect(parse_tokenize, lambda _: Folded(ids), ollama_lines.error)
DETOKENIZE = Dialect(parse_detokenize, lambda _: Folded(content), ollama_lines.error)
V1_TOKENIZE = Dialect(parse_v1_tokenize, lambda _: Folded(v1_ids), openai_lines.error)
V1_DETOKENIZE = Dialect(parse_detokenize, lambda _: Folded(v1_prompt), openai_lines.error)
