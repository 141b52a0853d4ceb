"""Decoded text, as it comes, to events: answer, reasoning, whole tool calls; stop strings end it.

What comes out depends on the text alone and never on where it was cut into chunks. Nothing is lost: all but
the marks and the white space around them comes out again, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum, auto

from mlxo.chat.reasoning import Markers
from mlxo.chat.tools.parser import Parser
from mlxo.core.types import Call, Function, TextDelta, ThinkDelta, ToolCall

Piece = TextDelta | ThinkDelta | Call


def held(text: str, words: Iterable[str]) -> int:
    """Length of the longest end of `text` that is a proper beginning of one of `words`."""
    longest = 0
    for word in words:
        for size in range(min(len(word) - 1, len(text)), longest, -1):
            if text.endswith(word[:size]):
                longest = size
                break
    return longest


class Stops:
    """Passes text through up to the first stop string, holding back what might begin one.

    The match that is complete first wins; of two that end at one place the longer.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._buffer = ""
        self.stopped: str | None = None

    def feed(self, text: str) -> str:
        if self.stopped is not None:
            return ""
        text = self._buffer + text
        matches = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if matches:
            _, at, self.stopped = min(matches)
            self._buffer = ""
            return text[:at]
        free = len(text) - held(text, self._stops)
        self._buffer = text[free:]
        return text[:free]

    def finish(self) -> str:
        rest, self._buffer = self._buffer, ""
        return rest


class _State(Enum):
    START = auto()  # the first words decide whether this is reasoning
    REOPEN = auto()  # the prompt opened the block; some models open it once more
    LEAD = auto()  # white space before the reasoning
    THINK = auto()
    GAP = auto()  # white space after reasoning or a call
    TEXT = auto()
    CALL = auto()


class Splitter:
    """One answer's text to events.

    stops        matched on all that is generated, reasoning and calls too, as Ollama does
    reasoning    the model's marks, or None for a model that has none; a block counts only at the beginning
    tools        the parser of its calls, or None when the request brought no tools
    in_thinking  the prompt ended inside a think block

    `feed` each piece of text, then `finish`. `stopped` is the stop string that was met; from then on nothing
    comes out. A call that does not parse comes out as text.
    """

    def __init__(
        self,
        stops: Iterable[str] = (),
        reasoning: Markers | None = None,
        tools: Parser | None = None,
        in_thinking: bool = False,
    ) -> None:
        self._stops = Stops(stops)
        self._marks = reasoning
        self._tools = tools
        self._buffer = ""
        self._space = ""  # white space before a call that may yet turn out to be none
        self._searched = 0  # how much of the buffer holds no end of the call
        self._calls = 0
        self._out: list[Piece] = []
        self._state = _State.TEXT
        if reasoning is not None:
            self._state = _State.REOPEN if in_thinking else _State.START
        self._steps: dict[_State, Callable[[bool], bool]] = {
            _State.START: self._start,
            _State.REOPEN: self._start,
            _State.LEAD: self._skip_space,
            _State.GAP: self._skip_space,
            _State.THINK: self._think,
            _State.TEXT: self._text,
            _State.CALL: self._call,
        }

    @property
    def stopped(self) -> str | None:
        return self._stops.stopped

    def feed(self, text: str) -> list[Piece]:
        return self._split(self._stops.feed(text), self.stopped is not None)

    def finish(self) -> list[Piece]:
        """What was held back: it was no mark and no stop string after all."""
        return self._split(self._stops.finish(), True)

    def _split(self, text: str, final: bool) -> list[Piece]:
        self._buffer += text
        # A call that is cut off right after its mark has no body to look at, and is text all the same.
        while (self._buffer or (final and self._state is _State.CALL)) and self._steps[self._state](final):
            pass
        done, self._out = self._out, []
        return done

    # Each step takes what it can from the buffer and says whether another step may do more.

    def _start(self, final: bool) -> bool:
        mark = self._marks.start if self._marks else ""
        body = self._buffer.lstrip()
        if body.startswith(mark):
            self._buffer = body[len(mark) :]
            self._state = _State.LEAD
        elif mark.startswith(body) and not final:
            return False
        else:
            self._state = _State.LEAD if self._state is _State.REOPEN else _State.TEXT
        return True

    def _skip_space(self, final: bool) -> bool:
        del final
        self._buffer = self._buffer.lstrip()
        if self._buffer:
            self._state = _State.THINK if self._state is _State.LEAD else _State.TEXT
        return bool(self._buffer)

    def _think(self, final: bool) -> bool:
        end = self._marks.end if self._marks else ""
        at = self._buffer.find(end)
        if at >= 0:
            self._say(ThinkDelta, self._buffer[:at].rstrip())
            self._buffer = self._buffer[at + len(end) :]
            self._state = _State.GAP
            return True
        self._say(ThinkDelta, self._release(end, final))
        return False

    def _text(self, final: bool) -> bool:
        start = self._tools.start if self._tools else None
        at = self._buffer.find(start) if start else -1
        if start is None or at < 0:
            self._say(TextDelta, self._release(start, final))
            return False
        before = self._buffer[:at]
        self._say(TextDelta, before.rstrip())
        self._space = before[len(before.rstrip()) :]
        self._buffer = self._buffer[at + len(start) :]
        self._searched = 0
        self._state = _State.CALL
        return True

    def _call(self, final: bool) -> bool:
        if self._tools is None:
            return False
        parser = self._tools
        at = -1
        if self._buffer.find(parser.end, self._searched) >= 0:
            at = parser.ends(self._buffer)
        if at < 0 and not final:
            self._searched = max(0, len(self._buffer) - len(parser.end) + 1)
            return False
        body = self._buffer if at < 0 else self._buffer[:at]
        found = parser.parse(body)
        if found is None:
            # No call: the mark is text, and so is what follows, unless a call begins in there.
            self._say(TextDelta, self._space + parser.start)
            self._state = _State.TEXT
            return True
        self._emit(found)
        self._buffer = self._buffer[len(body) + len(parser.end) :]
        self._state = _State.GAP
        return True

    def _release(self, mark: str | None, final: bool) -> str:
        """What can go out: all but a possible beginning of the mark and the white space before it."""
        text = self._buffer
        if mark is not None and not final:
            text = text[: len(text) - held(text, (mark,))].rstrip()
        self._buffer = self._buffer[len(text) :]
        return text

    def _say(self, kind: type[TextDelta | ThinkDelta], text: str) -> None:
        if text:
            self._out.append(kind(text=text))

    def _emit(self, found: Iterable[Function]) -> None:
        for function in found:
            numbered = Function(name=function.name, arguments=function.arguments, index=self._calls)
            self._out.append(Call(call=ToolCall(function=numbered)))
            self._calls += 1
