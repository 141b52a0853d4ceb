from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxo.chat import tools
from mlxo.chat.reasoning import Markers
from mlxo.chat.splitter import Piece, Splitter
from mlxo.chat.tools.values import json_calls
from mlxo.core.types import Call, Function, TextDelta, ThinkDelta, ToolCall
from tests import models

THINK = Markers("<think>", "</think>")


def run(
    chunks: Iterable[str],
    stops: tuple[str, ...] = (),
    *,
    think: bool = True,
    calls: bool = True,
    inside: bool = False,
) -> tuple[list[tuple[str, object]], str | None]:
    """The events with neighbours of one kind joined, and the stop string."""
    splitter = Splitter(stops, THINK if think else None, tools.HERMES if calls else None, inside)
    pieces: list[Piece] = []
    for chunk in chunks:
        pieces += splitter.feed(chunk)
    pieces += splitter.finish()
    assert splitter.finish() == []
    joined: list[tuple[str, object]] = []
    for piece in pieces:
        if isinstance(piece, Call):
            function = piece.call.function
            joined.append(("call", (function.index, function.name, function.arguments)))
            continue
        assert piece.text, "no empty delta"
        kind = "think" if isinstance(piece, ThinkDelta) else "text"
        if joined and joined[-1][0] == kind:
            joined[-1] = (kind, f"{joined[-1][1]}{piece.text}")
        else:
            joined.append((kind, piece.text))
    return joined, splitter.stopped


CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
F = ("call", (0, "f", {"x": 1}))

CASES = [
    ("plain", [("text", "plain")]),
    ("  kept white space \n", [("text", "  kept white space \n")]),
    ("<think>\nwhy\n</think>\n\nanswer", [("think", "why"), ("text", "answer")]),
    (" \n<think>why</think>answer\n", [("think", "why"), ("text", "answer\n")]),
    ("<think>\n\n</think>\n\nanswer", [("text", "answer")]),
    ("<think>a < b </thin k> c\n\nd</think>x", [("think", "a < b </thin k> c\n\nd"), ("text", "x")]),
    ("<think>never closed ", [("think", "never closed ")]),
    ("<think", [("text", "<think")]),
    ("text <think>later</think>", [("text", "text <think>later</think>")]),
    ("</think>x", [("text", "</think>x")]),
    (CALL, [F]),
    (f"<think>t</think>\n\nsay\n{CALL}\n", [("think", "t"), ("text", "say"), F]),
    (f"{CALL}\n{CALL} done ", [F, ("call", (1, "f", {"x": 1})), ("text", "done ")]),
    ('<tool_call>{"name": "f", "arguments": {"x": 1}}', [F]),
    ("<tool_call>nonsense</tool_call> x", [("text", "<tool_call>nonsense</tool_call> x")]),
    (f"a \n<tool_call>{{broken {CALL}", [("text", "a \n<tool_call>{broken"), F]),
    ("a \n<tool_call>", [("text", "a \n<tool_call>")]),
    ("1 < 2 <tool", [("text", "1 < 2 <tool")]),
    (
        '<tool_call>{"name": "f", "arguments": {"x": "a \\" </tool_call> b"}}</tool_call>',
        [("call", (0, "f", {"x": 'a " </tool_call> b'}))],
    ),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_every_way_to_cut_the_text_gives_the_same(text: str, expected: list[tuple[str, object]]) -> None:
    assert run([text]) == (expected, None)
    assert run(text) == (expected, None)
    for at in range(len(text)):
        assert run([text[:at], text[at:]]) == (expected, None)


def test_a_model_without_marks_and_tools_is_passed_through() -> None:
    text = f"<think>a</think> {CALL} "
    assert run([text], think=False, calls=False) == ([("text", text)], None)


def test_a_block_that_the_prompt_opened() -> None:
    assert run("\nwhy\n</think>\n\nx", inside=True)[0] == [("think", "why"), ("text", "x")]
    assert run("<think>\nwhy</think>x", inside=True)[0] == [("think", "why"), ("text", "x")]
    assert run("\n</think>\n\nx", inside=True)[0] == [("text", "x")]
    assert run("<thinly", inside=True)[0] == [("think", "<thinly")]


STOPS = [
    ("one STOP two", ("STOP",), "one ", "STOP"),
    ("one ST", ("STOP",), "one ST", None),
    ("aab", ("ab",), "a", "ab"),
    ("abcabd", ("abd",), "abc", "abd"),
    ("xabcde", ("abcde", "bcd"), "xa", "bcd"),
    ("xabcd", ("bcd", "abcd"), "x", "abcd"),
    ("x\n\nUser: y", ("\nUser:",), "x\n", "\nUser:"),
    ("日本語です", ("語",), "日本", "語"),
    ("anything", ("",), "anything", None),
]


@pytest.mark.parametrize(("text", "stops", "expected", "stopped"), STOPS)
def test_stop_strings(text: str, stops: tuple[str, ...], expected: str, stopped: str | None) -> None:
    for chunks in ([text], list(text), *([text[:i], text[i:]] for i in range(len(text)))):
        assert run(chunks, stops) == ([("text", expected)] if expected else [], stopped)


def test_a_stop_string_ends_reasoning_and_calls_too() -> None:
    assert run("<think>one STOP two</think>x", ("STOP",)) == ([("think", "one ")], "STOP")
    assert run("<tool_call>{STOP}</tool_call>", ("STOP",)) == ([("text", "<tool_call>{")], "STOP")
    assert run("<think>a</think>b", ("</think>",)) == ([("think", "a")], "</think>")


def test_after_a_stop_nothing_comes_and_what_was_held_comes_at_once() -> None:
    splitter = Splitter(("STOP",), THINK, tools.HERMES)
    assert splitter.feed("a <toolSTOP") == [TextDelta(text="a <tool")]
    assert splitter.stopped == "STOP"
    assert splitter.feed("more") == []
    assert splitter.finish() == []


def test_text_is_not_held_longer_than_it_must() -> None:
    splitter = Splitter(("STOP",), THINK, tools.HERMES)
    assert splitter.feed("<thi") == []
    assert splitter.feed("nk>a") == [ThinkDelta(text="a")]
    assert splitter.feed(" b</") == [ThinkDelta(text=" b")]
    assert splitter.feed("b> </think>\n\nHello") == [ThinkDelta(text="</b>"), TextDelta(text="Hello")]
    assert splitter.feed(", S") == [TextDelta(text=",")]
    assert splitter.feed("o <b") == [TextDelta(text=" So <b")]


WORD = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        CALL,
        "STOP",
        "<",
        ">",
        "</",
        "\n",
        " ",
        "a",
        "é🦊",
        '"',
        "{",
    ]
)


