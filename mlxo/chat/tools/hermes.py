"""`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes, Qwen 2.5 and 3, and many fine-tunes."""

from __future__ import annotations

import json
import re
from typing import Any

from mlxo.chat.tools.parser import Parser
from mlxo.core.types import Function

START, END = "<tool_call>", "</tool_call>"
_NEXT = re.compile(f'"|{END}')
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL)


def speaks(template: str) -> bool:
    # Qwen3-Coder and GLM use the same marks around a syntax of XML.
    return START in template and "<function=" not in template and "<arg_key>" not in template


def ends(text: str) -> int:
    """The end mark that is not inside a JSON string: an argument may well speak of tool calls."""
    at = 0
    while found := _NEXT.search(text, at):
        if found[0] == END:
            return found.start()
        string = _STRING.match(text, found.start())
        if string is None:
            return -1
        at = string.end()
    return -1


def parse(body: str) -> list[Function] | None:
    """One call or a list of them; `arguments` an object, or JSON text of one."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    calls = [_call(item) for item in (value if isinstance(value, list) else [value])]
    good = [call for call in calls if call is not None]
    return good if good and len(good) == len(calls) else None


def _call(value: Any) -> Function | None:
    if not isinstance(value, dict) or not isinstance(name := value.get("name"), str) or not name:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            return None
    return Function(name=name, arguments=arguments) if isinstance(arguments, dict) else None


PARSER = Parser(START, END, ends, parse)
