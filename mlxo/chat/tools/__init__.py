"""Tool calls in what a model writes: one parser a family, found by the text of the chat template.

The syntaxes are those that the models' own chat templates write earlier calls in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container

from mlxo.chat.tools.parser import Parser
from mlxo.chat.tools.values import gemma_calls, headed, json_calls, python_calls, xml_calls

_CODE = re.compile(r"\{[{%](?:.|\n)*?[%}]\}")
_TOOLS = re.compile(r"\btools\b")


def _function_tags(tag: str, parameter: str) -> tuple[str, str]:
    """The regexes of `<function=NAME> <parameter=KEY> VALUE`, the end tags optional at the body's end."""
    return (
        rf"<{tag}=(?P<name>[^>\n]*)>(?P<body>.*?)(?:</{tag}>|(?=<{tag}=)|\Z)",
        rf"<{parameter}=(?P<key>[^>\n]*)>(?P<value>.*?)(?:</{parameter}>|(?=<{parameter}=)|\Z)",
    )


def _named_tags(tag: str, parameter: str) -> tuple[str, str]:
    """Of `<invoke name="NAME"> <parameter name="KEY">VALUE`; some say whether a value is text."""
    return (
        rf'<{tag} name="(?P<name>[^">\n]*)">(?P<body>.*?)(?:</{tag}>|(?=<{tag} name=)|\Z)',
        rf'<{parameter} name="(?P<key>[^">\n]*)"(?: string="(?P<string>true|false)")?>'
        rf"(?P<value>.*?)(?:</{parameter}>|(?=<{parameter} name=)|\Z)",
    )


def _pairs(prefix: str = "", suffix: str = "") -> tuple[str, str]:
    """Of `NAME <arg_key>KEY</arg_key><arg_value>VALUE</arg_value>`."""
    key, value = f"{prefix}arg_key{suffix}", f"{prefix}arg_value{suffix}"
    mark = f"tool_call{suffix}"
    return (
        rf"(?:<{mark}>\s*)?(?P<name>[^\s<]+)(?:\s*<tool_sep{suffix}>)?\s*"
        rf"(?P<body>(?:<{key}>.*?)?)(?:</{mark}>\s*|(?=<{mark}>)|\Z)",
        rf"<{key}>(?P<key>.*?)</{key}>\s*<{value}>(?P<value>.*?)(?:</{value}>|(?=<{key}>)|\Z)",
    )


