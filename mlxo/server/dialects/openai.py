"""OpenAI's inference requests: /v1/chat/completions and /v1/completions to the internal Request.

Source of fields: https://platform.openai.com/docs/api-reference. What changes an answer and is not supported
is refused by its name; what does not (`user`, `metadata`, `store`, ...) is accepted. Beyond them, as in
Ollama's API: `top_k`, `min_p`, `options`, `keep_alive` and `think`; as in vLLM's, `structured_outputs`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec

from mlxo.core import duration
from mlxo.core.errors import InvalidRequest
from mlxo.core.options import Options, from_json
from mlxo.core.types import Chat, Complete, Function, Message, Request, Task, Think, ToolCall
from mlxo.server.dialects import choice, likely
from mlxo.server.dialects.base import Dialect, Need, Parsed
from mlxo.server.dialects.body import check_depth, decode
from mlxo.server.dialects.fields import arguments, effort, limit, model_needs, shown, thinking
from mlxo.server.dialects.forms import Form, StructuredOutputs, schema_form, structured
from mlxo.server.dialects.openai_lines import OpenAIAnswer, error

MOST_BIASES = 4096
MOST_CHOICES = 16
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "seed", "frequency_penalty", "presence_penalty")
# What OpenAI takes; `options` takes what Ollama does.
RANGES = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
}


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
    max_tokens: int | None = None


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
    logit_bias: dict[str, float] | None = None
    logprobs: int | bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None


class ChatBody(_Common):
    messages: list[MessageBody] | None = None
    max_completion_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    reasoning: Effort | None = None
    think: Any = None
    thinking_budget: int | None = None
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
    for field in ("audio", "functions", "function_call", "web_search_options"):
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
        tools=tools.tools,
        think=think,
        force=tools.force,
        single=sent.parallel_tool_calls is False
        or (isinstance(sent.tool_choice, dict) and len(tools.force) == 1),
        think_budget=_think_budget(sent),
        prefill=last.role == "assistant" and bool(last.content) and not last.tool_calls,
    )
    field = "max_tokens" if sent.max_completion_tokens is None else "max_completion_tokens"
    model = (sent.model or "").strip()
    return _parsed(
        sent,
        id_,
        task,
        limit(getattr(sent, field), field),
        logprobs=_chat_logprobs(sent),
        form=_form(sent),
        needs=(
            Need("completion", f'"{model}" does not support chat'),
            *model_needs(model, think, tools=bool(tools.tools)),
        ),
    )


def parse_completion(body: bytes, id_: str) -> Parsed:
    """POST /v1/completions: the prompt as it is, without a template. Raises InvalidRequest."""
    sent = decode(body, CompletionBody)
    if sent.suffix:
        raise _unsupported("suffix")
    if sent.best_of is not None and sent.best_of != (sent.n or 1):
        raise InvalidRequest("mlxo does not support best_of other than n", "leave best_of out")
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
    return _parsed(
        sent,
        id_,
        Complete(prompt=prompt),
        most,
        needs=needs,
        form=_form(sent),
        logprobs=_completion_logprobs(sent),
        echo=bool(sent.echo),
    )


def _parsed(
    sent: _Common,
    id_: str,
    task: Task,
    most: int | None,
    *,
    needs: tuple[Need, ...],
    logprobs: int | None,
    form: Form | None = None,
    echo: bool = False,
) -> Parsed:
    model = (sent.model or "").strip()
    if not model:
        raise InvalidRequest("model is required")
    copies = 1 if sent.n is None else sent.n
    if not 1 <= copies <= MOST_CHOICES:
        raise InvalidRequest(f"n must be between 1 and {MOST_CHOICES}")
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
        logprobs=logprobs,
        logit_bias=_logit_bias(sent.logit_bias or {}),
    )
    return Parsed(request, needs, frozenset(wishes), copies)


def _logit_bias(sent: dict[str, float]) -> dict[int, float]:
    """Token ids come as text, JSON has no other keys. Whether the model has them is for its runner to say."""
    if len(sent) > MOST_BIASES:
        raise InvalidRequest(f"logit_bias may name at most {MOST_BIASES} tokens")
    found = {}
    for name, value in sent.items():
        if not (name.isascii() and name.isdigit() and len(name) < 10):
            raise InvalidRequest(f"logit_bias: {shown(name)} is no token id", "its keys are token ids")
        if not -100 <= value <= 100:
            raise InvalidRequest(f"logit_bias[{name}] must be between -100 and 100")
        found[int(name)] = value
    return found


def _chat_logprobs(sent: ChatBody) -> int | None:
    if sent.logprobs is not None and not isinstance(sent.logprobs, bool):
        raise InvalidRequest("logprobs must be true or false", 'set "top_logprobs" to a number')
    return likely.top(sent.logprobs, sent.top_logprobs, strict=True)


def _completion_logprobs(sent: CompletionBody) -> int | None:
    count = sent.logprobs
    if count is None or count is False:
        return None
    if count is True or not 0 <= count <= likely.MOST:
        raise InvalidRequest(f"logprobs must be a number between 0 and {likely.MOST}")
    if sent.echo:
        raise _unsupported("logprobs together with echo")
    return count


def _unsupported(field: str) -> InvalidRequest:
    return InvalidRequest(f"mlxo does not support {field}")


def _options(sent: _Common, most: int | None) -> Options:
    """OpenAI's own fields over `options`. What is absent is left to the model."""
    given: dict[str, Any] = {name: getattr(sent, name) for name in SAMPLING}
    for name, (low, high) in RANGES.items():
        if given[name] is not None and not low <= given[name] <= high:
            raise InvalidRequest(f"{name} must be between {low} and {high}", f'"options" takes any {name}')
    given |= {"num_predict": most, "stop": sent.stop}
    return from_json(given).over(from_json(sent.options or {}))


