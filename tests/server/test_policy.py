"""Who leaves memory: cases by hand, and what must hold for any machine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxo.server.policy import Held, Limits, fits, victims


def held(text: str) -> list[Held]:
    """`a10 b5* c2`: key and size, the least recently used first, a star for busy."""
    rows = []
    for age, word in enumerate(text.split()):
        rows.append(Held(word[0], int(word[1:].rstrip("*")), float(age), word.endswith("*")))
    return rows


@pytest.mark.parametrize(
    ("residents", "need", "limits", "expected"),
    [
        ("", 5, Limits(10), ""),
        ("", 99, Limits(10), ""),  # the first model is always tried
        ("a5", 5, Limits(10), ""),
        ("a5 b5", 5, Limits(10), "a"),
        ("a5 b5", 6, Limits(10), "ab"),
        ("a5 b5", 99, Limits(10), "ab"),
        ("a5* b5", 5, Limits(10), "b"),  # idle before busy, though it was used later
        ("a5* b5*", 5, Limits(10), "a"),
        ("a1 b9", 8, Limits(10), "b"),  # the old one is spared: it would not have been enough
        ("a1 b1 c1", 1, Limits(100, 3), "a"),
        ("a1 b1 c1", 1, Limits(100, 1), "abc"),
        ("a1* b1 c1*", 1, Limits(100, 2), "ba"),
    ],
)
def test_cases(residents: str, need: int, limits: Limits, expected: str) -> None:
    assert [v.key for v in victims(held(residents), need, limits)] == list(expected)


models = st.lists(
    st.tuples(st.integers(0, 50), st.floats(0, 100), st.booleans()),
    max_size=8,
).map(lambda rows: [Held(str(i), *row) for i, row in enumerate(rows)])


@given(models, st.integers(0, 60), st.integers(0, 100), st.integers(0, 5))
def test_what_leaves_is_enough_and_none_of_it_needless(
    rows: list[Held], need: int, budget: int, count: int
) -> None:
    limits = Limits(budget, count)
    leave = victims(rows, need, limits)
    stay = [r for r in rows if r not in leave]
    assert fits(stay, need, limits)
    for spared in leave:
        assert not fits([*stay, spared], need, limits)
    if any(v.busy for v in leave):
        # A busy model is only asked when all idle ones together are not enough.
        assert not fits([r for r in rows if r.busy], need, limits)
