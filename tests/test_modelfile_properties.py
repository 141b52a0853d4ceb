"""Modelfiles under any bytes: what parses survives printing, and what does not is a ModelfileError, soon."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxo.core.errors import ModelfileError
from mlxo.modelfile import KEYWORDS, ROLES, Directive, Modelfile, format, parse
from tests.test_modelfile import failure

SPICE = st.sampled_from(
    ['"', '"""', " ", "\t", "\n", "\r\n", "#", "\u00a0", "\u200d", "\0", "é", "😀", "a", "\\"]
)
VALUE = st.lists(st.one_of(SPICE, st.text(max_size=4)), max_size=12).map("".join)
HEAD = st.sampled_from(
    [*(k.upper() for k in KEYWORDS), *(f"MESSAGE {r}" for r in ROLES), "PARAMETER stop", "# name:"]
)
FILE = st.lists(
    st.tuples(HEAD, st.sampled_from([" ", "", "  "]), VALUE, st.sampled_from(["\n", '"\n', '"""\n']))
)
TEXT = FILE.map(lambda rows: "FROM m\n" + "".join(map("".join, rows)))


@given(TEXT)
def test_what_parses_is_printed_and_parsed_to_the_same(text: str) -> None:
    try:
        first = parse(text)
    except ModelfileError:
        return
    assert parse(format(first)) == first
    assert format(parse(format(first))) == format(first)


ARGS = st.text(
    st.characters(exclude_categories=["C", "Z"], include_characters=' \t\n\r"'), max_size=40
).filter(
    lambda v: not any(line.rstrip(" \t").endswith('"""') for line in v.replace("\r", "\n").split("\n")[:-1])
)
DIRECTIVE = st.one_of(
    st.builds(
        Directive, name=st.sampled_from([k for k in KEYWORDS if k not in ("parameter", "message")]), args=ARGS
    ),
    st.builds(Directive, name=st.from_regex(r"[A-Z0-9_]{0,8}", fullmatch=True), args=ARGS),
    st.builds(
        lambda role, text: Directive(name="message", args=f"{role}: {text}"), st.sampled_from(ROLES), ARGS
    ),
)


@given(st.lists(DIRECTIVE, max_size=6), st.sampled_from([None, "a:b"]), st.sampled_from([(), ("c", "d/e:f")]))
def test_directives_survive_printing(
    directives: list[Directive], name: str | None, aliases: tuple[str, ...]
) -> None:
    made = Modelfile(directives=(Directive(name="from", args="m"), *directives), name=name, aliases=aliases)
    assert parse(format(made)) == made
    assert parse(format(made).encode("utf-16")) == made


@given(st.one_of(st.binary(), VALUE.map(str.encode), TEXT.map(lambda t: t.encode("utf-8", "replace"))))
def test_no_bytes_raise_anything_but_a_modelfile_error(data: bytes) -> None:
    with contextlib.suppress(ModelfileError):
        parse(data).check()


@pytest.mark.parametrize(
    "data", [b"FROM m\nSYSTEM \xff\n", b"\xff\xfeF\0R", b"\xff\xfe\x00\xd8", b"\xff\xfeF\0\n\0\x00"]
)
def test_bytes_that_are_no_text(data: bytes) -> None:
    assert "not valid UTF-" in failure(data).message


def test_broken_bytes_are_named_by_their_line() -> None:
    assert failure(b"FROM m\nSYSTEM a\xffb\n").line == 2


MEGABYTES_10 = 10_000_000
MEGABYTE = 1_000_000


@pytest.mark.parametrize(
    "data",
    [
        b"\xde\xad\xbe\xef" * (MEGABYTES_10 // 4),
        b"A" * MEGABYTES_10,
        b"\0" * MEGABYTES_10,
        b'"' * MEGABYTES_10,
        b'FROM m\nSYSTEM """' + b'"\n' * (MEGABYTE // 2),
        b'FROM m\nSYSTEM "' + b"\n" * MEGABYTE,
        b"FROM m\nPARAMETER " + b"a" * MEGABYTES_10 + b"\n",
        b"FROM m\nPARAMETER a" + b"b" * MEGABYTES_10 + b" 1\n",
        b"FROM m\nREQUIRES 1.2.3-" + b"0a." * (MEGABYTE // 3) + b"!\n",
        b"#" * MEGABYTES_10,
        b"\r" * MEGABYTES_10,
    ],
    ids=lambda d: repr(d[:20] + b".." + d[-3:]),
)
def test_megabytes_of_anything_are_refused_in_linear_time(data: bytes) -> None:
    began = time.monotonic()
    assert len(str(failure(data))) < 400
    assert time.monotonic() - began < 10  # seconds; a quadratic reader would need many minutes
