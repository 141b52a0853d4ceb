"""Token ids to text, one token at a time, exact: `decode(prompt + answer)` without `decode(prompt)`.

Leading spaces are kept and characters that span tokens come out whole. Byte-level BPE and SentencePiece-like
vocabularies, which is nearly all, go through a table of bytes a token; others through their own decoder.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

_HEX = frozenset("0123456789ABCDEFabcdef")


class Stream(Protocol):
    """The text of one sequence. Owned by one row."""

    def feed(self, token: int) -> str:
        """The text that is certain now, possibly none."""

    def finish(self) -> str:
        """What was held back: bytes that never became a character come out as U+FFFD."""


class Detokenizer:
    """The vocabulary's side, made once a model; `stream` starts a sequence."""

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer` is a Hugging Face tokenizer; without a fast backend its own `decode` is used."""
        self._tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)

    def stream(self, before: Sequence[int] = ()) -> Stream:
        """`before` is the end of the prompt; only decoders that look back need it."""
        if self.table is None:
            return _Windowed(self._tokenizer, before)
        return _Bytes(self.table)

    def spell(self, token: int) -> bytes:
        """The bytes of one token, by itself."""
        if self.table is None:
            text: str = self._tokenizer.decode([token], skip_special_tokens=False)
            return text.encode()
        # A model's output layer may be padded past its vocabulary: such a token has no text.
        return self.table[token] if token < len(self.table) else b""

    @cached_property
    def table(self) -> list[bytes] | None:
        """The bytes of each token id, or None when this decoder is not bytewise."""
        if self._backend is None or self._backend.decoder is None:
            return None
        kinds, replaced = _read(json.loads(self._backend.decoder.__getstate__()))
        if not kinds <= {"ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
            return None
        vocabulary: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        added = self._backend.get_added_tokens_decoder()
        table = [b""] * (max(vocabulary.values(), default=-1) + 1)
        to_byte = _byte_level() if "ByteLevel" in kinds else None
        for token, index in vocabulary.items():
            if index in added:
                table[index] = added[index].content.encode()
            elif to_byte is not None:
                table[index] = _unlevel(token, to_byte)
            elif (
                "ByteFallback" in kinds
                and len(token) == 6
                and token[:3] == "<0x"
                and _HEX.issuperset(token[3:5])
            ):
                table[index] = bytes((int(token[3:5], 16),))
            else:
                for old, new in replaced:
                    token = token.replace(old, new)
                table[index] = token.encode(errors="replace")
        return table


def _read(decoder: dict[str, Any]) -> tuple[set[str], list[tuple[str, str]]]:
    """The kinds of a decoder's parts, and what they replace. A Strip only touches the text's ends: no matter
    here.
    """
    parts = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds, replaced = set(), []
    for part in parts:
        kind = part["type"]
        if kind == "Metaspace":
            replaced.append((part["replacement"], " "))
        elif kind == "Replace":
            if "String" not in part["pattern"]:
                kind = "Replace by regular expression"
            else:
                replaced.append((part["pattern"]["String"], part["content"]))
        kinds.add(kind)
    return kinds, replaced


def _byte_level() -> dict[int, int]:
    """GPT-2's alphabet, code point to byte: printable Latin-1 is itself, the 68 other bytes are U+0100 and
    up, in order. What is no letter of it goes where Latin-1 ends.
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in set(shown)]
    return {b: b for b in shown} | dict.fromkeys(hidden, 0x100) | {256 + i: b for i, b in enumerate(hidden)}


def _unlevel(token: str, to_byte: dict[int, int]) -> bytes:
    """The bytes of a token: in one go, since a vocabulary has some 100,000, unless it has foreign letters."""
    try:
        return token.translate(to_byte).encode("latin-1")
    except UnicodeEncodeError:
        levels = ((c, to_byte.get(ord(c), 0x100)) for c in token)
        return b"".join(bytes((b,)) if b < 0x100 else c.encode() for c, b in levels)


class _Bytes:
    def __init__(self, table: list[bytes]) -> None:
        self._table = table
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def feed(self, token: int) -> str:
        # A model's output layer may be padded past its vocabulary: such a token has no text.
        return self._decode(self._table[token]) if token < len(self._table) else ""

    def finish(self) -> str:
        return self._decode(b"", True)


class _Windowed:
    """For decoders that join tokens by rules of their own (WordPiece): decode a window, emit what grew.

    The window restarts at each piece of text that came out whole, so the cost of a token does not grow.
    """

    _BEFORE = 6

    def __init__(self, tokenizer: Any, before: Sequence[int]) -> None:
        self._decode = tokenizer.decode
        self._ids = list(before[-self._BEFORE :])
        self._shown = len(self._ids)

    def _grown(self) -> str:
        old: str = self._decode(self._ids[: self._shown], skip_special_tokens=False)
        new: str = self._decode(self._ids, skip_special_tokens=False)
        return new[len(old) :]

    def feed(self, token: int) -> str:
        self._ids.append(token)
        text = self._grown()
        if not text or text.endswith("\ufffd"):
            return ""
        del self._ids[: max(0, self._shown - self._BEFORE)]
        self._shown = len(self._ids)
        return text

    def finish(self) -> str:
        return self._grown()


def one_line(error: object, limit: int = 300) -> str:
    """An error of a library as one line: white space collapsed, cut at `limit` characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[:limit] + "..."
