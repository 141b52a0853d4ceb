"""OpenAI's inference requests: /v1/chat/completions and /v1/completions to the internal Request.

Source of fields: https://platform.openai.com/docs/api-reference. What changes an answer and is not supported
is refused by its name; what does not (`user`, `metadata`, `store`, ...) is accepted. Beyond them, as in
Ollama's API: `top_k`, `min_p`, `options`, `keep_alive` and `think`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec

from mlxo.core import duration
from mlxo.core.errors import InvalidRequest
from mlxo.core.options import Options, from_json
from mlxo.core.types import Chat, Complete, Function, Message, Request, Task, Think, ToolCall
from mlxo.server.dialects.base import Dialect, Need, Parsed
from mlxo.server.dialects.body import check_depth, decode
from mlxo.server.dialects.fields import arguments, effort, limit, model_needs, shown, thinking
from mlxo.server.dialects.openai_lines import OpenAIAnswer, error

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "seed", "frequency_penalty", "presence_penalty")


class PartBody(msgspec.Struct):
    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionBody(msgspec.Struct):
    name: str
    arguments: str | None = None


class ToolCallBody(msgspec.Struct):
    function: FunctionBody
    id: str | None = None


class MessageBody(msgspec.Struct):
    role: str
    content: str | list[PartBody] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallBody] | None = None
    tool_call_id: str | None = None
    function_call: Any = None
    audio: Any = None


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class Effort(msgspec.Struct):
    effort: str | None = None


class JsonSchema(msgspec.Struct):
    schema: dict[str, Any] | None = None


class ResponseFormat(msgspec.Struct):
    type: str
    json_schema: JsonSchema | None = None


class _Common(msgspec.Struct):
    """What both routes have. Every field may be null."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    options: dict[str, Any] | None = None
    keep_alive: Any = None
    n: int | None = None
    logit_bias: dict[str, Any] | None = None
    logprobs: int | bool | None = None


class ChatBody(_Common):
    messages: list[MessageBody] | None = None
    max_completion_tokens: int | None = None
    response_format: ResponseFormat | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    reasoning: Effort | None = None
    think: Any = None
    top_logprobs: int | None = None
    modalities: list[str] | None = None
    audio: Any = None
    functions: Any = None
    function_call: Any = None
    web_search_options: Any = None


class CompletionBody(_Common):
    prompt: str | list[Any] | None = None
    suffix: str | None = None
    echo: bool | None = None
    best_of: int | None = None


def parse_chat(body: bytes, id_: str) -> Parsed:
    """POST /v1/chat/completions. Raises InvalidRequest."""
    sent = decode(body, ChatBody)
    for field in ("top_logprobs", "audio", "functions", "function_call", "web_search_options"):
        if getattr(sent, field):
            raise _unsupported(field)
    if sent.modalities and sent.modalities != ["text"]:
        raise _unsupported(f"modalities {shown(sent.modalities)}")
    if not sent.messages:
        raise InvalidRequest("[] is too short - 'messages'")
    messages = _messages(sent.messages)
    tools = _tools(sent)
    think = _think(sent)
    last = messages[-1]
    task = Chat(
        messages=messages,
        tools=tools,
        think=think,
        prefill=last.role == "assistant" and bool(last.content) and not last.tool_calls,
    )
    field = "max_tokens" if sent.max_completion_tokens is None else "max_completion_tokens"
    model = (sent.model or "").strip()
    return _parsed(
        sent,
        id_,
        task,
        limit(getattr(sent, field), field),
        form=_format(sent.response_format),
        needs=(
            Need("completion", f'"{model}" does not support chat'),
            *model_needs(model, think, tools=bool(tools)),
        ),
    )


def parse_completion(body: bytes, id_: str) -> Parsed:
    """POST /v1/completions: the prompt as it is, without a template. Raises InvalidRequest."""
    sent = decode(body, CompletionBody)
    if sent.suffix:
        raise _unsupported("suffix")
    if (sent.best_of or 1) != 1:
        raise _unsupported("best_of")
    prompt = sent.prompt
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise InvalidRequest("prompt must be one string", "send one request for each prompt")
    if not prompt:
        raise InvalidRequest("prompt is empty")
    model = (sent.model or "").strip()
    needs = (Need("completion", f'"{model}" does not support completions'),)
    most = limit(sent.max_tokens, "max_tokens")
    return _parsed(sent, id_, Complete(prompt=prompt), most, needs=needs, echo=bool(sent.echo))


