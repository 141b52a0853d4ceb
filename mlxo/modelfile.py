"""Modelfile text <-> directives: Ollama's grammar, and two keywords of ours.

A statement is a keyword, one blank, a value, a newline. CR and LF each end a line, so CRLF counts twice.
`#` is a comment only where a keyword could stand. A value that begins with `"` or `\"""` goes on until a line
ends in the same quote; there are no escapes. Runes that do not print are dropped, blanks and newlines aside.
Keywords beyond Ollama's: QUANTIZE, KEEP_ALIVE; `# name:` and `# alias:` comments name what the file makes.

`parse` checks the grammar alone. `Modelfile.check` and the properties check values, and name the line too.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from mlxo.core import duration
from mlxo.core.errors import InvalidRequest, ModelfileError
from mlxo.core.options import DEPRECATED, KINDS, Options, from_text
from mlxo.core.types import Frozen, Message

_TEXTS = ("from", "license", "template", "system", "adapter", "draft", "renderer", "parser")
_OURS = ("quantize", "keep_alive")
KEYWORDS = (*_TEXTS, "parameter", "message", "requires", *_OURS)
ROLES = ("system", "user", "assistant")

_BLANK = " \t"
_GAP = re.compile(r"[ \t\r\n]*")
_NEWLINE = re.compile(r"[\r\n]")
_KEYWORD = re.compile(r"[^ \t\r\n][A-Za-z_]*")  # of a wrong one too, to show it; a first rune may not print
_PARAMETER = re.compile(r"[A-Za-z0-9_]*")
_ROLE = re.compile(r"[A-Za-z]*")
# Go's x/mod/semver, which takes v1 and v1.2 for short.
_NUMBER = r"(?:0|[1-9][0-9]*)"
_PRE = rf"(?:{_NUMBER}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_BUILD = r"[0-9A-Za-z-]+"
_PATCH = rf"\.{_NUMBER}(?:-{_PRE}(?:\.{_PRE})*)?(?:\+{_BUILD}(?:\.{_BUILD})*)?"
_SEMVER = re.compile(rf"v?({_NUMBER}(?:\.{_NUMBER}(?:{_PATCH})?)?)")

Mode = Literal["affine", "mxfp4", "nvfp4", "mxfp8"]
T = TypeVar("T")


class Directive(Frozen, frozen=True, kw_only=True):
    """One instruction. `name` is the lower-case keyword; of a PARAMETER the parameter's own name, as written.

    `args` is the value without its quotes; of a MESSAGE `role: content`.
    """

    name: str
    args: str


class Quantize(Frozen, frozen=True, kw_only=True):
    """MLX quantisation: `bits` a weight, `group_size` weights a scale."""

    mode: Mode = "affine"
    bits: int = 4
    group_size: int = 64


_FLOATS: dict[str, Quantize] = {
    "mxfp4": Quantize(mode="mxfp4", bits=4, group_size=32),
    "nvfp4": Quantize(mode="nvfp4", bits=4, group_size=16),
    "mxfp8": Quantize(mode="mxfp8", bits=8, group_size=32),
}
_BITS = ("2", "3", "4", "5", "6", "8")
_GROUPS = ("32", "64", "128")
_FORMS = f"one of {', '.join((*_BITS, *_FLOATS))}; after bits may stand a group of {', '.join(_GROUPS)}"


def parse_quantize(text: str) -> Quantize:
    """`4`, `4 32`, `mxfp4`; `q4`, `int4` and GGUF's `Q4_K_M` mean `4`. The group is 64 unless given.

    Raises InvalidRequest.
    """
    words = text.lower().split()
    kind = re.sub(r"\A(?:q|int)([0-9])(?:_[01]|_k(?:_[sml])?)?\Z", r"\1", words[0]) if words else ""
    group = words[1] if len(words) > 1 else None
    if len(words) <= 2 and kind in _FLOATS and group in (None, str(_FLOATS[kind].group_size)):
        return _FLOATS[kind]
    if len(words) <= 2 and kind in _BITS and group in (None, *_GROUPS):
        return Quantize(bits=int(kind), group_size=int(group or 64))
    raise InvalidRequest(f"invalid quantization '{text[:40]}'", _FORMS)


@dataclass(frozen=True, kw_only=True)
class Modelfile:
    """Directives in the order written. `lines` are theirs, 1-based; empty when not parsed from text.

    A property that has to read a value raises ModelfileError when it cannot; `check` reads them all.
    """

    directives: tuple[Directive, ...]
    name: str | None = None
    aliases: tuple[str, ...] = ()
    lines: tuple[int, ...] = field(default=(), compare=False, repr=False)

    def check(self) -> None:
        """Read every value. Raises ModelfileError with the line of the first that cannot be read."""
        for index, directive in enumerate(self.directives):
            with self._at(index):
                match directive.name:
                    case "quantize":
                        parse_quantize(directive.args)
                    case "keep_alive":
                        _keep_alive(directive.args)
                    case "requires":
                        _semver(directive.args)
                    case name if name not in KEYWORDS and name not in DEPRECATED:
                        _parameter(name, directive.args)

    @property
    def from_(self) -> tuple[str, ...]:
        return self._all("from")

    @property
    def licenses(self) -> tuple[str, ...]:
        return self._all("license")

    @property
    def adapter(self) -> str | None:
        return self._last("adapter")

    @property
    def draft(self) -> str | None:
        return self._last("draft")

    @property
    def template(self) -> str | None:
        return self._last("template")

    @property
    def system(self) -> str | None:
        return self._last("system")

    @property
    def renderer(self) -> str | None:
        return self._last("renderer")

    @property
    def parser(self) -> str | None:
        return self._last("parser")

    @property
    def requires(self) -> str | None:
        """The version without a leading v."""
        return self._read("requires", _semver)

    @property
    def quantize(self) -> Quantize | None:
        return self._read("quantize", parse_quantize)

    @property
    def keep_alive(self) -> float | None:
        """Seconds; below zero is forever."""
        return self._read("keep_alive", _keep_alive)

    @property
    def messages(self) -> tuple[Message, ...]:
        split = (args.partition(": ") for args in self._all("message"))
        return tuple(Message(role=role, content=content) for role, _, content in split)

    @property
    def options(self) -> Options:
        """The last value of each PARAMETER; `stop` keeps them all. Deprecated ones are left out."""
        found: dict[str, Any] = {}
        for index, directive in enumerate(self.directives):
            name = directive.name
            if name in KEYWORDS or name in DEPRECATED:
                continue
            with self._at(index):
                value = _parameter(name, directive.args)
            if name == "stop":
                found.setdefault("stop", []).append(value)
            else:
                found[name] = value
        if "stop" in found:
            found["stop"] = tuple(found["stop"])
        return Options(**found)

    @property
    def warnings(self) -> tuple[str, ...]:
        names = dict.fromkeys(d.name for d in self.directives)
        warnings = [f"parameter {name} is deprecated and ignored" for name in names if name in DEPRECATED]
        return (*warnings, *("a FROM line has no value" for source in self.from_ if not source))

    def _all(self, name: str) -> tuple[str, ...]:
        return tuple(d.args for d in self.directives if d.name == name)

    def _last(self, name: str) -> str | None:
        return next((d.args for d in reversed(self.directives) if d.name == name), None)

    def _read(self, name: str, reader: Callable[[str], T]) -> T | None:
        found = [i for i, d in enumerate(self.directives) if d.name == name]
        if not found:
            return None
        with self._at(found[-1]):
            return reader(self.directives[found[-1]].args)

    @contextlib.contextmanager
    def _at(self, index: int) -> Iterator[None]:
        try:
            yield
        except InvalidRequest as e:
            line = self.lines[index] if self.lines else None
            raise ModelfileError(e.message, line, e.hint) from None


def _semver(text: str) -> str:
    version = _SEMVER.fullmatch(text)
    if version is None:
        raise InvalidRequest("requires must be a valid semver (e.g. 0.14.0)")
    return version[1]


def _keep_alive(text: str) -> float | None:
    """A duration, or a bare number of seconds, of which -1 is the common one."""
    with contextlib.suppress(ValueError):
        return duration.keep_alive(float(text))
    return duration.keep_alive(text)


def _parameter(name: str, text: str) -> int | float | bool | str:
    if name not in KINDS:
        import difflib

        close = difflib.get_close_matches(name[:80].lower(), KINDS, n=1)
        hint = f"did you mean {close[0]}?" if close else None
        raise InvalidRequest(f"unknown parameter '{name[:80]}'", hint)
    return from_text(name, text)


def parse(data: bytes | str) -> Modelfile:
    """Raises ModelfileError, and nothing else, whatever the bytes. Linear in their number.

    A keyword with no blank after it is reported on its own line; Ollama reports the line after it.
    """
    text = data.removeprefix("\ufeff") if isinstance(data, str) else _decode(data)
    directives: list[Directive] = []
    lines: list[int] = []
    named: dict[str, list[str]] = {"name": [], "alias": []}
    for line, keyword, args in _statements(text):
        if keyword != "#":
            directives.append(Directive(name=keyword, args=args))
            lines.append(line)
            continue
        key, _, value = _printable(args).partition(":")
        if key.strip().lower() in named and len(value.split()) == 1:
            named[key.strip().lower()].append(value.strip())
    if not any(d.name == "from" for d in directives):
        raise ModelfileError("no FROM line", hint="begin with a line such as: FROM smollm2")
    name, aliases = next(iter(named["name"]), None), tuple(named["alias"])
    return Modelfile(directives=tuple(directives), name=name, aliases=aliases, lines=tuple(lines))


def _decode(data: bytes) -> str:
    """UTF-16 where a byte order mark says so, else UTF-8."""
    encoding, mark = "UTF-8", b"\xef\xbb\xbf"
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding, mark = ("UTF-16-LE" if data[:1] == b"\xff" else "UTF-16-BE"), data[:2]
    data = data.removeprefix(mark)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as e:
        line = 1 + _newlines(data[: e.start].decode(encoding, "replace"))
        raise ModelfileError(f"not valid {encoding} text", line, "save the file as UTF-8") from None


def _statements(text: str) -> Iterator[tuple[int, str, str]]:
    """(line, name, args) of every directive, and (line, "#", text) of every comment."""
    pos, line = 0, 1
    while True:
        gap = _take(_GAP, text, pos)
        pos += len(gap)
        line += _newlines(gap)
        if pos == len(text):
            return
        if text[pos] == "#":
            end = _end_of_line(text, pos)
            yield line, "#", text[pos + 1 : end]
        else:
            name, role, pos = _head(text, pos, line)
            value, end = _value(text, pos, line)
            yield line, name, f"{role}: {value}" if role else value
        line += _newlines(text[pos:end])
        pos = end


def _head(text: str, pos: int, line: int) -> tuple[str, str, int]:
    """The name and, of a MESSAGE, the role; and where the value begins, after exactly one blank."""
    word = _take(_KEYWORD, text, pos)
    keyword = _printable(word).lower()
    pos += len(word)
    if pos == len(text):
        raise _unexpected_end(line, None, f"{keyword.upper()[:20]} has no value")
    if keyword not in KEYWORDS or text[pos] not in _BLANK:
        raise ModelfileError(f"command must be one of {_listed(KEYWORDS)}", line)
    pos += 1
    if keyword not in ("parameter", "message"):
        return keyword, "", pos
    name = _take(_PARAMETER if keyword == "parameter" else _ROLE, text, pos)
    pos += len(name)
    if pos == len(text):
        raise _unexpected_end(line, None, f"{keyword.upper()} has no value")
    if text[pos] not in _BLANK:
        raise _unexpected_end(line, name, f"{keyword.upper()} is followed by a name, one blank and a value")
    if keyword == "message":
        if name not in ROLES:
            raise ModelfileError(f"message role must be one of {_listed(ROLES)}", line)
        return keyword, name, pos + 1
    if name in KEYWORDS:  # or it would become that directive
        raise ModelfileError(f"unknown parameter '{name}'", line, f"write {name.upper()} alone")
    return name, "", pos + 1


def _value(text: str, pos: int, line: int) -> tuple[str, int]:
    """The value without its quotes, and where its last line ends."""
    end = _end_of_line(text, pos)
    pieces = [_printable(text[pos:end])]
    first = pieces[0].strip(_BLANK)
    if not first.startswith('"'):
        return first, end
    quote = '"""' if first.startswith('"""') else '"'
    closed = len(first) >= 2 * len(quote) and first.endswith(quote)
    while not closed:
        if end == len(text):
            raise _unexpected_end(line, None, f"the quote {quote} that opens on this line is never closed")
        newline, pos = text[end], end + 1
        end = _end_of_line(text, pos)
        pieces += (newline, _printable(text[pos:end]))
        closed = pieces[-1].rstrip(_BLANK).endswith(quote)
    whole = "".join(pieces).strip(_BLANK)
    return whole[len(quote) : -len(quote)], end


def _take(pattern: re.Pattern[str], text: str, pos: int) -> str:
    found = pattern.match(text, pos)
    return found[0] if found else ""


def _end_of_line(text: str, pos: int) -> int:
    found = _NEWLINE.search(text, pos)
    return found.start() if found else len(text)


def _newlines(text: str) -> int:
    return text.count("\n") + text.count("\r")


def _printable(text: str) -> str:
    """Without the runes that Go's strconv.IsPrint refuses; blanks stay."""
    return text if text.isprintable() else "".join(c for c in text if c.isprintable() or c == "\t")


