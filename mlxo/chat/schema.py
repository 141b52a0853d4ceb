"""JSON schemas as `format` and tools bring them: which can be enforced, and how short an answer can be.

Keywords after https://json-schema.org/draft/2020-12. What is asserted but cannot be enforced is refused by
its name and place, and so is a word that no draft knows: most often it is one of them misspelt.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

from mlxo.core.errors import InvalidRequest

_ONE = {"items", "additionalProperties", "additionalItems"}  # hold a schema; `items` of old drafts a list
_LISTS = {"anyOf", "allOf", "oneOf", "prefixItems", "items"}
_MAPS = {"properties", "patternProperties", "$defs", "definitions"}
_ASSERTIONS = {
    *("type", "enum", "const", "required", "minProperties", "maxProperties", "minItems", "maxItems"),
    *("minLength", "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum"),
    *("exclusiveMaximum", "multipleOf", "$ref"),
}
_NOTES = {
    *(
        "$schema",
        "$id",
        "id",
        "$anchor",
        "$comment",
        "title",
        "description",
        "default",
        "examples",
        "example",
    ),
    *("deprecated", "readOnly", "writeOnly", "contentEncoding", "contentMediaType", "contentSchema"),
    *("discriminator", "externalDocs", "xml", "propertyOrdering", "strict"),
}
_KNOWN = _ONE | _LISTS | _MAPS | _ASSERTIONS | _NOTES
_FORMATS = {
    *("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"),
}
# These assert nothing when they have this value.
_IDLE: dict[str, Any] = {"uniqueItems": False, "nullable": False, "minContains": 0}

MAX_CHARACTERS = 256 << 10
# What compiling them costs grows with the square or worse, and it holds up the engine.
_MAX_PROPERTIES = 2000  # of one object
_MAX_PATTERNS = 32  # patternProperties of the whole schema
_MAX_MULTIPLE = 50_000  # the least common multiple of all multipleOf, in units of their last decimal
_MAX_VISITS = 100_000  # of nodes, while their sizes are found
_LEAST = 4  # characters that the smallest value of an unknown type may need: null


class _Node(NamedTuple):
    value: dict[str, Any]
    path: str


def nodes(schema: Any) -> Iterator[_Node]:
    """Every schema in `schema`, itself first. `path` is a JSON pointer as a URI fragment."""
    stack = [(schema, "#")]
    while stack:
        value, path = stack.pop()
        if not isinstance(value, dict):
            continue  # true, false, or what llguidance will refuse
        yield _Node(value, path)
        for word, held in value.items():
            inner: list[tuple[Any, str]] = []
            if word in _MAPS and isinstance(held, dict):
                inner = [(v, f"{path}/{word}/{_escaped(k)}") for k, v in held.items()]
            elif word in _LISTS and isinstance(held, list):
                inner = [(v, f"{path}/{word}/{i}") for i, v in enumerate(held)]
            elif word in _ONE:
                inner = [(held, f"{path}/{word}")]
            stack += reversed(inner)


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def check(schema: dict[str, Any], where: str) -> dict[str, Any]:
    """The schema as llguidance is to have it, no laxer. `where` is the name that the client knows it by.

    Raises InvalidRequest naming the first keyword that cannot be enforced, and its place.
    """
    text = json.dumps(schema)
    if len(text) > MAX_CHARACTERS:
        raise InvalidRequest(f"the schema in {where} is longer than {MAX_CHARACTERS} characters")
    patterns = 0
    multiples: list[Fraction] = []
    for node in nodes(schema):
        for word, held in node.value.items():
            idle = word in _IDLE and held == _IDLE[word]
            if not idle and word not in _KNOWN and not word.startswith("x-"):
                raise _refusal(where, word[:40], node.path)
        _check_values(node, where)
        patterns += len(_object(node.value, "patternProperties"))
        multiples += _multiple(node.value.get("multipleOf"))
    if patterns > _MAX_PATTERNS:
        raise InvalidRequest(f"the schema in {where} has more than {_MAX_PATTERNS} patternProperties")
    if multiples and _spread(multiples) > _MAX_MULTIPLE:
        raise InvalidRequest(f"the schema in {where} has a multipleOf that is too large to be enforced")
    if least(schema) == math.inf:
        raise InvalidRequest(f"the schema in {where} cannot be met: what it requires has no end")
    return _rewritten(json.loads(text))


def _check_values(node: _Node, where: str) -> None:
    value = node.value
    kinds, form = value.get("type"), value.get("format")
    text = "string" in kinds if isinstance(kinds, str | list) else kinds is None
    if text and isinstance(form, str) and form not in _FORMATS:
        raise _refusal(where, f"format: {form[:40]}", node.path)
    lowest = value.get("minProperties")
    # Of the keys that it does not name it may write one twice.
    if isinstance(lowest, int) and lowest > len(_required(value)) + 1:
        raise _refusal(where, "minProperties", node.path, "name the properties and require them")
    if len(_object(value, "properties")) > _MAX_PROPERTIES:
        raise InvalidRequest(
            f"the schema in {where} has more than {_MAX_PROPERTIES} properties at {node.path}"
        )


def _object(value: dict[str, Any], word: str) -> dict[str, Any]:
    held = value.get(word)
    return held if isinstance(held, dict) else {}


def _required(value: dict[str, Any]) -> set[str]:
    held = value.get("required")
    return {key for key in held if isinstance(key, str)} if isinstance(held, list) else set()


def _refusal(where: str, word: str, path: str, hint: str | None = None) -> InvalidRequest:
    return InvalidRequest(
        f'the schema in {where} has "{word}" at {path[:200]}, which mlxo cannot enforce', hint
    )


def _multiple(value: Any) -> list[Fraction]:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e15:
        return []
    return [Fraction(repr(value))]


def _spread(multiples: list[Fraction]) -> int:
    """Their least common multiple in units of the smallest decimal place of any."""
    scale = math.lcm(*(m.denominator for m in multiples))
    return math.lcm(*(int(m * scale) for m in multiples))


def _rewritten(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema` itself, without what asserts nothing, and with bounds that are met or not in floats too.

    A number just below an exclusive bound may read as the bound: the bound moves by a billionth.
    """
    for node in list(nodes(schema)):
        value = node.value
        for word, held in _IDLE.items():
            if word in value and value[word] == held:
                del value[word]
        _open_bound(value, "exclusiveMinimum", "minimum", 1)
        _open_bound(value, "exclusiveMaximum", "maximum", -1)
    return schema


