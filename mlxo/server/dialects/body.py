"""JSON bodies: bytes to typed structs, with words for what is wrong with them. Shared by the dialects."""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

import msgspec

from mlxo.core.errors import InvalidRequest

MAX_DEPTH = 64  # levels of free-form JSON; deeper values would exhaust the stack of whoever walks them

T = TypeVar("T")
_MISMATCH = re.compile(r"Expected `([a-z]+)[^`]*`, got `([a-z]+)`(?: - at `\$\.?([^`]*)`)?")
_JSON_NAMES = {"int": "number", "float": "number", "str": "string"}


def decode(body: bytes, kind: type[T]) -> T:
    """Decode a JSON object into `kind`; unknown keys are ignored. Raises InvalidRequest."""
    if not body.strip():
        raise InvalidRequest("missing request body")
    try:
        try:
            return msgspec.json.decode(body, type=kind)
        except (UnicodeDecodeError, msgspec.DecodeError) as e:
            mended = None if isinstance(e, msgspec.ValidationError) else _mend(body)
            if mended is None:
                raise
            return msgspec.json.decode(mended, type=kind)
    except msgspec.ValidationError as e:
        raise InvalidRequest(_mismatch(str(e))) from None
    except (UnicodeDecodeError, msgspec.DecodeError) as e:
        raise InvalidRequest(f"the request body is no JSON: {e}"[:200]) from None
    except RecursionError:
        raise InvalidRequest("the request body is nested too deeply") from None


def _mend(body: bytes) -> bytes | None:
    """JavaScript sends half an emoji as a lone surrogate: what is no Unicode reads as a placeholder."""
    try:
        value = json.loads(body.decode("utf-8", "replace"))
    except ValueError:
        return None
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def _mismatch(text: str) -> str:
    match = _MISMATCH.match(text)
    if match is None:
        return text
    wanted, got, where = match.groups()
    names = [_JSON_NAMES.get(name, name) for name in (got, wanted)]
    return f"json: cannot unmarshal {names[0]} into field {where or '.'} of type {names[1]}"


def check_depth(value: Any, what: str, level: int = MAX_DEPTH) -> None:
    """Raise InvalidRequest when lists and objects nest deeper than `level`."""
    if level == 0:
        raise InvalidRequest(f"{what} is nested too deeply")
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            check_depth(item, what, level - 1)
