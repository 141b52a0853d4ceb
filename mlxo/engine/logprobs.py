"""How likely the tokens of an answer were: measured on the device a step, told with the text they made.

They are the model's own: the log-softmax of its logits, before penalties, logit_bias, a `format` and the
temperature, as Ollama and OpenAI report them. Rows that did not ask take no part.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx
import msgspec

from mlxo.chat.harmony import AnswerSplitter
from mlxo.core.types import Call, Event, TextDelta, ThinkDelta, TokenLogprob
from mlxo.engine.topk import top_k

_UNLIKELY = -9999.0  # OpenAI's word for a probability of nothing: JSON has no infinity


class Scores(NamedTuple):
    """A drawn token's log-probability, and (token, log-probability) of the likeliest, best first."""

    logprob: float
    top: tuple[tuple[int, float], ...]


class Measured:
    """The scores of a step's tokens for the rows that asked, on their way from the device."""

    def __init__(self, logits: mx.array, tokens: mx.array, width: int) -> None:
        """`logits` [R, V] as the model gave them, `tokens` [R] as they were drawn, `width` alternatives.

        Never waits for the device.
        """
        logits = logits.astype(mx.float32)
        total = mx.logsumexp(logits, axis=-1, keepdims=True)
        self._drawn = mx.take_along_axis(logits, tokens.astype(mx.int32)[:, None], axis=-1) - total
        self._ids = self._tops = None
        width = min(width, logits.shape[-1])
        if width:
            ids = top_k(logits, width)
            tops = mx.take_along_axis(logits, ids, axis=-1)
            order = mx.argsort(-tops, axis=-1)
            self._ids = mx.take_along_axis(ids, order, axis=-1)
            self._tops = mx.take_along_axis(tops, order, axis=-1) - total
        mx.async_eval([a for a in (self._drawn, self._ids, self._tops) if a is not None])  # type: ignore[no-untyped-call]
        self._read: list[list[float]] = []
        self._names: list[list[int]] = []
        self._likely: list[list[float]] = []

    def scores(self, row: int, width: int) -> Scores:
        """Waits for the device, if it is not done yet."""
        if not self._read:
            self._read = self._drawn.tolist()  # type: ignore[assignment]
            if self._ids is not None and self._tops is not None:
                self._names, self._likely = self._ids.tolist(), self._tops.tolist()  # type: ignore[assignment]
        top: tuple[tuple[int, float], ...] = ()
        if width:
            pairs = zip(self._names[row][:width], self._likely[row][:width], strict=True)
            top = tuple((token, _finite(value)) for token, value in pairs)
        return Scores(_finite(self._read[row][0]), top)


def _finite(value: float) -> float:
    # A sum may round to a little more than 1; and minus zero is no number to show.
    return min(value, 0.0) + 0.0 if math.isfinite(value) else _UNLIKELY


class _Token(NamedTuple):
    """`start` and `end` are where its text stands in all of the answer's text."""

    start: int
    end: int
    told: TokenLogprob


class Ledger:
    """Tells which tokens made which events of one answer: each token once, in order, with the first event
    that it has text in. Engine thread only.

    Tokens that made no text (marks of reasoning and of calls, white space that is dropped) go with the next
    event, as `silent`. Tokens of a stop string, and what follows in them, are not told.
    """

    def __init__(self, splitter: AnswerSplitter, spell: Callable[[int], bytes]) -> None:
        self._splitter = splitter
        self._spell = spell
        self._waiting: deque[_Token] = deque()
        self._text = ""  # what came and was not settled, from `_settled` on
        self._settled = 0
        self._silent: list[TokenLogprob] = []

    def add(self, token: int, scores: Scores, text: str) -> None:
        """`text` is what the decoder made of it: empty inside of a character."""
        top = tuple(TokenLogprob(bytes=self._spell(t), logprob=p) for t, p in scores.top)
        told = TokenLogprob(bytes=self._spell(token), logprob=scores.logprob, top=top)
        start = self._settled + len(self._text)
        self._text += text
        self._waiting.append(_Token(start, start + len(text), told))

    def tell(self, events: list[Event], rest: str | None = None) -> list[Event]:
        """`events` are those of the text that was added since the last call; the same come back, with tokens.

        `rest` ends the answer: it is the text that the decoder had held back, possibly none.
        """
        self._text += rest or ""
        settled = self._splitter.settled
        region, self._text = self._text[: settled - self._settled], self._text[settled - self._settled :]
        ends = self._ends(region, events)
        told = [self._with(e, begin, end) for e, (begin, end) in zip(events, ends, strict=True)]
        stopped = self._splitter.stopped is not None
        self._silence(settled)
        if rest is not None and not stopped:
            # Nothing comes any more of the bytes that these began.
            self._silent += [msgspec.structs.replace(t.told, silent=True) for t in self._waiting]
        self._settled = settled
        if rest is not None and self._silent:
            told.append(TextDelta(text="", logprobs=tuple(self._silent)))
            self._silent = []
        return told

    def _ends(self, region: str, events: Sequence[Event]) -> list[tuple[int, int]]:
        """Where in all of the text each event's own begins and ends. Found from the back: marks stand before
        what follows them.
        """
        found = []
        end = len(region)
        for event in reversed(events):
            begin = 0
            last = end
            if isinstance(event, TextDelta | ThinkDelta):
                at = region.rfind(event.text, 0, end)
                begin, last = (at, at + len(event.text)) if at >= 0 else (0, end)
            found.append((self._settled + begin, self._settled + last))
            end = begin
        return found[::-1]

    def _with(self, event: Event, begin: int, end: int) -> Event:
        self._silence(begin)
        mine = []
        while self._waiting and self._waiting[0].start < end:
            mine.append(self._waiting.popleft().told)
        told, self._silent = (*self._silent, *mine), []
        if told and isinstance(event, TextDelta | ThinkDelta | Call):
            return msgspec.structs.replace(event, logprobs=told)
        return event

    def _silence(self, before: int) -> None:
        while self._waiting and self._waiting[0].start < before and self._waiting[0].end <= before:
            token = self._waiting.popleft().told
            self._silent.append(msgspec.structs.replace(token, silent=True))