def _open_bound(value: dict[str, Any], word: str, closed: str, sign: int) -> None:
    bound, other = value.get(word), value.get(closed)
    if bound is False:
        del value[word]
        return
    if bound is True:  # draft 4: `closed` is the bound
        bound, other = other, None
    if isinstance(bound, bool) or not isinstance(bound, int | float) or abs(bound) > 1e15:
        return
    if value.get("type") == "integer":
        moved: float = math.floor(bound) + 1 if sign > 0 else math.ceil(bound) - 1
    else:
        moved = round(bound + sign * 1e-9 * max(1.0, abs(bound)), 15 - len(str(int(abs(bound)))))
    if isinstance(other, int | float) and not isinstance(other, bool):
        moved = max(moved, other) if sign > 0 else min(moved, other)
    del value[word]
    value[closed] = moved


# ---------------------------------------------------------------- sizes


def least(schema: dict[str, Any]) -> float:
    """About how many characters the smallest value has: infinite where a schema requires itself."""
    return _sizes(list(nodes(schema)))[0]


def widest(schema: dict[str, Any]) -> int:
    """By how many characters one choice may put off the end of the shortest answer, at most about.

    What is required is part of that answer; what is optional, one more item, or a longer branch is not.
    """
    found = list(nodes(schema))
    sizes = _sizes(found)
    byid = {id(node.value): i for i, node in enumerate(found)}

    def of(inner: Any) -> float:
        return sizes[byid[id(inner)]] if isinstance(inner, dict) and id(inner) in byid else _LEAST

    return int(max((c for node in found for c in _choices(node.value, of) if c != math.inf), default=0))