def _parsed(
    sent: _Common,
    id_: str,
    task: Task,
    most: int | None,
    *,
    needs: tuple[Need, ...],
    form: str | dict[str, Any] | None = None,
    echo: bool = False,
) -> Parsed:
    model = (sent.model or "").strip()
    if not model:
        raise InvalidRequest("model is required")
    if (sent.n or 1) != 1:
        raise _unsupported("n other than 1")
    if sent.logit_bias:
        raise _unsupported("logit_bias")
    if sent.logprobs is not None and sent.logprobs is not False:
        raise _unsupported("logprobs")
    usage = sent.stream_options is not None and sent.stream_options.include_usage
    wishes = {word for word, wanted in (("usage", usage), ("echo", echo)) if wanted}
    request = Request(
        id=id_,
        model=model,
        task=task,
        options=_options(sent, most),
        stream=bool(sent.stream),
        keep_alive=duration.keep_alive(sent.keep_alive),
        format=form,
    )
    return Parsed(request, needs, frozenset(wishes))


def _unsupported(field: str) -> InvalidRequest:
    return InvalidRequest(f"mlxo does not support {field}")


def _options(sent: _Common, most: int | None) -> Options:
    """OpenAI's own fields over `options`. What is absent is left to the model."""
    given: dict[str, Any] = {name: getattr(sent, name) for name in SAMPLING}
    given |= {"num_predict": most, "stop": sent.stop}
    return from_json(given).over(from_json(sent.options or {}))


def _format(sent: ResponseFormat | None) -> str | dict[str, Any] | None:
    if sent is None or sent.type == "text":
        return None
    if sent.type == "json_object":
        return "json"
    if sent.type != "json_schema":
        raise InvalidRequest(f"response_format.type must be text, json_object or json_schema: {sent.type!r}")
    if sent.json_schema is None or sent.json_schema.schema is None:
        raise InvalidRequest("response_format.json_schema.schema is missing")
    check_depth(sent.json_schema.schema, "response_format")
    return sent.json_schema.schema


def _think(sent: ChatBody) -> Think | None:
    if sent.think is not None:
        return thinking(sent.think)
    if sent.reasoning_effort is not None or sent.reasoning is None:
        return effort(sent.reasoning_effort, "reasoning_effort")
    return effort(sent.reasoning.effort, "reasoning.effort")


def _tools(sent: ChatBody) -> tuple[dict[str, Any], ...]:
    tools = tuple(sent.tools or ())
    for i, tool in enumerate(tools):
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict):
            raise InvalidRequest(f"tools[{i}] must be of type function")
        if not isinstance(function.get("name"), str):
            raise InvalidRequest(f"tools[{i}].function.name must be text")
    check_depth(list(tools), "tools")
    choice = sent.tool_choice
    if choice not in (None, "auto", "none"):
        raise InvalidRequest(
            f"mlxo does not support tool_choice {shown(choice)}: it cannot force a call yet",
            'tool_choice is "auto" or "none"',
        )
    if tools and sent.parallel_tool_calls is False:
        raise _unsupported("parallel_tool_calls false")
    return () if choice == "none" else tools


def _messages(sent: list[MessageBody]) -> tuple[Message, ...]:
    """A tool's name comes from the call that its result answers."""
    called: dict[str, str] = {}
    return tuple(_message(m, f"messages[{i}]", called) for i, m in enumerate(sent))


def _message(sent: MessageBody, where: str, called: dict[str, str]) -> Message:
    role = "system" if sent.role == "developer" else sent.role
    if role not in ("system", "user", "assistant", "tool"):
        raise InvalidRequest(f"{where}.role must be system, developer, user, assistant or tool: {role!r}")
    for field in ("function_call", "audio"):
        if getattr(sent, field):
            raise _unsupported(f"{where}.{field}")
    calls = []
    for i, call in enumerate(sent.tool_calls or ()):
        values = arguments(call.function.arguments or "", f"{where}.tool_calls[{i}].function.arguments")
        function = Function(name=call.function.name, arguments=values, index=i)
        calls.append(ToolCall(function=function, id=call.id or ""))
        called[call.id or ""] = call.function.name
    return Message(
        role=role,
        content=_text(sent.content, f"{where}.content"),
        thinking=sent.reasoning or sent.reasoning_content or "",
        tool_calls=tuple(calls),
        tool_call_id=sent.tool_call_id or "",
        tool_name=called.get(sent.tool_call_id or "", "") if role == "tool" else "",
    )


def _text(content: str | list[PartBody] | None, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for i, part in enumerate(content):
        if part.type not in ("text", "refusal"):
            raise _unsupported(f"{where}[{i}] of type {part.type}")
        texts.append(part.text or part.refusal or "")
    return "\n".join(texts)


CHAT = Dialect(parse_chat, partial(OpenAIAnswer, "chat"), error)
COMPLETION = Dialect(parse_completion, partial(OpenAIAnswer, "text"), error)
