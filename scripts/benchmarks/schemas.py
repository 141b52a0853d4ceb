#!/usr/bin/env python3
"""Random JSON schemas against a running server: does every answer parse and validate?

    MLXO_HOST=127.0.0.1:11434 .venv/bin/python scripts/benchmarks/schemas.py MODEL [--count N] [--streams N]

Needs `jsonschema`. Each request goes to /v1/chat/completions with response_format json_schema, temperature
1.5 and a max_tokens drawn per request: an answer has to come to its end in time all the same.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

PATTERNS = ("^[a-z]{2,8}$", "^[A-Z][a-z]+( [A-Z][a-z]+)?$", r"^\d{3}-\d{4}$", "^(red|green|blue)+$", "[0-9]")
FORMATS = ("date", "date-time", "time", "uuid", "email", "ipv4", "hostname")
WORDS = (
    "name",
    "age",
    "city",
    "tags",
    "items",
    "price",
    "kind",
    "size",
    "note",
    "id",
    "naïve key",
    'a"b',
    "x/y",
)


class Maker:
    """Random schemas of draft 2020-12 with what mlxo enforces. Every one has an answer."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def document(self) -> dict[str, Any]:
        """A whole schema, some with `$defs`, one of them recursive."""
        rng = self.rng
        schema = self.object(3) if rng.random() < 0.7 else self.schema(3)
        if rng.random() < 0.3:
            tree = {"type": "array", "items": {"$ref": "#/$defs/tree"}}
            fields = {"value": self.scalar(), "children": tree}
            needed = ["value", "children"] if rng.random() < 0.5 else ["value"]
            defs = {
                "tree": {"type": "object", "properties": fields, "required": needed},
                "leaf": self.scalar(),
            }
            both = {"tree": {"$ref": "#/$defs/tree"}, "leaf": {"$ref": "#/$defs/leaf"}, "rest": schema}
            schema = {"$defs": defs, "type": "object", "properties": both, "required": ["tree", "leaf"]}
        return schema

    def schema(self, depth: int) -> dict[str, Any]:
        if depth == 0:
            return self.scalar()
        make = self.rng.choice((self.object, self.array, self.union, self.map, self.all_of))
        return make(depth - 1) if self.rng.random() < 0.6 else self.scalar()

    def scalar(self) -> dict[str, Any]:
        rng = self.rng
        low = rng.randint(-50, 50)
        strings: dict[str, Any] = {"type": "string", "minLength": rng.randint(0, 3)}
        if rng.random() < 0.5:
            strings["maxLength"] = strings["minLength"] + rng.randint(0, 10)
        return rng.choice(
            (
                {"type": "string"},
                strings,
                {"type": "string", "pattern": rng.choice(PATTERNS)},
                {"type": "string", "format": rng.choice(FORMATS)},
                {"type": "integer"},
                {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 1000)},
                {"type": "integer", "multipleOf": rng.choice((2, 5, 7)), "exclusiveMinimum": low},
                {"type": "number"},
                {"type": "number", "minimum": low + 0.5, "exclusiveMaximum": low + rng.randint(1, 9)},
                {"type": "boolean"},
                {"type": "null"},
                {"type": ["string", "null"]},
                {"type": ["integer", "boolean"]},
                {"enum": rng.sample(["red", "green", "blü", 1, 2.5, None, True, [1], {"a": 1}, 'quo"te'], 3)},
                {"const": rng.choice(["fixed", 7, None, ["x", {"y": [1.5]}], "line\nbreak"])},
            )
        )

    def object(self, depth: int) -> dict[str, Any]:
        rng = self.rng
        keys = rng.sample(WORDS, rng.randint(0, 5))
        found: dict[str, Any] = {"type": "object", "properties": {k: self.schema(depth) for k in keys}}
        found["required"] = [k for k in keys if rng.random() < 0.7]
        if rng.random() < 0.6:
            found["additionalProperties"] = False if rng.random() < 0.7 else self.scalar()
        return found

    def map(self, depth: int) -> dict[str, Any]:
        rng = self.rng
        if rng.random() < 0.5:
            return {"type": "object", "additionalProperties": self.schema(depth), "maxProperties": 3}
        return {
            "type": "object",
            "patternProperties": {"^a": self.schema(depth), "^[0-9]": self.scalar()},
            "additionalProperties": False,
            "minProperties": rng.randint(0, 1),
        }

    def array(self, depth: int) -> dict[str, Any]:
        rng = self.rng
        low = rng.randint(0, 3)
        found: dict[str, Any] = {"type": "array", "items": self.schema(depth), "minItems": low}
        if rng.random() < 0.5:
            found["maxItems"] = low + rng.randint(0, 3)
        if rng.random() < 0.3:
            found["prefixItems"] = [self.schema(depth) for _ in range(rng.randint(1, 2))]
        return found

    def union(self, depth: int) -> dict[str, Any]:
        rng = self.rng
        if rng.random() < 0.5:
            kinds = rng.sample(WORDS[:6], 2)
            return {"oneOf": [self.tagged(kind, depth) for kind in kinds]}
        return {"anyOf": [self.schema(depth) for _ in range(rng.randint(2, 3))]}

    def tagged(self, kind: str, depth: int) -> dict[str, Any]:
        fields = {"kind": {"const": kind}, "value": self.schema(depth)}
        return {"type": "object", "properties": fields, "required": ["kind", "value"]}

    def all_of(self, depth: int) -> dict[str, Any]:
        first = {"type": "object", "properties": {"first": self.schema(depth)}, "required": ["first"]}
        second = {"type": "object", "properties": {"second": self.scalar()}, "required": ["second"]}
        return {"allOf": [first, second]}


def ask(base: str, model: str, number: int, schema: dict[str, Any], limit: int) -> tuple[str, dict[str, Any]]:
    """What came of it: "ok", or why not; and the answer's body."""
    import jsonschema

    body = {
        "model": model,
        "messages": [{"role": "user", "content": f"Invent something, number {number}. Answer in JSON."}],
        "temperature": 1.5,
        "seed": number,
        "max_tokens": limit,
        "reasoning_effort": "none",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "s", "schema": schema, "strict": True},
        },
    }
    request = urllib.request.Request(
        f"{base}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=1800) as response:
            answer: dict[str, Any] = json.load(response)
    except urllib.error.HTTPError as e:
        return f"HTTP {e.code}: {e.read().decode()[:200]}", {}
    choice = answer["choices"][0]
    try:
        jsonschema.Draft202012Validator(schema).validate(json.loads(choice["message"]["content"]))
    except ValueError:
        return f"no JSON ({choice['finish_reason']})", answer
    except jsonschema.ValidationError as e:
        return f"invalid: {e.message[:100]}", answer
    return "ok", answer


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    base = "http://" + os.environ.get("MLXO_HOST", "127.0.0.1:11434")
    maker = Maker(options.seed)
    jobs = [(i, maker.document(), maker.rng.choice((320, 512, 800))) for i in range(options.count)]
    began = time.monotonic()
    with ThreadPoolExecutor(options.streams) as pool:
        results = list(pool.map(lambda job: ask(base, options.model, *job), jobs))
    tokens = sum(answer["usage"]["completion_tokens"] for _, answer in results if answer)
    good = sum(verdict == "ok" for verdict, _ in results)
    for (number, schema, limit), (verdict, answer) in zip(jobs, results, strict=True):
        if verdict != "ok":
            said = answer["choices"][0]["message"]["content"] if answer else ""
            print(f"--- {number} (max_tokens {limit}): {verdict}\n{json.dumps(schema)}\n{said}")
    spent = time.monotonic() - began
    print(f"{good} of {options.count} parse and validate; {tokens} tokens in {spent:.0f} s")
    return 0 if good == options.count else 1


if __name__ == "__main__":
    sys.exit(main())
