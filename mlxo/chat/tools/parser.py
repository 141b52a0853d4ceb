"""What a family of tool-call syntax is: two marks and two functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mlxo.core.types import Function


class Parser(NamedTuple):
    """`start` and `end` stand around the body of one or more calls.

    ends(text)    the first place where `end` stands and really ends the body that `text` begins with, or -1
    parse(body)   the calls, or None when it is none: then the text, marks and all, is content
    """

    start: str
    end: str
    ends: Callable[[str], int]
    parse: Callable[[str], list[Function] | None]
