"""Starting and stopping the server, and `mlxo daemon ...`.

A daemon is alive when its lock (`daemon.lock`) is held: a pid in `daemon.json` may have been reused.
One client starts it at a time (`start.lock`); the others wait for that lock and find it running.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import click

from mlxo.cli.client import Client, Json
from mlxo.cli.connect import State, ensure, read_state
from mlxo.core import settings as core_settings
from mlxo.core.errors import MlxoError, ServerUnreachable
from mlxo.core.paths import Paths
from mlxo.core.process import command, explain_exit
from mlxo.core.settings import Settings

READY_SECONDS = 120.0  # importing aiohttp on a loaded machine with a cold disk
TERM_SECONDS = 20.0
KILL_SECONDS = 10.0
STATUS_SECONDS = 5.0
MAX_LOG = 10 << 20  # bytes; a longer log is set aside as daemon.log.1 when a daemon starts
TAIL_LINES = 8


def start(settings: Settings, client: Client) -> None:
    """Start the daemon and wait until it is ready. Raises ServerUnreachable with its last words."""
    from filelock import FileLock

    paths = Paths(settings.home.absolute())
    paths.daemon_log.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(paths.start_lock):
        if client.listening():
            return
        state = running(paths)
        if state is not None:
            raise ServerUnreachable(
                f"the server of {paths.home} listens on {state.address}, not on {settings.address}",
                f"use MLXO_HOST={state.address}, or stop it: mlxo daemon stop",
            )
        before = _rotate(paths.daemon_log)
        code = _spawn(paths)
        if code is None or client.listening():
            return
        words = _tail(paths.daemon_log, TAIL_LINES, before)
        raise ServerUnreachable(
            f"the server ended while it started ({explain_exit(code)})",
            "\n".join([f"see its log, {paths.daemon_log}", *(f"  {line}" for line in words)]),
        )


def _spawn(paths: Paths) -> int | None:
    """Run `mlxo serve` in a session of its own. None once it is ready, else its exit status.

    The child holds the write end of a pipe: it writes `ready`, or dies and the pipe reports its end.
    """
    import subprocess

    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as pipe:
        try:
            with paths.daemon_log.open("ab") as log:
                process = subprocess.Popen(
                    command("serve"),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=paths.home,
                    env={**os.environ, "MLXO_HOME": str(paths.home), "MLXO_READY_FD": str(writer)},
                    pass_fds=(writer,),
                    start_new_session=True,
                )
        finally:
            os.close(writer)
        said = b""
        deadline = time.monotonic() + READY_SECONDS
        while not said.startswith(b"ready"):
            if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise ServerUnreachable(
                    f"the server (pid {process.pid}) is not ready after {READY_SECONDS:.0f} seconds",
                    "see: mlxo daemon logs",
                )
            part = pipe.read(64)
            if not part:
                return process.wait()
            said += part
    return None


def _rotate(log: Path) -> int:
    """Set a long log aside; the size of the one that will be appended to."""
    size = log.stat().st_size if log.exists() else 0
    if size > MAX_LOG:
        log.replace(log.with_name(log.name + ".1"))
        return 0
    return size


def _tail(log: Path, count: int, start: int = 0) -> list[str]:
    """The last `count` lines at or after byte `start`, blank ones left out."""
    with log.open("rb") as f:
        f.seek(start)
        lines = deque((line for line in f if line.strip()), maxlen=count)
    return [line.decode("utf-8", "replace").rstrip() for line in lines]


def running(paths: Paths) -> State | None:
    """What daemon.json says if a daemon holds the lock; None otherwise, and a stale daemon.json goes away.

    Raises MlxoError while a daemon holds the lock and has not written daemon.json yet.
    """
    from filelock import FileLock, Timeout

    if not paths.daemon_lock.exists():
        return None
    try:
        with FileLock(paths.daemon_lock, timeout=0):
            paths.daemon_state.unlink(missing_ok=True)
            return None
    except Timeout:
        pass
    state = read_state(paths)
    if state is None:
        raise MlxoError(
            f"a server is starting or stopping: it holds {paths.daemon_lock}",
            "try again in a second, or see: mlxo daemon logs",
        )
    return state


# ---------------------------------------------------------------- mlxo daemon


@click.group()
def daemon() -> None:
    """Look after the server that other commands start by themselves."""


@daemon.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(as_json: bool) -> int:
    """Say whether the server runs, and where. The exit code is 1 when it does not."""
    from mlxo.cli import output

    settings = core_settings.load()
    paths = Paths(settings.home)
    state = running(paths)
    facts: Json = {"running": state is not None}
    if state:
        facts |= {"pid": state.pid, "address": state.address, "version": state.version}
        facts["uptime"] = round(max(0.0, time.time() - paths.daemon_state.stat().st_mtime))
        facts["models"] = _loaded(state)
    facts |= {"home": str(paths.home), "log": str(paths.daemon_log)}
    if as_json:
        output.print_json(facts)
    else:
        shown: dict[str, Any] = {**facts, "running": "yes" if state else "no"}
        if state:
            shown["uptime"] = output.span(facts["uptime"])
            models = facts["models"]
            shown["models"] = (
                "the server does not answer" if models is None else ", ".join(models) or "none loaded"
            )
        for key, value in shown.items():
            print(f"{key:<9}{value}")
    return 0 if state else 1


def _loaded(state: State) -> list[str] | None:
    """The names of the models in memory; None when the server does not say."""
    try:
        answer = Client(core_settings.parse_address(state.address).client).get("/api/ps", STATUS_SECONDS)
    except MlxoError:
        return None
    return [str(m.get("name")) for m in answer.get("models", [])]


@daemon.command()
def stop() -> None:
    """Stop the server. Models leave the memory, and requests under way are cut off."""
    print("stopped" if _stop(Paths(core_settings.load().home)) else "the server is not running")


@daemon.command()
def restart() -> None:
    """Stop the server if it runs, and start it."""
    settings = core_settings.load()
    _stop(Paths(settings.home))
    client = ensure(settings)
    version = client.get("/api/version").get("mlxo", "")
    print(f"mlxo {version} listens on {settings.address}")


@daemon.command()
@click.option("-f", "--follow", is_flag=True, help="Go on as the log grows.")
@click.option(
    "-n", "--lines", default=50, show_default=True, type=click.IntRange(min=0), help="How many lines."
)
def logs(follow: bool, lines: int) -> None:
    """Print the end of the server's log."""
    log = Paths(core_settings.load().home).daemon_log
    if not log.exists():
        raise MlxoError(f"there is no log yet: {log}", "the server writes it once a command has started it")
    if follow:
        sys.stdout.flush()
        os.execvp("tail", ["tail", "-n", str(lines), "-F", str(log)])  # tail waits without polling
    for line in _tail(log, lines):
        print(line)


def _stop(paths: Paths) -> bool:
    """SIGTERM, then SIGKILL, until the lock is free. False when there was nothing to stop."""
    from filelock import FileLock, Timeout

    state = running(paths)
    if state is None:
        return False
    for number, seconds in ((signal.SIGTERM, TERM_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
        with contextlib.suppress(ProcessLookupError):  # it left by itself: its lock is free by now
            os.kill(state.pid, number)
        try:
            with FileLock(paths.daemon_lock, timeout=seconds):
                paths.daemon_state.unlink(missing_ok=True)
                return True
        except Timeout:
            continue
    raise MlxoError(
        f"the server (pid {state.pid}) did not stop", f"see whether it hangs in the kernel: ps -p {state.pid}"
    )
