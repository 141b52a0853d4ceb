"""`mlxo _job NAME`: work that needs much memory or could crash, in a process of its own.

stdin   one line of JSON, what to do; then it stays open, and its end means that the parent is gone
stdout  a JSON object a line: {"status", "completed", "total"}; a failure ends with {"error", "code", "hint"}
stderr  the log
exit    0 done, 1 failed

This is one of the four process edges at which any exception becomes an error.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import threading
from collections.abc import Callable
from io import FileIO

import msgspec

from mlxo.core import logs
from mlxo.core.errors import DiskFull, InvalidRequest, MlxoError

Report = Callable[[str, int | None, int | None], None]

_LONGEST_SPEC = 1 << 20  # bytes
_log = logging.getLogger(__name__)


def main(argv: list[str]) -> int:
    logs.setup("job", debug=False)
    # Libraries print to stdout (mlx-lm does), which is the protocol's: give them stderr instead.
    protocol = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    with protocol:
        try:
            _run(argv, protocol)
            return 0
        except BrokenPipeError:  # nobody is left to read an error
            return 1
        except MlxoError as error:
            failure = error
        except OSError as error:
            failure = _of_system(error)
        except Exception as error:  # noqa: BLE001  (a process edge)
            _log.exception("job %s failed", argv)
            failure = MlxoError(
                f"the conversion failed: {type(error).__name__}: {error}", "see the server's log"
            )
        with contextlib.suppress(BrokenPipeError):
            _emit(protocol, {"error": failure.message, "code": failure.code, "hint": failure.hint})
        return 1


def _run(argv: list[str], protocol: FileIO) -> None:
    job = _JOBS.get(argv[0] if argv else "")
    if job is None:
        raise InvalidRequest(f"there is no job {' '.join(argv)!r}")
    line = sys.stdin.buffer.readline(_LONGEST_SPEC)
    threading.Thread(target=_exit_with_parent, daemon=True).start()

    def report(status: str, completed: int | None, total: int | None) -> None:
        _emit(protocol, {"status": status, "completed": completed, "total": total})

    job(line, report)


def _convert(line: bytes, report: Report) -> None:
    from mlxo.jobs.convert import Spec, convert

    try:
        spec = msgspec.json.decode(line, type=Spec)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the job's description is not valid: {error}") from error
    convert(spec, report)


_JOBS: dict[str, Callable[[bytes, Report], None]] = {"convert": _convert}


def _emit(protocol: FileIO, message: dict[str, object]) -> None:
    protocol.write(msgspec.json.encode(message) + b"\n")


def _exit_with_parent() -> None:
    """A killed parent closes the pipe without a word; half a conversion is worth nothing to anybody."""
    while os.read(0, 4096):
        pass
    os._exit(1)


def _of_system(error: OSError) -> MlxoError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # full, or a limit set on the user
        return DiskFull(
            "there is no room on the disk for the converted model",
            "free some space, for example with `mlxo gc`, and try again",
        )
    return MlxoError(f"the conversion failed: {error.strerror or error}: {error.filename or ''}".rstrip(": "))
