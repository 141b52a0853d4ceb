"""Ollama's grammar rule by rule: how it is read, and how it is printed."""

from __future__ import annotations

import pytest

from mlxo.core.errors import ModelfileError
from mlxo.modelfile import Directive, format, parse


def pairs(text: str | bytes) -> list[tuple[str, str]]:
    return [(d.name, d.args) for d in parse(text).directives]


def value_of(statement: str) -> str:
    """The value of the one statement after a FROM line."""
    first, second = pairs("FROM m\n" + statement)
    assert first == ("from", "m")
    return second[1]


def failure(text: str | bytes) -> ModelfileError:
    with pytest.raises(ModelfileError) as caught:
        parse(text).check()
    return caught.value


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize(
    "data",
    [
        "FROM é\nSYSTEM 你好\n".encode(),
        b"\xef\xbb\xbf" + "FROM é\nSYSTEM 你好\n".encode(),
        b"\xff\xfe" + "FROM é\nSYSTEM 你好\n".encode("utf-16-le"),
        b"\xfe\xff" + "FROM é\nSYSTEM 你好\n".encode("utf-16-be"),
    ],
    ids=["utf-8", "utf-8 bom", "utf-16-le", "utf-16-be"],
)
def test_encodings(data: bytes) -> None:
    assert pairs(data) == [("from", "é"), ("system", "你好")]


def test_every_keyword_in_any_case_and_order() -> None:
    text = (
        "\n \t license A\nLICENSE B\nTemplate {{ x }}\nsystem s\nADAPTER ./a\ndraft d\nRenderer r\nPARSER p\n"
        "Parameter Top_K 3\nMESSAGE user hi\nREQUIRES 0.14.0\nQUANTIZE 4\nkeep_alive 5m\n\n\n   frOM\tm"
    )
    assert pairs(text) == [
        ("license", "A"),
        ("license", "B"),
        ("template", "{{ x }}"),
        ("system", "s"),
        ("adapter", "./a"),
        ("draft", "d"),
        ("renderer", "r"),
        ("parser", "p"),
        ("Top_K", "3"),
        ("message", "user: hi"),
        ("requires", "0.14.0"),
        ("quantize", "4"),
        ("keep_alive", "5m"),
        ("from", "m"),
    ]


def test_a_hash_is_a_comment_only_where_a_keyword_could_stand() -> None:
    text = '# SYSTEM no\nFROM m # kept\n  #SYSTEM no\nSYSTEM #kept\nSYSTEM "a\n# kept\n"\n# last: "open'
    assert pairs(text) == [("from", "m # kept"), ("system", "#kept"), ("system", "a\n# kept\n")]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("SYSTEM   \t two  words \t ", "two  words"),
        ("SYSTEM a \"b\" 'c' # \\n \\", "a \"b\" 'c' # \\n \\"),
        ("SYSTEM 'single'", "'single'"),
        ('SYSTEM ends in "', 'ends in "'),
        ('SYSTEM "closed"', "closed"),
        ('SYSTEM "  inner blanks  "  ', "  inner blanks  "),
        ('SYSTEM ""', ""),
        ("SYSTEM ", ""),
        ('SYSTEM """"""', ""),
        ('SYSTEM """a"b""c"""', 'a"b""c'),
        ('SYSTEM "say "hi" now"', 'say "hi" now'),
        ('SYSTEM "a\nb"', "a\nb"),
        ('SYSTEM "a\n  b  \n\n"', "a\n  b  \n\n"),
        ('SYSTEM """\na\n"""', "\na\n"),
        ('SYSTEM """a "b"\nc"""\t', 'a "b"\nc'),
        # Text after a closing quote makes the value run on to the next line that ends in one.
        ('SYSTEM "a" b\nc"', 'a" b\nc'),
        ('SYSTEM """a""" b\nc"""', 'a""" b\nc'),
        # A quote alone does not close itself, nor do three, four or five.
        ('SYSTEM "\n"', "\n"),
        ('SYSTEM """\n"""', "\n"),
        ('SYSTEM """"\n\n"""', '"\n\n'),
        ('SYSTEM """""\n"""', '""\n'),
        ('SYSTEM "a\\\nb\\n"', "a\\\nb\\n"),
        ('SYSTEM "a\r\nb\rc"', "a\r\nb\rc"),
    ],
)
def test_values(written: str, value: str) -> None:
    assert value_of(written) == value
    assert value_of(written + "\n") == value
    assert value_of(written + "\r\n") == value


@pytest.mark.parametrize(
    ("rune", "survives"),
    [
        ("\u00a0", False),
        ("\u3000", False),
        ("\u200d", False),
        ("\u200b", False),
        ("\u00ad", False),
        ("\u2028", False),
        ("\0", False),
        ("\x1b", False),
        ("\x0b", False),
        ("\u0301", True),
        ("\ufe0f", True),
        ("\t", True),
        ("😀", True),
    ],
    ids=lambda x: ascii(x),
)
def test_runes_that_do_not_print_are_dropped(rune: str, survives: bool) -> None:
    kept = rune if survives else ""
    assert value_of(f"SYSTEM a{rune}b") == f"a{kept}b"
    assert value_of(f'SYSTEM "a\n{rune}b"') == f"a\n{kept}b"


def test_a_dropped_rune_does_not_keep_a_quote_open() -> None:
    assert value_of('SYSTEM \u200b"a"\u00a0') == "a"


