"""When drafting pays: by what steps cost and how often drafts come true."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from mlxo.engine.gain import MOST, WIDTHS, Chance, Gauge


def chance(right: float) -> Chance:
    found = Chance()
    for i in range(100):
        found.note(int(i % 10 < 10 * right), 1)
    return found


def settle(cost: Callable[[int, int], float], rows: int, right: float, steps: int = 200) -> list[int]:
    """The widths of `steps` steps where a step of (rows, width) takes `cost` seconds."""
    gauge = Gauge()
    likely = chance(right)
    widths = []
    for _ in range(steps):
        widths.append(gauge.width([(likely, MOST)] * rows))
        gauge.note(rows, widths[-1], cost(rows, widths[-1]))
    return widths


def test_a_plain_step_is_measured_first() -> None:
    assert settle(lambda *_: 1.0, 1, 0.9)[:3] == [1, 1, 1]


def test_widths_grow_from_what_was_measured() -> None:
    widths = settle(lambda *_: 1.0, 1, 0.99)
    tried = list(dict.fromkeys(widths))
    assert tried[-1] == WIDTHS[-1]
    assert all(b <= 2 * a + 1 for a, b in itertools.pairwise(tried))


@pytest.mark.parametrize(
    ("slope", "right", "pays"),
    [(0.05, 0.9, True), (1.0, 0.9, False), (0.3, 0.1, False), (0.3, 0.9, True), (0.0, 0.3, True)],
)
def test_it_drafts_where_that_pays(slope: float, right: float, pays: bool) -> None:
    widths = settle(lambda _, width: 1 + slope * (width - 1), 4, right)
    late = widths[50:]
    assert (sum(w > 1 for w in late) > len(late) / 2) == pays


def test_what_was_measured_is_believed_for_a_while_only() -> None:
    """Steps that were dear become cheap, and the other way round."""
    widths = settle(lambda _, width: float(width), 1, 0.9, 600)
    assert 0 < sum(w > 1 for w in widths[300:]) < 30, "now and then it is tried again"
    gauge, likely = Gauge(), chance(0.9)
    for step in range(2000):
        width = gauge.width([(likely, MOST)])
        gauge.note(1, width, 1.0 if step > 300 or width == 1 else 5.0)
    assert gauge.width([(likely, MOST)]) > 4


def test_each_number_of_rows_has_costs_of_its_own() -> None:
    def cost(rows: int, width: int) -> float:
        return 1.0 if rows == 1 else float(width)

    gauge, likely = Gauge(), chance(0.9)
    for _ in range(100):
        for rows in (1, 8):
            gauge.note(rows, width := gauge.width([(likely, MOST)] * rows), cost(rows, width))
    assert gauge.width([(likely, MOST)]) > 4
    assert gauge.width([(likely, MOST)] * 8) == 1


def test_nobody_who_drafts_means_a_plain_step() -> None:
    gauge = Gauge()
    for _ in range(9):
        gauge.note(2, 1, 1.0)
    assert gauge.width([(chance(0.9), 0), (chance(0.9), 0)]) == 1
    assert gauge.width([(chance(0.9), 2), (chance(0.9), 0)]) <= 3


def test_a_row_that_cannot_draft_is_not_held_up_by_those_that_can() -> None:
    gauge, likely = Gauge(), chance(0.95)
    company = [(likely, MOST)] * 7

    def width(others: list[tuple[Chance, int]]) -> int:
        for _ in range(60):
            found = gauge.width([*company, *others])
            gauge.note(8, found, 1 + 0.2 * (found - 1))
        return gauge.width([*company, *others])

    assert width([(likely, MOST)]) > 5
    assert 1 < width([(likely, 0)]) <= 3


def test_a_chance_follows_its_trials_and_forgets_them() -> None:
    assert chance(0.9).likely > 0.8
    assert chance(0.1).likely < 0.2
    assert chance(0.9).expect(4) > 2.5 > chance(0.1).expect(4)
    assert chance(1.0).expect(3) == pytest.approx(3, abs=0.05)
    fading = chance(0.0)
    for _ in range(500):
        fading.forget()
    assert fading.likely == pytest.approx(0.5, abs=0.02)
