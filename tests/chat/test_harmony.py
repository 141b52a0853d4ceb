"""gpt-oss's answers: channels, calls, cut anywhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxo.chat import harmony
from mlxo.chat.harmony import Harmony
from mlxo.chat.splitter import Piece
from mlxo.core.types import Call, ThinkDelta

THOUGHT = "<|channel|>analysis<|message|>Hm, <b>.<|end|>"
CALL = '<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"x": [1, "<|"]}'
F = ("call", ("f", {"x": [1, "<|"]}))

CASES: list[tuple[str, list[tuple[str, Any]]]] = [
    ("<|channel|>final<|message|>Hi  there\n<|return|>", [("text", "Hi  there\n")]),
    (f"{THOUGHT}<|start|>assistant<|channel|>final<|message|>Hi", [("think", "Hm, <b>."), ("text", "Hi")]),
    (f"{THOUGHT}{CALL}<|call|>", [("think", "Hm, <b>."), F]),
    (f"{THOUGHT}{CALL}", [("think", "Hm, <b>."), F]),
    (f'{THOUGHT}<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{{"x": [1, "<|"]}}',
     [("think", "Hm, <b>."), F]),
    (f"<|channel|>commentary<|message|>I look.<|end|>{CALL}<|call|>{CALL}", [("text", "I look."), F, F]),
    ("<|channel|>commentary to=functions.f<|message|><|call|>", [("call", ("f", {}))]),
    (' to=functions.f<|channel|>commentary<|message|>{"x": 1}', [("call", ("f", {"x": 1}))]),
    ("<|channel|>commentary to=functions.f <|constrain|>json<|message|>{broken", [("text", "{broken")]),
    ("<|channel|>final<|message|>a <| b <|x|>", [("text", "a <| b <|x|>")]),
    ("No channels at all.", [("text", "No channels at all.")]),
    ("<|channel|>analysis", [("text", "analysis")]),
    ("<|channel|>analysis<|message|>cut off <|en", [("think", "cut off <|en")]),
]  # fmt: skip


def run(chunks: Iterable[str], **options: Any) -> list[tuple[str, Any]]:
    reader = Harmony(tools=True, **options)
    pieces: list[Piece] = [p for chunk in chunks for p in reader.feed(chunk)] + reader.finish()
    joined: list[tuple[str, Any]] = []
    for piece in pieces:
        if isinstance(piece, Call):
            joined.append(("call", (piece.call.function.name, piece.call.function.arguments)))
            continue
        kind = "think" if isinstance(piece, ThinkDelta) else "text"
        if joined and joined[-1][0] == kind:
            joined[-1] = (kind, joined[-1][1] + piece.text)
        else:
            joined.append((kind, piece.text))
    return joined


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_cut_anywhere(text: str, expected: list[tuple[str, Any]]) -> None:
    assert run([text]) == expected
    assert run(text) == expected
    for at in range(len(text)):
        assert run([text[:at], text[at:]]) == expected


WORDS = st.sampled_from(
    ["<|channel|>", "analysis", "final", "<|message|>", "<|end|>", "<|start|>", "assistant",
     " to=functions.f", "<|call|>", '{"x": 1}', "{", " ", "a", "é", "<|", "to="]
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(WORDS, max_size=12), st.data())
def test_cuts_never_matter(words: list[str], data: st.DataObject) -> None:
    text = "".join(words)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert run(chunks) == run([text]) == run(text)


def test_stops_single_calls_and_answers_that_were_begun() -> None:
    assert run([f"<|channel|>commentary<|message|>I look.<|end|>{CALL}<|call|>{CALL}"], single=True) == [
        ("text", "I look."), F,
    ]  # fmt: skip
    assert run(["and on<|return|>"], channel="final") == [("text", "and on")]
    reader = Harmony(("STOP",))
    assert [p for c in "<|channel|>final<|message|>a STOP b" for p in reader.feed(c)] + reader.finish()
    assert reader.stopped == "STOP"
    without = Harmony()
    assert not any(isinstance(p, Call) for p in [*without.feed(CALL), *without.finish()])


def test_it_is_known_by_the_template() -> None:
    assert harmony.speaks("...<|channel|>analysis<|message|>...")
    assert not harmony.speaks("<|channel>thought")
    assert not harmony.speaks(None)
