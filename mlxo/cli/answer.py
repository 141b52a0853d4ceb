"""Printing one streamed answer: thinking, word wrap, what it took. `run` and the REPL share it."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable
from typing import TextIO

from mlxo.cli.client import Json
from mlxo.cli.output import clean
from mlxo.cli.progress import Spinner
from mlxo.core import duration

GREY, PLAIN = "\x1b[90m", "\x1b[0m"
MARGIN = 5  # columns left free at the right
LABEL = 22  # width of the left column of the summary


def colour(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class Wrap:
    """Breaks lines between words, and between wide characters, which need no blank to break at.

    Holds the last word back until what follows is known, so nothing printed is ever taken back.
    """

    def __init__(self, columns: int) -> None:
        self._limit = max(columns - MARGIN, 20)
        self._column = 0
        self._word = ""
        self._word_width = 0

    def feed(self, text: str) -> str:
        return "".join(self._character(c) for c in text)

    def flush(self) -> str:
        """The word held back."""
        out = ""
        if self._word:
            if self._column and self._column + self._word_width > self._limit:
                out, self._column = "\n", 0
            out += self._word
            self._column += self._word_width
            self._word, self._word_width = "", 0
        return out

    def _character(self, c: str) -> str:
        if c == "\n":
            out = self.flush()
            self._column = 0
            return out + c
        if c in " \t":
            out = self.flush()
            if self._column >= self._limit:
                return out  # the break that comes next stands for it
            self._column += 1
            return out + c
        width = _width(c)
        out = self.flush() if width == 2 or self._word_width >= self._limit else ""
        self._word += c
        self._word_width += width
        return out + (self.flush() if width == 2 else "")


def _width(c: str) -> int:
    """Columns of a character on a terminal."""
    if unicodedata.combining(c) or unicodedata.category(c) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(c) in ("W", "F") else 1


class Answer:
    """One answer as it comes. `text` and `thinking` hold what came so far, whatever ends it."""

    def __init__(self, *, wrap: bool, hide_thinking: bool) -> None:
        self.text = ""
        self.thinking = ""
        self.final: Json = {}
        self._terminal = sys.stdout.isatty()
        self._grey = colour(sys.stdout)
        self._hide = hide_thinking
        columns = shutil.get_terminal_size().columns
        self._wrap = Wrap(columns) if wrap and self._terminal else None
        self._inside = False  # the thinking block is open on the screen
        self._ends_line = True  # nothing stands on the current line

    def show(self, lines: Iterable[Json]) -> None:
        """Print the answer to its end. A spinner turns until the first of it."""
        stopped = False
        try:
            with Spinner() as spinner:
                for line in lines:
                    part = line.get("message") or line
                    if thought := part.get("thinking"):
                        self.thinking += thought
                        if not self._hide:
                            spinner.stop()
                            self._think(thought)
                    if text := part.get("content") or part.get("response"):
                        self.text += text
                        spinner.stop()
                        self._say(text)
                    if line.get("done"):
                        self.final = line
        except KeyboardInterrupt:
            stopped = True
            raise
        finally:
            if stopped:
                self._stop()
            else:
                self._close()

    def _think(self, text: str) -> None:
        if not self._inside:
            self._inside = True
            self._write(f"{GREY}Thinking...{PLAIN}\n{GREY}" if self._grey else "Thinking...\n")
        self._put(text)

    def _say(self, text: str) -> None:
        if self._inside:
            self._end_thinking()
        self._put(text)

    def _end_thinking(self) -> None:
        self._inside = False
        self._flush_word()
        self._write(
            ("" if self._ends_line else "\n") + "...done thinking." + (PLAIN if self._grey else "") + "\n\n"
        )

    def _close(self) -> None:
        """Leave whole lines behind: on a terminal a blank one too, in a pipe a newline at the end."""
        if self._inside:
            self._end_thinking()
        self._flush_word()
        if self._terminal and self.text:
            self._write("\n" if self._ends_line else "\n\n")
        elif not self._ends_line:
            self._write("\n")

    def _stop(self) -> None:
        """Ctrl-C: say nothing more. The line on a terminal is the caller's to end."""
        if self._inside and self._grey:
            self._write(PLAIN)
        elif not self._terminal and not self._ends_line:
            self._write("\n")

    def _put(self, text: str) -> None:
        shown = clean(text) if self._terminal else text
        self._write(self._wrap.feed(shown) if self._wrap else shown)

    def _flush_word(self) -> None:
        if self._wrap:
            self._write(self._wrap.flush())

    def _write(self, text: str) -> None:
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()
            self._ends_line = text.endswith("\n")


def summary(final: Json) -> str:
    """What an answer took, from its last line; values that are absent or zero are left out."""
    lines = [("total duration", _time(final, "total")), ("load duration", _time(final, "load"))]
    for what in ("prompt eval", "eval"):
        key = what.replace(" ", "_")
        count, took = int(final.get(f"{key}_count") or 0), int(final.get(f"{key}_duration") or 0)
        lines.append((f"{what} count", f"{count} token(s)" if count else ""))
        if what == "prompt eval":
            cached = int(final.get("cached_tokens") or 0)
            lines.append(("prompt cached", f"{cached} token(s)" if cached else ""))
            cut = int(final.get("truncated_tokens") or 0)
            lines.append(("prompt truncated", f"{cut} token(s) left out, for num_ctx" if cut else ""))
        lines.append((f"{what} duration", _time(final, key)))
        lines.append((f"{what} rate", f"{count / took * 1e9:.2f} tokens/s" if count and took else ""))
    drafted, accepted = int(final.get("drafted_tokens") or 0), int(final.get("accepted_tokens") or 0)
    lines.append(("drafts accepted", f"{accepted} of {drafted} token(s)" if drafted else ""))
    return "".join(f"{label + ':':<{LABEL}}{value}\n" for label, value in lines if value)


def _time(final: Json, what: str) -> str:
    nanoseconds = int(final.get(f"{what}_duration") or 0)
    return duration.show(nanoseconds) if nanoseconds else ""
