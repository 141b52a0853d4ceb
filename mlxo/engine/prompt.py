"""A request's task to token ids that fit the context, and what will read the answer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from mlxo.chat import harmony, reasoning, tools
from mlxo.chat.harmony import AnswerSplitter, Harmony
from mlxo.chat.splitter import Splitter
from mlxo.chat.template import Template
from mlxo.chat.tools.parser import Parser
from mlxo.chat.truncate import fit
from mlxo.core.errors import InvalidRequest
from mlxo.core.options import DEFAULTS, Options
from mlxo.core.types import Chat, Complete, Detokenize, Event, Message, ModelSpec, Request, Tokenize
from mlxo.engine.calling import name_of, parameters
from mlxo.engine.thinking import Thinking
from mlxo.engine.tokens import detokenized, tokenized

log = logging.getLogger(__name__)

# For a model that brings no template: the texts of the messages, as a base model would read them.
_PLAIN = "{% for m in messages %}{{ m.content }}{% if not loop.last %}\n\n{% endif %}{% endfor %}"
_LEAST = 4  # tokens: no context is smaller


class Prompt(NamedTuple):
    """`ids` is not empty and shorter than `num_ctx`; `truncated` counts the messages that were dropped,
    `cut` the tokens with them or out of a prompt's middle.

    `family` is how the model writes its calls.
    """

    ids: list[int]
    num_ctx: int
    truncated: int
    splitter: AnswerSplitter
    thinking: Thinking | None
    family: Parser | str | None = None
    cut: int = 0

    @property
    def room(self) -> int:
        """How many tokens the answer may have."""
        return self.num_ctx - len(self.ids)


class _Voice(NamedTuple):
    """A chat template and what it tells of the model's ways."""

    template: Template
    markers: reasoning.Markers | None
    parser: Parser | None
    dropped: tuple[str, ...]
    harmony: bool