def test_exactly_one_blank_before_a_parameter_or_a_role() -> None:
    assert pairs("FROM m\nPARAMETER  top_k 1") == [("from", "m"), ("", "top_k 1")]
    assert str(failure("FROM m\nPARAMETER  top_k 1")) == "(line 2): unknown parameter ''"
    assert failure("FROM m\nMESSAGE  user hi").line == 2


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("FROM m\nFOO bar\n", 2),
        ("FROM m\nFOO\n", 2),
        ("FROM\n", 1),
        ("# c\n\nFROM m\nSYSTEM\nPARAMETER top_k 1\n", 4),
        ("FROM m\r\nFOO bar", 3),
        ("FROM m\rFOO bar", 2),
        ('FROM m\nSYSTEM """a\nb\n"""\nFOO bar', 5),
        ("FROM: m\n", 1),
        ("1FROM m\n", 1),
        ("FROM m\n- x\n", 2),
        ("FRO\u200dM m\n", 1),
        ("ﬁrom m\n", 1),
    ],
)
def test_a_wrong_keyword_is_named_with_its_line(text: str, line: int) -> None:
    error = failure(text)
    assert error.line == line
    assert error.message == (
        f'(line {line}): command must be one of "from", "license", "template", "system", "adapter", "draft", '
        '"renderer", "parser", "parameter", "message", "requires", "quantize", or "keep_alive"'
    )


@pytest.mark.parametrize("role", ["tool", "USER", "", "usr"])
def test_roles(role: str) -> None:
    error = failure(f"FROM m\n\nMESSAGE {role} hi\n")
    assert error.message == '(line 3): message role must be one of "system", "user", or "assistant"'


@pytest.mark.parametrize(
    ("text", "partial", "line"),
    [
        ("FROM", "", 1),
        ("FROM m\nPARAMETER", "", 2),
        ("FROM m\nPARAMETER ", "", 2),
        ("FROM m\nPARAMETER top_k", "", 2),
        ("FROM m\nPARAMETER top_k\n", ": top_k", 2),
        ("FROM m\nPARAMETER top-k 1\n", ": top", 2),
        ("FROM m\nMESSAGE", "", 2),
        ("FROM m\nMESSAGE user", "", 2),
        ("FROM m\nMESSAGE user: hi\n", ": user", 2),
        ('FROM m\nSYSTEM "', "", 2),
        ('FROM m\nSYSTEM "a\nb\n', "", 2),
        ('FROM m\nSYSTEM """a"\nb""\n', "", 2),
        ('FROM m\nSYSTEM """""', "", 2),
        ('FROM m\nSYSTEM "a" b', "", 2),
    ],
)
def test_an_unexpected_end(text: str, partial: str, line: int) -> None:
    error = failure(text)
    assert error.message == f"(line {line}): unexpected EOF{partial}"
    assert error.hint


@pytest.mark.parametrize("text", ["", "\n\n", "# FROM m", "SYSTEM x", "PARAMETER top_k 1\n"])
def test_a_file_without_from(text: str) -> None:
    error = failure(text)
    assert error.message == "no FROM line"
    assert error.line is None


def test_a_value_may_be_empty_after_its_blank() -> None:
    assert pairs("FROM \nPARAMETER stop \nMESSAGE user \n") == [
        ("from", ""),
        ("stop", ""),
        ("message", "user: "),
    ]
    assert parse("FROM \n").warnings == ("a FROM line has no value",)


# ---------------------------------------------------------------- printing


@pytest.mark.parametrize(
    ("name", "args", "printed"),
    [
        ("from", "./a b.gguf", "FROM ./a b.gguf"),
        ("from", "", "FROM "),
        ("system", "plain", "SYSTEM plain"),
        ("system", 'a "b" c', 'SYSTEM a "b" c'),
        ("system", "", 'SYSTEM ""'),
        ("system", " edge", 'SYSTEM " edge"'),
        ("system", "edge\t", 'SYSTEM "edge\t"'),
        ("template", "a\nb", 'TEMPLATE "a\nb"'),
        ("template", 'a\n"b"', 'TEMPLATE """a\n"b""""'),
        ("system", '"hi" there', 'SYSTEM """"hi" there"""'),
        ("license", "MIT", "LICENSE MIT"),
        ("requires", "0.14.0", "REQUIRES 0.14.0"),
        ("draft", "d", "DRAFT d"),
        ("keep_alive", "5m", "KEEP_ALIVE 5m"),
        ("quantize", "4 32", "QUANTIZE 4 32"),
        ("stop", "</s>", "PARAMETER stop </s>"),
        ("stop", "\n", 'PARAMETER stop "\n"'),
        ("message", "user: hi: there", "MESSAGE user hi: there"),
        ("message", "user: a\nb", 'MESSAGE user "a\nb"'),
        ("message", "user: ", 'MESSAGE user ""'),
    ],
)
def test_printing(name: str, args: str, printed: str) -> None:
    directive = Directive(name=name, args=args)
    assert format([directive]) == printed + "\n"
    assert parse("FROM m\n" + printed).directives[1] == directive


def test_the_order_and_the_names_are_kept() -> None:
    text = "# name: a:b\n# alias: c\nPARAMETER stop x\nFROM m\nPARAMETER stop y\nREQUIRES 1.0.0\n"
    assert format(parse(text)) == text
