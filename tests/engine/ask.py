"""Requests and what came of them, for tests that drive a whole engine."""

from __future__ import annotations

import itertools
from typing import Any

from mlxo.core.options import Options
from mlxo.core.types import (
    Chat,
    Complete,
    Event,
    Failed,
    Finished,
    Message,
    Request,
    Started,
    TextDelta,
    Think,
    ThinkDelta,
)
from mlxo.engine.engine import Engine

_ids = itertools.count()


def chat(*messages: str | Message, think: Think | None = False, **fields: Any) -> Request:
    """Strings are turns of the user. Greedy unless `options` says otherwise; `task` holds Chat's fields."""
    turns = tuple(Message(role="user", content=m) if isinstance(m, str) else m for m in messages)
    return _request(Chat(messages=turns, think=think, **fields.pop("task", {})), fields)


def complete(prompt: str, **fields: Any) -> Request:
    return _request(Complete(prompt=prompt, **fields.pop("task", {})), fields)


def _request(task: Chat | Complete, fields: dict[str, Any]) -> Request:
    options = fields.pop("options", {})
    return Request(
        id=f"r{next(_ids)}",
        model="m",
        task=task,
        options=Options(**{"temperature": 0.0, **options}),
        **fields,
    )


class Answer:
    def __init__(self, events: list[Event]) -> None:
        self.events = events
        self.text = "".join(e.text for e in events if isinstance(e, TextDelta))
        self.thinking = "".join(e.text for e in events if isinstance(e, ThinkDelta))

    @property
    def started(self) -> Started:
        (started,) = (e for e in self.events if isinstance(e, Started))
        return started

    @property
    def finished(self) -> Finished:
        last = self.events[-1]
        assert isinstance(last, Finished), last
        return last

    @property
    def failed(self) -> Failed:
        last = self.events[-1]
        assert isinstance(last, Failed), last
        return last


def run(engine: Engine, *requests: Request) -> list[Answer]:
    """The answers, in the order of the requests, all asked at once."""
    got: dict[str, list[Event]] = {r.id: [] for r in requests}
    for request in requests:
        engine.submit(request)
    while engine.busy:
        for id_, event in engine.step():
            got[id_].append(event)
    return [Answer(got[r.id]) for r in requests]


def say(engine: Engine, request: Request) -> Answer:
    (answer,) = run(engine, request)
    return answer
