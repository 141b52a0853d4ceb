"""Durations as Go writes them: `1h30m`, `500ms`, `-1s`. Seconds as float on our side.

Format: https://pkg.go.dev/time#ParseDuration
"""

from __future__ import annotations

import re

from mlxo.core.errors import InvalidRequest

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_TERM = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
MAX_SECONDS = (2**63 - 1) / 1e9


def parse(text: str) -> float:
    """Seconds. Raises InvalidRequest in Go's words: `time: missing unit in duration "300"`."""
    sign = -1.0 if text.startswith("-") else 1.0
    body = text[1:] if text[:1] in ("+", "-") else text
    if body == "0":
        return 0.0
    terms = list(_TERM.finditer(body))
    if not terms or "".join(t.group() for t in terms) != body:
        if re.fullmatch(r"[0-9]+\.?[0-9]*|\.[0-9]+", body):
            raise InvalidRequest(f'time: missing unit in duration "{text[:40]}"', "for example 300s or 5m")
        raise InvalidRequest(f'time: invalid duration "{text[:40]}"', "for example 30s, 5m or 1h30m")
    total = sum(float(t[1]) * _UNITS[t[2]] for t in terms)
    if total > MAX_SECONDS:
        raise InvalidRequest(f'time: invalid duration "{text[:40]}"', "it is longer than 292 years")
    return sign * total


def keep_alive(value: object) -> float | None:
    """The JSON keep_alive: a number is seconds, text a duration, below zero forever (-1), null unset."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise InvalidRequest(f"Unsupported type: '{type(value).__name__}'", 'keep_alive is 300, "5m" or -1')
    seconds = parse(value) if isinstance(value, str) else float(value)
    if seconds != seconds:
        raise InvalidRequest('time: invalid duration "NaN"')
    return -1.0 if seconds < 0 else min(seconds, MAX_SECONDS)


def show(nanoseconds: int) -> str:
    """Go's notation of a duration: `1m2.5s`, `12.345ms`."""
    if nanoseconds < 0:
        return "-" + show(-nanoseconds)
    if nanoseconds == 0:
        return "0s"
    for unit, size in (("ns", 1), ("µs", 10**3), ("ms", 10**6)):
        if nanoseconds < size * 1000:
            return f"{nanoseconds / size:.9f}".rstrip("0").rstrip(".") + unit
    minutes, rest = divmod(nanoseconds, 60 * 10**9)
    seconds = f"{rest / 1e9:.9f}".rstrip("0").rstrip(".") + "s"
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds
