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
from mlxo.server.dialects.likely import Offsets, content, spoken

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


class _Choice:
    """One of the answers to one request."""

    def __init__(self, index: int, start: int) -> None:
        """`start` is where its text begins, in characters: behind a prompt that is repeated."""
        self.index = index
        self.calls = 0
        self.opened = False
        self.offsets = Offsets(start)

    def why(self, finished: Finished) -> str:
        return "tool_calls" if self.calls and finished.reason == "stop" else finished.reason


class OpenAIAnswer:
    """One response of /v1/chat/completions or /v1/completions, made when its request arrives.

    It has as many choices as `parsed.copies`; their events come by their index.
    """

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
        self._logprobs = parsed.request.logprobs is not None
        self._choices = [_Choice(i, len(self._echo)) for i in range(parsed.copies)]
        self._finished: list[Finished] = []

    def loaded(self) -> None:
        """These answers tell no durations."""

    def encode(self, events: Sequence[Event]) -> bytes:
        return self.encode_choice(0, events)

    def encode_choice(self, index: int, events: Sequence[Event]) -> bytes:
        choice = self._choices[index]
        out = b"" if events else b": at work\n\n"  # a comment: it keeps the connection open
        for event in events:
            if not choice.opened:
                choice.opened = True
                out += self._opening(choice)
            if isinstance(event, TextDelta):
                said = {"delta": {"content": event.text}} if self._chat else {"text": event.text}
                likely = self._likely(choice, [event]) if self._logprobs else None
                # Tokens that are no text come with an empty one.
                if event.text or likely:
                    out += self._chunk(choice, said, logprobs=likely)
            elif isinstance(event, ThinkDelta):
                out += self._chunk(choice, {"delta": {"reasoning": event.text}})
            elif isinstance(event, Call):
                call = {"index": choice.calls, **self._call(choice, event.call)}
                out += self._chunk(choice, {"delta": {"tool_calls": [call]}})
            elif isinstance(event, Finished):
                out += self._end(choice, event)
        return out

    def collect(self, events: Sequence[Event]) -> bytes:
        return self.collect_choices([events])

    def collect_choices(self, answers: Sequence[Sequence[Event]]) -> bytes:
        body = self._head("chat.completion" if self._chat else "text_completion")
        body["choices"] = [self._whole(c, events) for c, events in zip(self._choices, answers, strict=True)]
        body["usage"] = _count(self._finished)
        return _encode(body)

    def encode_error(self, exc: MlxoError) -> bytes:
        return _frame(error(exc)[1])

    def _whole(self, choice: _Choice, events: Sequence[Event]) -> Json:
        text = self._echo + "".join(e.text for e in events if isinstance(e, TextDelta))
        said: Json = {"text": text}
        if self._chat:
            calls = [self._call(choice, e.call) for e in events if isinstance(e, Call)]
            message: Json = {"role": "assistant", "content": text or (None if calls else "")}
            if thought := "".join(e.text for e in events if isinstance(e, ThinkDelta)):
                message["reasoning"] = thought
            if calls:
                message["tool_calls"] = calls
            said = {"message": message}
        why = None
        for event in events:
            if isinstance(event, Finished):
                self._finished.append(event)
                why = choice.why(event)
        likely = self._likely(choice, events) if self._logprobs else None
        return {"index": choice.index, **said, "logprobs": likely, "finish_reason": why}

    def _likely(self, choice: _Choice, events: Sequence[Event]) -> Json | None:
        tokens = spoken(events)
        if not tokens:
            return None
        return content(tokens) if self._chat else choice.offsets.tell(tokens)

    def _opening(self, choice: _Choice) -> bytes:
        """Who speaks, told once; of a completion the prompt, when it is to be repeated."""
        if self._chat:
            return self._chunk(choice, {"delta": {"role": "assistant", "content": ""}})
        return self._chunk(choice, {"text": self._echo}) if self._echo else b""

    def _end(self, choice: _Choice, finished: Finished) -> bytes:
        """The end of a choice, and of the stream when it is the last."""
        self._finished.append(finished)
        out = self._chunk(choice, {"delta": {}} if self._chat else {"text": ""}, choice.why(finished))
        if len(self._finished) < len(self._choices):
            return out
        if self._usage:
            out += _frame({**self._head(self._kind), "choices": [], "usage": _count(self._finished)})
        return out + b"data: [DONE]\n\n"

    def _chunk(
        self, choice: _Choice, said: Json, why: str | None = None, logprobs: Json | None = None
    ) -> bytes:
        choices = [{"index": choice.index, **said, "logprobs": logprobs, "finish_reason": why}]
        return _frame({**self._head(self._kind), "choices": choices})

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self._chat else "text_completion"

    def _head(self, kind: str) -> Json:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _call(self, choice: _Choice, call: ToolCall) -> Json:
        choice.calls += 1
        function = {"name": call.function.name, "arguments": _encode(call.function.arguments).decode()}
        return {"id": call.id or self._make_id("call_"), "type": "function", "function": function}


def _count(answers: Sequence[Finished]) -> Json:
    """The prompt counts once, however many answers it has."""
    prompt = max((a.prompt_tokens for a in answers), default=0)
    said = sum(a.tokens for a in answers)
    details = {"cached_tokens": min((a.cached_tokens for a in answers), default=0)}
    if cut := max((a.cut for a in answers), default=0):
        details["truncated_tokens"] = cut
    usage: Json = {
        "prompt_tokens": prompt,
        "completion_tokens": said,
        "total_tokens": prompt + said,
        "prompt_tokens_details": details,
    }
    if thought := sum(a.thought for a in answers):
        usage["completion_tokens_details"] = {"reasoning_tokens": thought}
    return usage


def _frame(body: Json) -> bytes:
    return b"data: " + _encode(body) + b"\n\n"
