"""The types that flow between processes: frozen structs that are type, validator and wire in one.

Durations are integer nanoseconds, sizes bytes, counts tokens, unless a field says otherwise.
"""

from __future__ import annotations

import builtins
from typing import Annotated, Any, Literal

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
    MESSAGE turns are left out (they are in it already). `force` names tools, one of which the answer must
    call; `single` ends the answer behind its first call. `think_budget` bounds the tokens of the thinking.
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    think: Think | None = None
    truncate: bool = True
    prefill: bool = False
    context: tuple[int, ...] = ()
    force: tuple[str, ...] = ()
    single: bool = False
    think_budget: int | None = None


class Complete(Frozen, frozen=True, kw_only=True, tag="complete"):
    """A prompt taken verbatim: no template. `context` holds token ids that stand before it."""

    prompt: str
    context: tuple[int, ...] = ()
    truncate: bool = True


class Touch(Frozen, frozen=True, kw_only=True, tag="touch"):
    """Load the model, or unload it when keep_alive is 0; generate nothing."""


class Tokenize(Frozen, frozen=True, kw_only=True, tag="tokenize"):
    """The tokens of the whole prompt that `of` makes, however long it is; nothing is generated.

    `special` False: of a text, without what the tokenizer puts around it. `names`: as the vocabulary spells
    them, too.
    """

    of: Chat | Complete
    special: bool = True
    names: bool = False


class Detokenize(Frozen, frozen=True, kw_only=True, tag="detokenize"):
    """The text of these token ids, special ones included."""

    ids: tuple[int, ...]


class Embed(Frozen, frozen=True, kw_only=True, tag="embed"):
    """A vector for each input, a text or token ids, by an embedding model.

    `dimensions`: the first so many numbers of each; 0 is all. `normalise`: of length one. `truncate`: the
    head of what is longer than the context, which is an error otherwise.
    """

    inputs: tuple[str | tuple[int, ...], ...]
    truncate: bool = True
    dimensions: int = 0
    normalise: bool = True


Task = Chat | Complete | Touch | Tokenize | Detokenize | Embed


class Request(Frozen, frozen=True, kw_only=True):
    """THE internal request. `options` are already merged: default < Modelfile < request.

    `keep_alive` is seconds: negative is forever, None the server's default.
    `format` is None, "json", a JSON schema object, or an object whose one key is "regex", "grammar" (Lark, as
    llguidance has it) or "choice" (texts, one of which is the whole answer).
    `logprobs` is how many likeliest tokens to tell beside each token of the answer, 0 to 20; None: tell
    nothing. `logit_bias`: token id -> what its logit gets more.
    """

    id: str
    model: str
    task: Task
    options: Options
    stream: bool = True
    keep_alive: float | None = None
    format: str | dict[str, Any] | None = None
    template: str | None = None
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    logit_bias: dict[int, float] = {}


# ---------------------------------------------------------------- events


class Started(Frozen, frozen=True, kw_only=True, tag="started"):
    """The request was admitted. `cached_tokens` of `prompt_tokens` came from the prefix cache.

    `truncated` counts the messages that were dropped to fit the context.
    """

    prompt_tokens: int
    cached_tokens: int = 0
    truncated: int = 0


class TokenLogprob(Frozen, frozen=True, kw_only=True):
    """A token and its log-probability. `bytes` may be a part of a character.

    `top` are the likeliest at its place, best first. A `silent` token made no text: it is a part of a mark.
    """

    bytes: builtins.bytes  # the field hides the type in here
    logprob: float
    top: tuple[TokenLogprob, ...] = ()
    silent: bool = False


class TextDelta(Frozen, frozen=True, kw_only=True, tag="text"):
    """`logprobs` are there when the request asks for them: of the tokens since the last event that had any.

    The text is empty when nothing but silent tokens is left to tell.
    """

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


class ThinkDelta(Frozen, frozen=True, kw_only=True, tag="think"):
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


class Call(Frozen, frozen=True, kw_only=True, tag="call"):
    """A whole tool call; never a part of one."""

    call: ToolCall
    logprobs: tuple[TokenLogprob, ...] = ()


class Tokens(Frozen, frozen=True, kw_only=True, tag="tokens"):
    """What Tokenize asks for. `context` is the num_ctx in force for requests that name none."""

    ids: tuple[int, ...]
    context: int
    names: tuple[str, ...] = ()


class Vectors(Frozen, frozen=True, kw_only=True, tag="vectors"):
    """Some vectors of an Embed: of the inputs at `places`, one after another in `data`, each `width` numbers
    of float32 in the machine's own order of bytes.
    """

    places: tuple[int, ...]
    width: int
    data: builtins.bytes


FinishReason = Literal["stop", "length", "load", "unload"]


class Finished(Frozen, frozen=True, kw_only=True, tag="finished"):
    """The last event of a request that went well. `context` is prompt + answer as token ids.

    `drafted` tokens were tried by speculative decoding, `accepted` of them became part of the answer. `cut`
    tokens of what was asked were left out to fit the context, whole messages or a prompt's middle. The first
    `thought` of the tokens went into thinking.
    """

    reason: FinishReason
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    prompt_ns: int = 0
    eval_ns: int = 0
    context: tuple[int, ...] = ()
    stop: str | None = None
    drafted: int = 0
    accepted: int = 0
    cut: int = 0
    thought: int = 0


class Failed(Frozen, frozen=True, kw_only=True, tag="failed"):
    """The last event of a request that did not. `code` is an `MlxoError.code`."""

    message: str
    code: str
    hint: str | None = None


Event = Started | TextDelta | ThinkDelta | Call | Tokens | Vectors | Finished | Failed


# ---------------------------------------------------------------- models


class Layer(Frozen, frozen=True, kw_only=True):
    """One blob of a manifest. `digest` is `sha256:<64 hex>`; `name` the file's name inside the model."""

    media_type: str = msgspec.field(name="mediaType")
    digest: str
    size: int
    name: str | None = None


# What DRAFT says for drafts that are looked up in the prompt and the answer, without a model.
NGRAM = "ngram"


class ModelSpec(Frozen, frozen=True, kw_only=True):
    """All that a runner needs to know of a model: paths and plain values, nothing of the registry.

    `path` is a folder as mlx-lm reads it. `context` is the trained context length in tokens.
    `template` overrides the tokenizer's chat template (Jinja). `weights` is the bytes of its weight files.
    `draft` is the folder of the model that drafts for this one, or NGRAM; `draft_weights` as `weights`.
    `parser` is the Modelfile's PARSER: the family whose tool calls the model writes.
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
    draft_weights: int = 0
    parser: str | None = None


class RunnerStats(Frozen, frozen=True, kw_only=True):
    """What a runner says of itself. Bytes are what MLX holds, not the process's resident set."""

    active_bytes: int = 0
    peak_bytes: int = 0
    prefix_bytes: int = 0
    rows: int = 0
    waiting: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    backend: str = "cpu"
