"""OpenAI's answers: events to server-sent chunks, or folded into one object; errors to bodies.

A stream is `data: {chunk}` frames, each with an empty line behind it, and `data: [DONE]` at its end. One that
fails midway ends with a frame that has `error`, and no [DONE]. Reasoning is told apart as `reasoning`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from mlxo.core.errors import MlxoError
from mlxo.core.types import Call, Complete, Event, Finished, TextDelta, ThinkDelta, ToolCall
from mlxo.server.dialects.base import Clock, Parsed, new_id

_encode = msgspec.json.Encoder().encode
_TYPES = {400: "invalid_request_error", 403: "permission_error", 404: "not_found_error"}

Json = dict[str, Any]


def error(exc: MlxoError) -> tuple[int, Json]:
    """(HTTP status, body) of an error."""
    body = {"message": exc.message, "type": _TYPES.get(exc.status, "api_error"), "param": None}
    body["code"] = exc.code
    if exc.hint:
        body["hint"] = exc.hint
    return exc.status, {"error": body}


class OpenAIAnswer:
    """One response of /v1/chat/completions or /v1/completions, made when its request arrives."""

    content_type = "text/event-stream"

    def __init__(
        self,
        route: Literal["chat", "text"],
        parsed: Parsed,
        clock: Clock | None = None,
        make_id: Callable[[str], str] = new_id,
    ) -> None:
        self._chat = route == "chat"
        self._make_id = make_id
        self._id = make_id("chatcmpl-" if self._chat else "cmpl-")
        self._created = int((clock or Clock()).now().timestamp())
        self._model = parsed.request.model
        self._usage = "usage" in parsed.wishes
        task = parsed.request.task
        self._echo = task.prompt if isinstance(task, Complete) and "echo" in parsed.wishes else ""
        self._calls = 0
        self._opened = False

    def loaded(self) -> None:
        """These answers tell no durations."""

    def encode(self, events: Sequence[Event]) -> bytes:
        out = b""
        for event in events:
            if not self._opened:
                self._opened = True
                out += self._opening()
            if isinstance(event, TextDelta):
                out += self._chunk(self._say(event.text))
            elif isinstance(event, ThinkDelta):
                out += self._chunk({"delta": {"reasoning": event.text}})
            elif isinstance(event, Call):
                call = {"index": self._calls, **self._call(event.call)}
                out += self._chunk({"delta": {"tool_calls": [call]}})
            elif isinstance(event, Finished):
                out += self._end(event)
        return out

    def collect(self, events: Sequence[Event]) -> bytes:
        text = self._echo + "".join(e.text for e in events if isinstance(e, TextDelta))
        body = self._head("chat.completion" if self._chat else "text_completion")
        choice: Json = {"text": text}
        if self._chat:
            calls = [self._call(e.call) for e in events if isinstance(e, Call)]
            message: Json = {"role": "assistant", "content": text or (None if calls else "")}
            if thought := "".join(e.text for e in events if isinstance(e, ThinkDelta)):
                message["reasoning"] = thought
            if calls:
                message["tool_calls"] = calls
            choice = {"message": message}
        for event in events:
            if isinstance(event, Finished):
                body["choices"] = [
                    {"index": 0, **choice, "logprobs": None, "finish_reason": self._why(event)}
                ]
                body["usage"] = _count(event)
        return _encode(body)

    def encode_error(self, exc: MlxoError) -> bytes:
        return _frame(error(exc)[1])

    def _opening(self) -> bytes:
        """Who speaks, told once; of a completion the prompt, when it is to be repeated."""
        if self._chat:
            return self._chunk({"delta": {"role": "assistant", "content": ""}})
        return self._chunk(self._say(self._echo)) if self._echo else b""

    def _end(self, finished: Finished) -> bytes:
        last: Json = {"delta": {}} if self._chat else {"text": ""}
        out = self._chunk(last, self._why(finished))
        if self._usage:
            out += _frame({**self._head(self._kind), "choices": [], "usage": _count(finished)})
        return out + b"data: [DONE]\n\n"

    def _say(self, text: str) -> Json:
        return {"delta": {"content": text}} if self._chat else {"text": text}

    def _chunk(self, choice: Json, why: str | None = None) -> bytes:
        choices = [{"index": 0, **choice, "logprobs": None, "finish_reason": why}]
        return _frame({**self._head(self._kind), "choices": choices})

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self._chat else "text_completion"

    def _head(self, kind: str) -> Json:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _call(self, call: ToolCall) -> Json:
        self._calls += 1
        function = {"name": call.function.name, "arguments": _encode(call.function.arguments).decode()}
        return {"id": call.id or self._make_id("call_"), "type": "function", "function": function}

    def _why(self, finished: Finished) -> str:
        return "tool_calls" if self._calls and finished.reason == "stop" else finished.reason


def _count(finished: Finished) -> Json:
    return {
        "prompt_tokens": finished.prompt_tokens,
        "completion_tokens": finished.tokens,
        "total_tokens": finished.prompt_tokens + finished.tokens,
        "prompt_tokens_details": {"cached_tokens": finished.cached_tokens},
    }


def _frame(body: Json) -> bytes:
    return b"data: " + _encode(body) + b"\n\n"
