"""The items of /v1/responses: what a conversation is made of there, as messages.

What the model wrote in one turn is several items (reasoning, messages, calls), and one message for its
template.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from mlxo.core.errors import InvalidRequest
from mlxo.core.types import Function, Message, ToolCall
from mlxo.server.dialects.fields import arguments

Json = dict[str, Any]
Find = Callable[[str], Json | None]
"""The item with this id, of some earlier response or its input."""

_PREFIXES = {"message": "msg_", "reasoning": "rs_", "function_call": "fc_", "function_call_output": "fco_"}
_PARTS = ("input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text")


class PartBody(msgspec.Struct):
    type: str
    text: str | None = None
    refusal: str | None = None


Content = str | list[PartBody] | None


class ItemBody(msgspec.Struct):
    """An item of any type: the fields of those that are understood."""

    type: str = "message"
    role: str | None = None
    content: Content = None
    summary: Content = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: Content = None


def named(item: Json, where: str, find: Find, make_id: Callable[[str], str]) -> Json:
    """An item as it is kept: checked, with an id and a type. Raises InvalidRequest."""
    kind = item.get("type") or "message"
    if kind == "item_reference" or (set(item) == {"id"}):
        found = find(str(item.get("id")))
        if found is None:
            raise InvalidRequest(
                f"{where} refers to an item that is not there any more", "send the item itself"
            )
        return found
    prefix = _PREFIXES.get(kind) if isinstance(kind, str) else None
    if prefix is None:
        raise InvalidRequest(f"mlxo does not support {where} of type {kind}")
    body = _body(item, where)
    kept = {**item, "type": kind}
    if not isinstance(item.get("id"), str):
        kept["id"] = make_id(prefix)
    if kind == "message":
        if body.role not in ("user", "assistant", "system", "developer"):
            raise InvalidRequest(
                f"{where}.role must be user, assistant, system or developer: {str(body.role)[:80]!r}"
            )
        if isinstance(body.content, str):
            part = "output_text" if body.role == "assistant" else "input_text"
            text: Json = {"type": part, "text": body.content}
            kept["content"] = [text | {"annotations": []} if part == "output_text" else text]
        kept.setdefault("status", "completed")
    for field in ("content", "summary", "output"):
        _text(getattr(body, field), f"{where}.{field}")
    if kind == "function_call":
        arguments(body.arguments or "", f"{where}.arguments")
        if not body.name or not body.call_id:
            raise InvalidRequest(f"{where} must have a name and a call_id")
    if kind == "function_call_output" and not body.call_id:
        raise InvalidRequest(f"{where}.call_id is missing")
    return kept


def messages(items: Sequence[Json]) -> list[Message]:
    """The items as turns."""
    turns: list[Message] = []
    called: dict[str, str] = {}
    own = _Turn()
    for i, item in enumerate(items):
        body = _body(item, f"input[{i}]")
        if body.type == "reasoning":
            own.thoughts.append(_text(body.content, "") or _text(body.summary, ""))
        elif body.type == "function_call":
            values = arguments(body.arguments or "", f"input[{i}].arguments")
            function = Function(name=body.name or "", arguments=values, index=len(own.calls))
            own.calls.append(ToolCall(function=function, id=body.call_id or ""))
            called[body.call_id or ""] = body.name or ""
        elif body.type == "message" and body.role == "assistant":
            own.texts.append(_text(body.content, ""))
        else:
            turns += own.end()
            own = _Turn()
            turns.append(_given(body, called))
    return turns + own.end()


class _Turn:
    """What the model wrote until somebody else spoke."""

    def __init__(self) -> None:
        self.thoughts: list[str] = []
        self.texts: list[str] = []
        self.calls: list[ToolCall] = []

    def end(self) -> list[Message]:
        """Its message; none for thoughts alone, which led to nothing."""
        if not self.texts and not self.calls:
            return []
        return [
            Message(
                role="assistant",
                content="\n".join(self.texts),
                thinking="\n".join(self.thoughts),
                tool_calls=tuple(self.calls),
            )
        ]


def _given(body: ItemBody, called: dict[str, str]) -> Message:
    if body.type == "function_call_output":
        id_ = body.call_id or ""
        return Message(
            role="tool", content=_text(body.output, ""), tool_call_id=id_, tool_name=called.get(id_, "")
        )
    role = "system" if body.role == "developer" else body.role or ""
    return Message(role=role, content=_text(body.content, ""))


def _body(item: Json, where: str) -> ItemBody:
    try:
        return msgspec.convert({k: v for k, v in item.items() if v is not None}, ItemBody)
    except msgspec.ValidationError as e:
        raise InvalidRequest(f"{where} is no item: {e}"[:300]) from None


def _text(content: Content, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for i, part in enumerate(content):
        if part.type not in _PARTS:
            raise InvalidRequest(f"mlxo does not support {where}[{i}] of type {part.type}")
    return "\n".join(part.text or part.refusal or "" for part in content)
