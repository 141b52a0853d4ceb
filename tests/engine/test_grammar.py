"""`format`: whatever the temperature, what comes out is JSON of the asked shape."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from mlxo.engine.engine import Engine
from tests import models
from tests.engine.ask import Answer, chat, complete, run, say

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 120}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
COLOURS: dict[str, Any] = {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 2, "maxItems": 3}
# Nothing here has an open end: a wild model comes to one before its limit.
WILD = {"temperature": 1.5, "num_predict": 300}
QUESTION = "Tell me a joke."
JSON_QUESTION = "Answer in JSON: name and age of Ada."


def is_person(answer: Answer) -> bool:
    value = json.loads(answer.text)
    return set(value) == {"name", "age"} and isinstance(value["age"], int) and isinstance(value["name"], str)


def test_rows_with_and_without_a_schema(qwen3: Engine) -> None:
    requests = [chat(QUESTION, format=PERSON, options={**WILD, "seed": s}) for s in range(4)]
    requests += [chat(QUESTION, format=COLOURS, options={**WILD, "seed": s}) for s in range(2)]
    requests += [chat(QUESTION)]
    *persons, first, second, free = run(qwen3, *requests)
    assert all(is_person(a) for a in persons)
    assert all(len(json.loads(a.text)) in (2, 3) for a in (first, second))
    assert {a.finished.reason for a in persons} == {"stop"}
    assert free.text == models.ANSWERS[QUESTION]


def test_json(qwen3: Engine, llama: Engine) -> None:
    for engine in (qwen3, llama):
        answers = run(
            engine,
            *(
                chat(QUESTION, format="json", options={**WILD, "num_predict": 80, "seed": s})
                for s in range(4)
            ),
        )
        assert all(isinstance(json.loads(a.text), dict) for a in answers)
        assert {a.finished.reason for a in answers} == {"stop"}
    answer = say(qwen3, chat(JSON_QUESTION, format="json"))
    assert answer.text == models.ANSWERS[JSON_QUESTION]


def test_what_the_model_would_say_anyway_stays(qwen3: Engine) -> None:
    for think in (False, True):
        answer = say(qwen3, chat(JSON_QUESTION, think=think, format=PERSON))
        assert answer.text == models.ANSWERS[JSON_QUESTION]
        assert answer.thinking == (models.THOUGHTS[JSON_QUESTION] if think else "")


def test_thinking_is_free_and_the_answer_is_not(qwen3: Engine) -> None:
    for answer in run(
        qwen3, *(chat(QUESTION, think=True, format=PERSON, options={"seed": s}) for s in range(2))
    ):
        assert answer.thinking == models.THOUGHTS[QUESTION]
        assert is_person(answer)


def test_a_prompt_that_opens_the_thinking(qwen3: Engine) -> None:
    """Templates of some models end with the opening mark."""
    template = "<|im_start|>user\n{{ messages[0].content }}<|im_end|>\n<|im_start|>assistant\n<think>\n"
    answer = say(qwen3, chat(QUESTION, think=True, format=PERSON, template=template))
    assert answer.thinking == models.THOUGHTS[QUESTION]
    assert is_person(answer)


def test_regex_choice_and_grammar(qwen3: Engine) -> None:
    forms = (
        {"regex": "[a-c]{3}-[0-9]+"},
        {"choice": ["red", "green tea"]},
        {"grammar": 'start: "a" start | "b"'},
    )
    coded, chosen, parsed = run(
        qwen3, *(chat(QUESTION, format=f, options={**WILD, "num_predict": 60}) for f in forms)
    )
    assert re.fullmatch("[a-c]{3}-[0-9]+", coded.text)
    assert chosen.text in ("red", "green tea")
    assert re.fullmatch("a*b", parsed.text)
    assert {a.finished.reason for a in (coded, chosen, parsed)} == {"stop"}


def test_a_completion_too(llama: Engine) -> None:
    assert is_person(say(llama, complete("Ada:", format=PERSON, options=WILD)))


def test_with_penalties(qwen3: Engine) -> None:
    options = {**WILD, "repeat_penalty": 1.5, "seed": 1}
    assert is_person(say(qwen3, chat(QUESTION, format=PERSON, options=options)))


def test_a_schema_that_proves_too_much_ends_its_row_alone(qwen3: Engine) -> None:
    """llguidance accepts the pattern and gives up on it some tokens later."""
    hard = {"type": "string", "pattern": "^(.{0,200}a){50}$"}
    options = {"temperature": 3.0, "seed": 2, "num_predict": 400}
    failing, other = run(qwen3, chat(QUESTION, format=hard, options=options), chat(QUESTION))
    assert failing.failed.code == "invalid_request"
    assert failing.failed.message.startswith("the schema in format cannot be followed: ")
    assert failing.text.startswith('"')
    assert other.text == models.ANSWERS[QUESTION]
    assert qwen3.stats().rows == 0


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("xml", "invalid format"),
        ({"type": "nope"}, "nope"),
        ({"$ref": "#/missing"}, "missing"),
        ({"type": "string", "pattern": "(?=x)y"}, "look-around"),
        ({"regex": "(?=x)y"}, "look-around"),
        ({"grammar": "start: start2"}, "start2"),
        ({"type": "object", "x-guidance": {"bogus": 1}}, "bogus"),
        ({"enum": ["x" * 2_000_000]}, "longer than 1 MB"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_with_the_reason(
    qwen3: Engine, form: str | dict[str, Any], words: str
) -> None:
    answer = say(qwen3, chat(QUESTION, format=form))
    assert len(answer.events) == 1
    assert answer.failed.code == "invalid_request"
    assert words in answer.failed.message
    assert len(answer.failed.message) < 400
