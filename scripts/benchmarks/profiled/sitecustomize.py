"""Two profilers of a main thread for a daemon and its runners: in force when this folder is on PYTHONPATH and
MLXO_PROFILE names a folder for the results.

SIGUSR1 starts the sampler, SIGUSR2 cProfile; the same signal again writes the result and stops. A sample's
weight is the time since the last one: Python sees a signal only when a call into C has returned, and the
whole of that call belongs to the line that made it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import FrameType

_INTERVAL = 0.002  # seconds
_DEPTH = 40


class _Sampler:
    def __init__(self, name: str) -> None:
        self._name = name
        self._stacks: Counter[tuple[str, ...]] = Counter()
        self._last = 0.0
        self._on = False

    def toggle(self, *_: object) -> None:
        self._on = not self._on
        interval = _INTERVAL if self._on else 0.0
        if self._on:
            self._stacks.clear()
            self._last = time.perf_counter()
            signal.signal(signal.SIGALRM, self._sample)  # for good: one may still be on its way at the end
        signal.setitimer(signal.ITIMER_REAL, interval, interval)
        if not self._on:
            stacks = [[seconds, list(stack)] for stack, seconds in self._stacks.items()]
            Path(os.environ["MLXO_PROFILE"], f"{self._name}.samples").write_text(json.dumps(stacks))

    def _sample(self, _: int, frame: FrameType | None) -> None:
        if not self._on:
            return
        now = time.perf_counter()
        stack = []
        while frame is not None and len(stack) < _DEPTH:
            code = frame.f_code
            where = "/".join(code.co_filename.split("/")[-3:])
            stack.append(f"{where}:{frame.f_lineno} {code.co_qualname}")
            frame = frame.f_back
        self._stacks[tuple(stack)] += now - self._last  # type: ignore[assignment]
        self._last = now


class _Calls:
    def __init__(self, name: str) -> None:
        self._name = name
        self._profile = None

    def toggle(self, *_: object) -> None:
        import cProfile

        if self._profile is None:
            self._profile = cProfile.Profile()
            self._profile.enable()
        else:
            self._profile.disable()
            self._profile.dump_stats(Path(os.environ["MLXO_PROFILE"], f"{self._name}.calls"))
            self._profile = None


def _install() -> None:
    role = next((r for r in ("serve", "_runner") if r in sys.orig_argv), None)
    if role is None or "MLXO_PROFILE" not in os.environ:
        return
    name = f"{role.strip('_')}-{os.getpid()}"
    signal.signal(signal.SIGUSR1, _Sampler(name).toggle)
    signal.signal(signal.SIGUSR2, _Calls(name).toggle)


_install()
