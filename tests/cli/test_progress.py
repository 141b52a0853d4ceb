from __future__ import annotations

from typing import Any

from mlxo.cli.progress import _amount
from mlxo.core.process import command
from tests.cli.conftest import Mlxo
from tests.cli.terminal import Terminal
from tests.fakes.daemon import FakeDaemon, Reply

DIGEST = "sha256:" + "4f659a1e86d7" + "0" * 52


def test_amounts() -> None:
    assert _amount(None, 0, None, None) == ""
    assert _amount(4_700_000_000, 1_200_000_000, 30_000_000, 62.5) == " 25%  1.2 GB/4.7 GB  30 MB/s  1m2s"
    assert _amount(4_700_000_000, 0, None, None) == "  0%  0 B/4.7 GB"
    assert _amount(4_700_000_000, 4_700_000_000, 30_000_000, 0) == "100%  4.7 GB"


def test_a_terminal_gets_bars_and_its_cursor_back(fake: FakeDaemon) -> None:
    layer = {"status": f"pulling {DIGEST}", "total": 2000}
    done = {**layer, "completed": 2000}
    lines: list[dict[str, Any]] = [
        {"status": "pulling manifest"},
        layer,
        done,
        {"status": "\x1b]0;title\x07"},
        {"status": "success"},
    ]
    fake.on("/api/pull", Reply(lines=lines))
    with Terminal(command("pull", "m"), {}) as terminal:
        assert terminal.end() == 0
    rows = [" ".join(row.split()) for row in terminal.text.splitlines()]
    assert "pulling manifest" in terminal.text
    assert any(row.startswith("pulling 4f659a1e86d7 ") and row.endswith(" 100% 2 KB") for row in rows)
    assert b"\x1b]0" not in terminal.raw
    assert terminal.raw.rindex(b"\x1b[?25h") > terminal.raw.rindex(b"\x1b[?25l")


def test_without_a_terminal_each_status_is_one_short_line(mlxo: Mlxo, fake: FakeDaemon) -> None:
    statuses = (
        "pulling a",
        "pulling b",
        "pulling a",
        f"using existing layer {DIGEST}",
        f"creating new layer {DIGEST}",
        f"checking {DIGEST}",
        "success",
    )
    fake.on("/api/pull", Reply(lines=[{"status": s} for s in statuses]))
    assert mlxo("pull", "m").err == "pulling a\npulling b\nchecking 4f659a1e86d7\nsuccess\n"


def test_an_error_stands_below_the_bars(fake: FakeDaemon) -> None:
    fake.on("/api/pull", Reply(lines=[{"status": "pulling manifest"}, {"error": "the hub is away"}]))
    with Terminal(command("pull", "m"), {}) as terminal:
        assert terminal.end() == 1
    assert terminal.text.endswith("Error: the hub is away\n")
