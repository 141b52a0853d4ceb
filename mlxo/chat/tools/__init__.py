"""Tool calls in what a model writes: one parser a family, found by the text of the chat template."""

from __future__ import annotations

from collections.abc import Callable

from mlxo.chat.tools import hermes
from mlxo.chat.tools.parser import Parser

# In order: the first whose test holds for the template's text.
TABLE: tuple[tuple[Callable[[str], bool], Parser], ...] = ((hermes.speaks, hermes.PARSER),)


def pick(template: str | None) -> Parser | None:
    """The parser for a model with this chat template, or None: its calls, if any, stay text."""
    if template is None:
        return None
    return next((parser for test, parser in TABLE if test(template)), None)
