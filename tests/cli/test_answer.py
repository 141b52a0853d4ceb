from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from mlxo.cli.answer import MARGIN, Wrap, summary

WORDS = st.lists(st.text(alphabet="abcé漢字。🙂\u0301", min_size=1, max_size=30), max_size=30).map(" ".join)


def wrapped(text: str, columns: int = 30, step: int = 1) -> str:
    wrap = Wrap(columns)
    return "".join(wrap.feed(text[i : i + step]) for i in range(0, len(text), step)) + wrap.flush()


def columns_of(line: str) -> int:
    wide = sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line)
    return wide - sum(1 for c in line if unicodedata.combining(c))


@given(WORDS, st.integers(1, 9))
def test_wrap_fits_the_screen_and_changes_only_blanks(text: str, step: int) -> None:
    shown = wrapped(text, 30, step)
    assert all(columns_of(line.rstrip()) <= 30 - MARGIN for line in shown.split("\n"))
    assert "".join(shown.split()) == "".join(text.split())
    assert shown == wrapped(text, 30, 1)


def test_wrap_breaks_between_words() -> None:
    assert wrapped("the quick brown fox jumps over", 25).split("\n") == ["the quick brown fox ", "jumps over"]


def test_wrap_breaks_between_wide_characters() -> None:
    assert wrapped("漢" * 25, 25).split("\n") == ["漢" * 10, "漢" * 10, "漢" * 5]


def test_wrap_keeps_the_lines_of_the_answer() -> None:
    assert wrapped("a\n\n  b\n") == "a\n\n  b\n"


def test_summary_leaves_out_what_is_zero() -> None:
    final = {
        "total_duration": 1_234_567_000,
        "load_duration": 0,
        "prompt_eval_count": 12,
        "prompt_eval_duration": 100_000_000,
        "cached_tokens": 4,
        "eval_count": 25,
        "eval_duration": 2_000_000_000,
        "drafted_tokens": 20,
        "accepted_tokens": 15,
    }
    assert summary(final) == (
        "total duration:       1.234567s\n"
        "prompt eval count:    12 token(s)\n"
        "prompt cached:        4 token(s)\n"
        "prompt eval duration: 100ms\n"
        "prompt eval rate:     120.00 tokens/s\n"
        "eval count:           25 token(s)\n"
        "eval duration:        2s\n"
        "eval rate:            12.50 tokens/s\n"
        "drafts accepted:      15 of 20 token(s)\n"
    )
    assert summary({}) == ""
