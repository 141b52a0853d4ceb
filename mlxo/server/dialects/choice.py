"""`tool_choice` of OpenAI's and Anthropic's APIs: which tools a model is told of, and which it must call."""

from __future__ import annotations

from typing import Any, NamedTuple

from mlxo.chat import schema
from mlxo.core.errors import InvalidRequest
from mlxo.server.dialects.fields import shown

Tools = tuple[dict[str, Any], ...]


class Choice(NamedTuple):
    """The tools of the prompt, in OpenAI's form; the names of those one of which must be called."""

    tools: Tools
    force: tuple[str, ...] = ()


def choose(tools: Tools, mode: str | None, name: str | None = None) -> Choice:
    """`mode` is none, auto or required; `name` the one tool that must be called. Raises InvalidRequest."""
    names = tuple(tool["function"]["name"] for tool in tools)
    if name is not None:
        if name not in names:
            raise InvalidRequest(f"tool_choice names {shown(name)}, which is not one of the tools")
        return Choice(tools, (name,))
    if mode == "none":
        return Choice(())
    if mode != "required":
        return Choice(tools)
    if not tools:
        raise InvalidRequest("tool_choice asks for a call, and there are no tools")
    return Choice(tools, names)


def openai(tools: Tools, choice: Any) -> Choice:
    """`tool_choice` of chat completions: a mode, a function, or allowed_tools. Raises InvalidRequest."""
    if choice is None or choice in ("none", "auto", "required"):
        return choose(tools, choice)
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "function":
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else choice.get("name")
        if isinstance(name, str):
            return choose(tools, None, name)
    allowed = choice.get("allowed_tools") if kind == "allowed_tools" else None
    if isinstance(allowed, dict) and isinstance(allowed.get("tools"), list):
        wanted = [t.get("function", t).get("name") for t in allowed["tools"] if _named(t)]
        return choose(tuple(t for t in tools if t["function"]["name"] in wanted), allowed.get("mode"))
    raise InvalidRequest(
        f"invalid tool_choice: {shown(choice)}",
        'tool_choice is "none", "auto", "required" or {"type": "function", "function": {"name": ...}}',
    )


def _named(tool: Any) -> bool:
    return isinstance(tool, dict) and isinstance(tool.get("function", {}), dict)


def check_strict(tools: Tools) -> None:
    """That the schemas of `strict` tools can be enforced. Raises InvalidRequest."""
    for i, tool in enumerate(tools):
        function = tool["function"]
        if function.get("strict") and isinstance(function.get("parameters"), dict):
            schema.check(function["parameters"], f"tools[{i}].function.parameters")
