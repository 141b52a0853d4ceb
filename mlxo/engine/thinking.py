"""A model's thinking, token by token: where it may, whether it still does, how it is brought to its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from mlxo.engine.detokenize import Detokenizer


class Thinking(NamedTuple):
    """Where a thinking model may think.

    `inside`: the prompt ends inside the thinking. Otherwise the model may open it by its very first token,
    `open_token`, when that is one token. `close` is the text that ends it.
    """

    inside: bool
    open_token: int | None
    close: str


class Thought:
    """Follows one answer. `free` while it thinks; `opening` is the first token that would begin it."""

    def __init__(self, thinking: Thinking | None, detokenizer: Detokenizer) -> None:
        self.free = thinking is not None and thinking.inside
        self.opening = thinking.open_token if thinking else None
        self._close = thinking.close if thinking else ""
        self._first = True
        self._text = ""
        self._feed: Callable[[int], str] = detokenizer.stream().feed

    def feed(self, token: int) -> str:
        """One more token; the text behind the end of the thinking when this token ended it."""
        first, self._first = self._first, False
        if not self.free:
            self.free = first and token == self.opening
            return ""
        self._text += self._feed(token)
        _, closed, after = self._text.partition(self._close)
        if not closed:
            self._text = self._text[-len(self._close) :]
            return ""
        self.free = False
        return after


class Budget:
    """A logits processor that ends the thinking of one row once it has `budget` tokens.

    `closing` are the tokens that end it.
    """

    def __init__(self, thought: Thought, budget: int, closing: list[int]) -> None:
        self._thought = thought
        self._left = budget
        self._closing = list(closing)
        self._first = True

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """tokens [n] are prompt and answer so far, logits [1, V]."""
        if self._first:
            self._first = False
        elif self._closing:
            mx.async_eval(logits)  # type: ignore[no-untyped-call]
            self._thought.feed(tokens[-1].tolist())  # type: ignore[arg-type]
            self._left -= 1
        if self._left > 0 or not self._thought.free or not self._closing:
            return logits
        only = mx.arange(logits.shape[-1]) == self._closing.pop(0)
        return mx.where(only, logits, mx.array(-mx.inf, dtype=logits.dtype))
