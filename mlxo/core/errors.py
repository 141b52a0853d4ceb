"""Every error mlxo raises on purpose.

    MlxoError
    +-- InvalidRequest          400  the caller sent something that cannot be done
    |   +-- InvalidName         400  a model name outside the grammar
    |   +-- ModelfileError      400  a Modelfile that does not parse; carries its line
    |   +-- UnsupportedModel    400  an architecture, tensor type or feature that mlxo does not have
    |   +-- TooLarge            400  a model that this machine cannot hold, whatever else leaves
    +-- Forbidden               403
    +-- NotFound                404
    |   +-- ModelNotFound       404
    +-- Cancelled               499  the client left
    +-- Busy                    503  try again; the queue or the memory is full
    |   +-- Stalled             503  the runner stood still and was ended
    +-- StoreError              500  the registry on disk
    |   +-- DiskFull            507
    |   +-- Corrupt             500  bytes that do not match their digest or their format
    +-- UpstreamError           502  a hub or registry answered badly or not at all
    +-- RunnerError             500  the child process that holds a model
    |   +-- LoadFailed          500
    |   +-- RunnerDied          500
    +-- ServerUnreachable       503  (CLI) no daemon, or a foreign program on its port

A message is one sentence that says what happened; a hint is what to type next. Neither is a traceback.
"""

from __future__ import annotations

from typing import ClassVar


class MlxoError(Exception):
    """Base of the tree. `status` is the HTTP status, `code` a stable word for machines."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InvalidRequest(MlxoError):
    status = 400
    code = "invalid_request"


class InvalidName(InvalidRequest):
    code = "invalid_name"


class ModelfileError(InvalidRequest):
    """`line` is 1-based, or None when the whole file is meant (no FROM line)."""

    code = "invalid_modelfile"

    def __init__(self, message: str, line: int | None = None, hint: str | None = None) -> None:
        super().__init__(message if line is None else f"(line {line}): {message}", hint)
        self.line = line


class UnsupportedModel(InvalidRequest):
    code = "unsupported_model"


class TooLarge(InvalidRequest):
    code = "too_large"


class Forbidden(MlxoError):
    status = 403
    code = "forbidden"


class NotFound(MlxoError):
    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class Cancelled(MlxoError):
    status = 499
    code = "cancelled"


class Busy(MlxoError):
    """`retry_after` is in seconds."""

    status = 503
    code = "busy"

    def __init__(self, message: str, hint: str | None = None, retry_after: int = 5) -> None:
        super().__init__(message, hint)
        self.retry_after = retry_after


class Stalled(Busy):
    code = "stalled"


class StoreError(MlxoError):
    code = "store_error"


class DiskFull(StoreError):
    status = 507
    code = "disk_full"


class Corrupt(StoreError):
    code = "corrupt"


class UpstreamError(MlxoError):
    status = 502
    code = "upstream_error"


class RunnerError(MlxoError):
    code = "runner_error"


class LoadFailed(RunnerError):
    code = "load_failed"


class RunnerDied(RunnerError):
    code = "runner_died"


class ServerUnreachable(MlxoError):
    status = 503
    code = "server_unreachable"


def _tree(root: type[MlxoError]) -> dict[str, type[MlxoError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


def from_code(code: str, message: str, hint: str | None = None) -> MlxoError:
    """The error that another process named by `code`; an unknown code gives a plain MlxoError."""
    cls = _tree(MlxoError).get(code, MlxoError)
    error = cls.__new__(cls)
    MlxoError.__init__(error, message, hint)
    if isinstance(error, Busy):
        error.retry_after = 5
    if isinstance(error, ModelfileError):
        error.line = None
    return error