def _form(sent: _Common) -> Form | None:
    if sent.structured_outputs is None:
        return _format(sent.response_format)
    if sent.response_format is not None and sent.response_format.type != "text":
        raise InvalidRequest("response_format and structured_outputs exclude one another")
    return structured(sent.structured_outputs)


def _format(sent: ResponseFormat | None) -> Form | None:
    if sent is None or sent.type == "text":
        return None
    if sent.type == "json_object":
        return "json"
    if sent.type != "json_schema":
        raise InvalidRequest(f"response_format.type must be text, json_object or json_schema: {sent.type!r}")
    if sent.json_schema is None or sent.json_schema.schema is None:
        raise InvalidRequest("response_format.json_schema.schema is missing")
    return schema_form(sent.json_schema.schema, "response_format.json_schema.schema")


def _think(sent: ChatBody) -> Think | None:
    if sent.think is not None:
        return thinking(sent.think)
    if sent.reasoning_effort is not None or sent.reasoning is None:
        return effort(sent.reasoning_effort, "reasoning_effort")
    return effort(sent.reasoning.effort, "reasoning.effort")


def _think_budget(sent: ChatBody) -> int | None:
    """Tokens that the thinking may have: Qwen's and OpenRouter's field."""
    budget = sent.thinking_budget
    if budget is None and sent.reasoning is not None:
        budget = sent.reasoning.max_tokens
    if budget is not None and budget < 0:
        raise InvalidRequest("thinking_budget must not be negative")
    return budget


def _tools(sent: ChatBody) -> choice.Choice:
    tools = tuple(sent.tools or ())
    for i, tool in enumerate(tools):
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict):
            raise InvalidRequest(f"tools[{i}] must be of type function")
        if not isinstance(function.get("name"), str):
            raise InvalidRequest(f"tools[{i}].function.name must be text")
    check_depth(list(tools), "tools")
    choice.check_strict(tools)
    return choice.openai(tools, sent.tool_choice)


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
