"""Long operations and the lock. A work folder is tmp/work-<random>/ with a lock file that its owner holds.

The lock dies with its process, so after a kill -9 the folder is rubbish. While it is held, blobs touched
since the folder was made may belong to a model whose manifest is not written yet, and nobody deletes them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import filelock

from mlxo.core.errors import Busy
from mlxo.core.paths import Paths
from mlxo.store import disk

PREFIX = "work-"
_LOCK = "lock"
_PATIENCE = 60.0  # seconds; the store's lock is only ever held for file names, never for data


@contextlib.contextmanager
def locked(paths: Paths) -> Iterator[None]:
    """The one lock of a mutation. Not reentrant."""
    with disk.guard(paths.home):
        paths.home.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(paths.store_lock)
        try:
            lock.acquire(timeout=_PATIENCE)
        except filelock.Timeout:
            raise Busy(f"another process holds {paths.store_lock}", "try again") from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def workspace(paths: Paths) -> Iterator[Path]:
    """A folder for one operation's temporary files, removed at the end."""
    with locked(paths), disk.guard(paths.tmp):
        folder = disk.temporary(paths.tmp, "work")
        folder.mkdir()
        lock = filelock.FileLock(folder / _LOCK)
        lock.acquire(timeout=0)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def lock_of(partial: Path) -> Path:
    """The lock file of a download in tmp/."""
    return partial.with_name(partial.name + ".lock")


def is_live(path: Path) -> bool:
    """Whether somebody is at work in (or, for a file, downloading to) this entry of tmp/."""
    if path.is_dir():
        lock_path = path / _LOCK
    else:
        lock_path = path if path.suffix == ".lock" else lock_of(path)
    if not lock_path.exists():
        return False
    lock = filelock.FileLock(lock_path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return True
    lock.release()
    return False


def oldest_live(paths: Paths) -> float:
    """When the oldest operation still running began, in seconds since the epoch; now, when there is none."""
    starts = [time.time()]
    for folder in paths.tmp.glob(PREFIX + "*"):
        with contextlib.suppress(FileNotFoundError):
            if is_live(folder):
                starts.append(os.stat(folder / _LOCK).st_mtime)
    return min(starts)
