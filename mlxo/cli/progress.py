"""Progress on standard error: bars on a terminal, otherwise each status once, as a plain line."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from mlxo.cli.output import clean, size

_DIGEST = re.compile(r"sha256:([0-9a-f]{12})[0-9a-f]{52}")
# What a model is put together from is the server's business, file by file.
_LAYERS = ("using existing layer", "creating new layer")
FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
FRAME_SECONDS = 0.1


class Spinner:
    """Turns on a terminal's standard error until `stop`. Nothing is imported and nothing shown elsewhere.

    `stop` may be called more than once; after it the line is clean.
    """

    def __init__(self, text: str = "") -> None:
        self._text = text
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._thread = threading.Thread(target=self._turn, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self._thread is None:
            return
        self._stopped.set()
        self._thread.join()
        self._thread = None
        sys.stderr.write("\r\x1b[K\x1b[?25h")
        sys.stderr.flush()

    def _turn(self) -> None:
        at = 0
        while True:
            sys.stderr.write(f"\x1b[?25l\r{FRAMES[at % len(FRAMES)]} {self._text}")
            sys.stderr.flush()
            at += 1
            if self._stopped.wait(FRAME_SECONDS):
                return


class Progress:
    """Takes the server's lines {"status", "digest"?, "total"?, "completed"?} one by one."""

    def __init__(self, success: bool = False) -> None:
        """`success` is whether the last line, which says only that, is shown."""
        self._bars = _Bars() if sys.stderr.isatty() else None
        self._hidden = _LAYERS if success else (*_LAYERS, "success")
        self._printed: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop(ok=kind is None)

    def update(self, line: Mapping[str, Any]) -> None:
        status = _DIGEST.sub(r"\1", clean(str(line.get("status", ""))))
        if status.startswith(self._hidden):
            return
        if self._bars:
            total = line.get("total")
            self._bars.show(status, int(total) if total else None, int(line.get("completed") or 0))
        elif status and status not in self._printed:
            self._printed.add(status)
            print(status, file=sys.stderr, flush=True)


class _Bars:
    """One row a status: a spinner while nothing is known of its size, a bar when something is."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
        from rich.progress import Progress as Rich
        from rich.table import Column
        from rich.text import Text

        class Bar(BarColumn):
            def render(self, task: Task) -> Any:
                return super().render(task) if task.total else Text("")

        class Amount(ProgressColumn):
            def render(self, task: Task) -> Text:
                return Text(_amount(task.total, task.completed, task.speed, task.time_remaining))

        self._rows: dict[str, TaskID] = {}
        self._current: str | None = None
        self._rich = Rich(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}", markup=False),
            Bar(bar_width=30),
            Amount(table_column=Column(no_wrap=True)),
            console=Console(stderr=True),
        )
        self._rich.start()

    def show(self, status: str, total: int | None, completed: int) -> None:
        if status != self._current:
            self._finish()
            self._current = status
        if status not in self._rows:
            self._rows[status] = self._rich.add_task(status, total=total)
        self._rich.update(self._rows[status], total=total, completed=completed)

    def _finish(self) -> None:
        """The step before is over once the server speaks of another one."""
        if self._current is None:
            return
        task = self._rich.tasks[self._rows[self._current]]
        if task.total is None:
            self._rich.update(task.id, total=0, completed=0)

    def stop(self, ok: bool) -> None:
        if ok:
            self._finish()
        self._rich.stop()


def _amount(total: float | None, completed: float, speed: float | None, left: float | None) -> str:
    """`45%  1.2 GB/4.7 GB  30 MB/s  1m2s`, or only the size once it is done."""
    if not total:
        return ""
    if completed >= total:
        return f"100%  {size(int(total))}"
    parts = [f"{int(completed / total * 100):3d}%", f"{size(int(completed))}/{size(int(total))}"]
    if speed:
        parts.append(f"{size(int(speed))}/s")
    if left is not None:
        minutes, seconds = divmod(int(left), 60)
        parts.append(f"{minutes}m{seconds}s" if minutes else f"{seconds}s")
    return "  ".join(parts)
