"""Anthropic's answers: events to named server-sent events, or folded into one message; errors to bodies.

A message is a list of blocks (thinking, text, tool_use); a stream opens, fills and closes one after another.
`input_tokens` are those that no cache had, as Anthropic counts them.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from mlxo.core.errors import MlxoError
from mlxo.core.types import Call, Event, Finished, Started, TextDelta, ThinkDelta, Tokens, ToolCall
from mlxo.server.dialects.base import Parsed, new_id

_encode = msgspec.json.Encoder().encode
_TYPES = {
    400: "invalid_request_error",
    403: "permission_error",
    404: "not_found_error",
    503: "overloaded_error",
}

Json = dict[str, Any]


def error(exc: MlxoError) -> tuple[int, Json]:
    """(HTTP status, body) of an error."""
    body = {"type": _TYPES.get(exc.status, "api_error"), "message": exc.message}
    if exc.hint:
        body["hint"] = exc.hint
    return exc.status, {"type": "error", "error": body}


def input_tokens(events: Sequence[Event]) -> Json:
    """The answer of count_tokens."""
    return {"input_tokens": sum(len(e.ids) for e in events if isinstance(e, Tokens))}


class AnthropicAnswer:
    """One response of /v1/messages, made when its request arrives."""

    content_type = "text/event-stream"

    def __init__(self, parsed: Parsed, make_id: Callable[[str], str] = new_id) -> None:
        self._make_id = make_id
        self._id = make_id("msg_")
        self._model = parsed.request.model
        self._stops = parsed.request.options.stop or ()
        self._calls = 0
        self._thought = ""
        self._block = ""  # the type of the one that is open
        self._index = -1  # its place, or that of the last one
        self._opened = False

    def loaded(self) -> None:
        """These answers tell no durations."""

    def encode(self, events: Sequence[Event]) -> bytes:
        out = b"" if events else _frame({"type": "ping"})  # it keeps the connection open
        for event in events:
            if not self._opened:
                self._opened = True
                out += self._opening(event)
            if isinstance(event, TextDelta):
                out += self._enter("text", {"type": "text", "text": ""})
                out += self._delta({"type": "text_delta", "text": event.text})
            elif isinstance(event, ThinkDelta):
                out += self._enter("thinking", {"type": "thinking", "thinking": "", "signature": ""})
                out += self._delta({"type": "thinking_delta", "thinking": event.text})
                self._thought += event.text
            elif isinstance(event, Call):
                call = self._call(event.call)
                text = _encode(call["input"]).decode()
                out += self._leave() + self._enter("tool_use", {**call, "input": {}})
                out += self._delta({"type": "input_json_delta", "partial_json": text})
            elif isinstance(event, Finished):
                out += self._leave() + self._end(event)
        return out

    def collect(self, events: Sequence[Event]) -> bytes:
        content: list[Json] = []
        if thought := "".join(e.text for e in events if isinstance(e, ThinkDelta)):
            content.append({"type": "thinking", "thinking": thought, "signature": _sign(thought)})
        if text := "".join(e.text for e in events if isinstance(e, TextDelta)):
            content.append({"type": "text", "text": text})
        content += [self._call(e.call) for e in events if isinstance(e, Call)]
        body = self._head(content)
        for event in events:
            if isinstance(event, Finished):
                body |= self._why(event) | {
                    "usage": _count(event.prompt_tokens, event.cached_tokens, event.tokens)
                }
        return _encode(body)

    def encode_error(self, exc: MlxoError) -> bytes:
        return _frame(error(exc)[1])

    def _head(self, content: list[Json]) -> Json:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
        }

    def _opening(self, event: Event) -> bytes:
        prompt = (
            (event.prompt_tokens, event.cached_tokens) if isinstance(event, Started | Finished) else (0, 0)
        )
        message = {**self._head([]), "usage": _count(*prompt, 0)}
        return _frame({"type": "message_start", "message": message}) + _frame({"type": "ping"})

    def _enter(self, kind: str, block: Json) -> bytes:
        """Open a block of this type, unless it is the one that is open."""
        if self._block == kind:
            return b""
        out = self._leave()
        self._block = kind
        self._index += 1
        return out + _frame({"type": "content_block_start", "index": self._index, "content_block": block})

    def _delta(self, delta: Json) -> bytes:
        return _frame({"type": "content_block_delta", "index": self._index, "delta": delta})

    def _leave(self) -> bytes:
        """Close the block that is open. A thought is signed, for clients that keep only signed ones."""
        if not self._block:
            return b""
        out = b""
        if self._block == "thinking":
            out = self._delta({"type": "signature_delta", "signature": _sign(self._thought)})
            self._thought = ""
        self._block = ""
        return out + _frame({"type": "content_block_stop", "index": self._index})

    def _end(self, finished: Finished) -> bytes:
        usage = _count(finished.prompt_tokens, finished.cached_tokens, finished.tokens)
        last = {"type": "message_delta", "delta": self._why(finished), "usage": usage}
        return _frame(last) + _frame({"type": "message_stop"})

    def _why(self, finished: Finished) -> Json:
        """A stop string of the model's own is no stop sequence of the client's."""
        stop = finished.stop if finished.stop in self._stops else None
        reason = "end_turn"
        if finished.reason == "length":
            reason = "max_tokens"
        elif stop is not None:
            reason = "stop_sequence"
        elif self._calls:
            reason = "tool_use"
        return {"stop_reason": reason, "stop_sequence": stop}

    def _call(self, call: ToolCall) -> Json:
        self._calls += 1
        id_ = call.id or self._make_id("toolu_")
        return {"type": "tool_use", "id": id_, "name": call.function.name, "input": call.function.arguments}


def _count(prompt: int, cached: int, tokens: int) -> Json:
    return {
        "input_tokens": prompt - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": tokens,
    }


def _sign(thought: str) -> str:
    """A digest: nobody checks it, but clients send a thought back only with a signature."""
    return base64.b64encode(hashlib.sha256(thought.encode()).digest()).decode()


def _frame(body: Json) -> bytes:
    return f"event: {body['type']}\ndata: ".encode() + _encode(body) + b"\n\n"
