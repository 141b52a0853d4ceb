"""Every family's tool calls, as its model writes them: whole, cut anywhere, broken, after thinking."""

# ruff: noqa: E501 (transcripts stand as they were written)

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxo.chat import tools
from mlxo.chat.reasoning import Markers
from mlxo.chat.splitter import Piece, Splitter
from mlxo.chat.tools.parser import Parser
from mlxo.chat.tools.values import gemma_calls, python_calls, typed
from mlxo.core.types import Call, Function, ThinkDelta

THINK = Markers("<think>", "</think>")
SCHEMAS: dict[str, Any] = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "units": {"enum": ["c", "f"]},
        },
    },
    "get_time": {"type": "object", "properties": {"city": {"type": "string"}}},
    "no_arguments": {"type": "object", "properties": {}},
}
# What all of the transcripts say.
WEATHER, TIME = ("get_weather", {"city": "Zürich", "days": 3}), ("get_time", {"city": "Rome"})
A, B = '{"city": "Zürich", "days": 3}', '{"city": "Rome"}'


def json_call(name: str, arguments: str, key: str = "arguments") -> str:
    return f'{{"name": "{name}", "{key}": {arguments}}}'


def function_tags(newline: str) -> str:
    n = newline
    return (
        f"<function=get_weather>\n<parameter=city>{n}Zürich{n}</parameter>\n<parameter=days>{n}3{n}</parameter>\n"
        "</function>"
    )


W, T = json_call("get_weather", A), json_call("get_time", B)
TIME_TAGS = "<function=get_time>\n<parameter=city>\nRome\n</parameter>\n</function>"
INVOKES = (
    '<invoke name="get_weather">\n<parameter name="city">Zürich</parameter>\n<parameter name="days">3</parameter>\n'
    '</invoke>\n<invoke name="get_time">\n<parameter name="city">Rome</parameter>\n</invoke>'
)
DSML = (
    '<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="city" string="true">Zürich</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
    '<｜DSML｜invoke name="get_time">\n<｜DSML｜parameter name="city" string="true">Rome</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n"
)
GLM = (
    "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Zürich</arg_value>\n<arg_key>days</arg_key>\n"
    "<arg_value>3</arg_value>\n</tool_call>"
)
LONGCAT = GLM.replace("<", "<longcat_").replace("<longcat_/", "</longcat_")
R1 = "function<｜tool▁sep｜>{}\n```json\n{}\n```<｜tool▁call▁end｜>"

