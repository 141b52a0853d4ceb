"""Ollama's inference requests: /api/generate and /api/chat to the internal Request.

Source of fields and texts: https://github.com/ollama/ollama/blob/main/docs/api.md and what its server does.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from mlxo.core import duration
from mlxo.core.errors import InvalidRequest, ModelNotFound
from mlxo.core.options import from_json
from mlxo.core.types import Chat, Complete, Function, Message, Request, Task, ToolCall, Touch
from mlxo.server.dialects import likely
from mlxo.server.dialects.base import Dialect, Need, Parsed
from mlxo.server.dialects.body import check_depth, decode
from mlxo.server.dialects.fields import answer_format, model_needs, thinking
from mlxo.server.dialects.ollama_lines import OllamaAnswer, error

Token = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]


class FunctionBody(msgspec.Struct):
    name: str | None = None
    arguments: dict[str, Any] | None = None
    index: int | None = None


class ToolCallBody(msgspec.Struct):
    function: FunctionBody
    id: str | None = None


class MessageBody(msgspec.Struct):
    role: str | None = None
    content: str | None = None
    thinking: str | None = None
    images: list[bytes] | None = None
    tool_calls: list[ToolCallBody] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class _Common(msgspec.Struct):
    """What generate and chat share. Every field may be null, as Go's decoder has it."""

    model: str | None = None
    stream: bool | None = None
    format: Any = None
    keep_alive: Any = None
    options: dict[str, Any] | None = None
    think: Any = None
    truncate: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class GenerateBody(_Common):
    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: list[Token] | None = None
    raw: bool | None = None
    images: list[bytes] | None = None


class ChatBody(_Common):
    messages: list[MessageBody] | None = None
    tools: list[dict[str, Any]] | None = None


def parse_generate(body: bytes, id_: str) -> Parsed:
    """POST /api/generate. An empty prompt is a Touch, `raw` a Complete, else it is a Chat of one message."""
    sent = decode(body, GenerateBody)
    model = (sent.model or "").strip()
    if not model:
        raise ModelNotFound(f"model '{model}' not found")
    think = thinking(sent.think)
    task: Task
    needs = [Need("completion", f'"{model}" does not support generate')]
    if not sent.prompt:
        task, needs = Touch(), []
    elif sent.raw:
        if sent.template or sent.system or sent.context:
            raise InvalidRequest("raw mode does not support template, system, or context")
        task = Complete(prompt=sent.prompt, truncate=sent.truncate is not False)
    else:
        system = (Message(role="system", content=sent.system),) if sent.system else ()
        user = Message(role="user", content=sent.prompt, images=tuple(sent.images or ()))
        task = Chat(
            messages=(*system, user),
            think=think,
            truncate=sent.truncate is not False,
            context=tuple(sent.context or ()),
        )
    if sent.prompt:
        needs += model_needs(model, think, images=bool(sent.images), suffix=bool(sent.suffix))
    return Parsed(_request(sent, id_, model, task, sent.template or None), tuple(needs))


def parse_chat(body: bytes, id_: str) -> Parsed:
    """POST /api/chat. No messages is a Touch."""
    sent = decode(body, ChatBody)
    model = (sent.model or "").strip()
    if not model:
        raise InvalidRequest("model is required")
    think = thinking(sent.think)
    if not sent.messages:
        return Parsed(_request(sent, id_, model, Touch()))
    messages = tuple(message(m) for m in sent.messages)
    tools = tuple(sent.tools or ())
    check_depth(list(tools), "tools")
    last = messages[-1]
    task = Chat(
        messages=messages,
        tools=tools,
        think=think,
        truncate=sent.truncate is not False,
        prefill=last.role == "assistant" and bool(last.content) and not last.tool_calls,
    )
    images = any(m.images for m in messages)
    needs = (
        Need("completion", f'"{model}" does not support chat'),
        *model_needs(model, think, images=images, tools=bool(tools)),
    )
    return Parsed(_request(sent, id_, model, task), needs)


def message(sent: MessageBody) -> Message:
    """One message of a request. Raises InvalidRequest."""
    calls = []
    for call in sent.tool_calls or ():
        arguments = call.function.arguments or {}
        check_depth(arguments, "arguments")
        function = Function(
            name=call.function.name or "", arguments=arguments, index=call.function.index or 0
        )
        calls.append(ToolCall(function=function, id=call.id or ""))
    return Message(
        role=(sent.role or "").lower(),
        content=sent.content or "",
        thinking=sent.thinking or "",
        images=tuple(sent.images or ()),
        tool_calls=tuple(calls),
        tool_name=sent.tool_name or "",
        tool_call_id=sent.tool_call_id or "",
    )


def _request(sent: _Common, id_: str, model: str, task: Task, template: str | None = None) -> Request:
    return Request(
        id=id_,
        model=model,
        task=task,
        options=from_json(sent.options or {}),
        stream=sent.stream is not False,
        keep_alive=duration.keep_alive(sent.keep_alive),
        format=answer_format(sent.format),
        template=template,
        logprobs=likely.top(sent.logprobs, sent.top_logprobs, strict=False),
    )


GENERATE = Dialect(parse_generate, lambda parsed: OllamaAnswer("generate", parsed.request), error)
CHAT = Dialect(parse_chat, lambda parsed: OllamaAnswer("chat", parsed.request), error)