def _listed(words: tuple[str, ...]) -> str:
    *most, last = (f'"{word}"' for word in words)
    return f"{', '.join(most)}, or {last}"


def _unexpected_end(line: int, partial: str | None, hint: str) -> ModelfileError:
    """Go's io.ErrUnexpectedEOF, which Ollama also gives for a name that stops at a wrong character."""
    return ModelfileError("unexpected EOF" + ("" if partial is None else f": {partial[:80]}"), line, hint)


def format(source: Modelfile | Iterable[Directive]) -> str:
    """Text that parses back to the same directives, where the grammar can say them.

    It cannot say runes that do not print, nor a line inside a value that ends in three double quotes.
    """
    lines = [f"# name: {source.name}"] if isinstance(source, Modelfile) and source.name else []
    if isinstance(source, Modelfile):
        lines += (f"# alias: {alias}" for alias in source.aliases)
    lines += map(_line, source.directives if isinstance(source, Modelfile) else source)
    return "".join(f"{line}\n" for line in lines)


def _line(directive: Directive) -> str:
    name, args = directive.name, directive.args
    if name == "from" and not _needs_quotes(args):
        return f"FROM {args}"
    if name == "message":
        role, _, content = args.partition(": ")
        return f"MESSAGE {role} {_quoted(content)}"
    return f"{name.upper() if name in KEYWORDS else f'PARAMETER {name}'} {_quoted(args)}"


def _needs_quotes(text: str) -> bool:
    """Whether the reader would take a part of the bare text away, or read on past its end."""
    return text != text.strip(_BLANK) or text.startswith('"') or _NEWLINE.search(text) is not None


def _quoted(text: str) -> str:
    if text and not _needs_quotes(text):
        return text
    return f'"""{text}"""' if '"' in text else f'"{text}"'
