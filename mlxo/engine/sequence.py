"""One request on its way through the engine: tokens in, events out. Engine thread only."""

from __future__ import annotations

import time
from collections.abc import Callable

from mlxo.chat.harmony import AnswerSplitter
from mlxo.core.types import Event, Failed, Finished, FinishReason, Started, ThinkDelta
from mlxo.engine.batch import Job, Out
from mlxo.engine.detokenize import Stream
from mlxo.engine.logprobs import Ledger


class Sequence:
    """The mutable side of a request. `job` is what the back end steps."""

    def __init__(
        self,
        job: Job,
        stream: Stream,
        splitter: AnswerSplitter,
        truncated: int,
        cut: int,
        spell: Callable[[int], bytes],
    ) -> None:
        self.job = job
        self._stream = stream
        self._splitter = splitter
        self._truncated = truncated
        self._cut = cut
        self._ledger = Ledger(splitter, spell) if job.row.logprobs is not None else None
        self._answer: list[int] = []
        self._tokens = 0
        self._thought = 0  # how many tokens there were when a thought last came out of them
        self._cached = 0
        self._joined = 0
        self._first = 0

    @property
    def running(self) -> bool:
        """Whether it was admitted."""
        return self._joined > 0

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
            text = self._stream.feed(out.token)
            self._split(text, events)
            if self._ledger is not None and out.scores is not None:
                self._ledger.add(out.token, out.scores, text)
        rest = ""
        if self._splitter.stopped is None and not self._splitter.done:
            if out.reason is None:
                return self._ledger.tell(events) if self._ledger else events, False
            rest = self._stream.finish()
            self._split(rest, events)
        if self._splitter.stopped is None:
            events += self._splitter.finish()
        if self._ledger is not None:
            events = self._ledger.tell(events, rest)
        ended = self._splitter.done or self._splitter.stopped is not None
        reason: FinishReason = "length" if out.reason == "length" and not ended else "stop"
        events.append(self.finished(reason))
        return events, True

    def _split(self, text: str, events: list[Event]) -> None:
        if text:
            events += self._splitter.feed(text)
            if any(isinstance(e, ThinkDelta) for e in events):
                self._thought = self._tokens

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
            drafted=self.job.drafting.drafted,
            accepted=self.job.drafting.accepted,
            cut=self._cut,
            thought=self._thought,
        )

    def fault(self) -> Failed | None:
        """Why the row must end, when one of its processors failed."""
        guard = self.job.guard
        if guard is None or guard.error is None:
            return None
        return Failed(message=guard.error.message, code=guard.error.code, hint=guard.error.hint)
