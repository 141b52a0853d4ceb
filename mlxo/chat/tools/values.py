"""The syntaxes of arguments that families of tool calls share: JSON, JSON behind a head, XML, Python."""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any

from mlxo.chat.tools.parser import Parse, Schemas
from mlxo.core.types import Function

_JSON = json.JSONDecoder(strict=False)  # models put line ends into strings as they are
_BETWEEN = re.compile(r"[\s,;]*")
_MAX_PYTHON = 64 << 10  # characters
_NAMES: dict[str, Any] = {"true": True, "false": False, "null": None}
_NO_CALL = "directly-answer"  # Command-R's tool for using none


def decode(text: str, at: int = 0) -> tuple[Any, int]:
    """The JSON value at `at` and where it ends. Raises ValueError."""
    try:
        found: tuple[Any, int] = _JSON.raw_decode(text, at)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return found


# ---------------------------------------------------------------- JSON


def json_calls(body: str, schemas: Schemas) -> list[Function] | None:
    """Calls as JSON objects or lists of them, one behind the other; `arguments` may be JSON text."""
    at = _BETWEEN.match(body).end()  # type: ignore[union-attr]
    items: list[Any] = []
    while at < len(body):
        try:
            value, at = decode(body, at)
        except ValueError:
            return None
        items += value if isinstance(value, list) else [value]
        at = _BETWEEN.match(body, at).end()  # type: ignore[union-attr]
    calls = [_call(item, schemas) for item in items]
    good = [call for call in calls if call is not None]
    if not good or len(good) != len(calls):
        return None
    return [call for call in good if call.name != _NO_CALL]


def _call(value: Any, schemas: Schemas) -> Function | None:
    if not isinstance(value, dict):
        return None
    inner = value.get("function")
    if isinstance(inner, dict):
        value = inner
    elif len(value) == 1:
        ((name, held),) = value.items()
        if name in schemas and isinstance(held, dict):  # Apertus: the name is the key
            return Function(name=name, arguments=held)
    name = next((value[k] for k in ("name", "tool_name", "function") if k in value), None)
    arguments: Any = next((value[k] for k in ("arguments", "parameters", "args", "input") if k in value), {})
    return _function(name, arguments)


def _function(name: Any, arguments: Any) -> Function | None:
    if isinstance(arguments, str):
        try:
            arguments, _ = decode(arguments.strip() or "{}")
        except ValueError:
            return None
    if arguments is None:
        arguments = {}
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return Function(name=name, arguments=arguments)


def headed(head: str, tail: str) -> Parse:
    """Calls whose name stands before their JSON arguments: `head` is a regex with a group `name`."""
    before, behind = re.compile(head), re.compile(tail)

    def parse(body: str, schemas: Schemas) -> list[Function] | None:
        del schemas
        calls: list[Function] = []
        at = 0
        while at < len(body):
            found = before.match(body, at)
            if found is None:
                return None
            try:
                arguments, at = decode(body, found.end())
            except ValueError:
                return None
            call = _function(found["name"], arguments)
            if call is None:
                return None
            calls.append(call)
            at = behind.match(body, at).end()  # type: ignore[union-attr]
        return calls or None

    return parse


# ---------------------------------------------------------------- XML


def xml_calls(call: str, parameter: str) -> Parse:
    """Calls in tags. `call` is a regex with groups name and body, `parameter` one with key and value."""
    calls, parameters = re.compile(call, re.DOTALL), re.compile(parameter, re.DOTALL)

    def parse(body: str, schemas: Schemas) -> list[Function] | None:
        found: list[Function] = []
        for match in calls.finditer(body):
            name = match["name"].strip()
            if not name:
                return None
            given = schemas.get(name, {}).get("properties")
            properties = given if isinstance(given, dict) else {}
            arguments: dict[str, Any] = {}
            for p in parameters.finditer(match["body"]):
                key = p["key"].strip()
                as_text = p.groupdict().get("string")
                arguments[key] = typed(p["value"], properties.get(key), as_text)
            found.append(Function(name=name, arguments=arguments))
        return found or None

    return parse


def typed(text: str, schema: Any, as_text: str | None = None) -> Any:
    """An argument out of its tag, as its schema has it; without one, as JSON where it reads as such."""
    bare = text.removeprefix("\n").removesuffix("\n")
    kinds = _kinds(schema)
    if as_text == "true" or kinds == {"string"}:
        return bare
    try:
        value = json.loads(bare.strip())
    except (ValueError, RecursionError):
        lowered = bare.strip().lower()
        return {**_NAMES, "none": None}.get(lowered, bare) if kinds - {"string"} else bare
    if "string" in kinds and not isinstance(value, bool | int | float | None):
        return bare if not kinds & {"object", "array"} else value
    return value


