"""`format`: answers that are JSON, or that follow a JSON schema, by masking tokens (llguidance).

A constraint is a logits processor of one row, so rows with and without one share a batch. A model that thinks
first is left alone until its thinking has closed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from typing import Any

import llguidance.hf
import llguidance.numpy
import mlx.core as mx
import numpy as np
from llguidance import LLMatcher, LLParserLimits

from mlxo.core.errors import InvalidRequest
from mlxo.engine.detokenize import Detokenizer, one_line

# Bounded, or a model at a high temperature may never stop writing spaces.
_WHITESPACE = r"[ \n\r\t]{1,40}"
_MAX_SCHEMA = 1 << 20  # characters
# An error names its cause and not the parser's state.
_LIMITS = LLParserLimits(verbose_errors=False)
_LEAD = 3  # tokens of white space that may stand between the end of the thinking and the answer


class Grammars:
    """Makes constraints for one model. `vocabulary` is the width of its logits."""

    def __init__(self, tokenizer: Any, vocabulary: int, eos: set[int], detokenizer: Detokenizer) -> None:
        self._hf = tokenizer
        self._vocabulary = vocabulary
        self.eos = eos
        self.detokenizer = detokenizer

    @cached_property
    def tokenizer(self) -> Any:
        """Costs up to a second or two for a large vocabulary: made when the first request wants it."""
        try:
            width = max(self._vocabulary, len(self._hf))
            return llguidance.hf.from_tokenizer(self._hf, n_vocab=width, eos_token=sorted(self.eos))
        except ValueError as e:
            raise InvalidRequest(f"this model's tokenizer cannot be used with format: {one_line(e)}") from e

    @cached_property
    def spaces(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """The tokens that are white space alone, as a mask [words]."""
        _, words = llguidance.numpy.get_bitmask_shape(1, self.tokenizer.vocab_size)
        mask = np.zeros(words, dtype=np.int32)
        bits = mask.view(np.uint32)
        for token, text in enumerate(self.detokenizer.table or ()):
            if text and not text.strip():
                bits[token // 32] |= np.uint32(1 << token % 32)
        return mask

    def constraint(self, form: str | dict[str, Any], thinking: Thinking | None) -> Constraint:
        """Raises InvalidRequest naming what llguidance refuses. `form` is "json" or a JSON schema."""
        if isinstance(form, str) and form != "json":
            raise InvalidRequest(f'invalid format: {form[:40]!r}; expected "json" or a JSON schema object')
        schema: dict[str, Any] = {"type": "object"} if isinstance(form, str) else form
        text = json.dumps(schema)
        if len(text) > _MAX_SCHEMA:
            raise InvalidRequest("the schema in format is longer than 1 MB")
        grammar = LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": _WHITESPACE})
        matcher = LLMatcher(self.tokenizer, grammar, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            reason = one_line(matcher.get_error())
            raise InvalidRequest(f"the schema in format cannot be used: {reason}")
        return Constraint(matcher, self, thinking)


class Thinking:
    """Where a thinking model may think before the constraint begins.

    `inside`: the prompt ends inside the thinking. Otherwise the model may open it by its very first token,
    `open_token`, when that is one token. `close` is the text that ends it.
    """

    def __init__(self, inside: bool, open_token: int | None, close: str) -> None:
        self.inside = inside
        self.open_token = open_token
        self.close = close


class Constraint:
    """The state of one row. Called once a token, with the answer so far one token longer each time."""

    def __init__(self, matcher: Any, grammars: Grammars, thinking: Thinking | None) -> None:
        self._matcher = matcher
        self._grammars = grammars
        self._mask = llguidance.numpy.allocate_token_bitmask(1, grammars.tokenizer.vocab_size)
        self._calls = 0
        self._thinking = thinking
        self._free = thinking is not None and thinking.inside
        self._lead = 0
        self._text = ""
        self._feed: Callable[[int], str] = grammars.detokenizer.stream().feed

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """tokens [n] are prompt and answer so far, logits [1, V]; disallowed ones become -inf.

        Raises InvalidRequest when the schema turns out to be too much for llguidance: the row must end.
        """
        first = self._calls == 0
        self._calls += 1
        if not first:
            # Start the forward pass before waiting for the token that it depends on: the mask is made
            # meanwhile.
            mx.async_eval(logits)  # type: ignore[no-untyped-call]
            token: int = tokens[-1].tolist()  # type: ignore[assignment]
            if token in self._grammars.eos:
                return logits
            self._advance(token)
        if self._free:
            return logits
        return self._masked(logits, self._thinking.open_token if first and self._thinking else None)

    def _advance(self, token: int) -> None:
        thinking = self._thinking
        if self._calls == 2 and thinking is not None and not self._free and token == thinking.open_token:
            self._free = True
            return
        if self._lead and self._grammars.spaces[token // 32] >> (token % 32) & 1:
            self._lead -= 1
            return
        self._lead = 0
        if not self._free:
            self._matcher.consume_token(token)
            self._check()
            return
        assert thinking is not None
        self._text += self._feed(token)
        _, closed, after = self._text.partition(thinking.close)
        if not closed:
            self._text = self._text[-len(thinking.close) :]
            return
        self._free = False
        rest = after.lstrip()
        self._lead = 0 if rest else _LEAD
        if rest:
            self._matcher.consume_tokens(self._grammars.tokenizer.tokenize_str(rest))
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = one_line(self._matcher.get_error())
            raise InvalidRequest(f"the schema in format cannot be followed: {reason}")

    def _masked(self, logits: mx.array, also: int | None) -> mx.array:
        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._mask)
        self._check()
        if also is not None:
            self._mask.view(np.uint32)[0, also // 32] |= np.uint32(1 << also % 32)
        if self._lead:
            self._mask[0] |= self._grammars.spaces
        words = mx.array(self._mask[0].view(np.uint32))
        bits = (words[:, None] >> mx.arange(32, dtype=mx.uint32)) & 1
        allowed = bits.reshape(1, -1)[:, : logits.shape[-1]].astype(mx.bool_)
        return mx.where(allowed, logits, mx.array(-mx.inf, dtype=logits.dtype))
