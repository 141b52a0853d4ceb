from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxo.core import duration
from mlxo.core.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("0", 0.0),
        ("-1s", -1.0),
        ("1.5s", 1.5),
        (".5m", 30.0),
        ("250ms", 0.25),
    ],
)
def test_go_durations_are_read(text: str, seconds: float) -> None:
    assert duration.parse(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "300", "5 m", "m", "1d", "--1s", "1s1", "999999999h", "٣s"])
def test_what_go_refuses_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="time: "):
        duration.parse(text)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(300, 300.0), (0, 0.0), (1.5, 1.5), (-5, -1.0), ("-1s", -1.0), ("5m", 300.0), (None, None)],
)
def test_the_keep_alive_table(value: object, seconds: float | None) -> None:
    assert duration.keep_alive(value) == seconds


@pytest.mark.parametrize("value", [True, [], {}, "300", "soon", float("nan")])
def test_a_bad_keep_alive_is_refused(value: object) -> None:
    with pytest.raises(InvalidRequest):
        duration.keep_alive(value)


@given(st.integers(0, 10**16))
def test_what_is_shown_reads_back(nanoseconds: int) -> None:
    assert duration.parse(duration.show(nanoseconds)) * 1e9 == pytest.approx(nanoseconds, rel=1e-6, abs=1)


@pytest.mark.parametrize(
    ("ns", "text"), [(0, "0s"), (1_234_567_000, "1.234567s"), (62_500_000_000, "1m2.5s"), (1500, "1.5µs")]
)
def test_durations_look_as_in_go(ns: int, text: str) -> None:
    assert duration.show(ns) == text
