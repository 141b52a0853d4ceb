"""The types that flow between processes: frozen structs that are type, validator and wire in one.

Durations are integer nanoseconds, sizes bytes, counts tokens, unless a field says otherwise.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from mlxo.core.options import Options


class Frozen(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base: immutable, keyword-only, defaults left off the wire."""


# ---------------------------------------------------------------- messages


class Function(Frozen, frozen=True, kw_only=True):
    """A call of a tool. `arguments` is the decoded JSON object."""

    name: str
    arguments: dict[str, Any] = msgspec.field(default_factory=dict)
    index: int = 0


class ToolCall(Frozen, frozen=True, kw_only=True):
    function: Function
    id: str = ""


class Message(Frozen, frozen=True, kw_only=True):
    """One turn. `images` are raw bytes of encoded pictures (PNG, JPEG, WebP)."""

    role: str
    content: str = ""
    thinking: str = ""
    images: tuple[bytes, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_name: str = ""
    tool_call_id: str = ""


# ---------------------------------------------------------------- tasks

Think = bool | Literal["low", "medium", "high", "max"]


class Chat(Frozen, frozen=True, kw_only=True, tag="chat"):
    """Messages through the model's chat template. `tools` are JSON schemas as the client sent them.

    `prefill` is True when the last message is an assistant turn that the model shall go on with.
    `context` holds token ids of earlier turns that stand before the rendered prompt; with it the model's own
    MESSAGE turns are left out (they are in it already).
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    think: Think | None = None
    truncate: bool = True
    prefill: bool = False
    context: tuple[int, ...] = ()


class Complete(Frozen, frozen=True, kw_only=True, tag="complete"):
    """A prompt taken verbatim: no template. `context` holds token ids that stand before it."""

    prompt: str
    context: tuple[int, ...] = ()
    truncate: bool = True


class Touch(Frozen, frozen=True, kw_only=True, tag="touch"):
    """Load the model, or unload it when keep_alive is 0; generate nothing."""


Task = Chat | Complete | Touch


class Request(Frozen, frozen=True, kw_only=True):
    """THE internal request. `options` are already merged: default < Modelfile < request.

    `keep_alive` is seconds: negative is forever, None the server's default.
    `format` is None, "json", or a JSON schema object.
    """

    id: str
    model: str
    task: Task
    options: Options
    stream: bool = True
    keep_alive: float | None = None
    format: str | dict[str, Any] | None = None
    template: str | None = None


# ---------------------------------------------------------------- events


class Started(Frozen, frozen=True, kw_only=True, tag="started"):
    """The request was admitted. `cached_tokens` of `prompt_tokens` came from the prefix cache.

    `truncated` counts the messages that were dropped to fit the context.
    """

    prompt_tokens: int
    cached_tokens: int = 0
    truncated: int = 0


class TextDelta(Frozen, frozen=True, kw_only=True, tag="text"):
    text: str


class ThinkDelta(Frozen, frozen=True, kw_only=True, tag="think"):
    text: str


class Call(Frozen, frozen=True, kw_only=True, tag="call"):
    """A whole tool call; never a part of one."""

    call: ToolCall


FinishReason = Literal["stop", "length", "load", "unload"]


class Finished(Frozen, frozen=True, kw_only=True, tag="finished"):
    """The last event of a request that went well. `context` is prompt + answer as token ids."""

    reason: FinishReason
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    prompt_ns: int = 0
    eval_ns: int = 0
    context: tuple[int, ...] = ()
    stop: str | None = None


class Failed(Frozen, frozen=True, kw_only=True, tag="failed"):
    """The last event of a request that did not. `code` is an `MlxoError.code`."""

    message: str
    code: str
    hint: str | None = None


Event = Started | TextDelta | ThinkDelta | Call | Finished | Failed


# ---------------------------------------------------------------- models


class Layer(Frozen, frozen=True, kw_only=True):
    """One blob of a manifest. `digest` is `sha256:<64 hex>`; `name` the file's name inside the model."""

    media_type: str = msgspec.field(name="mediaType")
    digest: str
    size: int
    name: str | None = None


class ModelSpec(Frozen, frozen=True, kw_only=True):
    """All that a runner needs to know of a model: paths and plain values, nothing of the registry.

    `path` is a folder as mlx-lm reads it. `context` is the trained context length in tokens.
    `template` overrides the tokenizer's chat template (Jinja). `weights` is the bytes of its weight files.
    """

    name: str
    digest: str
    path: str
    weights: int = 0
    context: int = 0
    template: str | None = None
    system: str | None = None
    messages: tuple[Message, ...] = ()
    options: Options = Options()
    capabilities: tuple[str, ...] = ()
    keep_alive: float | None = None
    draft: str | None = None


class RunnerStats(Frozen, frozen=True, kw_only=True):
    """What a runner says of itself. Bytes are what MLX holds, not the process's resident set."""

    active_bytes: int = 0
    peak_bytes: int = 0
    rows: int = 0
    waiting: int = 0
    tokens: int = 0
    backend: str = "cpu"