# Family, and what its model writes for WEATHER and then TIME.
TRANSCRIPTS: list[tuple[Parser, str]] = [
    (tools.HERMES, f"<tool_call>\n{W}\n</tool_call>\n<tool_call>\n{T}\n</tool_call>"),
    (tools.HERMES, f"<tool_call>{W}</tool_call><tool_call>{T}"),
    (tools.HERMES, f"<tool_call>[{W}, {T}]</tool_call>"),
    (tools.HERMES, f"{W}\n{T}"),
    (tools.HERMES, f"{W}\n</tool_call>\n<tool_call>\n{T}\n</tool_call>"),
    (
        tools.QWEN_CODER,
        f"<tool_call>\n{function_tags(chr(10))}\n</tool_call>\n<tool_call>\n{TIME_TAGS}\n</tool_call>",
    ),
    (tools.QWEN_CODER, f"<tool_call>{function_tags('')}{TIME_TAGS}</tool_call>"),
    (tools.LLAMA, json_call("get_weather", A, "parameters") + "; " + json_call("get_time", B, "parameters")),
    (tools.LLAMA, "<|python_tag|>" + json_call("get_weather", A, "parameters") + f"\n<|python_tag|>{T}"),
    (tools.LLAMA, f'{{"type": "function", "function": {W}}}\n{{"type": "function", "function": {T}}}'),
    (tools.LLAMA, "[get_weather(city='Zürich', days=3), get_time(city=\"Rome\")]"),
    (tools.MISTRAL, f"[TOOL_CALLS][{W}, {T}]"),
    (tools.MISTRAL, f"[TOOL_CALLS] [{W[:-1]}, \"id\": \"call00001\"}}, {T}]"),
    (tools.MISTRAL, f"[TOOL_CALLS]get_weather[ARGS]{A}[TOOL_CALLS]get_time[ARGS]{B}"),
    (tools.MISTRAL, f"[TOOL_CALLS]get_weather[CALL_ID]call00001[ARGS]{A}[TOOL_CALLS]get_time[CALL_ID]x[ARGS]{B}"),
    (
        tools.GEMMA,
        '<|tool_call>call:get_weather{city:<|"|>Zürich<|"|>,days:3}<tool_call|>'
        '<|tool_call>call:get_time{city:<|"|>Rome<|"|>}<tool_call|>',
    ),
    (
        tools.FUNCTION_GEMMA,
        "<start_function_call>call:get_weather{city:<escape>Zürich<escape>,days:3}<end_function_call>"
        "<start_function_call>call:get_time{city:<escape>Rome<escape>}<end_function_call>",
    ),
    (
        tools.DEEPSEEK,
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{R1.format('get_weather', A)}\n"
        f"<｜tool▁call▁begin｜>{R1.format('get_time', B)}<｜tool▁calls▁end｜>",
    ),
    (
        tools.DEEPSEEK,
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{A}<｜tool▁call▁end｜>"
        f"<｜tool▁call▁begin｜>get_time<｜tool▁sep｜>{B}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    (tools.DSML, f"<｜DSML｜function_calls>\n{DSML}</｜DSML｜function_calls>"),
    (tools.DSML, f"<｜DSML｜tool_calls>\n{DSML}</｜DSML｜tool_calls>"),
    (tools.GLM, f"{GLM}\n<tool_call>get_time\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n</tool_call>"),
    (
        tools.GLM,
        f"{GLM}<tool_call>get_time<arg_key>city</arg_key><arg_value>Rome</arg_value></tool_call>".replace("\n", ""),
    ),
    (
        tools.KIMI,
        f"<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{A}"
        f"<|tool_call_end|><|tool_call_begin|>functions.get_time:1<|tool_call_argument_begin|>{B}<|tool_call_end|>"
        "<|tool_calls_section_end|>",
    ),
    (tools.MINIMAX, f"<minimax:tool_call>\n{INVOKES}\n</minimax:tool_call>"),
    (tools.COMMAND_R, f'Action:\n```json\n[{W.replace("name", "tool_name")}, {T.replace("name", "tool_name")}]\n```'),
    (
        tools.COMMAND_R7B,
        f'<|START_ACTION|>[\n{{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {A}}},\n'
        f'{{"tool_call_id": "1", "tool_name": "get_time", "parameters": {B}}}\n]<|END_ACTION|>',
    ),
    (
        tools.LFM2,
        "<|tool_call_start|>[get_weather(city='Zürich', days=3), get_time(city='Rome')]<|tool_call_end|>",
    ),
    (tools.LFM2, f"<|tool_call_start|>[{W}, {T}]<|tool_call_end|>"),
    (tools.GRANITE, f"<|tool_call|>[{W}, {T}]"),
    (tools.GRANITE, f"<function_call>{W}\n<function_call>{T}"),
    (tools.PHI, f"<|tool_call|>[{W}, {T}]<|/tool_call|>"),
    (tools.PHI, f"functools[{W}, {T}]"),
    (
        tools.INTERNLM,
        f"<|action_start|><|plugin|>\n{json_call('get_weather', A, 'parameters')}<|action_end|>\n"
        f"<|action_start|> <|plugin|>{T}<|action_end|>",
    ),
    (
        tools.LONGCAT,
        f"{LONGCAT}\n<longcat_tool_call>get_time\n<longcat_arg_key>city</longcat_arg_key>\n"
        "<longcat_arg_value>Rome</longcat_arg_value>\n</longcat_tool_call>",
    ),
    (tools.XLAM, f"[{W}, {T}]"),
    (tools.XLAM, f"```json\n[{W}, {T}]\n```"),
    (tools.BARE, f"{W}\n{T}"),
    (tools.PYTHONIC, "[get_weather(city='Zürich', days=3), get_time('Rome')]"),
    (
        tools.MINIMAX_M3,
        ']<]minimax[>[<tool_call>\n]<]minimax[>[<invoke name="get_weather">]<]minimax[>[<city>Zürich]<]minimax[>[</city>'
        "]<]minimax[>[<days>3]<]minimax[>[</days>]<]minimax[>[</invoke>\n"
        ']<]minimax[>[<invoke name="get_time">]<]minimax[>[<city>Rome]<]minimax[>[</city>]<]minimax[>[</invoke>\n'
        "]<]minimax[>[</tool_call>",
    ),
    (tools.SEED, f"<seed:tool_call>\n{function_tags('')}\n</seed:tool_call>\n<seed:tool_call>{TIME_TAGS}</seed:tool_call>"),
    (
        tools.MINICPM,
        '<function name="get_weather"><param name="city">Zürich</param><param name="days">3</param></function>\n'
        '<function name="get_time"><param name="city">Rome</param></function>',
    ),
    (
        tools.HUNYUAN,
        "<tool_calls:opensource>\n<tool_call:opensource>get_weather<tool_sep:opensource>\n"
        "<arg_key:opensource>city</arg_key:opensource>\n<arg_value:opensource>Zürich</arg_value:opensource>\n"
        "<arg_key:opensource>days</arg_key:opensource>\n<arg_value:opensource>3</arg_value:opensource>\n"
        "</tool_call:opensource>\n<tool_call:opensource>get_time<tool_sep:opensource>\n"
        "<arg_key:opensource>city</arg_key:opensource>\n<arg_value:opensource>Rome</arg_value:opensource>\n"
        "</tool_call:opensource>\n</tool_calls:opensource>",
    ),
    (
        tools.SOLAR,
        f"<|tool_calls|><|tool_call:begin|>c1<|tool_call:name|>get_weather<|tool_call:args|>{A}<|tool_call:end|>"
        f"<|tool_call:begin|>c2<|tool_call:name|>get_time<|tool_call:args|>{B}<|tool_call:end|>",
    ),
    (tools.NEMOTRON, f"<TOOLCALL>[{W}, {T}]</TOOLCALL>"),
    (tools.APRIEL, f"<tool_calls>[{W}, {T}]</tool_calls>"),
    (tools.APRIEL, f"<tool_calls>\n{W}\n{T}\n</tool_calls>"),
    (tools.APERTUS, f'<|tools_prefix|>[{{"get_weather": {A}}}, {{"get_time": {B}}}]<|tools_suffix|>'),
    (tools.FUNCTIONARY, f"<function=get_weather>{A}</function><function=get_time>{B}</function>"),
    (tools.GIGACHAT, f"<|function_call|>{W}<|function_call|>{T}"),
]  # fmt: skip
IDS = [f"{parser.name}-{i}" for i, (parser, _) in enumerate(TRANSCRIPTS)]


def run(parser: Parser, chunks: Iterable[str]) -> list[tuple[str, Any]]:
    """The events with neighbours of one kind joined."""
    splitter = Splitter((), THINK, parser, schemas=SCHEMAS, bare=True)
    pieces: list[Piece] = []
    for chunk in chunks:
        pieces += splitter.feed(chunk)
    pieces += splitter.finish()
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


BOTH = [("call", WEATHER), ("call", TIME)]


@pytest.mark.parametrize(("parser", "text"), TRANSCRIPTS, ids=IDS)
def test_cut_anywhere_the_calls_are_the_same_and_nothing_leaks(parser: Parser, text: str) -> None:
    assert run(parser, [text]) == BOTH
    assert run(parser, text) == BOTH
    for at in range(len(text)):
        assert run(parser, [text[:at], text[at:]]) == BOTH


@pytest.mark.parametrize(("parser", "text"), TRANSCRIPTS, ids=IDS)
def test_after_thinking_and_before_text(parser: Parser, text: str) -> None:
    assert run(parser, f"<think>\nhm\n</think>\n\n{text}\n") == [("think", "hm"), *BOTH]
    if text.startswith(parser.starts):
        assert run(parser, f"I look.\n{text}") == [("text", "I look."), *BOTH]


@pytest.mark.parametrize(("parser", "text"), TRANSCRIPTS, ids=IDS)
def test_a_call_that_is_cut_off_or_garbled_is_text_or_a_call(parser: Parser, text: str) -> None:
    """Never an error; and what is told as a call has a name and arguments."""
    for at in range(1, len(text)):
        for broken in (text[:at], text[:at] + "\x00" + text[at:], text[:at] + "}]>" + text[at + 2 :]):
            for kind, value in run(parser, [broken]):
                assert kind == "text" or (value[0] and isinstance(value[1], dict))


@settings(deadline=None)
@given(st.sampled_from(TRANSCRIPTS), st.data())
def test_noise_is_cut_anywhere_alike(case: tuple[Parser, str], data: st.DataObject) -> None:
    parser, text = case
    marks = [
        *parser.starts,
        parser.end,
        "<think>",
        "</think>",
        "{",
        "}",
        '"',
        " ",
        "\n",
        text[:20],
        text[-9:],
        "é",
    ]
    text = "".join(data.draw(st.lists(st.sampled_from([m for m in marks if m]), max_size=10)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert run(parser, chunks) == run(parser, [text]) == run(parser, text)


def test_an_answer_that_only_looks_like_a_call_is_text() -> None:
    for text in (
        '{"name": "Ada", "age": 36}',
        '{"x": 1}',
        "[1, 2]",
        "[get",
        '{"name": "get_weather"',
        "{",
        "  ",
    ):
        assert run(tools.HERMES, text) == [("text", text)]
    broken = '{"name": "get_weather", "arguments": 3}'
    assert run(tools.HERMES, broken) == [("text", broken)]
    splitter = Splitter((), None, tools.HERMES, schemas=SCHEMAS, bare=False)
    assert not any(isinstance(p, Call) for p in [*splitter.feed(W), *splitter.finish()])


def test_a_modelfile_names_a_parser() -> None:
    assert tools.named("mistral") is tools.MISTRAL
    assert tools.named("qwen3-coder") is tools.QWEN_CODER
    assert tools.named("qwen3-thinking") is tools.HERMES
    assert tools.named("GLM-4.7") is tools.GLM
    assert tools.named("nobody") is None
    assert tools.named("") is None


def test_the_vocabulary_tells_where_the_template_does_not() -> None:
    template = "{% if tools %}List of tools: {{ tools }}{% endif %}"
    assert tools.pick(template, {"<|tool_call_start|>"}) is tools.LFM2
    assert tools.pick(template, {"<tool>"}) is tools.BARE
    assert tools.pick("no tools", {"<|tool_call_start|>"}) is None


def test_marks_around_an_answer_are_dropped() -> None:
    splitter = Splitter((), None, None, dropped=("<response>", "</response>"))
    pieces = [p for c in "<response>Hi <b>.</response>" for p in splitter.feed(c)] + splitter.finish()
    assert "".join(p.text for p in pieces if not isinstance(p, Call)) == "Hi <b>."


def test_arguments_in_tags_have_their_schema_s_type() -> None:
    text = {"type": "string"}
    assert typed("3", text) == "3"
    assert typed("3", {"type": "integer"}) == 3
    assert typed("\n[1]\n", {"type": "array"}) == [1]
    assert typed("True", {"type": "boolean"}) is True
    assert typed("None", {"anyOf": [text, {"type": "null"}]}) is None
    assert typed('{"a": 1}', {"type": ["string", "object"]}) == {"a": 1}
    assert typed('{"a": 1}', {"type": ["string", "integer"]}) == '{"a": 1}'
    assert typed("c", {"enum": ["c", "f"]}) == "c"
    assert typed("1", {"enum": ["1", "2"]}) == "1"
    assert typed("x y", {"type": "integer"}) == "x y", "what the model wrote is told, valid or not"
    assert typed("3", None) == 3
    assert typed("3", {}, "true") == "3"
    assert typed(" two\nlines ", text) == " two\nlines "


def test_python_is_read_and_never_run() -> None:
    assert python_calls("f(a=-1, b=[True, none, {'x': 1.5}], c=null)", {}) is None
    assert python_calls("f(a=-1, b=[True, None, {'x': 1.5}], c=null)", {}) == [
        Function(name="f", arguments={"a": -1, "b": [True, None, {"x": 1.5}], "c": None})
    ]
    assert python_calls("a.b(x='\\d')", {}) == [Function(name="a.b", arguments={"x": "\\d"})]
    for bad in (
        "f(__import__('os'))",
        "f(x=g())",
        "f(**{})",
        "f(1)",
        "1",
        "f",
        "lambda: 0",
        "[" * 9000,
        "f(x=1",
        "",
    ):
        assert python_calls(bad, {}) is None


def test_gemma_s_values_nest() -> None:
    body = 'call:f{a:[1,<|"|>x, y<|"|>,true],b:{c:null,d:<|"|>{<|"|>}}'
    arguments = {"a": [1, "x, y", True], "b": {"c": None, "d": "{"}}
    assert gemma_calls(body, {}) == [Function(name="f", arguments=arguments)]
    assert gemma_calls("call:f{}", {}) == [Function(name="f")]
    assert gemma_calls("call:f{a:" + "[" * 5000, {}) is None


@pytest.mark.parametrize("parser", tools.PARSERS.values(), ids=tools.PARSERS)
def test_hostile_answers_take_no_time(parser: Parser) -> None:
    start = parser.starts[0] if parser.starts else '{"name":"get_weather"'
    began = time.monotonic()
    for text in (start * 500, start + "[" * 30000, start + '"' + parser.end * 1000, start + "{\\" * 9000,
                 start + "<parameter=a><arg_key>" * 1000 + parser.end):  # fmt: skip
        run(parser, [text[i : i + 7] for i in range(0, len(text), 7)])
    assert time.monotonic() - began < 20
