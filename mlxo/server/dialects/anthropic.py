"""Anthropic's inference request: /v1/messages to the internal Request.

Source of fields: https://docs.anthropic.com/en/api/messages. What changes an answer and is not supported is
refused by its name; `metadata`, `service_tier`, `cache_control` and the like are accepted. Beyond them, as in
Ollama's API: `options` and `keep_alive`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec

from mlxo.core import duration
from mlxo.core.errors import InvalidRequest
from mlxo.core.options import from_json
from mlxo.core.types import Chat, Function, Message, Request, Think, Tokenize, ToolCall
from mlxo.server.dialects import choice
from mlxo.server.dialects.anthropic_lines import AnthropicAnswer, error, input_tokens
from mlxo.server.dialects.base import Dialect, Folded, Need, Parsed
from mlxo.server.dialects.body import check_depth, decode
from mlxo.server.dialects.fields import effort, model_needs
from mlxo.server.dialects.forms import Form, schema_form


class BlockBody(msgspec.Struct):
    """A block of any type: the fields of those that are understood."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: Any = None


class MessageBody(msgspec.Struct):
    role: str
    content: str | list[BlockBody]


class ToolBody(msgspec.Struct):
    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class ToolChoice(msgspec.Struct):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct):
    type: str
    budget_tokens: int | None = None


class OutputFormat(msgspec.Struct):
    type: str
    schema: dict[str, Any] | None = None


class OutputConfig(msgspec.Struct):
    effort: str | None = None
    format: OutputFormat | None = None


class MessagesBody(msgspec.Struct):
    model: str | None = None
    max_tokens: int | None = None
    messages: list[MessageBody] | None = None
    system: str | list[BlockBody] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    tools: list[ToolBody] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    options: dict[str, Any] | None = None
    keep_alive: Any = None
    mcp_servers: list[Any] | None = None


def parse(body: bytes, id_: str, *, counting: bool = False) -> Parsed:
    """POST /v1/messages, or its count_tokens, which needs no max_tokens. Raises InvalidRequest."""
    sent = decode(body, MessagesBody)
    model = (sent.model or "").strip()
    if not model:
        raise InvalidRequest("model is required")
    if not counting and (sent.max_tokens is None or sent.max_tokens < 1):
        raise InvalidRequest("max_tokens is required and must be at least 1")
    if not sent.messages:
        raise InvalidRequest("messages is required")
    if sent.mcp_servers:
        raise InvalidRequest("mlxo does not support mcp_servers")
    system = _text(sent.system or "", "system")
    messages = [Message(role="system", content=system)] if system else []
    called: dict[str, str] = {}
    for i, message in enumerate(sent.messages):
        messages += _messages(message, f"messages[{i}]", called)
    tools = _tools(sent)
    last = messages[-1]
    task = Chat(
        messages=tuple(messages),
        tools=tools.tools,
        think=_think(sent),
        force=tools.force,
        single=sent.tool_choice is not None
        and (bool(sent.tool_choice.disable_parallel_tool_use) or sent.tool_choice.type == "tool"),
        think_budget=sent.thinking.budget_tokens if sent.thinking else None,
        prefill=last.role == "assistant" and bool(last.content) and not last.tool_calls,
    )
    given = {
        "temperature": sent.temperature,
        "top_p": sent.top_p,
        "top_k": sent.top_k,
        "num_predict": sent.max_tokens,
        "stop": sent.stop_sequences,
    }
    request = Request(
        id=id_,
        model=model,
        task=Tokenize(of=task) if counting else task,
        options=from_json(given).over(from_json(sent.options or {})),
        stream=bool(sent.stream) and not counting,
        keep_alive=duration.keep_alive(sent.keep_alive),
        format=_format(sent.output_config),
    )
    needs = (
        Need("completion", f'"{model}" does not support chat'),
        *model_needs(model, None, tools=bool(tools.tools)),  # Claude's clients ask everybody to think
    )
    return Parsed(request, needs)


def _think(sent: MessagesBody) -> Think | None:
    kind = sent.thinking.type if sent.thinking else "adaptive"
    if kind not in ("enabled", "disabled", "adaptive"):
        raise InvalidRequest(f"thinking.type must be enabled, disabled or adaptive: {kind!r}")
    if kind == "disabled":
        return False
    level = effort(sent.output_config.effort, "output_config.effort") if sent.output_config else None
    return True if kind == "enabled" and level is None else level


