"""Writing so that a crash at any moment leaves the old thing or the new one, and saying why when it fails."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from mlxo.core.errors import DiskFull, StoreError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


def explain(e: OSError, folder: Path) -> StoreError:
    """The error of our tree for what the system said about something under `folder`."""
    if e.errno in _FULL:
        return DiskFull(
            f"there is no space left to write in {folder}",
            "free some space or point MLXO_HOME at a larger disk; nothing was lost, so just try again",
        )
    where = e.filename if isinstance(e.filename, str) else folder
    if e.errno in _DENIED:
        return StoreError(
            f"{where} cannot be used: {os.strerror(e.errno)}", "check who owns it, or set MLXO_HOME"
        )
    return StoreError(f"{where}: {e.strerror or e}")


@contextlib.contextmanager
def guard(folder: Path) -> Iterator[None]:
    """Turn an OSError into a StoreError. Never put it around network code: a hub's errors are some too."""
    try:
        yield
    except OSError as e:
        raise explain(e, folder) from e


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def temporary(folder: Path, kind: str) -> Path:
    """A fresh path in `folder`, which is made when it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{kind}-{secrets.token_hex(8)}"


def replace(source: Path, target: Path) -> None:
    """Rename, durable; `source` must be synced already and lie on the same file system."""
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)
    sync_folder(target.parent)


def write(target: Path, data: bytes, tmp: Path) -> None:
    """Write a small file: temporary, fsync, rename, fsync of the folder."""
    path = temporary(tmp, "file")
    try:
        with path.open("xb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        replace(path, target)
    finally:
        path.unlink(missing_ok=True)