HERMES = Parser("hermes", ("<tool_call>",), "</tool_call>", "json", json_calls, form="hermes")
QWEN_CODER = Parser(
    "qwen3-coder",
    ("<tool_call>",),
    "</tool_call>",
    "mark",
    xml_calls(*_function_tags("function", "parameter")),
)
GLM = Parser("glm", ("<tool_call>",), "</tool_call>", "mark", xml_calls(*_pairs()))
LLAMA = Parser("llama", ("<|python_tag|>",), "", "value", json_calls)
DEEPSEEK = Parser(
    "deepseek",
    ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
    "<｜tool▁calls▁end｜>",
    "json",
    headed(
        r"\s*(?:<｜tool▁call▁begin｜>)?\s*(?:function<｜tool▁sep｜>)?(?P<name>[^\s<｜{]+)\s*(?:<｜tool▁sep｜>)?\s*"
        r"(?:```(?:json)?\s*)?",
        r"\s*(?:```)?\s*(?:<｜tool▁call▁end｜>)?\s*",
    ),
)
DSML = Parser(
    "deepseek-dsml",
    ("<｜DSML｜function_calls>", "<｜DSML｜tool_calls>"),
    "_calls>",
    "mark",
    xml_calls(*_named_tags("｜DSML｜invoke", "｜DSML｜parameter")),
)
KIMI = Parser(
    "kimi",
    ("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
    "<|tool_calls_section_end|>",
    "json",
    headed(
        r"\s*(?:<\|tool_call_begin\|>)?\s*(?:functions\.)?(?P<name>[\w.-]+?)(?::\d+)?\s*"
        r"<\|tool_call_argument_begin\|>\s*",
        r"\s*(?:<\|tool_call_end\|>)?\s*",
    ),
)
_MISTRAL_HEADED = headed(r"\s*(?P<name>[\w.-]+)\s*(?:\[CALL_ID\][^\[{]*)?(?:\[ARGS\])?\s*", r"\s*")
MISTRAL = Parser(
    "mistral",
    ("[TOOL_CALLS]",),
    "",
    "value",
    lambda body, schemas: (json_calls if body.lstrip()[:1] in "[{" else _MISTRAL_HEADED)(body, schemas),
    form="list",
)
FUNCTIONARY = Parser(
    "functionary", ("<function=",), "</function>", "json", headed(r"(?P<name>[^>\s]+)>\s*", r"\s*")
)
LFM2 = Parser(
    "lfm2",
    ("<|tool_call_start|>",),
    "<|tool_call_end|>",
    "mark",
    lambda body, schemas: python_calls(body, schemas) or json_calls(body, schemas),
)
GEMMA = Parser("gemma", ("<|tool_call>",), "<tool_call|>", "mark", gemma_calls)
FUNCTION_GEMMA = Parser(
    "function-gemma", ("<start_function_call>",), "<end_function_call>", "mark", gemma_calls
)
COMMAND_R = Parser(
    "command-r", ("Action:\n```json", "Action: ```json", "Action:```json"), "```", "json", json_calls
)
COMMAND_R7B = Parser("command-r7b", ("<|START_ACTION|>",), "<|END_ACTION|>", "json", json_calls)
GRANITE = Parser("granite", ("<|tool_call|>", "<function_call>"), "", "value", json_calls, form="list")
PHI = Parser("phi-4", ("<|tool_call|>", "functools"), "<|/tool_call|>", "value", json_calls, form="list")
INTERNLM = Parser(
    "internlm",
    ("<|action_start|><|plugin|>", "<|action_start|> <|plugin|>"),
    "<|action_end|>",
    "json",
    json_calls,
    form="hermes",
)
LONGCAT = Parser(
    "longcat",
    ("<longcat_tool_call>",),
    "</longcat_tool_call>",
    "mark",
    lambda body, schemas: (
        json_calls(body, schemas)
        if body.lstrip().startswith("{")
        else xml_calls(*_pairs("longcat_"))(body, schemas)
    ),
)
MINIMAX = Parser(
    "minimax",
    ("<minimax:tool_call>",),
    "</minimax:tool_call>",
    "mark",
    xml_calls(*_named_tags("invoke", "parameter")),
)
_MINIMAX_M3 = xml_calls(_named_tags("invoke", "parameter")[0], r"<(?P<key>[\w.-]+)>(?P<value>.*?)</(?P=key)>")
MINIMAX_M3 = Parser(
    "minimax-m3",
    ("]<]minimax[>[<tool_call>",),
    "]<]minimax[>[</tool_call>",
    "mark",
    lambda body, schemas: _MINIMAX_M3(body.replace("]<]minimax[>[", ""), schemas),
)
SEED = Parser(
    "seed",
    ("<seed:tool_call>",),
    "</seed:tool_call>",
    "mark",
    xml_calls(*_function_tags("function", "parameter")),
)
MINICPM = Parser(
    "minicpm",
    ("<function name=",),
    "</function>",
    "mark",
    xml_calls(*_named_tags("function", "param")),
    keep=True,
)
HUNYUAN = Parser(
    "hunyuan",
    ("<tool_calls:opensource>",),
    "</tool_calls:opensource>",
    "mark",
    xml_calls(*_pairs(suffix=":opensource")),
)
SOLAR = Parser(
    "solar",
    ("<|tool_calls|>",),
    "<|calls|>",
    "json",
    headed(
        r"\s*<\|tool_call:begin\|>[^<]*<\|tool_call:name\|>(?P<name>[^<]+)<\|tool_call:args\|>\s*",
        r"\s*(?:<\|tool_call:end\|>)?\s*",
    ),
)
NEMOTRON = Parser("nemotron", ("<TOOLCALL>",), "</TOOLCALL>", "json", json_calls, form="list")
APRIEL = Parser("apriel", ("<tool_calls>",), "</tool_calls>", "json", json_calls, form="list")
APERTUS = Parser("apertus", ("<|tools_prefix|>",), "<|tools_suffix|>", "json", json_calls, form="list")
GIGACHAT = Parser("gigachat", ("<|function_call|>",), "", "value", json_calls, form="hermes")
XLAM = Parser("xlam", ("```json\n", "<tool_call>"), "```", "json", json_calls)
BARE = Parser("bare", (), "", "value", json_calls)
PYTHONIC = Parser("pythonic", (), "", "python", python_calls)


def _says(*words: str) -> Callable[[str], bool]:
    return lambda template: all(word in template for word in words)


# In order: the first whose test holds for the template's text.
TABLE: tuple[tuple[Callable[[str], bool], Parser], ...] = (
    (_says("｜DSML｜"), DSML),
    (_says("]<]minimax[>["), MINIMAX_M3),
    (_says("<｜tool▁call"), DEEPSEEK),
    (_says("<|tool_call_begin|>"), KIMI),
    (_says("<minimax:tool_call>"), MINIMAX),
    (_says("<seed:tool_call>"), SEED),
    (_says("<longcat_"), LONGCAT),
    (_says("opensource", "tool_sep"), HUNYUAN),
    (_says("<|tool_call:begin|>"), SOLAR),
    (_says("<start_function_call>"), FUNCTION_GEMMA),
    (_says("<|tool_call>"), GEMMA),
    (_says("<|START_ACTION|>"), COMMAND_R7B),
    (_says("<|tools_prefix|>"), APERTUS),
    (_says("[TOOL_CALLS]"), MISTRAL),
    (_says("<TOOLCALL>"), NEMOTRON),
    (_says("<tool_calls>["), APRIEL),
    (_says("<tool_call>", "<arg_key>"), GLM),
    (_says("<tool_call>", "<function="), QWEN_CODER),
    (_says("<tool_call>"), HERMES),
    (_says("<function name="), MINICPM),
    (_says("<function="), FUNCTIONARY),
    (_says("<tool_calls>"), APRIEL),
    (_says("<|python_tag|>"), LLAMA),
    (_says("<|plugin|>"), INTERNLM),
    (_says("<|tool_list_start|>"), LFM2),
    (_says("<|tool_call_start|>"), LFM2),
    (_says("<|function_call|>"), GIGACHAT),
    (_says("<|tool|>"), PHI),
    (_says("<|tool_call|>"), GRANITE),
    (_says("<function_call>"), GRANITE),
    (_says("Action:"), COMMAND_R),
)

PARSERS: dict[str, Parser] = {
    parser.name: parser for parser in (*(p for _, p in TABLE), XLAM, BARE, PYTHONIC)
}
"""By the name that `PARSER` in a Modelfile may give."""

# What Ollama's own Modelfiles say.
_ALIASES = {
    "qwen3": HERMES,
    "qwen3.5": QWEN_CODER,
    "functiongemma": FUNCTION_GEMMA,
    "gemma4": GEMMA,
    "nemotron-3-nano": QWEN_CODER,
}


def named(name: str) -> Parser | None:
    """The parser that PARSER asks for; None for a name that is not known and for harmony, which is none."""
    name = name.lower()
    if (found := PARSERS.get(name) or _ALIASES.get(name)) is not None:
        return found
    families = {**PARSERS, **_ALIASES}  # qwen3-thinking, glm-4.7, deepseek3
    known = max((known for known in families if name.startswith(known)), key=len, default=None)
    return None if known is None else families[known]


def pick(template: str | None, vocabulary: Container[str] = ()) -> Parser | None:
    """The parser for a model with this chat template, or None for one that knows no tools.

    Where the template has no mark of calls, a token of the vocabulary may be one; else calls have none.
    """
    if template is None:
        return None
    found = next((parser for test, parser in TABLE if test(template)), None)
    if found is not None or not any(_TOOLS.search(code) for code in _CODE.findall(template)):
        return found
    spelt = (
        parser for _, parser in TABLE if parser.starts[0].startswith("<|") and parser.starts[0] in vocabulary
    )
    return next(spelt, BARE)