def _kinds(schema: Any) -> set[str]:
    """The types that a schema allows; none where it says nothing of them."""
    if not isinstance(schema, dict):
        return set()
    kinds = schema.get("type")
    if isinstance(kinds, str):
        return {kinds}
    found = {k for k in kinds if isinstance(k, str)} if isinstance(kinds, list) else set()
    for word in ("anyOf", "oneOf"):
        held = schema.get(word)
        for inner in held if isinstance(held, list) else ():
            if isinstance(inner, dict) and isinstance(inner.get("type"), str):
                found.add(inner["type"])
    values = schema.get("enum")
    if not found and isinstance(values, list) and values and all(isinstance(v, str) for v in values):
        found = {"string"}
    return found


# ---------------------------------------------------------------- Python


def python_calls(body: str, schemas: Schemas) -> list[Function] | None:
    """`[f(a=1), g(b="x")]`, the brackets optional: Llama 3.2 and 4, LFM2."""
    if len(body) > _MAX_PYTHON or body.count("[") + body.count("(") + body.count("{") > 2000:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Python thinks of a model's escapes
            tree = ast.parse(body.strip(), mode="eval").body
        nodes = tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]
        return [_python_call(node, schemas) for node in nodes] or None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _python_call(node: ast.expr, schemas: Schemas) -> Function:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name | ast.Attribute):
        raise ValueError("no call")
    name = ast.unparse(node.func)
    given = schemas.get(name, {}).get("properties")
    keys = list(given) if isinstance(given, dict) else []
    if len(node.args) > len(keys):
        raise ValueError("arguments without names")
    arguments = {key: _literal(value) for key, value in zip(keys, node.args, strict=False)}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError("**")
        arguments[keyword.arg] = _literal(keyword.value)
    return Function(name=name, arguments=arguments)


def _literal(node: ast.expr | None) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | None):
        return node.value
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {str(_literal(k)): _literal(v) for k, v in zip(node.keys, node.values, strict=True)}
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _literal(node.operand)
        if isinstance(value, int | float):
            return -value
    if isinstance(node, ast.Name) and node.id in _NAMES:
        return _NAMES[node.id]
    raise ValueError("no literal")


# ---------------------------------------------------------------- Gemma

_GEMMA = re.compile(
    r'\s*(?:(?:<\|"\|>|<escape>)(.*?)(?:<\|"\|>|<escape>)|([{}\[\],:])|([^{}\[\],:<]+))', re.DOTALL
)
_MAX_DEPTH = 50


def gemma_calls(body: str, schemas: Schemas) -> list[Function] | None:
    """`call:name{key:<|"|>text<|"|>,n:3}`, one behind the other: Gemma 4 and FunctionGemma (`<escape>`)."""
    del schemas
    calls: list[Function] = []
    for part in re.split(r"(?:^|(?<=\}))\s*call:", body):
        if not part.strip():
            continue
        name, brace, rest = part.partition("{")
        try:
            arguments, at = _gemma_value(brace + rest, 0, 0)
        except ValueError:
            return None
        if not name.strip() or not isinstance(arguments, dict) or (brace + rest)[at:].strip():
            return None
        calls.append(Function(name=name.strip(), arguments=arguments))
    return calls or None


def _gemma_value(text: str, at: int, depth: int) -> tuple[Any, int]:
    found = _GEMMA.match(text, at)
    if found is None or depth > _MAX_DEPTH:
        raise ValueError("no value")
    string, sign, bare = found.groups()
    if string is not None:
        return string, found.end()
    if bare is not None:
        try:
            return json.loads(bare.strip()), found.end()
        except ValueError:
            return bare.strip(), found.end()
    if sign == "[":
        return _gemma_items(text, found.end(), depth)
    if sign == "{":
        return _gemma_fields(text, found.end(), depth)
    raise ValueError("no value")


def _gemma_items(text: str, at: int, depth: int) -> tuple[list[Any], int]:
    items: list[Any] = []
    while True:
        if (closing := re.compile(r"\s*\]").match(text, at)) is not None:
            return items, closing.end()
        value, at = _gemma_value(text, at, depth + 1)
        items.append(value)
        at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]


def _gemma_fields(text: str, at: int, depth: int) -> tuple[dict[str, Any], int]:
    fields: dict[str, Any] = {}
    while True:
        if (closing := re.compile(r"\s*\}").match(text, at)) is not None:
            return fields, closing.end()
        key, at = _gemma_value(text, at, depth + 1)
        colon = re.compile(r"\s*:").match(text, at)
        if colon is None:
            raise ValueError("no key")
        fields[str(key)], at = _gemma_value(text, colon.end(), depth + 1)
        at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]
