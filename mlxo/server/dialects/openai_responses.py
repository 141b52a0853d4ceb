"""OpenAI's /v1/responses to the internal Request.

Source of fields: https://platform.openai.com/docs/api-reference/responses. What changes an answer and is not
supported is refused by its name; what does not (`user`, `service_tier`, ...) is accepted. Beyond them, as in
Ollama's API: `top_k`, `min_p`, `seed`, `options`, `keep_alive` and `think`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from mlxo.core import duration
from mlxo.core.errors import InvalidRequest
from mlxo.core.options import Options, from_json
from mlxo.core.types import Chat, Event, Message, Request, Think, Tokenize, Tokens
from mlxo.server.dialects import choice, likely
from mlxo.server.dialects.base import Need, Parsed, new_id
from mlxo.server.dialects.body import check_depth, decode
from mlxo.server.dialects.fields import effort, limit, model_needs, shown, thinking
from mlxo.server.dialects.forms import Form, schema_form
from mlxo.server.dialects.openai import RANGES, SAMPLING
from mlxo.server.dialects.openai_responses_items import Find, messages, named

Json = dict[str, Any]
Earlier = Callable[[str], list[Json]]
"""The items that a response with this id was made of, its own among them. Raises NotFound."""

_LOGPROBS = "message.output_text.logprobs"
_REFUSED = ("background", "conversation", "prompt", "max_tool_calls")
_PAIRS, _KEY, _VALUE = 16, 64, 512  # of `metadata`: how many, and characters of each


class Reasoning(msgspec.Struct):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class TextFormat(msgspec.Struct):
    type: str
    name: str | None = None
    strict: bool | None = None
    schema: dict[str, Any] | None = None


class Text(msgspec.Struct):
    format: TextFormat | None = None


class ResponsesBody(msgspec.Struct):
    """Every field may be null."""

    model: str | None = None
    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: Text | None = None
    reasoning: Reasoning | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    top_logprobs: int | None = None
    truncation: str | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = None
    background: bool | None = None
    conversation: Any = None
    prompt: Any = None
    max_tool_calls: int | None = None
    options: dict[str, Any] | None = None
    keep_alive: Any = None
    think: Any = None


class Asked(NamedTuple):
    """`items` is all that the answer goes by, earlier turns first; `head` what it repeats of the request."""

    parsed: Parsed
    items: list[Json]
    head: Json
    store: bool
    summary: bool


def parse(
    body: bytes, id_: str, earlier: Earlier, find: Find, make_id: Callable[[str], str] = new_id
) -> Asked:
    """POST /v1/responses. Raises InvalidRequest, NotFound."""
    sent = decode(body, ResponsesBody)
    model = (sent.model or "").strip()
    if not model:
        raise InvalidRequest("model is required")
    for field in _REFUSED:
        if getattr(sent, field):
            raise InvalidRequest(f"mlxo does not support {field}")
    if sent.truncation not in (None, "auto", "disabled"):
        raise InvalidRequest(f"truncation must be auto or disabled: {shown(sent.truncation)}")
    _check_metadata(sent.metadata or {})
    items = earlier(sent.previous_response_id) if sent.previous_response_id else []
    items = items + _input(sent.input, find, make_id)
    turns = messages(items)
    if not turns:
        raise InvalidRequest("input is required")
    if sent.instructions:
        turns = [Message(role="system", content=sent.instructions), *turns]
    tools = _tools(sent)
    think = _think(sent)
    task = Chat(
        messages=tuple(turns),
        tools=tools.tools,
        think=think,
        truncate=sent.truncation == "auto",
        force=tools.force,
        single=sent.parallel_tool_calls is False
        or (isinstance(sent.tool_choice, dict) and len(tools.force) == 1),
    )
    request = Request(
        id=id_,
        model=model,
        task=task,
        options=_options(sent),
        stream=bool(sent.stream),
        keep_alive=duration.keep_alive(sent.keep_alive),
        format=_format(sent.text),
        logprobs=likely.top(_LOGPROBS in (sent.include or ()), sent.top_logprobs, strict=False),
    )
    needs = (
        Need("completion", f'"{model}" does not support chat'),
        *model_needs(model, think, tools=bool(tools.tools)),
    )
    reasoning = sent.reasoning or Reasoning()
    summary = reasoning.summary or reasoning.generate_summary
    return Asked(Parsed(request, needs), items, _head(sent, model), sent.store is not False, bool(summary))


def parse_count(body: bytes, id_: str, earlier: Earlier, find: Find) -> Parsed:
    """POST /v1/responses/input_tokens. Raises InvalidRequest, NotFound."""
    parsed = parse(body, id_, earlier, find).parsed
    assert isinstance(parsed.request.task, Chat)
    request = msgspec.structs.replace(parsed.request, task=Tokenize(of=parsed.request.task), stream=False)
    return Parsed(request, parsed.needs)


def counted(events: Sequence[Event]) -> Json:
    """The answer of input_tokens."""
    count = sum(len(e.ids) for e in events if isinstance(e, Tokens))
    return {"object": "response.input_tokens", "input_tokens": count}


def _input(sent: str | list[Json] | None, find: Find, make_id: Callable[[str], str]) -> list[Json]:
    """The items of the request, each with an id; a reference is replaced by what it names."""
    if sent is None or isinstance(sent, str):
        sent = [{"role": "user", "content": sent}] if sent else []
    check_depth(sent, "input")
    return [named(item, f"input[{i}]", find, make_id) for i, item in enumerate(sent)]


def _check_metadata(metadata: dict[str, str]) -> None:
    if len(metadata) > _PAIRS or any(len(k) > _KEY or len(v) > _VALUE for k, v in metadata.items()):
        raise InvalidRequest(
            f"metadata may have {_PAIRS} keys of {_KEY} characters, with values of {_VALUE} characters"
        )


def _tools(sent: ResponsesBody) -> choice.Choice:
    """Tools and the choice among them as chat completions have them."""
    tools = []
    for i, tool in enumerate(sent.tools or ()):
        if tool.get("type") != "function":
            raise InvalidRequest(f"mlxo does not support tools[{i}] of type {shown(tool.get('type'))}")
        if not isinstance(tool.get("name"), str):
            raise InvalidRequest(f"tools[{i}].name must be text")
        fields = ("name", "description", "parameters", "strict")
        function = {f: tool[f] for f in fields if tool.get(f) is not None}
        tools.append({"type": "function", "function": function})
    check_depth(tools, "tools")
    choice.check_strict(tuple(tools))
    wanted = sent.tool_choice
    if isinstance(wanted, dict) and wanted.get("type") == "allowed_tools":
        wanted = {"type": "allowed_tools", "allowed_tools": wanted}
    return choice.openai(tuple(tools), wanted)


def _think(sent: ResponsesBody) -> Think | None:
    if sent.think is not None:
        return thinking(sent.think)
    return effort(sent.reasoning.effort, "reasoning.effort") if sent.reasoning else None


def _options(sent: ResponsesBody) -> Options:
    given: Json = {name: getattr(sent, name) for name in SAMPLING}
    for name, (low, high) in RANGES.items():
        if given[name] is not None and not low <= given[name] <= high:
            raise InvalidRequest(f"{name} must be between {low} and {high}", f'"options" takes any {name}')
    given["num_predict"] = limit(sent.max_output_tokens, "max_output_tokens")
    return from_json(given).over(from_json(sent.options or {}))


def _format(sent: Text | None) -> Form | None:
    if sent is None or sent.format is None or sent.format.type == "text":
        return None
    if sent.format.type == "json_object":
        return "json"
    if sent.format.type != "json_schema":
        raise InvalidRequest(
            f"text.format.type must be text, json_object or json_schema: {sent.format.type!r}"
        )
    if sent.format.schema is None:
        raise InvalidRequest("text.format.schema is missing")
    return schema_form(sent.format.schema, "text.format.schema")


def _head(sent: ResponsesBody, model: str) -> Json:
    """What clients expect to find of their request in the response."""
    text = sent.text.format if sent.text else None
    form: Json = {"type": text.type if text else "text"}
    if text and text.schema is not None:
        form |= {"name": text.name or "", "schema": text.schema, "strict": text.strict}
    reasoning = sent.reasoning or Reasoning()
    return {
        "model": model,
        "instructions": sent.instructions,
        "previous_response_id": sent.previous_response_id,
        "tools": [{"strict": None, "parameters": None, **tool} for tool in sent.tools or ()],
        "tool_choice": sent.tool_choice or "auto",
        "parallel_tool_calls": sent.parallel_tool_calls is not False,
        "text": {"format": form},
        "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary},
        "max_output_tokens": sent.max_output_tokens,
        "temperature": sent.temperature,
        "top_p": sent.top_p,
        "truncation": sent.truncation or "disabled",
        "store": sent.store is not False,
        "metadata": sent.metadata or {},
        "background": False,
    }
