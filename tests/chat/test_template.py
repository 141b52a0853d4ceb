from __future__ import annotations

import re
import tracemalloc
from datetime import datetime
from typing import Any

import pytest

from mlxo.chat import budget
from mlxo.chat.template import Template, capabilities
from mlxo.core.errors import InvalidRequest
from mlxo.core.types import Function, Message, ToolCall
from tests import models

QWEN3 = (models.QWEN3 / "chat_template.jinja").read_text()
LLAMA = (models.LLAMA / "chat_template.jinja").read_text()
WEATHER = models.TOOLS["get_weather"]


def user(text: str) -> Message:
    return Message(role="user", content=text)


def render(source: str, *messages: Message, **more: Any) -> str:
    return Template(source, {"bos_token": "<s>", "eos_token": "</s>"}).render(
        messages or [user("hi")], **more
    )


def test_a_conversation_with_thinking_and_tools() -> None:
    call = ToolCall(id="call_1", function=Function(name="get_weather", arguments={"city": "Zürich"}))
    prompt = render(
        QWEN3,
        Message(role="system", content="Be brief."),
        user("What is the weather in Zürich?"),
        Message(role="assistant", thinking="I look it up.", tool_calls=(call,)),
        Message(role="tool", content="21", tool_name="get_weather", tool_call_id="call_1"),
        tools=[WEATHER],
    )
    assert prompt == (
        "<|im_start|>system\nBe brief.\n\nYou can call these tools:\n<tools>\n"
        '{"type": "function", "function": {"name": "get_weather", '
        '"description": "Get the weather of a city.", "parameters": {"type": "object", '
        '"properties": {"city": {"type": "string"}}, "required": ["city"]}}}'
        '\n</tools>\nCall one with <tool_call>{"name": ..., "arguments": {...}}</tool_call><|im_end|>\n'
        "<|im_start|>user\nWhat is the weather in Zürich?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nI look it up.\n</think>\n\n"
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>tool\n<tool_response>\n21\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(("think", "off"), [(None, False), (True, False), ("high", False), (False, True)])
def test_thinking_is_on_unless_switched_off(think: Any, off: bool) -> None:
    assert render(QWEN3, think=think).endswith("<think>\n\n</think>\n\n") is off


def test_what_templates_expect_is_defined() -> None:
    source = (
        "{{ bos_token }}{{ eos_token }}|{{ enable_thinking }}|{{ thinking }}|{{ tools is none }}|"
        "{{ reasoning_effort is defined }}|{{ messages[0].tool_calls is defined }}|{{ unheard_of }}|"
        "{{ messages[0].reasoning_content is defined }}|{{ strftime_now('%Y') }}"
    )
    year = datetime.now().strftime("%Y")
    assert render(source) == f"<s></s>|True|True|True|False|False||False|{year}"
    assert render("{{ reasoning_effort }}", think="high") == "high"
    assert render("{{ enable_thinking }}", think=False) == "False"


def test_json_keeps_order_and_escapes_nothing_for_html() -> None:
    tool = {"z": "<b> & 'é' 日本", "a": [1, None, True]}
    assert (
        render("{{ tools[0] | tojson }}", tools=[tool]) == '{"z": "<b> & \'é\' 日本", "a": [1, null, true]}'
    )
    assert render("{{ tools | tojson(indent=2) }}", tools=[{"a": 1}]) == '[\n  {\n    "a": 1\n  }\n]'


def test_blocks_are_trimmed_loops_can_break_and_generation_is_transparent() -> None:
    source = """
    {% for m in messages %}
    {% if loop.index > 1 %}{% break %}{% endif %}
{{ m.role }}{% generation %}:{{ m.content }}{% endgeneration %}
    {% endfor %}
"""
    assert render(source, user("a"), user("b")) == "\nuser:a"


def test_loop_variables_work_behind_the_guard() -> None:
    source = (
        "{% for m in messages %}{{ loop.index0 }}/{{ loop.length }}{{ loop.last }}"
        "{{ (loop.nextitem or m).content }};"
        "{% else %}none{% endfor %}{% for k, v in messages[0].items() %}{{ k }}{% endfor %}"
    )
    assert render(source, user("a"), user("b")) == "0/2Falseb;1/2Trueb;rolecontent"
    assert render("{% for x in nothing %}{% else %}none{% endfor %}") == "none"


def test_arguments_of_calls_as_an_object_or_as_text() -> None:
    call = ToolCall(function=Function(name="f", arguments={"x": "é"}))
    asked = Message(role="assistant", tool_calls=(call,))
    take = "{% for m in messages %}{% for c in m.tool_calls %}{{ EXPR }}{% endfor %}{% endfor %}"
    assert render(take.replace("EXPR", "c.function.arguments.x"), asked) == "é"
    assert render(take.replace("EXPR", "'args: ' + c.function.arguments"), asked) == 'args: {"x": "é"}'


@pytest.mark.parametrize("content", ["The capital", "", "  of ", "ends \ue0f0mlxo-cut\ue0f0 oddly"])
@pytest.mark.parametrize("source", [QWEN3, LLAMA], ids=["qwen3", "llama"])
def test_a_started_answer_ends_the_prompt(source: str, content: str) -> None:
    prompt = render(source, user("hi"), Message(role="assistant", content=content), continue_final=True)
    assert prompt.endswith("<|im_start|>assistant\n" + content.replace("\ue0f0mlxo-cut\ue0f0", ""))


def test_a_template_that_drops_the_started_answer_is_named() -> None:
    with pytest.raises(InvalidRequest, match="leaves out the answer"):
        render("{{ messages[0].content }}", user("hi"), user("x"), continue_final=True)


def test_the_template_s_own_refusal_reaches_the_user() -> None:
    with pytest.raises(InvalidRequest, match="refuses these messages: System role not supported"):
        render("{{ raise_exception('System role not supported') }}")


@pytest.mark.parametrize(
    "source", ["{% for %}", "{{ 1 +", "{% if x %}", "{{ " + "(" * 5000, "{{ x | no_such }}"]
)
def test_a_template_that_does_not_parse(source: str) -> None:
    with pytest.raises(InvalidRequest, match="the chat template"):
        Template(source, {})


@pytest.mark.parametrize(
    "expression",
    [
        *("1 / 0", "{}['a']['b']", "[][3].x", "'a' + 1", "none.x.y", "messages | sum"),
        *("cycler()", "'x' | truncate(-5)"),
    ],
)
def test_failures_inside_are_the_request_s(expression: str) -> None:
    with pytest.raises(InvalidRequest, match="the chat template"):
        render("{{ " + expression + " }}")


# One line each: what a hostile template tries.
ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.__class__.__init__.__globals__ }}",
    "{{ raise_exception.__globals__.keys() }}",
    "{{ strftime_now.__globals__['datetime'] }}",
    "{{ cycler.__init__.__globals__.os.system('id') }}",
    "{{ messages.append(1) }}",
    "{{ self.__init__.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
]
BOMBS = [
    "{{ 'x' * 10**10 }}",
    "{{ 10**10 * 'x' }}",
    "{{ [0] * 10**10 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ 'x'.ljust(10**11) }}",
    "{{ 'x' | center(10**11) }}",
    "{{ ('x' | indent(10**11)) }}",
    "{{ '%99999999999d' % 1 }}",
    "{{ range(10**9) | list }}",
    "{{ '{:999999999999}'.format(1) }}",
    "{{ '{:{}}'.format(1, 10**11) }}",
    "{% for i in range(60) %}{{ ['x' * 9999999] * 9999 | join }}{% endfor %}",
    "{% set s = 'x' * 9999999 %}{{ range(9999) | map('replace', 0, s) | join }}",
    *(
        "{% set ns = namespace(s='xx') %}{% for i in range(60) %}" + step + "{% endfor %}"
        for step in (
            "{% set ns.s = ns.s ~ ns.s %}",
            "{% set ns.s = ns.s + ns.s %}",
            "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}",
            "{% set ns.s = ns.s.replace('x', ns.s) %}",
            "{% set ns.s = ns.s | replace('x', ns.s) %}",
            "{% set ns.s = ns.s.join([ns.s, ns.s]) %}",
        )
    ),
    "{% set ns = namespace(n=9) %}{% for i in range(60) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "{% macro f(s) %}{{ s }}{{ s }}{% endmacro %}" + "{{ " + "f(" * 40 + "'xx'" + ")" * 40 + " }}",
    "{% for a in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ ('{:99' ~ '9999999999d}').format(1) }}",
    "{{ ('{:999}' * 9000).format(*range(9000)) }}",
    "{{ '{x:99999999d}'.format_map({'x': 1}) }}",
    "{{ 'x'.encode() * 10**11 }}",
    "{{ '%99999999999d'.encode() % 1 }}",
    "{{ range(99999) | join('x' * 999999) }}",
    "{{ {'a': 1, 'b': 2} | join('x' * 31999999) }}",
    "{{ ('x' * 999999).translate({120: 'y' * 999999}) }}",
    "{{ [[[0] * 999]] | tojson(indent=31999999) }}",
    "{{ ([range(99999)] * 99999) | map('list') | list }}",
    "{{ ([[1]] * 500000) | sum(start=[]) }}",
    "{{ 1.5 | round(31999999, 'ceil') }}",
    "{{ ('v' * 999999) | int(base=32) }}",
    "{{ lipsum(n=16000, min=16000, max=16001) }}",
    "{% set s = 'x' * 31999999 %}{{ " + "~".join("s" * 99) + " }}",
    *(
        "{% set s = 'x' * 31999999 %}" + before + "{% for i in range(999) %}{{ s }}{% endfor %}" + after
        for before, after in (
            ("{% set x %}", "{% endset %}"),
            ("{% filter upper %}", "{% endfilter %}"),
            ("{% macro f() %}", "{% endmacro %}{{ f() }}"),
        )
    ),
    "{% set x %}{% for i in range(99999) %}" + "y" * 99999 + "{% endfor %}{% endset %}",
    # Few bytes that are a terabyte once they are written.
    *(
        "{% set ns = namespace(s=['xx']) %}{% for i in range(60) %}" + step + "{% endfor %}{{ ns.s }}"
        for step in (
            "{% set ns.s = [ns.s, ns.s] %}",
            "{% set ns.s = (ns.s, ns.s) %}",
            "{% set ns.s = {'a': ns.s, 'b': ns.s} %}",
            "{% set ns.s = dict(a=ns.s, b=ns.s) %}",
            "{% set ns.s = [ns.s] + [ns.s] %}",
            "{% set ns.s = [ns.s] * 2 %}",
        )
    ),
    "{% with a = ['x'] * 99 %}"
    + "".join("{% with a = [a, a, a, a, a, a, a, a] %}" for _ in range(9))
    + "{{ a }}"
    + "{% endwith %}" * 10,
]
ENDLESS = [
    "".join("{% for " + v + " in range(99999) %}" for v in "abcdef") + "{% endfor %}" * 6,
    "".join("{% for " + v + " in messages[0].content %}" for v in "abcdef") + "{% endfor %}" * 6,
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
    "{% for x in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
]


