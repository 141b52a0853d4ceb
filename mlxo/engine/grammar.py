"""`format`: JSON, or what a JSON schema, a regex or a grammar allows, by masking tokens (llguidance).

A constraint is a logits processor of one row, so rows with and without one share a batch. A model that thinks
first is left alone until its thinking has closed. An answer that runs out of tokens is brought to its end
(mlxo.engine.closing): it is cut off only where the limit is too small for any answer.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from functools import cached_property
from typing import Any, NamedTuple

import llguidance.hf
import llguidance.numpy
import mlx.core as mx
import numpy as np
from llguidance import LLMatcher, LLParserLimits

from mlxo.chat import schema
from mlxo.core.errors import InvalidRequest
from mlxo.engine.closing import Alphabet, Closing
from mlxo.engine.detokenize import Detokenizer, one_line
from mlxo.engine.thinking import Thinking, Thought

# Bounded, or a model at a high temperature may never stop writing spaces.
_WHITESPACE = r"[ \n\r\t]{1,40}"
# Without \\uXXXX: by it a key would be written that the schema holds taken, and half an emoji.
JSON_OPTIONS = {"whitespace_pattern": _WHITESPACE, "json_allowed_escapes": 'nrbtf\\"'}
_MAX_SCHEMA = 1 << 20  # characters
# An error names its cause and not the parser's state. What one grammar may cost is far below llguidance's own
# limits: it is compiled, and its masks are made, while all other rows wait.
_LIMITS = LLParserLimits(
    verbose_errors=False,
    initial_lexer_fuel=400_000,
    step_lexer_fuel=100_000,
    step_max_items=20_000,
    max_lexer_states=20_000,
    max_grammar_size=200_000,
)
_LEAD = 3  # tokens of white space that may stand between the end of the thinking and the answer
_KEPT = 16  # grammars that are kept compiled


class Rules(NamedTuple):
    """A grammar as llguidance takes it. `reach`: see Closing. `json`: all that it allows is JSON."""

    text: str
    reach: int
    json: bool


def rules(form: str | dict[str, Any]) -> Rules:
    """What `format` asks for: "json", a JSON schema, {"regex": ...}, {"grammar": ...} or {"choice": [...]}.

    Raises InvalidRequest.
    """
    if isinstance(form, str) and form != "json":
        raise InvalidRequest(f'invalid format: {form[:40]!r}; expected "json" or a JSON schema object')
    if isinstance(form, dict) and len(form) == 1:
        ((kind, value),) = form.items()
        if kind == "regex" and isinstance(value, str):
            return Rules(LLMatcher.grammar_from_regex(value), 16, False)
        if kind == "grammar" and isinstance(value, str):
            return Rules(LLMatcher.grammar_from_lark(value), 64, False)
        if kind == "choice" and isinstance(value, list):
            lark = "start: " + " | ".join(json.dumps(str(v)) for v in value)
            return Rules(LLMatcher.grammar_from_lark(lark), max(len(str(v)) for v in value), False)
    return json_rules({"type": "object"} if isinstance(form, str) else form)


def json_rules(form: dict[str, Any]) -> Rules:
    """Raises InvalidRequest."""
    text = json.dumps(form, ensure_ascii=False)
    if len(text) > _MAX_SCHEMA:
        raise InvalidRequest("the schema in format is longer than 1 MB")
    options: dict[str, Any] = {**JSON_OPTIONS, "lenient": False, "coerce_one_of": False}
    if "\\u00" in text:
        del options["json_allowed_escapes"]  # a control character that the schema names has no other spelling
    return Rules(LLMatcher.grammar_from_json_schema(text, overrides=options), schema.widest(form), True)


class Grammars:
    """Makes constraints for one model. `vocabulary` is the width of its logits."""

    def __init__(self, tokenizer: Any, vocabulary: int, eos: set[int], detokenizer: Detokenizer) -> None:
        self._hf = tokenizer
        self._vocabulary = vocabulary
        self._made: OrderedDict[str, Any] = OrderedDict()
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
    def alphabet(self) -> Alphabet:
        return Alphabet(self.tokenizer)

    @cached_property
    def ends(self) -> mx.array:
        """Whether a token ends the answer [V]."""
        return mx.array([t in self.eos for t in range(self.tokenizer.vocab_size)])

    @cached_property
    def special(self) -> dict[str, int]:
        """The tokens that text cannot spell: a grammar has to name them by their number."""
        added = self._hf.added_tokens_decoder.items()
        return {t.content: i for i, t in added if self.tokenizer.is_special_token(i)}

    @cached_property
    def spaces(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """The tokens that are white space alone, as a mask [words]."""
        return self.mask(
            t for t, text in enumerate(self.detokenizer.table or ()) if text and not text.strip()
        )

    def mask(self, tokens: Any) -> np.ndarray[Any, np.dtype[np.int32]]:
        """These tokens alone, as a mask [words]."""
        _, words = llguidance.numpy.get_bitmask_shape(1, self.tokenizer.vocab_size)
        mask = np.zeros(words, dtype=np.int32)
        bits = mask.view(np.uint32)
        for token in tokens:
            bits[token // 32] |= np.uint32(1 << token % 32)
        return mask

    def constraint(
        self, form: str | dict[str, Any] | Rules, thinking: Thinking | None, limit: int
    ) -> Constraint:
        """For an answer of at most `limit` tokens. Raises InvalidRequest naming what llguidance refuses."""
        wanted = form if isinstance(form, Rules) else rules(form)
        return Constraint(self._matcher(wanted.text), self, thinking, limit, wanted)

    def _matcher(self, grammar: str) -> Any:
        found = self._made.pop(grammar, None)
        if found is None:
            found = LLMatcher(self.tokenizer, grammar, log_level=0, limits=_LIMITS)
            if not found.is_error() and not any(found.compute_bitmask()):
                raise InvalidRequest("the schema in format cannot be met: nothing follows it")
            if found.is_error():
                reason = one_line(found.get_error())
                raise InvalidRequest(f"the schema in format cannot be used: {reason}")
            if len(self._made) >= _KEPT:
                self._made.popitem(last=False)
        self._made[grammar] = found
        return found.deep_copy()


class Constraint:
    """The state of one row. Called once a token, with the answer so far one token longer each time."""

    def __init__(
        self, matcher: Any, grammars: Grammars, thinking: Thinking | None, limit: int, wanted: Rules
    ) -> None:
        self._matcher = matcher
        self._grammars = grammars
        self._mask = llguidance.numpy.allocate_token_bitmask(1, grammars.tokenizer.vocab_size)
        self._left = limit
        self._closing = Closing(grammars.alphabet, wanted.reach, wanted.json)
        self._way: list[int] | None = None
        self._thought = Thought(thinking, grammars.detokenizer)
        self._first = True
        self._lead = 0

    @property
    def needs(self) -> int:
        """Tokens that the answer must be left, at the least, when the thinking is over."""
        way = self._closing.shortest(self._matcher) or []
        return len(way) + self._closing.reach + _LEAD + 1

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """tokens [n] are prompt and answer so far, logits [1, V]; disallowed ones become -inf.

        Raises InvalidRequest when the schema turns out to be too much for llguidance: the row must end.
        """
        first, self._first = self._first, False
        if not first:
            # Start the forward pass before waiting for the token that it depends on: the mask is made
            # meanwhile.
            mx.async_eval(logits)  # type: ignore[no-untyped-call]
            token: int = tokens[-1].tolist()  # type: ignore[assignment]
            if token in self._grammars.eos:
                return logits
            self._left -= 1
            self._advance(token)
        if self._thought.free:
            # It may not end before it has answered.
            return mx.where(self._grammars.ends[: logits.shape[-1]], -mx.inf, logits)
        return self._masked(logits, self._thought.opening if first else None)

    def _advance(self, token: int) -> None:
        thought = self._thought
        was_free = thought.free
        rest = thought.feed(token)
        if thought.free:
            return
        if was_free:
            rest = rest.lstrip()
            self._lead = 0 if rest else _LEAD
            self._consume(self._grammars.tokenizer.tokenize_str(rest))
            return
        if self._lead and self._grammars.spaces[token // 32] >> (token % 32) & 1:
            self._lead -= 1
            return
        self._lead = 0
        self._consume([token])

    def _consume(self, tokens: list[int]) -> None:
        for token in tokens:
            self._matcher.consume_token(token)
            self._closing.feed(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = one_line(self._matcher.get_error())
            raise InvalidRequest(f"the schema in format cannot be followed: {reason}")

    def _masked(self, logits: mx.array, also: int | None) -> mx.array:
        if self._way is None:
            self._way = self._closing.due(self._matcher, self._left)
        if self._way is not None:
            only = [self._way.pop(0)] if self._way else self._grammars.eos
            self._mask[0] = self._grammars.mask(only)
        else:
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