class Prompter:
    """`tokenizer` is mlx_lm's wrapper, `vocabulary` the logits' width; lengths are tokens. Engine thread."""

    def __init__(self, spec: ModelSpec, tokenizer: Any, vocabulary: int, trained: int, context: int) -> None:
        self._spec = spec
        self.tokenizer = tokenizer._tokenizer
        self._vocabulary = vocabulary
        self._trained = trained
        self._context = context
        self._names: dict[str, int] = self.tokenizer.get_vocab()
        opening = self.tokenizer.encode("")
        bos = self.tokenizer.bos_token_id
        self._bos: int | None = bos if bos is not None and opening[:1] == [bos] else None
        self._voices: dict[str, _Voice] = {}

    def prepare(self, request: Request) -> Prompt:
        """Raises InvalidRequest: no fit, images, a template that refuses."""
        task, options = request.task, request.options
        num_ctx = max(_LEAST, min(options.num_ctx or self._context, self._trained))
        if isinstance(task, Complete):
            ids = self._after(task.context, task.prompt)
            prompt = Prompt(ids, num_ctx, 0, Splitter(options.stop or (), None, None, False), None)
            return self._cut(prompt, options, task.truncate)
        if isinstance(task, Chat):
            return self._chat(task, options, num_ctx, request.template, request.format)
        raise InvalidRequest("there is nothing to generate")

    def tell(self, task: Tokenize | Detokenize, override: str | None) -> list[Event]:
        """All events of such a request; `override` is its template. Raises InvalidRequest."""
        if isinstance(task, Detokenize):
            return detokenized(self.tokenizer, self._vocabulary, task)
        of = task.of
        if isinstance(of, Chat):
            voice = self._voice(override, bool(of.tools))
            ids = self._after(of.context, _render(of, voice, self._messages(of)))
        elif task.special:
            ids = self._after(of.context, of.prompt)
        else:
            ids = [*of.context, *self.tokenizer.encode(of.prompt, add_special_tokens=False)]
        return tokenized(self.tokenizer, ids, task, self._context)

    # ------------------------------------------------------------ text to ids

    def encode(self, text: str, opening: bool = True) -> list[int]:
        """Token ids of `text`, special tokens in it included; BOS before them where the tokenizer adds one.

        A text that already starts with BOS gets no second one. `opening` False: there is text before, no BOS.
        """
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        if not opening and ids[:1] == [self.tokenizer.bos_token_id]:
            del ids[0]
        elif opening and self._bos is not None and ids[:1] != [self._bos]:
            ids.insert(0, self._bos)
        return ids

    def _after(self, context: Sequence[int], text: str) -> list[int]:
        """Token ids of `text` behind those of earlier turns. Raises InvalidRequest when these are none."""
        if any(not 0 <= i < self._vocabulary for i in context):
            raise InvalidRequest("the context holds numbers that are no tokens of this model")
        return [*context, *self.encode(text, opening=not context)]

    def _chat(self, task: Chat, options: Options, num_ctx: int, override: str | None, form: Any) -> Prompt:
        messages = self._messages(task)
        voice = self._voice(override, bool(task.tools))
        text = ""

        def render(some: Sequence[Message]) -> list[int]:
            nonlocal text
            text = _render(task, voice, some)
            return self._after(task.context, text)

        ids = render(messages)
        asked, dropped = len(ids), 0
        if task.truncate and len(ids) >= num_ctx:
            kept, dropped = fit(
                messages, lambda some: len(render(some)), num_ctx - _reserve(options, num_ctx)
            )
            if dropped:
                log.info("%d messages were dropped from a chat, for a num_ctx of %d", dropped, num_ctx)
            ids = render(kept)
        inside = reasoning.inside(text, voice.markers, task.prefill)
        thinking = self._thinking(voice.markers, inside, task)
        if voice.harmony and not task.force and not task.prefill:
            thinking = Thinking(True, None, harmony.FINAL)
        splitter = _splitter(voice, options, task, inside, bare=not form)
        family = "harmony" if voice.harmony else voice.parser
        prompt = Prompt(ids, num_ctx, dropped, splitter, thinking, family, asked - len(ids))
        return self._cut(prompt, options, task.truncate)

    def _messages(self, task: Chat) -> list[Message]:
        """The system prompt (the request's, else the model's), the model's own messages, the request's."""
        if any(m.images for m in task.messages):
            raise InvalidRequest(f"{self._spec.name} cannot see images")
        head, given = task.messages[:1], task.messages[1:]
        if not head or head[0].role != "system":
            system = self._spec.system
            head = (Message(role="system", content=system),) if system else ()
            given = task.messages
        # Ids of earlier turns have the model's own opening messages in them.
        return [*head, *(() if task.context else self._spec.messages), *given]

    def _voice(self, override: str | None, tools_given: bool) -> _Voice:
        source = override or self._spec.template or self.tokenizer.chat_template
        if isinstance(source, dict):
            source = source.get("tool_use" if tools_given else "default") or source.get("default")
        source = source or _PLAIN
        voice = self._voices.get(source)
        if voice is None:
            special = {k: v for k, v in self.tokenizer.special_tokens_map.items() if isinstance(v, str)}
            voice = _Voice(
                Template(source, special),
                reasoning.find(source, self._names),
                self._parser(source),
                reasoning.wrappers(source),
                harmony.speaks(source) or self._spec.parser == "harmony",
            )
            if override is None:
                self._voices[source] = voice
        return voice

    def _parser(self, source: str) -> Parser | None:
        """The Modelfile's PARSER, where it is one that is known, else what the template tells."""
        return tools.named(self._spec.parser or "") or tools.pick(source, self._names)

    def _thinking(self, markers: reasoning.Markers | None, inside: bool, task: Chat) -> Thinking | None:
        if markers is None or (task.think is False and not inside):
            return None
        return Thinking(inside, self._names.get(markers.start), markers.end)

    # ------------------------------------------------------------ fitting

    def _cut(self, prompt: Prompt, options: Options, truncate: bool) -> Prompt:
        """Where the prompt leaves no room for an answer: its first num_keep tokens and its end."""
        ids, num_ctx = prompt.ids, prompt.num_ctx
        if not ids:
            raise InvalidRequest("the prompt is empty")
        if len(ids) < num_ctx:
            return prompt
        if not truncate:
            raise InvalidRequest(
                f"the prompt is longer than the context length: {len(ids)} tokens of at most {num_ctx - 1}",
                "raise num_ctx" if num_ctx < self._trained else "shorten the prompt",
            )
        size = num_ctx - _reserve(options, num_ctx)
        keep = DEFAULTS.num_keep if options.num_keep is None else options.num_keep
        assert keep is not None
        keep = size // 2 if keep < 0 else min(keep, size // 2)
        log.info("a prompt of %d tokens was cut to %d, for a num_ctx of %d", len(ids), size, num_ctx)
        cut = prompt.cut + len(ids) - size
        return prompt._replace(ids=ids[:keep] + ids[len(ids) - (size - keep) :], cut=cut)


def _render(task: Chat, voice: _Voice, messages: Sequence[Message]) -> str:
    return voice.template.render(
        messages,
        tools=task.tools,
        think=task.think,
        add_generation_prompt=not task.prefill,
        continue_final=task.prefill,
    )


def _splitter(voice: _Voice, options: Options, task: Chat, inside: bool, bare: bool) -> AnswerSplitter:
    """`bare`: an answer that is JSON may be a call."""
    stops = options.stop or ()
    if voice.harmony:
        return Harmony(stops, bool(task.tools), task.single, "final" if task.prefill else "")
    return Splitter(
        stops,
        voice.markers,
        voice.parser if task.tools else None,
        inside,
        schemas={name_of(t): parameters(t) for t in task.tools},
        bare=bare,
        dropped=voice.dropped,
        single=task.single,
    )


def _reserve(options: Options, num_ctx: int) -> int:
    """Tokens that a prompt which is cut leaves for the answer: num_predict, or a quarter of num_ctx."""
    predict = options.num_predict
    wanted = predict if predict is not None and predict > 0 else num_ctx // 4
    return max(1, min(wanted, num_ctx // 2))
