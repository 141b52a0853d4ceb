"""How a constrained answer comes to its end in time: the shortest way out of a grammar, before the limit.

A model at a high temperature may write on inside a string or a list for ever, and an answer that is cut off
is no JSON. So while the tokens left are few, the shortest completion of what stands there is found; when
there is just room for it, the row writes that and nothing else.
"""

from __future__ import annotations

import random
from typing import Any

import llguidance.numpy
import numpy as np

# Outside of a JSON string: what closes comes first, then the values by their length.
_OUTSIDE = '}],:0123456789"ntf-[{'
_CLOSERS = "}],"
_BRACKETS = ")]}>"  # of other languages
_STRAIGHT = 0.8
_NUMBER = frozenset("0123456789.eE+-")
_TRIES = 4
_WORK = 6000  # masks of one search: all other rows wait for it
_WILD = 0.3  # how often the later tries leave the straight way
_SLACK = 12  # tokens: one token may open several brackets
_LUCK = 12  # tokens: how much longer the way may be next time, when it was found by chance
_LONGEST = {True: 2000, False: 300}  # characters of a completion that are looked for, in JSON and elsewhere


class Alphabet:
    """The tokens of one tokenizer that are single ASCII characters, and which of them are alike."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.tokens: dict[str, int] = {}
        for token in range(tokenizer.vocab_size):
            if tokenizer.is_special_token(token):
                continue
            text = tokenizer.decode_bytes([token])
            if len(text) == 1 and 32 <= text[0] < 127:
                self.tokens.setdefault(chr(text[0]), token)

        self._characters = list(self.tokens)
        self._ids = np.array(list(self.tokens.values()), dtype=np.int64)

    def free(self, bits: np.ndarray[Any, np.dtype[np.uint8]]) -> list[str]:
        """The characters whose tokens are set in `bits` [V]."""
        return [self._characters[i] for i in np.flatnonzero(bits[self._ids])]

    def text(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode_bytes(tokens).decode("utf-8", "replace"))


def _kind(character: str) -> str:
    """Letters are alike and so are digits: a sign among them more often leads on."""
    return (
        "0"
        if character.isdigit()
        else "a"
        if character.islower()
        else "A"
        if character.isupper()
        else character
    )


class Nesting:
    """Reads JSON as it is written: is this inside a string, and how many values were begun?"""

    def __init__(self) -> None:
        self.begun = 0
        self.inside = False
        self._escaped = False

    def feed(self, text: str) -> None:
        for c in text:
            if self._escaped:
                self._escaped = False
            elif self.inside:
                self._escaped = c == "\\"
                self.inside = c != '"'
            elif c in '"[{':
                self.inside = c == '"'
                self.begun += 1

    def copy(self) -> Nesting:
        twin = Nesting()
        twin.begun, twin.inside, twin._escaped = self.begun, self.inside, self._escaped
        return twin


class Closing:
    """Watches one row of JSON or not. `reach`: how many characters one choice may add to the way out."""

    def __init__(self, alphabet: Alphabet, reach: int, json: bool) -> None:
        self._alphabet = alphabet
        self.reach = reach // 2 + _SLACK  # tokens
        self._nesting = Nesting() if json else None
        self._looked = False
        self._bound = 0  # once looked: the way out is no longer than this, in tokens
        self._mask = llguidance.numpy.allocate_token_bitmask(1, alphabet.tokenizer.vocab_size)
        self._random = random.Random(0)
        self._guessed = False
        self._work = 0

    def feed(self, token: int) -> None:
        """One more token was written."""
        if self._nesting is None:
            self._bound += 2
            return
        before = self._nesting.begun
        self._nesting.feed(self._alphabet.text([token]))
        self._bound += (self._nesting.begun - before) * self.reach

    def due(self, matcher: Any, left: int) -> list[int] | None:
        """The tokens to write now when it is time, with `left` tokens to go; the end token is not in them."""
        if self._looked and left - 1 - self._bound > self.reach:
            return None
        self._looked = True
        way = self.shortest(matcher)
        if way is None:
            self._bound = left // 2  # not yet, and perhaps never: look again half way
            return None
        self._bound = len(way) + (_LUCK if self._guessed else 0)
        return way if left - 1 - self._bound <= self.reach else None

    def shortest(self, matcher: Any) -> list[int] | None:
        """Near the shortest completion; None when none was found."""
        best: list[int] | None = None
        self._work = _WORK
        longest = _LONGEST[self._nesting is not None]
        for number in range(_TRIES):
            self._guessed = False
            found = self._attempt(matcher, number > 1 and best is None, len(best or ()) or longest)
            best = found if best is None or (found is not None and len(found) < len(best)) else best
            if best is not None and not self._guessed:
                break
        if best is None:
            return None
        joined: list[int] = self._alphabet.tokenizer.tokenize_bytes(
            self._alphabet.tokenizer.decode_bytes(best)
        )
        shorter = len(joined) < len(best) and matcher.validate_tokens(joined) == len(joined)
        return joined if shorter else best

    def _attempt(self, matcher: Any, wild: bool, most: int) -> list[int] | None:
        matcher = matcher.deep_copy()
        nesting = self._nesting.copy() if self._nesting else None
        seen: set[bytes] = set()
        way: list[int] = []
        while len(way) <= most and self._work > 0:
            if matcher.is_accepting():
                return way
            tokens = matcher.compute_ff_tokens() or self._next(matcher, nesting, wild, seen)
            if not tokens or matcher.is_error() or not matcher.consume_tokens(tokens):
                return None
            way += tokens
            if nesting is not None:
                nesting.feed(self._alphabet.text(tokens))
        return None

    def _next(self, matcher: Any, nesting: Nesting | None, wild: bool, seen: set[bytes]) -> list[int]:
        known = self._alphabet.tokens
        bits = self._bits(matcher)
        free = self._alphabet.free(bits)
        if not free:
            # A letter beyond ASCII, or half of one.
            others = np.flatnonzero(bits)
            return [int(others[0])] if len(others) else []
        ends = '"' if nesting is not None and nesting.inside else _CLOSERS if nesting is not None else ""
        closing = next((c for c in ends if c in free), None)
        if nesting is None and not wild and self._random.random() < _STRAIGHT:
            closing = next((c for c in _BRACKETS if c in free), None)
        if closing is None and (ends != _CLOSERS or _NUMBER.issuperset(free)):
            self._guessed = True
            some = free if wild or len(free) <= len(_NUMBER) else self._picked(free)
            closing = self._way_out(matcher, some, ends, seen)
        elif closing is None and wild and self._random.random() < _WILD:
            closing = self._random.choice(free)
        return [known[closing or next((c for c in _OUTSIDE if c in free), free[0])]]

    def _picked(self, free: list[str]) -> list[str]:
        """One of each kind."""
        kinds: dict[str, list[str]] = {}
        for c in free:
            kinds.setdefault(_kind(c), []).append(c)
        return [self._random.choice(of) for of in kinds.values()]

    def _way_out(self, matcher: Any, free: list[str], ends: str, seen: set[bytes]) -> str:
        """The character after which a string or number may end; else one that leads to somewhere new."""
        known = self._alphabet.tokens
        new: list[str] = []
        for c in free:
            if not matcher.try_consume_tokens([known[c]]):
                continue
            bits = self._bits(matcher)
            done = matcher.is_accepting() or any(bits[known[e]] for e in ends if e in known)
            matcher.rollback(1)
            if done:
                return c
            if bits.tobytes() not in seen:
                new.append(c)
        chosen = self._random.choice(new or free)
        if matcher.try_consume_tokens([known[chosen]]):
            seen.add(self._bits(matcher).tobytes())
            matcher.rollback(1)
        return chosen

    def _bits(self, matcher: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """1 for each token that may follow."""
        self._work -= 1
        llguidance.numpy.fill_next_token_bitmask(matcher, self._mask)
        return np.unpackbits(self._mask[0].view(np.uint8), bitorder="little")
