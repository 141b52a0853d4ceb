"""Starting our own executable in another role. Children are spawned, never forked (fork after MLX hangs)."""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

import msgspec

from mlxo.core.errors import Cancelled, StoreError, from_code

if TYPE_CHECKING:  # every CLI verb imports this module, and few start anything
    import subprocess
    import threading


def command(*words: str) -> list[str]:
    """The argument vector that runs `mlxo WORDS...` with this interpreter and this code."""
    # -P: a file of the folder that we were started in must not pass for a module.
    return [sys.executable, "-P", "-m", "mlxo", *words]


def explain_exit(code: int) -> str:
    """An exit status in words: `exit code 3`, `killed by signal 9 (SIGKILL)`."""
    if code >= 0:
        return f"exit code {code}"
    import signal

    try:
        return f"killed by signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"killed by signal {-code}"


class JobLine(msgspec.Struct, omit_defaults=True):
    """A line of a job's standard output: progress, or (when `error` is set) the last one."""

    status: str = ""
    total: int | None = None
    completed: int | None = None
    error: str | None = None
    code: str = "internal_error"
    hint: str | None = None


def run_job(
    job: str, spec: dict[str, Any], report: Callable[[JobLine], None], cancelled: threading.Event
) -> None:
    """Run `mlxo _job JOB` to its end. Blocks; call it from a worker thread.

    The child reads `spec` as one line of JSON and keeps its standard input open: it ends when that closes, so
    it never outlives this process. It writes a JobLine a line. Raises what its error line says; Cancelled,
    after killing it, when `cancelled` is set; StoreError when it died without a word.
    """
    import subprocess
    import threading

    process = subprocess.Popen(
        command("_job", job), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    said: deque[str] = deque(maxlen=20)
    helpers = [
        threading.Thread(target=_drain, args=(process.stderr, said), name="job-stderr"),
        threading.Thread(target=_kill_when, args=(process, cancelled), name="job-cancel"),
    ]
    try:
        for helper in helpers:
            helper.start()
        with contextlib.suppress(BrokenPipeError):  # it died at once; its exit says why
            process.stdin.write(msgspec.json.encode(spec) + b"\n")
            process.stdin.flush()
        failure = _follow(process.stdout, report)
        code = process.wait()
    finally:
        process.kill()
        process.wait()
        for helper in helpers:
            helper.join()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        process.stderr.close()
    if cancelled.is_set():
        raise Cancelled("the request was cancelled")
    if failure is not None:
        raise from_code(failure.code, str(failure.error), failure.hint)
    if code != 0:
        last = f": {said[-1]}" if said else ""
        raise StoreError(f"the {job} process ended with {explain_exit(code)}{last}", _advice(code))


def _advice(code: int) -> str | None:
    return "it may have run out of memory" if code == -9 else None


def _follow(lines: IO[bytes], report: Callable[[JobLine], None]) -> JobLine | None:
    """Report every line until the child closes its output; its error line, if it wrote one."""
    failure = None
    for raw in lines:
        try:
            line = msgspec.json.decode(raw, type=JobLine)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue  # a library of the child printed something
        if line.error is not None:
            failure = line
        else:
            report(line)
    return failure


def _drain(stream: IO[bytes], said: deque[str]) -> None:
    for raw in stream:
        line = raw.decode("utf-8", "replace").strip()
        if line:
            said.append(line)


def _kill_when(process: subprocess.Popen[bytes], cancelled: threading.Event) -> None:
    while process.poll() is None:
        if cancelled.wait(0.2):
            process.kill()
            return
