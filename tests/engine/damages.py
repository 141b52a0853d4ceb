"""What may have happened to a safetensors record: by name, its bytes to other bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


def huge(data: bytes) -> bytes:
    return (1 << 62).to_bytes(8, "little") + data[8:]


def header(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        head = json.loads(data[8 : 8 + length])
        change(head)
        text = json.dumps(head).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return damage


def raw(text: bytes) -> Callable[[bytes], bytes]:
    return lambda data: len(text).to_bytes(8, "little") + text


def other_shape(head: dict[str, Any]) -> None:
    head["every.0"]["shape"] = [1, 1, 1, 1]


def outside(head: dict[str, Any]) -> None:
    head["every.0"]["data_offsets"] = [0, 1 << 40]


def other_tokens(head: dict[str, Any]) -> None:
    head["__metadata__"]["tokens"] = "A" * len(head["__metadata__"]["tokens"])


def no_number(head: dict[str, Any]) -> None:
    head["__metadata__"]["since"] = "many"


def negative(head: dict[str, Any]) -> None:
    head["__metadata__"]["since"] = "-3"


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "truncated": cut,
    "one bit": flip,
    "longer": lambda data: data + b"x",
    "huge header": huge,
    "no JSON": raw(b"\xff\xfe{"),
    "deep JSON": raw(b"[" * 100_000),
    "a list": raw(b"[]"),
    "no metadata": raw(b"{}"),
    "another shape": header(other_shape),
    "outside": header(outside),
    "other tokens": header(other_tokens),
    "no number": header(no_number),
    "negative": header(negative),
}
