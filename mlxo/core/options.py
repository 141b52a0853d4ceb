"""Sampling and context options: one struct, one merge, one parser for text and for JSON values.

The names, types and defaults are Ollama's (its `api.Options`), those of XTC llama.cpp's; precedence is
request > Modelfile > default. A field that is None was not given.
"""

from __future__ import annotations

import contextlib
import math
import types
import typing
from collections.abc import Mapping

import msgspec

from mlxo.core.errors import InvalidRequest

Value = int | float | bool | str | tuple[str, ...]


class Options(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One row's options. Counts are tokens; `stop` is matched on decoded text."""

    num_ctx: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    use_mmap: bool | None = None
    num_thread: int | None = None
    draft_num_predict: int | None = None
    kv_bits: int | None = None
    num_keep: int | None = None
    num_predict: int | None = None
    seed: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_last_n: int | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    stop: tuple[str, ...] | None = None

    def over(self, base: Options) -> Options:
        """`base` with every field that is set here replaced by this one's."""
        mine = {k: v for k, v in msgspec.structs.asdict(self).items() if v is not None}
        return msgspec.structs.replace(base, **mine)


DEFAULTS = Options(
    num_keep=4,
    num_predict=-1,
    seed=-1,
    temperature=0.8,
    top_k=40,
    top_p=0.9,
    min_p=0.0,
    typical_p=1.0,
    repeat_last_n=64,
    repeat_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    xtc_probability=0.0,
    xtc_threshold=0.1,
    stop=(),
)


def clamped(value: float | None, default: float | None, low: float, high: float) -> float:
    """`value`, else `default`, which is a number then, but from `low` to `high`."""
    number = default if value is None else value
    assert number is not None
    return min(max(number, low), high)


# Accepted in a Modelfile with a warning, and then ignored.
DEPRECATED = frozenset(
    (
        "penalize_newline",
        "low_vram",
        "f16_kv",
        "logits_all",
        "vocab_only",
        "use_mlock",
        "mirostat",
        "mirostat_tau",
        "mirostat_eta",
    )
)


def _kind(hint: object) -> type:
    """int, float, bool or str (the last for `stop`) out of `X | None`."""
    inner = [a for a in typing.get_args(hint) if a is not types.NoneType]
    return str if typing.get_origin(inner[0]) is tuple else inner[0]


KINDS: dict[str, type] = {k: _kind(v) for k, v in typing.get_type_hints(Options).items()}


def _fits(number: int | float) -> bool:
    """Finite, and an int in 64 bits: what the wire and MLX can carry."""
    return math.isfinite(number) if isinstance(number, float) else -(2**63) <= number < 2**63


_TRUE = frozenset(("1", "t", "T", "true", "TRUE", "True"))
_FALSE = frozenset(("0", "f", "F", "false", "FALSE", "False"))


def from_text(name: str, text: str) -> int | float | bool | str:
    """The value of `PARAMETER name text`. Raises InvalidRequest with Ollama's words."""
    kind = KINDS.get(name)
    if kind is None:
        raise InvalidRequest(f"unknown parameter '{name}'")
    if kind is str:
        return text
    try:
        if kind is bool:
            if text not in _TRUE | _FALSE:
                raise ValueError(text)
            return text in _TRUE
        value = kind(text)
        if not text.isascii() or "_" in text or text != text.strip() or not _fits(value):
            raise ValueError(text)
        return typing.cast(int | float, value)
    except ValueError:
        raise InvalidRequest(f"invalid {kind.__name__} value [{text}]") from None


_WANTED = {int: "integer", bool: "boolean", float: "float32", str: "array"}


def from_json(raw: Mapping[str, object]) -> Options:
    """Options out of a decoded JSON object; unknown keys are ignored, as Ollama does.

    An integral float stands for an int. Raises InvalidRequest when a value has the wrong JSON type.
    """
    found: dict[str, Value] = {}
    for name, value in raw.items():
        kind = KINDS.get(name)
        if kind is None or value is None:
            continue
        found[name] = _checked(name, kind, value)
    return Options(**typing.cast(dict[str, typing.Any], found))


def _checked(name: str, kind: type, value: object) -> Value:
    if kind is bool and isinstance(value, bool):
        return value
    if kind in (int, float) and isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            if _fits(number := kind(value)):
                return number
    if kind is str:
        if isinstance(value, str):
            return (value,)
        if isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
            return tuple(value)
    kind_text = _WANTED[kind]
    raise InvalidRequest(f'option "{name}" must be of type {kind_text}')
