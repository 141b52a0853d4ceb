"""A constrained answer ends in time, whatever the model writes: here it writes at random."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import jsonschema
import mlx.core as mx
import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from mlxo.chat import schema
from mlxo.engine.detokenize import Detokenizer
from mlxo.engine.grammar import Grammars
from mlxo.engine.thinking import Budget, Thinking, Thought
from tests import models

WIDTH = 768
SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmarks" / "schemas.py"


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def grammars(request: pytest.FixtureRequest) -> Grammars:
    folder = models.QWEN3 if request.param == "qwen3" else models.LLAMA
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|im_end|>")
    return Grammars(tokenizer, WIDTH, {tokenizer.eos_token_id}, Detokenizer(tokenizer))


@pytest.fixture(scope="module")
def maker() -> Any:
    found = importlib.util.spec_from_file_location("schemas", SCRIPT)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.Maker(3)


def write(grammars: Grammars, form: Any, limit: int, seed: int) -> tuple[str, bool]:
    """An answer of a model that likes all tokens alike, and whether it came to its end."""
    rng = np.random.default_rng(seed)
    constraint = grammars.constraint(form, None, limit)
    written: list[int] = []
    for _ in range(limit):
        likes = mx.array(rng.normal(size=(1, WIDTH)).astype(np.float32))
        masked = np.array(constraint(mx.array([0, *written]), likes))[0]
        chances = np.exp(masked - masked.max())
        token = int(rng.choice(WIDTH, p=chances / chances.sum()))
        if token in grammars.eos:
            return grammars.tokenizer.decode_str(written), True
        written.append(token)
    return grammars.tokenizer.decode_str(written), False


def test_random_schemas_are_met_by_random_tokens(grammars: Grammars, maker: Any) -> None:
    for number in range(40):
        given = maker.document()
        text, ended = write(grammars, schema.check(given, "format"), 320, number)
        assert ended, (given, text)
        jsonschema.Draft202012Validator(given).validate(json.loads(text))


@pytest.mark.parametrize(
    ("form", "limit"),
    [
        ("json", 40),
        ({"type": "array"}, 30),
        ({"$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}}, "$ref": "#/$defs/t"}, 60),
        ({"type": "string", "pattern": "^[a-z]*@[a-z]+[.]org$"}, 40),
        ({"type": "integer", "multipleOf": 91, "minimum": 5}, 40),
    ],
)
def test_what_never_ends_by_itself(grammars: Grammars, form: Any, limit: int) -> None:
    for seed in range(8):
        text, ended = write(grammars, form, limit, seed)
        assert ended, text
        if isinstance(form, dict):
            jsonschema.Draft202012Validator(form).validate(json.loads(text))
        else:
            assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize(
    "form", [{"regex": "(ab|cd)*x[0-9]{3}"}, {"grammar": 'start: "(" start ")" | "x" | start start'}]
)
def test_regexes_and_grammars_end_too(grammars: Grammars, form: Any) -> None:
    assert all(write(grammars, form, 120, seed)[1] for seed in range(6))


def test_an_answer_with_room_is_left_to_the_model(grammars: Grammars) -> None:
    """Long before the limit nothing is forced: the strings of a model that rambles are long."""
    form = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    text, _ = write(grammars, form, 200, 1)
    assert len(json.loads(text)["a"]) > 100


def test_a_budget_ends_the_thinking(grammars: Grammars) -> None:
    close = grammars.tokenizer.tokenize_str("</think>")
    thought = Thought(Thinking(True, None, "</think>"), grammars.detokenizer)
    budget = Budget(thought, 3, close)
    written: list[int] = []
    for _ in range(3 + len(close) + 4):
        liked = mx.array(np.eye(WIDTH, dtype=np.float32)[[100]])
        written.append(int(np.argmax(np.array(budget(mx.array([0, *written]), liked)))))
    assert written == [100] * 3 + close + [100] * 4
