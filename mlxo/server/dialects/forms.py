"""The form of an answer, as every dialect may ask for it; checked here, before a model is loaded."""

from __future__ import annotations

from typing import Any

import msgspec

from mlxo.chat import schema
from mlxo.core.errors import InvalidRequest
from mlxo.server.dialects.body import check_depth

_MAX_TEXT = 32 << 10  # characters of a regex or grammar
_MAX_CHOICES = 1000

Form = str | dict[str, Any]


class StructuredOutputs(msgspec.Struct):
    """vLLM's field of this name: https://docs.vllm.ai/en/latest/features/structured_outputs/. One is set."""

    json: Any = None
    json_object: bool | None = None
    regex: Any = None
    choice: Any = None
    grammar: Any = None


def schema_form(value: dict[str, Any], where: str) -> Form:
    """A JSON schema that can be enforced, as an internal `format`. Raises InvalidRequest."""
    check_depth(value, where)
    return schema.check(value, where)


def form(value: dict[str, Any], where: str) -> Form:
    """A JSON schema, or an object whose one key is "regex", "grammar" or "choice": no schema has those.

    Raises InvalidRequest.
    """
    if len(value) == 1:
        ((kind, held),) = value.items()
        if kind in ("regex", "grammar"):
            if not isinstance(held, str) or not 0 < len(held) <= _MAX_TEXT:
                raise InvalidRequest(f"{where}.{kind} must be text of 1 to {_MAX_TEXT} characters")
            if kind == "grammar" and "%json" in held:
                raise InvalidRequest(f"mlxo does not support %json in {where}.grammar", "send a JSON schema")
            return value
        if kind == "choice":
            texts = isinstance(held, list) and all(isinstance(c, str) for c in held)
            if (
                not texts
                or not 0 < len(held) <= _MAX_CHOICES
                or len("".join(held)) > _MAX_TEXT
                or not all(held)
            ):
                raise InvalidRequest(f"{where}.choice must be a list of 1 to {_MAX_CHOICES} texts")
            return value
    return schema_form(value, where)


def structured(sent: StructuredOutputs) -> Form:
    """Raises InvalidRequest."""
    where = "structured_outputs"
    given = {k: v for k, v in msgspec.structs.asdict(sent).items() if v is not None and v is not False}
    if len(given) != 1:
        raise InvalidRequest(f"{where} must have one of json, json_object, regex, choice and grammar")
    ((kind, value),) = given.items()
    if kind == "json_object":
        return "json"
    if kind != "json":
        return form(given, where)
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            value = None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where}.json must be a JSON schema object")
    return schema_form(value, f"{where}.json")