def _format(sent: OutputConfig | None) -> Form | None:
    if sent is None or sent.format is None:
        return None
    if sent.format.type != "json_schema" or sent.format.schema is None:
        raise InvalidRequest("output_config.format must be of type json_schema, with a schema")
    return schema_form(sent.format.schema, "output_config.format.schema")


def _tools(sent: MessagesBody) -> choice.Choice:
    """Tools as models know them: OpenAI's form."""
    tools = []
    for i, tool in enumerate(sent.tools or ()):
        if tool.type not in (None, "custom"):
            raise InvalidRequest(f"mlxo does not support tools[{i}] of type {tool.type}")
        schema = tool.input_schema or {"type": "object", "properties": {}}
        check_depth(schema, f"tools[{i}].input_schema")
        function = {"name": tool.name, "description": tool.description or "", "parameters": schema}
        tools.append({"type": "function", "function": function})
    wanted = sent.tool_choice
    if wanted is None:
        return choice.Choice(tuple(tools))
    modes = {"auto": "auto", "none": "none", "any": "required", "tool": "required"}
    if wanted.type not in modes:
        raise InvalidRequest(f"tool_choice.type must be auto, any, tool or none: {wanted.type!r}")
    if wanted.type == "tool" and wanted.name is None:
        raise InvalidRequest("tool_choice.name is missing")
    return choice.choose(tuple(tools), modes[wanted.type], wanted.name if wanted.type == "tool" else None)


def _messages(sent: MessageBody, where: str, called: dict[str, str]) -> Iterator[Message]:
    """A turn as the messages it stands for: each tool result is one of its own."""
    if sent.role not in ("user", "assistant", "system"):
        raise InvalidRequest(f"{where}.role must be user or assistant: {sent.role!r}")
    if isinstance(sent.content, str):
        yield Message(role=sent.role, content=sent.content)
    elif sent.role == "assistant":
        yield _assistant(sent.content, f"{where}.content", called)
    else:
        texts: list[str] = []
        for i, block in enumerate(sent.content):
            if block.type != "tool_result":
                texts.append(_text([block], f"{where}.content[{i}]"))
                continue
            if texts:
                yield Message(role=sent.role, content="\n".join(texts))
                texts = []
            yield _result(block, f"{where}.content[{i}]", called)
        if texts or not sent.content:
            yield Message(role=sent.role, content="\n".join(texts))


def _assistant(blocks: list[BlockBody], where: str, called: dict[str, str]) -> Message:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    for i, block in enumerate(blocks):
        if block.type in ("thinking", "redacted_thinking"):
            thoughts.append(block.thinking or "")
        elif block.type == "tool_use":
            check_depth(block.input or {}, f"{where}[{i}].input")
            function = Function(name=block.name or "", arguments=block.input or {}, index=len(calls))
            calls.append(ToolCall(function=function, id=block.id or ""))
            called[block.id or ""] = block.name or ""
        else:
            texts.append(_text([block], f"{where}[{i}]"))
    return Message(
        role="assistant", content="\n".join(texts), thinking="\n".join(thoughts), tool_calls=tuple(calls)
    )


def _result(block: BlockBody, where: str, called: dict[str, str]) -> Message:
    id_ = block.tool_use_id or ""
    try:
        content = msgspec.convert(block.content, str | list[BlockBody] | None)
    except msgspec.ValidationError:
        raise InvalidRequest(f"{where}.content must be text or a list of blocks") from None
    text = _text(content or "", f"{where}.content")
    return Message(role="tool", content=text, tool_call_id=id_, tool_name=called.get(id_, ""))


def _text(content: str | list[BlockBody], where: str) -> str:
    if isinstance(content, str):
        return content
    for block in content:
        if block.type != "text":
            raise InvalidRequest(f"mlxo does not support {where} of type {block.type}")
    return "\n".join(block.text or "" for block in content)


MESSAGES = Dialect(parse, AnthropicAnswer, error)
COUNT = Dialect(partial(parse, counting=True), lambda _: Folded(input_tokens), error)