@settings(deadline=None)
@given(st.lists(WORD, max_size=14), st.data(), st.booleans(), st.booleans(), st.booleans())
def test_cuts_never_matter(
    words: list[str], data: st.DataObject, think: bool, calls: bool, inside: bool
) -> None:
    text = "".join(words)
    stops = data.draw(st.sampled_from([(), ("STOP",), ("k>", "TO"), ("\n\n", "é🦊a", "<t")]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = run([text], stops, think=think, calls=calls, inside=inside)
    assert run(chunks, stops, think=think, calls=calls, inside=inside) == whole
    assert run(text, stops, think=think, calls=calls, inside=inside) == whole


@settings(deadline=None)
@given(st.lists(WORD, max_size=14), st.booleans())
def test_nothing_is_lost(words: list[str], inside: bool) -> None:
    def bare(text: str) -> str:
        return re.sub(r"\s+|</?think>|</?tool_call>", "", text)

    text = "".join(words)
    out = ""
    for kind, value in run([text], inside=inside)[0]:
        if kind == "call":
            assert isinstance(value, tuple)
            out += json.dumps({"name": value[1], "arguments": value[2]})
        else:
            out += str(value)
    assert bare(out) == bare(text)


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>" * 4000,
        '<tool_call>"' + "</tool_call>" * 4000,
        "<think>" + "</thin" * 9000,
        " \n" * 20000,
        "[" * 50000,
    ],
    ids=["calls", "open string", "half marks", "white space", "brackets"],
)
def test_hostile_output_takes_no_time(text: str) -> None:
    began = time.monotonic()
    run([text[i : i + 7] for i in range(0, len(text), 7)], ("STOP", "\n\n\n"))
    run(["<tool_call>" + "[" * 50000 + "</tool_call>"])
    assert time.monotonic() - began < 10


def test_hermes_reads_what_models_write() -> None:
    f = Function(name="f", arguments={"x": 1})
    assert json_calls('{"name": "f", "arguments": {"x": 1}}', {}) == [f]
    assert json_calls('{"name": "f", "parameters": {"x": 1}}', {}) == [f]
    assert json_calls('{"name": "f", "arguments": "{\\"x\\": 1}"}', {}) == [f]
    assert json_calls('{"name": "f"}', {}) == [Function(name="f")]
    assert json_calls('[{"name": "f"}, {"name": "g"}]', {}) == [Function(name="f"), Function(name="g")]
    for bad in (
        "",
        "[]",
        "1",
        "{}",
        '{"name": 1}',
        '{"name": ""}',
        '{"name": "f", "arguments": [1]}',
        '[{"name": "f"}, 1]',
    ):
        assert json_calls(bad, {}) is None


def test_the_parser_is_chosen_by_the_template() -> None:
    assert tools.pick((models.QWEN3 / "chat_template.jinja").read_text()) is tools.HERMES
    assert tools.pick((models.LLAMA / "chat_template.jinja").read_text()) is None
    assert tools.pick("<tool_call>\n<function=f>") is tools.QWEN_CODER, "its XML is not Hermes's JSON"
    assert tools.pick("{% if tools %}{{ tools }}{% endif %}") is tools.BARE
    assert tools.pick(None) is None


def test_a_call_is_a_tool_call_of_the_wire() -> None:
    splitter = Splitter((), None, tools.HERMES)
    assert splitter.feed(CALL) == [Call(call=ToolCall(function=Function(name="f", arguments={"x": 1})))]
