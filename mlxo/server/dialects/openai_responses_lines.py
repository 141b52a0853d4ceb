"""Answers of /v1/responses: events to named server-sent events, or folded into one response.

A response is a list of items: reasoning, a message, function calls. A stream opens, fills and closes one
after another, and its last event holds the whole. A stream that fails midway ends with `response.failed`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import msgspec

from mlxo.core.errors import MlxoError
from mlxo.core.types import Call, Event, Finished, TextDelta, ThinkDelta
from mlxo.server.dialects.base import Clock, new_id
from mlxo.server.dialects.likely import content, spoken
from mlxo.server.dialects.openai_responses import Asked

_encode = msgspec.json.Encoder().encode

Json = dict[str, Any]
Kind = Literal["reasoning", "message"]


class ResponsesAnswer:
    """One response, made when its request arrives. `keep` gets it at its end, before the client does."""

    content_type = "text/event-stream"

    def __init__(
        self,
        asked: Asked,
        keep: Callable[[Json], None],
        clock: Clock | None = None,
        make_id: Callable[[str], str] = new_id,
    ) -> None:
        self._clock = clock or Clock()
        self._make_id = make_id
        self._keep = keep
        self._summary = asked.summary
        self._logprobs = asked.parsed.request.logprobs is not None
        self._sequence = -1
        self._open: tuple[Kind, Json] | None = None
        self._text: list[str] = []
        self._likely: list[Json] = []
        self._last: list[Json] = []  # the events of an end that is none of the model's
        self.response: Json = {
            "id": make_id("resp_"),
            "object": "response",
            "created_at": self._now(),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
            **asked.head,
        }

    def loaded(self) -> None:
        """These answers tell no durations."""

    def encode(self, events: Sequence[Event]) -> bytes:
        out = b"" if events else b": at work\n\n"  # a comment: it keeps the connection open
        for event in events:
            out += b"".join(map(_frame, self._tell(event)))
        return out

    def collect(self, events: Sequence[Event]) -> bytes:
        for event in events:
            for _ in self._tell(event):
                pass
        return _encode(self.response)

    def encode_error(self, exc: MlxoError) -> bytes:
        self.fail(exc)
        return b"".join(map(_frame, self._last))

    def fail(self, exc: MlxoError) -> None:
        """End it with an error, unless it has ended."""
        if self.response["status"] != "in_progress":
            return
        self._last += self._leave("incomplete")
        code = "invalid_prompt" if exc.status == 400 else "server_error"
        status = "cancelled" if exc.code == "cancelled" else "failed"
        self._end(status, error=None if status == "cancelled" else {"code": code, "message": exc.message})
        self._last.append(self._event("response.failed", response=self.response))

    # ------------------------------------------------------------ one event of the engine

    def _tell(self, event: Event) -> Iterator[Json]:
        if self._sequence < 0:
            yield self._event("response.created", response=self.response)
            yield self._event("response.in_progress", response=self.response)
        if isinstance(event, ThinkDelta):
            yield from self._enter("reasoning")
            yield from self._think(event)
        elif isinstance(event, TextDelta):
            likely = content(spoken([event]))["content"] if self._logprobs else []
            if event.text or likely:
                yield from self._enter("message")
                self._text.append(event.text)
                self._likely += likely
                yield self._part("response.output_text.delta", delta=event.text, logprobs=likely)
        elif isinstance(event, Call):
            yield from self._leave("completed")
            yield from self._call(event)
        elif isinstance(event, Finished):
            yield from self._finish(event)

    def _finish(self, event: Finished) -> Iterator[Json]:
        if self._open is None and not self.response["output"]:
            yield from self._enter("message")  # an answer of no words is a message all the same
        cut = event.reason == "length"
        yield from self._leave("incomplete" if cut else "completed")
        self._end(
            "incomplete" if cut else "completed",
            incomplete_details={"reason": "max_output_tokens"} if cut else None,
            usage={
                "input_tokens": event.prompt_tokens,
                "input_tokens_details": {"cached_tokens": event.cached_tokens, "cache_write_tokens": 0},
                "output_tokens": event.tokens,
                "output_tokens_details": {"reasoning_tokens": event.thought},
                "total_tokens": event.prompt_tokens + event.tokens,
            },
        )
        yield self._event(f"response.{self.response['status']}", response=self.response)

    def _end(self, status: str, **fields: Any) -> None:
        self.response |= {"status": status, "completed_at": self._now(), **fields}
        self._keep(self.response)

    def _call(self, event: Call) -> Iterator[Json]:
        function = event.call.function
        text = _encode(function.arguments).decode()
        item = {
            "type": "function_call",
            "id": self._make_id("fc_"),
            "call_id": event.call.id or self._make_id("call_"),
            "name": function.name,
            "arguments": "",
            "status": "in_progress",
        }
        yield self._event("response.output_item.added", output_index=self._index, item=item)
        place = {"item_id": item["id"], "output_index": self._index}
        yield self._event("response.function_call_arguments.delta", **place, delta=text)
        yield self._event(
            "response.function_call_arguments.done", **place, arguments=text, name=function.name
        )
        yield self._done(item | {"arguments": text, "status": "completed"})

    # ------------------------------------------------------------ items of text

    def _enter(self, kind: Kind) -> Iterator[Json]:
        """Open an item of this kind, unless it is the one that is open."""
        if self._open is not None:
            if self._open[0] == kind:
                return
            yield from self._leave("completed")
        self._text, self._likely = [], []
        item: Json = {"type": kind, "id": self._make_id("rs_" if kind == "reasoning" else "msg_")}
        if kind == "reasoning":
            item["summary"] = []
        else:
            item |= {"role": "assistant", "content": []}
        item["status"] = "in_progress"
        self._open = kind, item
        yield self._event("response.output_item.added", output_index=self._index, item=item)
        if kind == "reasoning" and self._summary:
            yield self._summed("response.reasoning_summary_part.added", part=_summary_part(""))
        else:
            part = _reasoning_part("") if kind == "reasoning" else _text_part("", [])
            yield self._part("response.content_part.added", part=part)

    def _think(self, event: ThinkDelta) -> Iterator[Json]:
        self._text.append(event.text)
        if self._summary:
            yield self._summed("response.reasoning_summary_text.delta", delta=event.text)
        else:
            yield self._part("response.reasoning_text.delta", delta=event.text)

    def _leave(self, status: str) -> Iterator[Json]:
        """Close the item that is open."""
        if self._open is None:
            return
        kind, item = self._open
        text = "".join(self._text)
        filled = {**item, "status": status}
        if kind == "message":
            part = _text_part(text, self._likely)
            filled["content"] = [part]
            yield self._part("response.output_text.done", text=text, logprobs=self._likely)
            yield self._part("response.content_part.done", part=part)
        elif self._summary:
            part = _summary_part(text)
            filled["summary"] = [part]
            yield self._summed("response.reasoning_summary_text.done", text=text)
            yield self._summed("response.reasoning_summary_part.done", part=part)
        else:
            part = _reasoning_part(text)
            filled["content"] = [part]
            yield self._part("response.reasoning_text.done", text=text)
            yield self._part("response.content_part.done", part=part)
        self._open = None
        yield self._done(filled)

    # ------------------------------------------------------------ events of the stream

    @property
    def _index(self) -> int:
        """The place of the item that is open, or of the next one."""
        return len(self.response["output"])

    def _done(self, item: Json) -> Json:
        event = self._event("response.output_item.done", output_index=self._index, item=item)
        self.response["output"].append(item)
        return event

    def _part(self, kind: str, **fields: Any) -> Json:
        assert self._open is not None
        id_ = self._open[1]["id"]
        return self._event(kind, item_id=id_, output_index=self._index, content_index=0, **fields)

    def _summed(self, kind: str, **fields: Any) -> Json:
        assert self._open is not None
        id_ = self._open[1]["id"]
        return self._event(kind, item_id=id_, output_index=self._index, summary_index=0, **fields)

    def _event(self, kind: str, **fields: Any) -> Json:
        self._sequence += 1
        return {"type": kind, "sequence_number": self._sequence, **fields}

    def _now(self) -> int:
        return int(self._clock.now().timestamp())


def _text_part(text: str, likely: list[Json]) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": likely}


def _reasoning_part(text: str) -> Json:
    return {"type": "reasoning_text", "text": text}


def _summary_part(text: str) -> Json:
    return {"type": "summary_text", "text": text}


def _frame(event: Json) -> bytes:
    return f"event: {event['type']}\ndata: ".encode() + _encode(event) + b"\n\n"
