from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxo.cli import output

NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)


def test_table_bytes() -> None:
    assert output.table(("NAME", "ID"), [("a:latest", "0123"), ("b:1", "45")]) == (
        "NAME        ID      \na:latest    0123    \nb:1         45      \n"
    )


def test_table_without_rows_has_its_header() -> None:
    assert output.table(("NAME", "SIZE"), []) == "NAME    SIZE    \n"


def test_a_cell_cannot_drive_the_terminal() -> None:
    assert output.table(("N",), [("\x1b[2Ja\nb\x9b",)]) == "N         \n[2Ja b    \n"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 KB"),
        (1500, "1.5 KB"),
        (398_000_000, "398 MB"),
        (2_000_000_000, "2 GB"),
        (2_019_393_189, "2.0 GB"),
        (4_683_087_332, "4.7 GB"),
        (12_900_000_000, "12 GB"),
        (1_300_000_000_000, "1.3 TB"),
    ],
)
def test_size(count: int, text: str) -> None:
    assert output.size(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (8_000_000_000, "8B"),
        (7_615_616_512, "7.6B"),
        (494_032_768, "494.03M"),
        (3_000_000, "3M"),
        (12_345, "12K"),
        (999, "999"),
    ],
)
def test_number(count: int, text: str) -> None:
    assert output.number(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "Less than a second"),
        (1, "1 second"),
        (59.9, "59 seconds"),
        (60, "About a minute"),
        (120, "2 minutes"),
        (3599, "59 minutes"),
        (3600, "About an hour"),
        (5400, "2 hours"),
        (47 * 3600, "47 hours"),
        (48 * 3600, "2 days"),
        (13 * 86400, "13 days"),
        (14 * 86400, "2 weeks"),
        (59 * 86400, "8 weeks"),
        (60 * 86400, "2 months"),
        (729 * 86400, "24 months"),
        (730 * 86400, "2 years"),
    ],
)
def test_span(seconds: float, text: str) -> None:
    assert output.span(seconds) == text


@pytest.mark.parametrize(
    ("when", "text"),
    [
        ("2026-05-01T11:59:58Z", "2 seconds ago"),
        ("2026-05-01T11:59:58.123456789Z", "1 second ago"),
        ("2026-05-01T13:00:00+01:00", "Less than a second ago"),
        ("2026-05-01T12:04:10Z", "4 minutes from now"),
        ("0001-01-01T00:00:00Z", "Never"),
        ("soon", "Never"),
    ],
)
def test_ago(when: str, text: str) -> None:
    assert output.ago(when, NOW) == text


@pytest.mark.parametrize(
    ("when", "text"),
    [
        ("2026-05-01T12:04:59Z", "4 minutes from now"),
        ("2318-08-11T23:47:16.854775807Z", "Forever"),
        ("2026-05-01T11:59:59Z", "Stopping..."),
    ],
)
def test_until(when: str, text: str) -> None:
    assert output.until(when, NOW) == text


@pytest.mark.parametrize(
    ("total", "gpu", "text"),
    [
        (100, 0, "100% CPU"),
        (100, 100, "100% GPU"),
        (100, 75, "25%/75% CPU/GPU"),
        (100, 101, "Unknown"),
        (0, 5, "Unknown"),
    ],
)
def test_processor(total: int, gpu: int, text: str) -> None:
    assert output.processor(total, gpu) == text


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("mlxo pull x", "Hint: try mlxo pull x"),
        ("mlxo verify says more", "Hint: mlxo verify says more"),
        ("see: mlxo --help", "Hint: see: mlxo --help"),
    ],
)
def test_a_hint_reads_as_a_sentence(text: str, line: str) -> None:
    assert output.hint(text) == line


@given(st.text())
def test_clean_text_has_no_escape(text: str) -> None:
    shown = output.clean(text)
    assert not any((ord(c) < 32 and c not in "\t\n") or 127 <= ord(c) < 160 for c in shown)
    assert output.clean(shown) == shown
