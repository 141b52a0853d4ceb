"""Chat templates: messages to one prompt, the way the model was trained.

Jinja is imported when a template is made, not when this module is: the store asks `capabilities` alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mlxo.chat import harmony, reasoning
from mlxo.core.errors import InvalidRequest
from mlxo.core.types import Message, Think

MAX_SOURCE = 250_000  # characters; the longest real one is near 20,000, and compiling takes memory

# Marks where a prefilled answer ends; what the template puts behind it is cut off.
_CUT = "\ue0f0mlxo-cut\ue0f0"
_CODE = re.compile(r"\{[{%](?:.|\n)*?[%}]\}")
_TOOLS = re.compile(r"\btools\b")


def capabilities(source: str | None) -> tuple[str, ...]:
    """What a model can do as its chat template tells it, in Ollama's words; read as text, never run."""
    found = ["completion"]
    if source is not None:
        if any(_TOOLS.search(code) for code in _CODE.findall(source)):
            found.append("tools")
        if reasoning.find(source) or harmony.speaks(source):
            found.append("thinking")
    return tuple(found)


class Template:
    """A compiled template. `special` holds bos_token, eos_token and the like. Owned by one thread.

    Raises InvalidRequest for a template that does not compile.
    """

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        import jinja2

        from mlxo.chat.sandbox import Environment

        if len(source) > MAX_SOURCE:
            raise InvalidRequest(f"the chat template is longer than {MAX_SOURCE} characters")
        self._special = dict(special)
        self._environment = Environment()
        try:
            self._template = self._environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise InvalidRequest(
                f"the chat template does not parse: line {error.lineno}: {error.message}"
            ) from None
        except (jinja2.TemplateError, RecursionError, SyntaxError, MemoryError) as error:
            raise InvalidRequest(f"the chat template does not compile: {error}") from None

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        think: Think | None = None,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
    ) -> str:
        """The prompt. Special tokens are in it as text: encode it without adding any.

        think            None and True ask for reasoning where the template has a switch, False for none; a
                         level is passed on as reasoning_effort
        continue_final   the last message is the start of the answer: the prompt ends with its content

        Raises InvalidRequest with the template's own words where it refuses, and where it fails or runs wild.
        """
        turns = [_as_dict(message) for message in messages]
        if continue_final and turns:
            turns[-1]["content"] += _CUT
            add_generation_prompt = False
        variables: dict[str, Any] = {
            **self._special,
            "messages": turns,
            "tools": [dict(tool) for tool in tools] or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            "enable_thinking": think is not False,
            "thinking": think is not False,
        }
        if isinstance(think, str):
            variables["reasoning_effort"] = think
        prompt = self._write(variables)
        if not continue_final or not turns:
            return prompt
        kept, mark, _ = prompt.rpartition(_CUT)
        if not mark:
            raise InvalidRequest("the chat template leaves out the answer that was to be continued")
        return kept.replace(_CUT, "")

    def _write(self, variables: dict[str, Any]) -> str:
        try:
            return self._attempt(variables)
        except TypeError as error:
            # Some templates take the arguments of a call as an object, some as JSON text.
            if not any(turn.get("tool_calls") for turn in variables["messages"]):
                raise InvalidRequest(f"the chat template fails on these messages: {error}") from None
        for turn in variables["messages"]:
            for call in turn.get("tool_calls", ()):
                function = call["function"]
                function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
        try:
            return self._attempt(variables)
        except TypeError as error:
            raise InvalidRequest(f"the chat template fails on these messages: {error}") from None

    def _attempt(self, variables: dict[str, Any]) -> str:
        import jinja2

        try:
            return self._environment.write(self._template, variables)
        except jinja2.exceptions.SecurityError as error:
            raise InvalidRequest(f"the chat template was stopped: {error}") from None
        except jinja2.TemplateError as error:
            raise InvalidRequest(f"the chat template refuses these messages: {error}") from None
        except (
            ValueError,
            LookupError,
            AttributeError,
            ArithmeticError,
            AssertionError,
            RuntimeError,
            MemoryError,
        ) as error:
            raise InvalidRequest(f"the chat template fails on these messages: {error}") from None


def _as_dict(message: Message) -> dict[str, Any]:
    """A message as templates know it (Hugging Face's names); what is empty is not defined."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.thinking:
        turn["reasoning_content"] = turn["thinking"] = message.thinking
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": dict(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.tool_name:
        turn["name"] = message.tool_name
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    return turn
