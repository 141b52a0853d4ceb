"""Which schemas are enforced, and that what cannot be is told by its name and place."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxo.chat import schema
from mlxo.core.errors import InvalidRequest

TEXT = {"type": "string"}
ENDLESS = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"type": "array", "uniqueItems": True}, '"uniqueItems" at #,'),
        ({"properties": {"a/b": {"not": {}}}}, '"not" at #/properties/a~1b,'),
        ({"items": {"type": "string", "maxlength": 3}}, '"maxlength" at #/items,'),
        ({"$defs": {"x": {"if": TEXT, "then": TEXT}}, "$ref": "#/$defs/x"}, '"if" at #/$defs/x,'),
        ({"anyOf": [TEXT, {"contains": TEXT}]}, '"contains" at #/anyOf/1,'),
        ({"items": [{"propertyNames": TEXT}]}, '"propertyNames" at #/items/0,'),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, '"dependentRequired"'),
        ({"type": "object", "unevaluatedProperties": False}, '"unevaluatedProperties"'),
        ({"type": "string", "nullable": True}, '"nullable"'),
        ({"type": "string", "format": "iban"}, '"format: iban"'),
        ({"type": "object", "minProperties": 2}, '"minProperties"'),
        ({"type": "integer", "multipleOf": 999_983}, "multipleOf that is too large"),
        ({"allOf": [{"multipleOf": 997}, {"multipleOf": 991}]}, "multipleOf that is too large"),
        ({"patternProperties": {f"^{i}": TEXT for i in range(100)}}, "more than 32 patternProperties"),
        ({"properties": {f"p{i}": TEXT for i in range(3000)}}, "more than 2000 properties"),
        ({"enum": ["x" * 300_000]}, "longer than"),
        (ENDLESS, "cannot be met"),
        ({"$ref": "#"}, "cannot be met"),
    ],
)
def test_what_cannot_be_enforced_is_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        schema.check(given, "format")
    assert words in caught.value.message
    assert caught.value.message.startswith("the schema in format ")


@pytest.mark.parametrize(
    "given",
    [
        {},
        {
            "title": "T",
            "description": "d",
            "default": 1,
            "examples": [1],
            "$comment": "c",
            "x-mine": {"not": 1},
        },
        {"properties": {"not": TEXT, "if": TEXT}, "required": ["not"]},
        {"const": {"not": 1, "contains": 2}},
        {"enum": [{"uniqueItems": True}]},
        {"type": "integer", "format": "int32"},
        {"type": "object", "minProperties": 2, "required": ["a"]},
        {
            "type": "object",
            "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
            "required": ["next"],
        },
        {"type": "number", "multipleOf": 0.01, "minimum": 5, "maximum": 100},
    ],
)
def test_what_can_be_is_left_as_it_is(given: dict[str, Any]) -> None:
    assert schema.check(given, "format") == given


def test_what_asserts_nothing_is_left_out() -> None:
    given = {"type": "array", "uniqueItems": False, "items": {"type": "string", "nullable": False}}
    assert schema.check(given, "format") == {"type": "array", "items": TEXT}
    assert "uniqueItems" in given, "the client's own schema stays"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"type": "integer", "exclusiveMinimum": 3}, {"type": "integer", "minimum": 4}),
        ({"type": "integer", "exclusiveMaximum": -2.5}, {"type": "integer", "maximum": -3}),
        ({"type": "number", "exclusiveMaximum": -37}, {"type": "number", "maximum": -37.000000037}),
        ({"exclusiveMinimum": 0, "minimum": 2}, {"minimum": 2}),
        ({"minimum": 3, "exclusiveMinimum": True}, {"minimum": 3.000000003}),
        ({"minimum": 3, "exclusiveMinimum": False}, {"minimum": 3}),
    ],
)
def test_a_float_that_rounds_to_an_exclusive_bound_is_not_met(given: Any, expected: Any) -> None:
    assert schema.check(given, "format") == expected


def test_sizes() -> None:
    person = {"type": "object", "properties": {"name": TEXT, "tags": {"type": "array"}}, "required": ["name"]}
    assert schema.least(person) == len('{"name":"",}')
    assert schema.widest(person) >= len('"tags":[],')
    assert schema.widest({"type": "array", "items": person}) > schema.widest(person)


WORDS = (
    "type",
    "enum",
    "required",
    "properties",
    "items",
    "anyOf",
    "allOf",
    "$ref",
    "minItems",
    "multipleOf",
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["string", "object", "#", "#/items", "a"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from([*WORDS, "exclusiveMaximum", "format"]), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(WORDS), VALUES, max_size=5))
def test_anything_is_checked_or_refused(given: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidRequest):
        assert schema.widest(schema.check(given, "format")) >= 0


def test_hostile_schemas_are_looked_at_in_no_time() -> None:
    chain = {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(6000)} | {"a6000": TEXT}
    laughs = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 9} for i in range(500)} | {"a500": TEXT}
    began = time.monotonic()
    for defs in (chain, laughs):
        schema.widest(schema.check({"$defs": defs, "$ref": "#/$defs/a0"}, "format"))
    assert time.monotonic() - began < 10
