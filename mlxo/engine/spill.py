"""Kept prompts on disk: blocks written behind the engine's back, found again by the next runner.

The engine thread asks and hands over bytes; one thread writes, deletes and keeps the folder under its cap.
Whatever goes wrong with a file is a miss: it is deleted, and the prompt is read as if it had never been.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from mlxo.core import cachedir
from mlxo.engine import record
from mlxo.engine.layout import Layout, Parts, Specs
from mlxo.engine.record import Bytes, Head

log = logging.getLogger(__name__)

_T = TypeVar("_T")

# Bytes handed over and not yet written; beyond it blocks are not kept on disk.
PENDING = 512 << 20
# Records of one parent whose heads are read: each costs some 50 microseconds of the engine's time.
_FAMILY = 256
# Seconds for which the count of the folder's bytes is believed: others write there too.
_RECOUNT = 2.0
# Bytes of the disk that are never taken, whatever the cap.
RESERVE = 1 << 30


class Store(NamedTuple):
    """Where kept prompts live and how many bytes everything there may take; `cap` 0 keeps none."""

    folder: Path
    cap: int


class _Write(NamedTuple):
    path: Path
    head: Head
    data: list[Bytes]
    size: int
    replaces: list[Path]


class Spill:
    """The records of one model. Raises nothing: a disk that fails is a cache that misses."""

    def __init__(self, store: Store, model: str, dtype: str, layout: Layout) -> None:
        """`model` is its digest, `dtype` what it computes in; `layout` must have specs that are storable."""
        assert layout.specs is not None
        self._specs: Specs = layout.specs
        self._store = store
        key = hashlib.sha256(f"{dtype} {layout.describe()}".encode()).hexdigest()[:16]
        self._folder = store.folder / cachedir.current() / f"{model}-{key}"
        self._families: dict[str, list[Path]] = {}
        self._heads: dict[Path, Head] = {}
        self._pending = 0
        # Bytes that may be written now: half of the cap, and half of it again in an hour.
        self._allowance = store.cap / 2
        self._counted = time.monotonic()
        self._lock = threading.Lock()
        # The writing thread's: bytes in the whole folder, and when they were counted.
        self._taken, self._scanned = 0, float("-inf")
        self._tasks: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._list()
        self._thread = threading.Thread(target=self._work, name="prefixes", daemon=True)
        self._thread.start()
        self._tasks.put(lambda: self._make_room(0))

    def _list(self) -> None:
        for file in sorted(cachedir.scan(self._folder), key=lambda f: f.used):
            parent, _, rest = file.path.name.partition("-")
            if rest.endswith(cachedir.SUFFIX):
                self._families.setdefault(parent, []).append(file.path)

    # ------------------------------------------------------------ engine thread

    def _path(self, parent: bytes, key: bytes) -> Path:
        return self._folder / f"{parent.hex()}-{key.hex()}{cachedir.SUFFIX}"

    def children(self, parent: bytes, most: int) -> list[Head]:
        """The blocks that follow `parent`, of at most `most` tokens each."""
        heads = []
        for path in self._families.get(parent.hex(), ())[-_FAMILY:]:
            head = self._read(path, lambda p: record.read_head(p, self._specs, most))
            if head is not None and path == self._path(parent, record.digest(parent, head.tokens)):
                self._heads[path] = head
                heads.append(head)
        return heads

    def load(self, parent: bytes, key: bytes, start: int) -> Parts | None:
        """The block, which begins at token `start`; None when its record is gone."""
        path = self._path(parent, key)
        head = self._heads.get(path)
        data = head and self._read(path, lambda p: record.read(p, self._specs, head))
        if head is None or data is None:
            self._heads.pop(path, None)
            return None
        return record.parts(self._specs, head, start, data)

    def _read(self, path: Path, how: Callable[[Path], _T | None]) -> _T | None:
        try:
            found = how(path)
        except FileNotFoundError:
            return None
        except (OSError, MemoryError) as e:
            log.warning("a kept prompt cannot be read: %s", e)
            return None
        if found is None:
            log.warning("a kept prompt is damaged and is deleted: %s", path.name)
            self._tasks.put(lambda: _delete([path]))
        return found

    def save(self, parent: bytes, key: bytes, head: Head, parts: Parts, replaces: Sequence[bytes]) -> bool:
        """Hand a block over to be written, and the blocks `replaces` of the same parent to be deleted then.

        Waits for its arrays. False when it may not be written now.
        """
        size = record.size(self._specs, head)
        if not record.fits(parts, self._specs, head) or not self._may(size):
            return False
        data = record.raw(parts.arrays)
        path = self._path(parent, key)
        if path not in self._heads:
            self._families.setdefault(parent.hex(), []).append(path)
        self._heads[path] = head
        with self._lock:
            self._pending += size
        gone = [self._path(parent, other) for other in replaces]
        self._tasks.put(lambda: self._write(_Write(path, head, data, size, gone)))
        return True

    def used(self, blocks: Sequence[tuple[bytes, bytes]]) -> None:
        """Note that these, each a parent and a key, are of use, the last of them the most."""
        paths = [self._path(parent, key) for parent, key in blocks]
        self._tasks.put(lambda: _touch(paths))

    def _may(self, size: int) -> bool:
        now = time.monotonic()
        half = self._store.cap / 2
        self._allowance = min(half, self._allowance + (now - self._counted) * half / 3600)
        self._counted = now
        if size > self._allowance or self._pending + size > PENDING:
            return False
        self._allowance -= size
        return True

    def close(self, seconds: float) -> None:
        """Write what was handed over, for at most so long."""
        self._tasks.put(None)
        self._thread.join(seconds)

    # ------------------------------------------------------------ the writing thread

    def _work(self) -> None:
        said = ""
        while (task := self._tasks.get()) is not None:
            try:
                task()
            except OSError as e:
                if str(e) != said:
                    log.warning("a prompt cannot be kept on disk: %s", e)
                said = str(e)

    def _write(self, block: _Write) -> None:
        try:
            if self._make_room(block.size):
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # it says what people asked
                part = self._folder / f"{secrets.token_hex(8)}{cachedir.PART}"
                try:
                    record.write(part, self._specs, block.head, block.data)
                    part.replace(block.path)
                finally:
                    part.unlink(missing_ok=True)
                _delete(block.replaces)
        finally:
            with self._lock:
                self._pending -= block.size

    def _make_room(self, size: int) -> bool:
        """Whether `size` bytes fit, once everything that has to go for them is gone."""
        cap = self._store.cap
        if time.monotonic() - self._scanned > _RECOUNT or self._taken + size > cap:
            files = cachedir.scan(self._store.folder)
            self._taken, self._scanned = sum(f.size for f in files), time.monotonic()
            self._taken -= cachedir.delete(cachedir.surplus(files, cap, size, time.time()))
        disk = os.statvfs(_existing(self._store.folder))
        fits = self._taken + size <= cap and disk.f_bavail * disk.f_frsize >= RESERVE + size
        if fits:
            self._taken += size
        return fits


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)


def _touch(paths: Sequence[Path]) -> None:
    # The clock of the file system ticks too slowly to tell one from the next.
    now = time.time_ns()
    for i, path in enumerate(paths):
        with contextlib.suppress(FileNotFoundError):
            os.utime(path, ns=(now + 1000 * i, now + 1000 * i))


def _delete(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
