"""The content-addressed files: blobs/sha256-<64 hex>. A blob is written once and never changed."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from mlxo.core.errors import InvalidRequest, NotFound
from mlxo.core.paths import Paths
from mlxo.store import disk

CHUNK = 1 << 20
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})\Z")
Tick = Callable[[int], None]


class Blob(NamedTuple):
    """`digest` is `sha256:<64 hex>`, `size` bytes; `existed` when the same bytes were there before."""

    digest: str
    size: int
    existed: bool


def check_digest(text: str) -> str:
    """The digest as `sha256:<64 hex>`; the dash form is accepted. Raises InvalidRequest."""
    match = _DIGEST.match(text) if isinstance(text, str) else None
    if match is None:
        raise InvalidRequest("invalid digest format", "a digest is sha256: and 64 hexadecimal digits")
    return f"sha256:{match[1]}"


def short(digest: str) -> str:
    """The first 12 hex digits, as progress lines show them."""
    return digest.removeprefix("sha256:")[:12]


class Blobs:
    """Safe for several threads and processes: every write lands by rename."""

    def __init__(self, paths: Paths) -> None:
        self._folder = paths.blobs
        self._tmp = paths.tmp

    def path(self, digest: str) -> Path:
        """Where the blob lies or would lie. Raises InvalidRequest for anything but a digest."""
        return self._folder / check_digest(digest).replace(":", "-")

    def size(self, digest: str) -> int | None:
        """Bytes of the blob, None when it is missing."""
        with disk.guard(self._folder):
            try:
                return self.path(digest).stat().st_size
            except FileNotFoundError:
                return None

    def has(self, digest: str) -> bool:
        return self.size(digest) is not None

    def use(self, digest: str, size: int | None = None) -> int | None:
        """The blob's size, after marking it as wanted by work that is under way (see store.gc).

        None when it is missing, or when it is not `size` bytes long.
        """
        path = self.path(digest)
        with disk.guard(self._folder):
            try:
                found = path.stat().st_size
                if size is not None and found != size:
                    return None
                os.utime(path)
            except FileNotFoundError:
                return None
        return found

    def read(self, digest: str) -> bytes:
        with disk.guard(self._folder):
            try:
                return self.path(digest).read_bytes()
            except FileNotFoundError:
                raise NotFound(f'blob "{digest}" not found') from None

    def writer(self) -> Writer:
        return Writer(self._folder, self._tmp)

    def add_bytes(self, data: bytes) -> Blob:
        with self.writer() as writer:
            writer.write(data)
            return writer.commit()

    def add_file(self, source: Path, link: bool = False, tick: Tick | None = None) -> Blob:
        """Copy `source` in, or with `link` give it a second name (for files of our own, never for a user's).

        `tick` is called with each number of bytes that was hashed; what it raises stops the copy.
        """
        if link:
            linked = self._link(source, tick)
            if linked is not None:
                return linked
        with self.writer() as writer, disk.guard(source), source.open("rb") as f:
            while chunk := f.read(CHUNK):
                writer.write(chunk)
                if tick is not None:
                    tick(len(chunk))
            return writer.commit()

    def _link(self, source: Path, tick: Tick | None) -> Blob | None:
        """None when the file system cannot link there."""
        with disk.guard(self._folder):
            temp = disk.temporary(self._tmp, "blob")
            try:
                os.link(source, temp)
            except OSError:
                return None
            try:
                digest, size = hash_file(temp, tick)
                return _settle(temp, self._folder, digest, size)
            finally:
                temp.unlink(missing_ok=True)

    def adopt(self, partial: Path, digest: str, size: int) -> Blob:
        """Move a finished, already hashed file of tmp/ in."""
        with disk.guard(self._folder):
            return _settle(partial, self._folder, digest, size)

    def all(self) -> Iterator[tuple[str, Path]]:
        """(digest, path) of every blob; other files in the folder are not ours to touch."""
        try:
            entries = sorted(os.listdir(self._folder))
        except FileNotFoundError:
            return
        for entry in entries:
            if _DIGEST.match(entry) and entry[6] == "-":
                yield entry.replace("-", ":", 1), self._folder / entry


class Writer:
    """One blob in the making: hashed while it is written, gone unless `commit` is reached."""

    def __init__(self, folder: Path, tmp: Path) -> None:
        self._folder = folder
        self._hash = hashlib.sha256()
        self._size = 0
        with disk.guard(folder):
            self._path = disk.temporary(tmp, "blob")
            self._file = self._path.open("xb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError:
            # Closing flushes; a full disk has then been reported by the write or the commit before.
            if error is None:
                raise
        finally:
            self._path.unlink(missing_ok=True)

    def write(self, data: bytes) -> None:
        with disk.guard(self._folder):
            self._file.write(data)
        self._hash.update(data)
        self._size += len(data)

    def commit(self, expect: str | None = None) -> Blob:
        """Raises InvalidRequest when the bytes are not those of the digest `expect`."""
        digest = f"sha256:{self._hash.hexdigest()}"
        if expect is not None and check_digest(expect) != digest:
            raise InvalidRequest(f'digest mismatch, expected "{check_digest(expect)}", got "{digest}"')
        with disk.guard(self._folder):
            self._file.close()
            return _settle(self._path, self._folder, digest, self._size)


def _settle(temp: Path, folder: Path, digest: str, size: int) -> Blob:
    """Rename into place, over a blob that may have rotted: these bytes have just been hashed."""
    target = folder / digest.replace(":", "-")
    existed = target.exists()
    fd = os.open(temp, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    os.utime(temp)
    disk.replace(temp, target)
    return Blob(digest, size, existed)


def hash_file(path: Path, tick: Tick | None = None) -> tuple[str, int]:
    """(digest, bytes) of a file."""
    hasher = hashlib.sha256()
    size = 0
    with path.open("rb") as f:
        while chunk := f.read(CHUNK):
            hasher.update(chunk)
            size += len(chunk)
            if tick is not None:
                tick(len(chunk))
    return f"sha256:{hasher.hexdigest()}", size
