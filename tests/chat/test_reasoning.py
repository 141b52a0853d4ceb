from __future__ import annotations

from mlxo.chat import reasoning
from mlxo.chat.reasoning import Markers
from tests import models

THINK = Markers("<think>", "</think>")


def test_marks_by_template_then_by_vocabulary() -> None:
    assert reasoning.find((models.QWEN3 / "chat_template.jinja").read_text()) == THINK
    assert reasoning.find((models.LLAMA / "chat_template.jinja").read_text()) is None
    assert reasoning.find("{{ x.split('[/THINK]') }}", {"<think>", "</think>"}) == ("[THINK]", "[/THINK]")
    assert reasoning.find(None, {"<think>", "</think>"}) == THINK
    assert reasoning.find(None, {"<think>"}) is None


def test_inside_means_that_the_prompt_opened_a_block() -> None:
    assert reasoning.inside("...assistant\n<think>\n", THINK)
    assert not reasoning.inside("...assistant\n<think>\n\n</think>\n\n", THINK)
    assert not reasoning.inside("user\nwhat does <think> mean?\nassistant\n", THINK)
    assert not reasoning.inside("<think>\n", None)
    assert reasoning.inside("assistant\n<think>\nI start", THINK, prefill=True)
    assert not reasoning.inside("assistant\n<think>a</think>The", THINK, prefill=True)