@pytest.mark.parametrize("source", [*ESCAPES, *BOMBS])
def test_hostile_templates_are_stopped(source: str) -> None:
    with pytest.raises(InvalidRequest, match="the chat template"):
        render(source)


@pytest.mark.parametrize("source", ENDLESS)
def test_endless_templates_are_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "MAX_SECONDS", 0.2)
    with pytest.raises(InvalidRequest, match=r"more than 0\.2 seconds|recursion"):
        render(source, user("x" * 1000))


def test_nothing_runs_while_a_template_compiles() -> None:
    """The daemon compiles a TEMPLATE at create, outside the limits of a render."""
    folded = "{{ [" + ", ".join(f"'x' | center({3_000_000 + i})" for i in range(20)) + "] }}"
    tracemalloc.start()
    try:
        Template(folded, {})
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_namespaces_may_hold_each_other_and_say_nothing() -> None:
    source = "{% set a = namespace(x='y') %}{% set a.b = namespace(c=a) %}{{ a.b.c.x }}{{ [a] }}{{ a.b }}"
    assert render(source) == "y[<namespace>]<namespace>"


def test_a_long_conversation_through_macros_is_no_bomb() -> None:
    source = (
        "{% macro say(messages, text, other) %}{{ messages | length }}{{ text }}{{ other }}{% endmacro %}"
        "{% for m in messages %}{{ say(messages, m.content, m.content) }}{% endfor %}"
    )
    text = "x" * 100_000
    assert render(source, *[user(text)] * 20) == f"20{text}{text}" * 20


def test_filters_that_yield_give_lists() -> None:
    source = "{% set n = messages | map(attribute='role') %}{{ n }}{{ n | length }}{{ n | tojson }}"
    assert render(source) == "['user']1[\"user\"]"


def test_a_source_without_end_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="longer than 250000 characters"):
        Template("x" * 250_001, {})


def test_capabilities_are_read_from_the_text() -> None:
    assert capabilities(None) == ("completion",)
    assert capabilities(LLAMA) == ("completion",)
    assert capabilities(QWEN3) == ("completion", "tools", "thinking")
    assert capabilities("I have no tools. {{ messages }}") == ("completion",)
    assert capabilities("{%- if tools -%}") == ("completion", "tools")
    assert capabilities("{{ content.split('</think>')[-1] }}") == ("completion", "thinking")


def test_capabilities_need_no_jinja() -> None:
    import subprocess
    import sys

    code = (
        "import sys, mlxo.chat.template as t; t.capabilities('{{ tools }}'); print('jinja2' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"False\s*", done.stdout)
