"""What a family of tool-call syntax is: marks, where a body ends, and what is in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from mlxo.core.types import Function

Schemas = Mapping[str, Mapping[str, Any]]
"""The JSON schema of the parameters of each tool, by its name."""

Parse = Callable[[str, Schemas], list[Function] | None]


class Parser(NamedTuple):
    """`starts` are the marks that begin a body of one or more calls, `end` the one that ends it, or "".

    scan     "mark": the body goes to the next `end`; "json": to the next `end` that is in no JSON string;
             "value": to where its JSON value ends, and an `end` behind that belongs to it; "python": the same
             of a list in Python
    parse    the calls, or None when it is none: then the text, marks and all, is content
    keep     the mark is a part of the body
    form     how a forced call is written: "hermes" is a JSON object of name and arguments between the marks,
             "list" one in a JSON list, "bare" no marks around it: every family's reader knows that one
    """

    name: str
    starts: tuple[str, ...]
    end: str
    scan: Literal["mark", "json", "value", "python"]
    parse: Parse
    keep: bool = False
    form: Literal["hermes", "list", "bare"] = "bare"


class Scanner:
    """Finds the end of one body as it comes; each character is looked at once."""

    def __init__(self, parser: Parser) -> None:
        self._end = parser.end
        self._value = parser.scan in ("value", "python")
        self._pattern = _pattern(parser.scan, parser.end)
        self._at = 0
        self._depth = 0
        self._opened = False
        self._quote = ""

    def find(self, text: str) -> int:
        """Where the body ends in `text`, which begins with all that was given before; or -1."""
        if self._value and not self._opened and not self._open(text):
            return -1
        while True:
            if self._quote and not self._unquote(text):
                return -1
            found = self._pattern.search(text, self._at)
            if found is None:
                rest = 0 if self._value else len(self._end) - 1
                self._at = max(self._at, len(text) - rest)
                return -1
            what = found[0]
            if not self._value and what == self._end:
                return found.start()
            self._at = found.end()
            if what in _STRINGS:
                self._quote = what
                continue
            self._depth += 1 if what in "[{" else -1
            if self._depth <= 0:
                return self._at

    def _open(self, text: str) -> bool:
        """A list at the very beginning, else the first object: brackets before it are part of a mark."""
        body = text.lstrip()
        at = len(text) - len(body) if body.startswith("[") else text.find("{", self._at)
        self._opened = at >= 0
        self._at = at if self._opened else len(text)
        return self._opened

    def _unquote(self, text: str) -> bool:
        """Go behind the end of the string that is open, if it is there."""
        while found := _STRINGS[self._quote].search(text, self._at):
            self._at = found.end()
            if found[0] == self._quote:
                self._quote = ""
                return True
        self._at = len(text) - text.endswith("\\")
        return False


# What matters within a string: its end, and whatever a backslash stands before.
_STRINGS = {'"': re.compile(r'"|\\.', re.DOTALL), "'": re.compile(r"'|\\.", re.DOTALL)}


@lru_cache
def _pattern(scan: str, end: str) -> re.Pattern[str]:
    if scan == "mark":
        return re.compile(re.escape(end))
    if scan == "json":
        return re.compile(f'"|{re.escape(end)}')
    quotes = "\"'" if scan == "python" else '"'
    return re.compile(f"[{quotes}{{}}\\[\\]]")
