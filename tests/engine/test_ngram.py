"""Looking a draft up in what was read and written."""

from __future__ import annotations

from mlxo.engine.ngram import Lookup, Ngram
from tests.engine.drive import job


def test_what_followed_last_time_is_proposed() -> None:
    assert Lookup([1, 2, 3, 4, 5, 6, 1, 2]).propose(3) == [3, 4, 5]
    assert Lookup([1, 2, 3, 1, 2, 4, 1, 2]).propose(2) == [4, 1], "the latest time counts"
    assert Lookup([1, 2, 3, 4, 5]).propose(3) == []
    assert Lookup([]).propose(3) == []


def test_a_longer_run_counts_more_than_a_later_one() -> None:
    text = [1, 2, 3, 4, 5, 9, 4, 5, 8, 1, 2, 3, 4, 5]
    assert Lookup(text).propose(2) == [9, 4]


def test_a_loop_goes_on_as_a_loop() -> None:
    assert Lookup([7, 1, 2, 1, 2]).propose(5) == [1, 2, 1, 2, 1]


def test_what_is_written_later_counts_too() -> None:
    lookup = Lookup([1, 2, 3])
    lookup.feed([4, 1, 2])
    assert lookup.propose(2) == [3, 4]


def test_a_drafter_tests_its_drafts_whether_they_were_tried_or_not() -> None:
    drafter = Ngram()
    drafter.join(job("a", [1, 2, 3, 4, 5, 1], 9))
    assert drafter.offer("a", 4) == 0
    assert drafter.feed("a", [2]) == (0, 0), "nothing was expected"
    assert drafter.offer("a", 4) == 4
    assert drafter.offer("a", 0) == 0
    assert drafter.draft({"a": 2}) == {"a": [3, 4]}
    assert drafter.feed("a", [3, 4, 9]) == (2, 3)
    assert drafter.feed("a", [9]) == (0, 0)
    drafter.leave("a")
    drafter.leave("a")
