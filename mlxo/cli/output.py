"""What people and scripts read: tables, sizes, times, counts. The formats are Ollama's."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TextIO

GAP = "    "
# Everything of C0 and C1 but tab and newline: a model, a hub or a file name must not drive the terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_COMMAND = re.compile(r"mlxo [a-z]+(?: \S+)?")


def clean(text: str) -> str:
    """`text` without control characters, for a terminal."""
    return _CONTROL.sub("", text)


def hint(text: str) -> str:
    """The line below an error. A hint that is only a command gets a word in front."""
    return f"Hint: {'try ' if _COMMAND.fullmatch(text) else ''}{clean(text)}"


def tell(text: str, stream: TextIO | None = None) -> None:
    """Print a text for people; on a terminal lines that are too long are broken between words."""
    stream = stream or sys.stdout
    if stream.isatty():
        import shutil

        columns = max(shutil.get_terminal_size().columns - 1, 20)
        text = "\n".join(_fold(line, columns) for line in text.split("\n"))
    print(text, file=stream)


def _fold(line: str, columns: int) -> str:
    if len(line) <= columns:
        return line
    import textwrap

    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(
        line, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Left-aligned columns four blanks apart, the padding of the last one kept, as Ollama prints them."""
    cells = [list(headers), *([clean(c).replace("\n", " ") for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    return "".join(
        "".join(c.ljust(w) + GAP for c, w in zip(row, widths, strict=True)) + "\n" for row in cells
    )


def print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def size(count: int) -> str:
    """Bytes in powers of 1000: `398 MB`, `4.7 GB`, `2 GB`."""
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if count >= factor:
            value = count / factor
            return f"{value:.1f} {unit}" if value < 10 and count % factor else f"{int(value)} {unit}"
    return f"{count} B"


def number(count: int) -> str:
    """A count of parameters: `8B`, `7.6B`, `494.03M`, `12K`."""
    for unit, factor, places in (("B", 10**9, 1), ("M", 10**6, 2), ("K", 10**3, 0)):
        if count >= factor:
            return f"{count / factor:.{places if count % factor else 0}f}{unit}"
    return str(count)


def parse_time(text: str) -> datetime | None:
    """RFC 3339 with any number of fractional digits; None for what is no time or the zero time."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return None if when.year <= 1 else when


def span(seconds: float) -> str:
    """A length of time in words: `About a minute`, `3 weeks`."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole < 60:
        return "1 second" if whole == 1 else f"{whole} seconds"
    minutes = whole // 60
    if minutes < 60:
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours < 48:
        return "About an hour" if hours == 1 else f"{hours} hours"
    days = hours // 24
    if days < 14:
        return f"{days} days"
    if days < 60:
        return f"{days // 7} weeks"
    if days < 730:
        return f"{days // 30} months"
    return f"{days // 365} years"


def ago(text: str, now: datetime | None = None) -> str:
    """`3 days ago`, `4 minutes from now`, or `Never`."""
    when = parse_time(text)
    if when is None:
        return "Never"
    delta = (when - (now or datetime.now(UTC))).total_seconds()
    return f"{span(delta)} from now" if delta > 0 else f"{span(-delta)} ago"


def until(text: str, now: datetime | None = None) -> str:
    """When a loaded model leaves: `4 minutes from now`, `Forever`, `Stopping...`."""
    when = parse_time(text)
    if when is None:
        return "Never"
    left = when - (now or datetime.now(UTC))
    if left > timedelta(days=20 * 365):
        return "Forever"
    return "Stopping..." if left.total_seconds() <= 0 else ago(text, now)


def processor(total: int, on_gpu: int) -> str:
    """Where a loaded model lies."""
    if on_gpu == 0:
        return "100% CPU"
    if on_gpu > total or total == 0:
        return "Unknown"
    if on_gpu == total:
        return "100% GPU"
    cpu = round((total - on_gpu) / total * 100)
    return f"{cpu}%/{100 - cpu}% CPU/GPU"
