"""Calls that must come: of the tool that is named, with arguments that its schema allows."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from mlxo.core.types import Call
from mlxo.engine.engine import Engine
from tests import models
from tests.engine.ask import Answer, chat, run, say
from tests.engine.conftest import spec

QUESTION = "Tell me a joke."
WILD = {"temperature": 1.5, "num_predict": 200}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 9},
        "place": {"$ref": "#/$defs/place"},
        "days": {"type": "array", "items": {"enum": ["mon", "tue"]}, "minItems": 1},
    },
    "required": ["city", "place", "days"],
    "additionalProperties": False,
    "$defs": {"place": {"type": "object", "properties": {"lat": {"type": "number"}}, "required": ["lat"]}},
}


def tool(name: str, parameters: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


VISIT, CALM = tool("visit", SCHEMA), tool("calm", {"type": "object", "properties": {}})
BOTH = (VISIT, CALM)


def calls(answer: Answer) -> list[tuple[str, dict[str, Any]]]:
    assert answer.text == ""
    found = [e.call.function for e in answer.events if isinstance(e, Call)]
    return [(f.name, f.arguments) for f in found]


def test_a_named_tool_is_called_once_with_good_arguments(qwen3: Engine) -> None:
    task = {"tools": BOTH, "force": ("visit",), "single": True}
    answers = run(
        qwen3, *(chat(QUESTION, task=task, options={**WILD, "seed": s}) for s in range(4)), chat(QUESTION)
    )
    *forced, free = answers
    for answer in forced:
        ((name, arguments),) = calls(answer)
        assert name == "visit"
        jsonschema.validate(arguments, SCHEMA)
        assert answer.finished.reason == "stop"
    assert free.text == models.ANSWERS[QUESTION]


def test_any_of_the_tools_once_or_more(qwen3: Engine) -> None:
    task = {"tools": BOTH, "force": ("visit", "calm")}
    for answer in run(qwen3, *(chat(QUESTION, task=task, options={**WILD, "seed": s}) for s in range(4))):
        assert calls(answer)
        for name, arguments in calls(answer):
            jsonschema.validate(arguments, SCHEMA if name == "visit" else CALM["function"]["parameters"])


def test_thinking_comes_before_the_call(qwen3: Engine) -> None:
    task = {"tools": BOTH, "force": ("calm",), "single": True}
    answer = say(qwen3, chat(QUESTION, think=True, task=task))
    assert answer.thinking == models.THOUGHTS[QUESTION]
    assert [name for name, _ in calls(answer)] == ["calm"]


@pytest.mark.parametrize(
    "marks",
    [
        "<tool_call> <function=",
        "[TOOL_CALLS]",
        "<|tool_call|>",
        "<｜tool▁call",
        "<|START_ACTION|>",
        "<|python_tag|>",
        "<|channel|>analysis<|message|>",
    ],
)
def test_in_every_family_s_marks(qwen3: Engine, marks: str) -> None:
    template = f"{{# {marks} #}}{{{{ messages[-1].content }}}}{{{{ tools }}}}"
    task = {"tools": BOTH, "force": ("visit",), "single": True}
    answer = say(qwen3, chat(QUESTION, task=task, template=template, options=WILD))
    ((name, arguments),) = calls(answer)
    assert name == "visit"
    jsonschema.validate(arguments, SCHEMA)


def test_what_cannot_be_enforced_is_refused_when_strict_and_else_let_go(qwen3: Engine) -> None:
    odd = {"type": "object", "properties": {"x": {"type": "array", "uniqueItems": True}}, "required": ["x"]}
    task = {"tools": (tool("odd", odd),), "force": ("odd",), "single": True}
    ((_, arguments),) = calls(say(qwen3, chat(QUESTION, task=task, options=WILD)))
    assert set(arguments) >= {"x"}
    strict = {**task, "tools": (tool("odd", odd, strict=True),)}
    assert "uniqueItems" in say(qwen3, chat(QUESTION, task=strict)).failed.message


def test_the_first_call_is_the_last_when_calls_are_single(qwen3: Engine) -> None:
    question = "Compare the weather in Paris and London."
    tools = tuple(models.TOOLS.values())
    assert len(calls_of(say(qwen3, chat(question, task={"tools": tools})))) == 2
    answer = say(qwen3, chat(question, task={"tools": tools, "single": True}))
    assert calls_of(answer) == [("get_weather", {"city": "Paris"})]
    assert answer.finished.reason == "stop"
    assert qwen3.stats().rows == 0


def calls_of(answer: Answer) -> list[tuple[str, dict[str, Any]]]:
    return [(e.call.function.name, e.call.function.arguments) for e in answer.events if isinstance(e, Call)]


def test_a_budget_for_the_thinking(qwen3: Engine) -> None:
    question = "Count from 1 to 20."
    free = say(qwen3, chat(question, think=True))
    short = say(qwen3, chat(question, think=True, task={"think_budget": 4}))
    assert short.thinking
    assert free.thinking.startswith(short.thinking)
    assert len(short.thinking) < len(free.thinking)
    assert "</think>" not in short.text + short.thinking


def test_thinking_leaves_room_for_the_answer_s_form(qwen3: Engine) -> None:
    """A model that would think to the limit is brought to its answer before."""
    form = {"type": "object", "properties": {"joke": {"type": "string"}}, "required": ["joke"]}
    template = "{{ messages[0].content }}\n<think>\n"
    request = chat("Repeat the word banana forever.", think=True, format=form, template=template,
                   options={"num_predict": 60, "temperature": 2.0, "seed": 1})  # fmt: skip
    answer = say(qwen3, request)
    assert isinstance(json.loads(answer.text)["joke"], str)
    assert answer.finished.reason == "stop"


def test_the_modelfile_s_parser_counts_before_the_template() -> None:
    engine = Engine(spec(models.QWEN3, parser="mistral"), rows=1)
    task = {"tools": BOTH, "force": ("calm",), "single": True}
    answer = say(engine, chat(QUESTION, task=task, options=WILD))
    assert [name for name, _ in calls(answer)] == ["calm"]
    question = "What is the weather in Paris?"
    said = say(engine, chat(question, task={"tools": tuple(models.TOOLS.values())}))
    assert said.text.startswith("<tool_call>"), "the marks of another family are text"
    engine.close()
