"""Tool calls that must come: a grammar of the family's own marks around arguments that follow a schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from llguidance import LLMatcher

from mlxo.chat import schema
from mlxo.chat.tools.parser import Parser
from mlxo.core.errors import InvalidRequest
from mlxo.engine.grammar import JSON_OPTIONS, Rules

HARMONY = "harmony"


def parameters(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a tool's arguments, an object in any case."""
    function = tool.get("function")
    found = function.get("parameters") if isinstance(function, dict) else None
    return found if isinstance(found, dict) and found else {"type": "object", "properties": {}}


def name_of(tool: Mapping[str, Any]) -> str:
    function = tool.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""


def call_rules(
    family: Parser | str,
    tools: Iterable[Mapping[str, Any]],
    force: Iterable[str],
    single: bool,
    special: Mapping[str, int],
) -> Rules:
    """The grammar of one or more calls of the tools that `force` names; `special`: see Grammars."""
    names = set(force)
    wanted = [(name_of(t), enforceable(t)) for t in tools if name_of(t) in names]
    reach = max((schema.widest(s) for _, s in wanted), default=0)
    if family == HARMONY:
        lark = _harmony(wanted, special)
    else:
        assert isinstance(family, Parser)
        lark = _marked(family, wanted, single, special)
    return Rules(LLMatcher.grammar_from_lark(lark), reach + 40, True)


def enforceable(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a tool's arguments; of a tool that is not `strict` as much of it as can be enforced."""
    found = parameters(tool)
    try:
        return schema.check(found, f"tool {name_of(tool)[:80]}")
    except InvalidRequest:
        function = tool.get("function")
        if isinstance(function, dict) and function.get("strict"):
            raise
    properties, required = found.get("properties"), found.get("required")
    keys = [k for k in properties if isinstance(k, str)] if isinstance(properties, dict) else []
    needed = [k for k in required if k in keys] if isinstance(required, list) else []
    return {"type": "object", "properties": {k: {} for k in keys[:200]}, "required": needed[:200]}


def _marked(
    family: Parser, wanted: list[tuple[str, dict[str, Any]]], single: bool, special: Mapping[str, int]
) -> str:
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": inner},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for name, inner in wanted
    ]
    if family.form == "list":
        most = {"maxItems": 1} if single else {}
        item = {"anyOf": [_moved(c, f"#/items/anyOf/{i}") for i, c in enumerate(calls)]}
        body: dict[str, Any] = {"type": "array", "items": item, "minItems": 1, **most}
    else:
        body = {"anyOf": [_moved(c, f"#/anyOf/{i}") for i, c in enumerate(calls)]}
    text = json.dumps({"x-guidance": JSON_OPTIONS, **body}, ensure_ascii=False)
    if family.form == "bare":
        return f"start: body\nbody: %json {text}\n"
    begin, end = mark(family.starts[0], special), mark(family.end, special)
    newline = r'"\n"?' if family.form == "hermes" else ""
    lark = f"call: {begin} {newline} body {newline} {end}\nbody: %json {text}\n"
    many = "" if single or family.form == "list" else ' ("\\n"? call)*'
    return f"start: call{many}\n{lark}"


def _moved(call: dict[str, Any], to: str) -> dict[str, Any]:
    """A call whose arguments' references are right at their place in the whole grammar's schema."""
    inner = json.loads(json.dumps(call["properties"]["arguments"]))
    for node in schema.nodes(inner):
        target = node.value.get("$ref")
        if isinstance(target, str) and target.startswith("#"):
            node.value["$ref"] = f"{to}/properties/arguments{target[1:]}"
        for word in ("$schema", "$id", "id"):
            node.value.pop(word, None)
    return {**call, "properties": {**call["properties"], "arguments": inner}}


def _harmony(wanted: list[tuple[str, dict[str, Any]]], special: Mapping[str, int]) -> str:
    channel, message = mark("<|channel|>commentary to=functions.", special), mark("<|message|>", special)
    constrain = mark(" <|constrain|>json", special)
    lines = [f"start: {' | '.join(f'call_{i}' for i in range(len(wanted)))}"]
    for i, (name, inner) in enumerate(wanted):
        text = json.dumps({"x-guidance": JSON_OPTIONS, **inner}, ensure_ascii=False)
        lines.append(f"call_{i}: {channel} {json.dumps(name)} {constrain} {message} %json {text}")
    return "\n".join(lines) + "\n"


def mark(text: str, special: Mapping[str, int]) -> str:
    """A mark in a grammar: special tokens by their number, which is the only way they can be written."""
    if not special:
        return json.dumps(text, ensure_ascii=False)
    parts = re.split("(" + "|".join(map(re.escape, sorted(special, key=len, reverse=True))) + ")", text)
    return " ".join(
        f"<[{special[part]}]>" if part in special else json.dumps(part, ensure_ascii=False)
        for part in parts
        if part
    )
