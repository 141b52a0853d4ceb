"""Fields of several dialects: how to think, the form of the answer, what a model must be able to do."""

from __future__ import annotations

from typing import Any

import msgspec

from mlxo.core.errors import InvalidName, InvalidRequest
from mlxo.core.names import ModelName
from mlxo.core.types import Think
from mlxo.server.dialects.base import Need
from mlxo.server.dialects.body import check_depth
from mlxo.server.dialects.forms import form

EFFORTS: dict[str, Think] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "max",
    "max": "max",
}


def thinking(value: object) -> Think | None:
    """`think` as Ollama has it. Raises InvalidRequest."""
    if value is None or isinstance(value, bool) or value in ("low", "medium", "high", "max"):
        return value
    raise InvalidRequest(
        f'invalid think value: {shown(value)} (must be "high", "medium", "low", "max", true, or false)'
    )


def effort(value: str | None, field: str) -> Think | None:
    """A level of reasoning as OpenAI and Anthropic name them. Raises InvalidRequest."""
    if value is None or value in EFFORTS:
        return None if value is None else EFFORTS[value]
    raise InvalidRequest(f"invalid {field}: {shown(value)} (must be one of {', '.join(EFFORTS)})")


def answer_format(value: object) -> str | dict[str, Any] | None:
    """`format` as Ollama has it, "json" or a schema, or one more of `forms.form`. Raises InvalidRequest."""
    if value is None or value == "":
        return None
    if value == "json":
        return "json"
    if isinstance(value, dict):
        return form(value, "format")
    raise InvalidRequest(f'invalid format: {shown(value)}; expected "json" or a valid JSON Schema object')


def model_needs(
    model: str, think: Think | None, *, images: bool = False, tools: bool = False, suffix: bool = False
) -> list[Need]:
    """What the model must be able to do beside completing."""
    needs = []
    if think:
        needs.append(Need("thinking", f'"{model}" does not support thinking'))
    for wanted, capability in ((tools, "tools"), (suffix, "insert"), (images, "vision")):
        if wanted:
            needs.append(Need(capability, f"{_full_name(model)} does not support {capability}"))
    return needs


def _full_name(model: str) -> str:
    try:
        return ModelName.parse(model).full
    except InvalidName:
        return model  # resolving it will say what is wrong with it


def shown(value: object) -> str:
    """A value of the client's in an error: its JSON, cut short."""
    return msgspec.json.encode(value).decode()[:80]


def arguments(text: str, where: str) -> dict[str, Any]:
    """A call's arguments out of their JSON text. Raises InvalidRequest."""
    try:
        found = msgspec.json.decode(text or "{}", type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        raise InvalidRequest(f"{where} must be a JSON object as text") from None
    check_depth(found, where)
    return found


def limit(value: int | None, field: str) -> int | None:
    """How many tokens to answer with at most; -1 is what there is room for. Raises InvalidRequest."""
    if value is not None and value < 1 and value != -1:
        raise InvalidRequest(f"{field} must be at least 1")
    return value
