"""Logging to standard error, one line an event. The daemon's standard error is its log file."""

from __future__ import annotations

import logging
import sys


def setup(role: str, *, debug: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s {role} %(levelname).1s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("mlxo").setLevel(logging.DEBUG if debug else logging.INFO)
