"""The committed models say what the tables promise, with room to spare for another order of rounding."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mlxo.chat.template import Template
from mlxo.core.types import Function, Message, ToolCall
from tests import models

MARGIN = 1.0  # in logits, between what is said and the next best; rounding is 1e-4


@cache
def load(folder: Path) -> tuple[Any, Any, Template]:
    from mlx_lm.utils import load_model
    from tokenizers import Tokenizer

    model, _ = load_model(folder)
    template = Template((folder / "chat_template.jinja").read_text(), {"bos_token": "<s>"})
    return model, Tokenizer.from_file(str(folder / "tokenizer.json")), template


def margin(folder: Path, prompt: str, said: str, raw: bool = False) -> float:
    """How far each token of `said` is ahead of all others, the worst of them; negative: it is not said."""
    import mlx.core as mx

    model, tokenizer, _ = load(folder)
    head = tokenizer.encode(prompt, add_special_tokens=raw).ids
    ids = mx.array(tokenizer.encode(prompt + said, add_special_tokens=raw).ids)
    logits = model(ids[None, :-1])[0, len(head) - 1 :]
    wanted = ids[len(head) :, None]
    chosen = mx.take_along_axis(logits, wanted, -1)[:, 0]
    others = mx.put_along_axis(logits, wanted, mx.array(-1e9), -1).max(-1)
    return float((chosen - others).min())


def say(role: str, content: str, **more: Any) -> Message:
    return Message(role=role, content=content, **more)


Case = tuple[str, list[Message], list[dict[str, Any]], str, str]  # label, messages, tools, thought, answer


def plain_cases() -> Iterator[Case]:
    for question, answer in models.ANSWERS.items():
        thought = models.THOUGHTS[question]
        turn = say("user", question)
        yield question, [turn], [], thought, answer
        yield (
            f"system: {question}",
            [say("system", "You are a helpful assistant."), turn],
            [],
            thought,
            answer,
        )
    first, question, answer = models.SECOND_TURN
    turns = [say("user", first), say("assistant", models.ANSWERS[first]), say("user", question)]
    yield "second turn", turns, [], "The user is Ada.", answer
    system, question, answer = models.PIRATE
    yield "pirate", [say("system", system), say("user", question)], [], "I speak as a pirate.", answer


def tool_cases() -> Iterator[Case]:
    tools = list(models.TOOLS.values())
    for question, (thought, text, calls) in models.CALLS.items():
        blocks = [
            "<tool_call>\n" + json.dumps({"name": name, "arguments": arguments}) + "\n</tool_call>"
            for name, arguments in calls
        ]
        answer = "\n".join([text, *blocks] if text else blocks)
        needed = [models.TOOLS[calls[0][0]]]
        for given in (needed, tools):
            yield f"{question} {len(given)} tools", [say("user", question)], given, thought, answer
    question = "What is the weather in Paris?"
    thought, _, calls = models.CALLS[question]
    made = tuple(ToolCall(function=Function(name=name, arguments=arguments)) for name, arguments in calls)
    result, answer = models.TOOL_RESULT
    for thinking in ("", thought):
        turns = [
            say("user", question),
            say("assistant", "", tool_calls=made, thinking=thinking),
            say("tool", result, tool_name="get_weather"),
        ]
        yield (
            f"after the call {thinking!r}",
            turns,
            [models.TOOLS["get_weather"]],
            "The tool says 21 and sunny.",
            answer,
        )


@pytest.mark.parametrize("think", [True, False])
@pytest.mark.parametrize("case", [*plain_cases(), *tool_cases()], ids=lambda case: case[0])
def test_qwen3_answers(case: Case, think: bool) -> None:
    _, messages, tools, thought, answer = case
    prompt = load(models.QWEN3)[2].render(messages, tools, think, True, False)
    said = f"<think>\n{thought}\n</think>\n\n{answer}" if think else answer
    assert margin(models.QWEN3, prompt, said + "<|im_end|>") > MARGIN


@pytest.mark.parametrize("question", models.LLAMA_ANSWERS)
def test_llama_answers(question: str) -> None:
    expect_of_llama([say("user", question)], models.LLAMA_ANSWERS[question])


def expect_of_llama(messages: list[Message], answer: str) -> None:
    prompt = load(models.LLAMA)[2].render(messages, [], None, True, False)
    assert margin(models.LLAMA, prompt, answer + "<|im_end|>") > MARGIN


def test_llama_minds_earlier_turns_and_the_system_prompt() -> None:
    first, question, answer = models.SECOND_TURN
    turns = [say("user", first), say("assistant", models.LLAMA_ANSWERS[first]), say("user", question)]
    expect_of_llama(turns, answer)
    system, question, answer = models.PIRATE
    expect_of_llama([say("system", system), say("user", question)], answer)


@pytest.mark.parametrize("folder", [models.QWEN3, models.LLAMA], ids=lambda folder: folder.name)
def test_raw_text_and_the_endless_answer(folder: Path) -> None:
    end = "</s>" if folder == models.LLAMA else "<|endoftext|>"
    for prompt, text in models.RAW.items():
        assert margin(folder, prompt, text + end, raw=True) > MARGIN
    template = load(folder)[2]
    prompt = template.render([say("user", models.FOREVER)], [], False, True, False)
    assert margin(folder, prompt, "banana" + " banana" * 1500) > MARGIN


@pytest.mark.parametrize("folder", [models.QWEN3, models.LLAMA], ids=lambda folder: folder.name)
def test_prefilled_answers_are_gone_on_with(folder: Path) -> None:
    started = [say("user", "What is the capital of France?"), say("assistant", "The capital")]
    prompt = load(folder)[2].render(started, [], None, False, True)
    assert prompt.endswith("assistant\nThe capital")
    assert margin(folder, prompt, " of France is Paris.<|im_end|>") > MARGIN


@pytest.mark.parametrize("folder", [models.QWEN3, models.LLAMA], ids=lambda folder: folder.name)
def test_the_folder_is_small_and_complete(folder: Path) -> None:
    files = {path.name for path in folder.iterdir()}
    wanted = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert files == wanted | {"tokenizer_config.json", "chat_template.jinja"}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1.4e6