def _choices(value: dict[str, Any], of: Callable[[Any], float]) -> Iterator[float]:
    required = _required(value)
    for key, inner in _object(value, "properties").items():
        if key not in required:
            yield len(json.dumps(key)) + 2 + of(inner)
    for inner in (*_object(value, "patternProperties").values(), *(value.get(w, True) for w in sorted(_ONE))):
        if not isinstance(inner, list):
            yield 8 + of(inner)
    for word in ("anyOf", "oneOf", "prefixItems", "enum"):
        held = value.get(word)
        for inner in held if isinstance(held, list) else ():
            yield 1 + of(inner) if word != "enum" else len(json.dumps(inner))
    if not isinstance(value.get("type"), str):
        yield max(_own_size(kind, value, of) for kind in ("object", "array", "string"))


def _sizes(found: list[_Node]) -> list[float]:
    """The least size of a schema and of all within it, as a fixed point over its references."""
    where = {node.path: i for i, node in enumerate(found)}
    byid = {id(node.value): i for i, node in enumerate(found)}
    sizes = [math.inf] * len(found)
    for _ in range(min(40, max(2, _MAX_VISITS // len(found)))):
        settled = True
        for i in range(len(found) - 1, -1, -1):
            size = _size(found[i].value, sizes, where, byid)
            settled = settled and size == sizes[i]
            sizes[i] = size
        if settled:
            return sizes
    return [0.0 if s == math.inf else s for s in sizes]  # too deep to tell: no reason to refuse it


def _size(value: dict[str, Any], sizes: list[float], where: dict[str, int], byid: dict[int, int]) -> float:
    def of(inner: Any) -> float:
        return sizes[byid[id(inner)]] if isinstance(inner, dict) and id(inner) in byid else _LEAST

    found: list[float] = [1]
    if "const" in value:
        return len(json.dumps(value["const"]))
    if isinstance(value.get("enum"), list):
        return float(min((len(json.dumps(v)) for v in value["enum"]), default=math.inf))
    target = value.get("$ref")
    if isinstance(target, str) and target in where:
        found.append(sizes[where[target]])
    for word, choose in (("allOf", sum), ("anyOf", min), ("oneOf", min)):
        if isinstance(value.get(word), list) and value[word]:
            found.append(choose(of(v) for v in value[word]))
    kinds = value.get("type")
    if kinds is None or (isinstance(kinds, list) and len(kinds) != 1):
        # Any type that is not the one these words are about will do; but they may be reached through a $ref.
        return max(found)
    kind = kinds[0] if isinstance(kinds, list) else kinds
    return max(*found, _own_size(kind, value, of))


def _own_size(kind: Any, value: dict[str, Any], of: Callable[[Any], float]) -> float:
    def count(word: str) -> int:
        held = value.get(word)
        return held if isinstance(held, int) else 0

    if kind == "object":
        properties = _object(value, "properties")
        size = 2.0 + sum(len(json.dumps(key)) + 2 + of(properties.get(key)) for key in _required(value))
        return max(size, 8.0 * count("minProperties"))
    if kind == "array":
        listed = value.get("prefixItems")
        listed = listed if isinstance(listed, list) else []
        n = count("minItems")
        size = 2.0 + sum(1 + of(v) for v in listed[:n])
        return size + (n - len(listed)) * (1 + of(value.get("items"))) if n > len(listed) else size
    if kind == "string":
        return 2 + max(count("minLength"), 24 if {"pattern", "format"} & value.keys() else 0)
    return max([1.0, *(len(str(value[w])) for w in ("minimum", "maximum", "multipleOf") if w in value)])
