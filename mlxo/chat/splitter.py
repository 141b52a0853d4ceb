"""Decoded text, as it comes, to events: answer, reasoning, whole tool calls; stop strings end it.

What comes out depends on the text alone and never on where it was cut into chunks. Nothing is lost: all but
the marks and the white space around them comes out again, in order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from enum import Enum, auto

from mlxo.chat.reasoning import Markers
from mlxo.chat.tools import BARE, PYTHONIC
from mlxo.chat.tools.parser import Parser, Scanner, Schemas
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


# What may stand between two calls without marks, and the longest beginning of one that is looked at.
_BETWEEN = " \t\r\n;,"
_OPENING = 200


def _openings(schemas: Schemas) -> tuple[str, ...]:
    """How a call of one of these tools begins that has no mark, without its white space."""
    found = []
    for name in schemas:
        named = f'"name":{json.dumps(name)}'
        functions = (
            f"{{{named}",
            f'{{"type":"function",{named}',
            f'{{"type":"function","function":{{{named}',
        )
        found += [*functions, *("[" + f for f in functions), f"[{name}("]
    return tuple(opening[:_OPENING] for opening in found)


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
    schemas      the parameters of each tool that the request brought
    bare         an answer that is the JSON (or the Python) of a call to one of them is one, marks or none
    dropped      marks around the answer itself, that are no text
    single       the first call is the last: then `done`

    `feed` each piece of text, then `finish`. `stopped` is the stop string that was met; from then on nothing
    comes out. A call that does not parse comes out as text.
    """

    def __init__(
        self,
        stops: Iterable[str] = (),
        reasoning: Markers | None = None,
        tools: Parser | None = None,
        in_thinking: bool = False,
        schemas: Schemas | None = None,
        bare: bool = False,
        dropped: Iterable[str] = (),
        single: bool = False,
    ) -> None:
        self._stops = Stops(stops)
        self._marks = reasoning
        self._tools = tools
        self._schemas = schemas or {}
        self._bare = _openings(self._schemas) if tools and bare else ()
        self._dropped = tuple(dropped)
        self._words = (*(tools.starts if tools else ()), *self._dropped)
        self._found = re.compile("|".join(map(re.escape, self._words))) if self._words else None
        self._single = single
        self.done = False
        self._fresh = True  # nothing was said yet, or nothing since the last call
        self._buffer = ""
        self._space = ""  # white space before a call that may yet turn out to be none
        self._mark = ""  # the one that began the call
        self._parser = tools
        self._scanner: Scanner | None = None
        self._end = ""  # what may stand behind a call that ended by itself
        self._taken = 0  # characters that came and were no stop string
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

    @property
    def settled(self) -> int:
        """How many characters of all that was fed are out, or dropped; the others are held back."""
        held_back = len(self._buffer)
        if self._state is _State.CALL:
            held_back += len(self._space) + len(self._mark)
        return self._taken - held_back

    def feed(self, text: str) -> list[Piece]:
        return self._split(self._stops.feed(text), self.stopped is not None)

    def finish(self) -> list[Piece]:
        """What was held back: it was no mark and no stop string after all."""
        return self._split(self._stops.finish(), True)

    def _split(self, text: str, final: bool) -> list[Piece]:
        self._buffer += text
        self._taken += len(text)
        # A call that is cut off right after its mark has no body to look at, and is text all the same.
        while (self._buffer or (final and self._state is _State.CALL)) and not self.done:
            if not self._steps[self._state](final):
                break
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
        self._buffer = self._buffer.lstrip()
        if self._end and self._state is _State.GAP:
            if self._buffer.startswith(self._end):
                self._buffer = self._buffer[len(self._end) :].lstrip()
            elif self._end.startswith(self._buffer) and not final:
                return False
        if self._buffer:
            self._state = _State.THINK if self._state is _State.LEAD else _State.TEXT
            self._end = ""
        return bool(self._buffer)

    def _think(self, final: bool) -> bool:
        end = self._marks.end if self._marks else ""
        at = self._buffer.find(end)
        if at >= 0:
            self._say(ThinkDelta, self._buffer[:at].rstrip())
            self._buffer = self._buffer[at + len(end) :]
            self._state = _State.GAP
            return True
        self._say(ThinkDelta, self._release((end,), final))
        return False

    def _text(self, final: bool) -> bool:
        if self._fresh and self._bare:
            opening = self._opening()
            if opening and not final:
                return False
            self._fresh = False
            if opening is None:
                return self._begin(PYTHONIC if self._buffer.lstrip(_BETWEEN)[1:2].isalpha() else BARE, 0, "")
        found = self._found.search(self._buffer) if self._found else None
        if found is None:
            self._say(TextDelta, self._release(self._words, final))
            return False
        if found[0] in self._dropped:
            self._say(TextDelta, self._buffer[: found.start()])
            self._buffer = self._buffer[found.end() :].lstrip()
            return True
        assert self._tools is not None
        return self._begin(self._tools, found.start(), found[0])

    def _opening(self) -> bool | None:
        """Whether the answer may still turn out to be a call without a mark; None when it is one."""
        body = "".join(self._buffer.lstrip(_BETWEEN)[:_OPENING].split())
        if any(body.startswith(opening) for opening in self._bare):
            return None
        return any(opening.startswith(body) for opening in self._bare)

    def _begin(self, parser: Parser, at: int, mark: str) -> bool:
        before = self._buffer[:at]
        self._say(TextDelta, before.rstrip())
        self._space = before[len(before.rstrip()) :]
        self._mark = "" if parser.keep else mark
        self._buffer = self._buffer[at + len(self._mark) :]
        self._parser = parser
        self._scanner = Scanner(parser)
        self._state = _State.CALL
        return True

    def _call(self, final: bool) -> bool:
        parser, scanner = self._parser, self._scanner
        assert parser is not None
        assert scanner is not None
        at = scanner.find(self._buffer)
        if at < 0 and not final:
            return False
        body = self._buffer if at < 0 else self._buffer[:at]
        found = parser.parse(body.lstrip(_BETWEEN) if not parser.starts else body, self._schemas)
        if found is not None and not parser.starts and any(f.name not in self._schemas for f in found):
            found = None
        if found is None:
            # No call: the mark is text, and so is what follows, unless a call begins in there.
            taken = self._mark or self._buffer[: len(parser.starts[0]) if parser.keep else 0]
            self._buffer = self._buffer[len(taken) - len(self._mark) :]
            self._say(TextDelta, self._space + taken)
            self._state = _State.TEXT
            return True
        self._emit(found)
        self._buffer = self._buffer[len(body) :]
        if parser.scan in ("mark", "json"):
            self._buffer = self._buffer[len(parser.end) :]
        self._end = self._tools.end if self._tools and parser.scan in ("value", "python") else ""
        self._fresh = True
        self._state = _State.GAP
        return True

    def _release(self, marks: Iterable[str], final: bool) -> str:
        """What can go out: all but a possible beginning of a mark and the white space before it."""
        text = self._buffer
        marks = tuple(marks)
        if marks and not final:
            text = text[: len(text) - held(text, marks)].rstrip()
        self._buffer = self._buffer[len(text) :]
        return text

    def _say(self, kind: type[TextDelta | ThinkDelta], text: str) -> None:
        if text:
            self._out.append(kind(text=text))

    def _emit(self, found: Iterable[Function]) -> None:
        for function in found:
            if self.done:
                return
            numbered = Function(name=function.name, arguments=function.arguments, index=self._calls)
            self._out.append(Call(call=ToolCall(function=numbered)))
            self._calls += 1
            self.done = self._single
