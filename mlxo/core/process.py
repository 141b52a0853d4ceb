"""Starting our own executable in another role. Children are spawned, never forked (fork after MLX hangs)."""

from __future__ import annotations

import sys


def command(*words: str) -> list[str]:
    """The argument vector that runs `mlxo WORDS...` with this interpreter and this code."""
    return [sys.executable, "-m", "mlxo", *words]


def explain_exit(code: int) -> str:
    """An exit status in words: `exit code 3`, `killed by signal 9 (SIGKILL)`."""
    if code >= 0:
        return f"exit code {code}"
    import signal

    try:
        return f"killed by signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"killed by signal {-code}"
