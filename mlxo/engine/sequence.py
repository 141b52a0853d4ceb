"""One request on its way through the engine: tokens in, events out. Engine thread only."""

from __future__ import annotations

import time

from mlxo.chat.splitter import Splitter
from mlxo.core.types import Event, Failed, Finished, FinishReason, Started
from mlxo.engine.batch import Job, Out
from mlxo.engine.detokenize import Stream


class Sequence:
    """The mutable side of a request. `job` is what the back end steps."""

    def __init__(self, job: Job, stream: Stream, splitter: Splitter, truncated: int) -> None:
        self.job = job
        self._stream = stream
        self._splitter = splitter
        self._truncated = truncated
        self._answer: list[int] = []
        self._tokens = 0
        self._cached = 0
        self._joined = 0
        self._first = 0

    def start(self, cached: int = 0) -> Event:
        """The row was admitted: from here the time of the prompt counts. `cached` tokens of it are free."""
        self._joined = time.perf_counter_ns()
        self._cached = cached
        return Started(prompt_tokens=len(self.job.ids), cached_tokens=cached, truncated=self._truncated)

    def accept(self, out: Out) -> tuple[list[Event], bool]:
        """The events of one token, and whether they end the sequence (Finished is then the last)."""
        if not self._tokens:
            self._first = time.perf_counter_ns()
        self._tokens += 1
        events: list[Event] = []
        if out.reason != "stop":
            self._answer.append(out.token)
            self._split(self._stream.feed(out.token), events)
        if self._splitter.stopped is None:
            if out.reason is None:
                return events, False
            self._split(self._stream.finish(), events)
        if self._splitter.stopped is None:
            events += self._splitter.finish()
        reason: FinishReason = (
            "length" if out.reason == "length" and self._splitter.stopped is None else "stop"
        )
        events.append(self.finished(reason))
        return events, True

    def _split(self, text: str, events: list[Event]) -> None:
        if text:
            events += self._splitter.feed(text)

    def finished(self, reason: FinishReason) -> Finished:
        now = time.perf_counter_ns()
        first = self._first or now
        return Finished(
            reason=reason,
            prompt_tokens=len(self.job.ids),
            cached_tokens=self._cached,
            tokens=self._tokens,
            prompt_ns=first - self._joined,
            eval_ns=now - first,
            context=(*self.job.ids, *self._answer),
            stop=self._splitter.stopped,
        )

    def fault(self) -> Failed | None:
        """Why the row must end, when one of its processors failed."""
        guard = self.job.guard
        if guard is None or guard.error is None:
            return None
        return Failed(message=guard.error.message, code=guard.error.code, hint=guard.error.hint)
