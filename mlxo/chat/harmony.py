"""gpt-oss's harmony: an answer is messages, each with a header that names its channel and who it is for.

    <|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...<|return|>
    <|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{...}<|call|>

The format is published at https://cookbook.openai.com/articles/openai-harmony.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mlxo.chat.splitter import Piece, Splitter, Stops, held
from mlxo.chat.tools.values import decode
from mlxo.core.types import Call, Function, TextDelta, ThinkDelta, ToolCall

MESSAGE = "<|message|>"
FINAL = "<|channel|>final<|message|>"  # begins the answer proper
_ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>", "<|channel|>")
_END = re.compile("|".join(map(re.escape, _ENDS)))
_HEADER = re.compile(r"\s*(?:<\||assistant|to=)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=(?:functions\.)?([\w.-]+)")
_MARK = re.compile(r"<\|(?:channel|constrain|start|message|end)\|>")
_LONGEST = 400  # characters of a header; what is longer is none


def speaks(template: str | None) -> bool:
    return template is not None and "<|channel|>analysis<|message|>" in template


class Harmony:
    """One answer's text to events, as mlxo.chat.splitter.Splitter. `tools`: calls are told as such.

    `thinking`: the prompt, or the answer that was begun, ends inside a message of this channel.
    """

    def __init__(
        self, stops: Iterable[str] = (), tools: bool = False, single: bool = False, channel: str = ""
    ) -> None:
        self._stops = Stops(stops)
        self._tools = tools
        self._single = single
        self._buffer = ""
        self._taken = 0
        self._calls = 0
        self._header = not channel
        self._kind: type[TextDelta | ThinkDelta] = ThinkDelta if channel == "analysis" else TextDelta
        self._recipient = ""
        self._body = ""  # of a call
        self._out: list[Piece] = []
        self.done = False

    @property
    def stopped(self) -> str | None:
        return self._stops.stopped

    @property
    def settled(self) -> int:
        """How many characters of all that was fed are out, or dropped; the others are held back."""
        return self._taken - len(self._buffer) - len(self._body)

    def feed(self, text: str) -> list[Piece]:
        return self._split(self._stops.feed(text), self.stopped is not None)

    def finish(self) -> list[Piece]:
        """What was held back; a call that was open ends here: its end mark is an end token."""
        return self._split(self._stops.finish(), True)

    def _split(self, text: str, final: bool) -> list[Piece]:
        self._buffer += text
        self._taken += len(text)
        while (
            not self.done and self._buffer and (self._read_header if self._header else self._read_body)(final)
        ):
            pass
        if final:
            self._close()
        done, self._out = self._out, []
        return done

    def _read_header(self, final: bool) -> bool:
        head, mark, rest = self._buffer.partition(MESSAGE)
        plausible = _HEADER.match(head) or any(
            w.startswith(head.lstrip()) for w in ("<|", "assistant", "to=")
        )
        if not plausible or (not mark and (final or len(head) > _LONGEST)):
            # No header: a model that does without, or an answer that was cut off inside one.
            self._open("", "")
            self._buffer = _MARK.sub("", self._buffer) if final else self._buffer
            return True
        if not mark:
            return False
        channel, recipient = _CHANNEL.search(head), _RECIPIENT.search(head)
        self._open(channel[1] if channel else "", recipient[1] if recipient else "")
        self._buffer = rest
        return True

    def _open(self, channel: str, recipient: str) -> None:
        self._header = False
        self._kind = ThinkDelta if channel == "analysis" and not (recipient and self._tools) else TextDelta
        self._recipient = recipient if self._tools and recipient != "assistant" else ""

    def _read_body(self, final: bool) -> bool:
        found = _END.search(self._buffer)
        upto = found.start() if found else len(self._buffer) - (0 if final else held(self._buffer, _ENDS))
        text, self._buffer = self._buffer[:upto], self._buffer[upto:]
        if self._recipient:
            self._body += text
        elif text:
            self._out.append(self._kind(text=text))
        if found is None:
            return False
        self._close()
        self._header = True
        if found[0] != "<|channel|>":
            self._buffer = self._buffer[len(found[0]) :]
        return True

    def _close(self) -> None:
        """A message ended: if it was a call, tell it."""
        name, self._recipient = self._recipient, ""
        body, self._body = self._body, ""
        if not name:
            return
        try:
            arguments, at = decode(body.strip() or "{}")
        except ValueError:
            arguments, at = None, 0
        if not isinstance(arguments, dict) or body.strip()[at:].strip():
            self._out += [TextDelta(text=body)] if body else []
            return
        function = Function(name=name, arguments=arguments, index=self._calls)
        self._out.append(Call(call=ToolCall(function=function)))
        self._calls += 1
        self.done = self._single


AnswerSplitter = Splitter | Harmony
