"""Ollama's answers: events to NDJSON lines, or folded into one object; errors to bodies.

Counts and durations (nanoseconds) that are zero are left out, `created_at` is UTC with at most six decimals,
one line a delta, and a last line with `done`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec

from mlxo.core.errors import MlxoError
from mlxo.core.types import Call, Complete, Event, Finished, Request, TextDelta, ThinkDelta, ToolCall
from mlxo.server.dialects.base import Clock, new_id
from mlxo.server.dialects.likely import every

_encode = msgspec.json.Encoder().encode


class FunctionOut(msgspec.Struct):
    index: int
    name: str
    arguments: dict[str, Any]


class CallOut(msgspec.Struct):
    id: str
    function: FunctionOut


class MessageOut(msgspec.Struct, omit_defaults=True, kw_only=True):
    role: str
    content: str
    thinking: str = ""
    tool_calls: list[CallOut] | None = None


class Line(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A line of either route: generate sets `response` (with `thinking`, `tool_calls`), chat `message`."""

    model: str
    created_at: datetime
    response: str | msgspec.UnsetType = msgspec.UNSET
    message: MessageOut | msgspec.UnsetType = msgspec.UNSET
    thinking: str = ""
    tool_calls: list[CallOut] | None = None
    logprobs: list[dict[str, Any]] | None = None
    done: bool
    done_reason: str = ""
    context: tuple[int, ...] | None = None
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0
    cached_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    truncated_tokens: int = 0


def error(exc: MlxoError) -> tuple[int, dict[str, Any]]:
    """(HTTP status, body) of an error. Ollama's clients read `error`; our command line shows `hint` too."""
    body = {"error": exc.message}
    if exc.hint:
        body["hint"] = exc.hint
    return exc.status, body


class OllamaAnswer:
    """One response of /api/generate or /api/chat, made when its request arrives."""

    content_type = "application/x-ndjson"

    def __init__(
        self,
        route: Literal["generate", "chat"],
        request: Request,
        clock: Clock | None = None,
        make_id: Callable[[str], str] = new_id,
    ) -> None:
        self._chat = route == "chat"
        self._context = not self._chat and not isinstance(request.task, Complete)  # raw answers have none
        self._clock = clock or Clock()
        self._model = request.model
        self._make_id = make_id
        self._logprobs = request.logprobs is not None
        self._started = self._clock.monotonic()
        self._load_ns = 0

    def loaded(self) -> None:
        self._load_ns = self._clock.monotonic() - self._started

    def encode(self, events: Sequence[Event]) -> bytes:
        lines = bytearray()
        for event in events:
            if isinstance(event, TextDelta):
                line = self._line(text=event.text)
            elif isinstance(event, ThinkDelta):
                line = self._line(thinking=event.text)
            elif isinstance(event, Call):
                line = self._line(calls=[self._call(event.call)])
            elif isinstance(event, Finished):
                line = self._line()
                self._end(line, event)
            else:
                continue
            if self._logprobs:
                line.logprobs = every([event]) or None
            lines += _encode(line)
            lines += b"\n"
        return bytes(lines)

    def collect(self, events: Sequence[Event]) -> bytes:
        line = self._line(
            text="".join(e.text for e in events if isinstance(e, TextDelta)),
            thinking="".join(e.text for e in events if isinstance(e, ThinkDelta)),
            calls=[self._call(e.call) for e in events if isinstance(e, Call)],
        )
        line.logprobs = every(events) or None
        for event in events:
            if isinstance(event, Finished):
                self._end(line, event)
        return _encode(line)

    def encode_error(self, exc: MlxoError) -> bytes:
        return _encode(error(exc)[1]) + b"\n"

    def _line(self, *, text: str = "", thinking: str = "", calls: Sequence[CallOut] = ()) -> Line:
        line = Line(model=self._model, created_at=self._clock.now(), done=False)
        if self._chat:
            line.message = MessageOut(
                role="assistant", content=text, thinking=thinking, tool_calls=list(calls) or None
            )
        else:
            line.response, line.thinking, line.tool_calls = text, thinking, list(calls) or None
        return line

    def _end(self, line: Line, finished: Finished) -> None:
        line.done = True
        line.done_reason = finished.reason
        if finished.reason in ("load", "unload"):
            return
        if self._context:
            line.context = finished.context or None
        line.total_duration = self._clock.monotonic() - self._started
        line.load_duration = self._load_ns
        line.prompt_eval_count = finished.prompt_tokens
        line.prompt_eval_duration = finished.prompt_ns
        line.eval_count = finished.tokens
        line.eval_duration = finished.eval_ns
        line.cached_tokens = finished.cached_tokens
        line.drafted_tokens = finished.drafted
        line.accepted_tokens = finished.accepted
        line.truncated_tokens = finished.cut

    def _call(self, call: ToolCall) -> CallOut:
        function = FunctionOut(call.function.index, call.function.name, call.function.arguments)
        return CallOut(call.id or self._make_id("call_"), function)
