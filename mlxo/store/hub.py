"""Hugging Face repositories: which files make the model, and how each becomes a blob.

One request lists a revision's files with sizes and digests; each file that is not a blob yet is streamed into
tmp/pull-<id> and goes on from there after a cut, a cancel or a crash. What arrives is held against the listed
digest (SHA-256 of a large file, Git's SHA-1 of a small one). File names and sizes are not trusted.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import filelock
import msgspec

from mlxo.core.errors import Corrupt, NotFound, UpstreamError
from mlxo.core.names import DEFAULT_HOST, DEFAULT_NAMESPACE, DEFAULT_TAG, ModelName
from mlxo.core.types import Frozen
from mlxo.store import disk, folder, work
from mlxo.store.blobs import CHUNK, hash_file, short
from mlxo.store.hub_http import Hub, Interrupted
from mlxo.store.progress import Progress, check

if TYPE_CHECKING:
    from mlxo.store.sources import Making

_PERIOD = 0.06  # seconds between two progress lines of a file
_MAX_LISTING = 64 << 20  # bytes
_QUANT = re.compile(r"I?Q\d|F16|BF16|F32|MXFP4", re.IGNORECASE)
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf\Z", re.IGNORECASE)


class _Lfs(Frozen, frozen=True, kw_only=True):
    sha256: str


class _File(Frozen, frozen=True, kw_only=True):
    """One file of the listing. `oid` is Git's SHA-1, `lfs` set for a file that is kept outside Git."""

    name: str = msgspec.field(name="rfilename")
    size: int
    oid: str = msgspec.field(name="blobId", default="")
    lfs: _Lfs | None = None

    @property
    def sound(self) -> bool:
        if self.lfs is not None:
            return self.size >= 0 and re.fullmatch(r"[0-9a-f]{64}", self.lfs.sha256) is not None
        return self.size >= 0 and re.fullmatch(r"[0-9a-f]{40}", self.oid) is not None

    @property
    def digest(self) -> str | None:
        """`sha256:<hex>` of a large file."""
        return f"sha256:{self.lfs.sha256}" if self.lfs else None

    @property
    def key(self) -> str:
        """Names the partial download by its content; safe whatever the hub says."""
        content = self.lfs.sha256 if self.lfs else self.oid
        return hashlib.sha256(f"{content} {self.size}".encode()).hexdigest()[:32]


class _Listing(Frozen, frozen=True, kw_only=True):
    sha: str
    siblings: list[_File]


def is_repository(name: ModelName) -> bool:
    """Whether `name`, which is not here, can mean a repository: hf.co/org/repo, or org/repo for short."""
    return name.is_hub or (name.host == DEFAULT_HOST and name.namespace != DEFAULT_NAMESPACE)


def fetch(making: Making, name: ModelName) -> dict[str, str]:
    """The files of the model: name -> digest of its blob. Raises NotFound, Forbidden, UpstreamError."""
    making.say("pulling manifest")
    hub = Hub(f"{name.namespace}/{name.model}", making.cancelled)
    quant = name.tag if _QUANT.match(name.tag) else None
    listing = _list(hub, "main" if quant or name.tag == DEFAULT_TAG else name.tag)
    wanted = _choose(listing.siblings, quant)
    digests = {file.name: _Download(making, hub, file, listing.sha).obtain() for file in wanted}
    making.say("verifying sha256 digest")
    return digests


def _list(hub: Hub, revision: str) -> _Listing:
    def read() -> bytes:
        with hub.open(
            f"/api/models/{hub.repo}/revision/{quote(revision, safe='')}?blobs=true", {}
        ) as response:
            data = bytearray()
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > _MAX_LISTING:
                    raise UpstreamError(f"{hub.host} sent a listing of {hub.repo} without end")
            return bytes(data)

    try:
        listing = msgspec.json.decode(hub.patiently(read, lambda: 0), type=_Listing)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise UpstreamError(
            f"{hub.host} sent a listing of {hub.repo} that cannot be read: {e}", "check HF_ENDPOINT"
        ) from None
    if not re.fullmatch(r"[0-9a-f]{7,64}", listing.sha) or not all(file.sound for file in listing.siblings):
        raise UpstreamError(
            f"{hub.host} sent a listing of {hub.repo} that makes no sense", "check HF_ENDPOINT"
        )
    return listing


def _choose(files: list[_File], quant: str | None) -> list[_File]:
    """The safetensors files and what belongs to them, else one GGUF file."""
    by_name = {folder.check_relative(file.name): file for file in files}
    ggufs = sorted(
        n
        for n in by_name
        if "/" not in n and n.lower().endswith(".gguf") and not n.lower().startswith("mmproj")
    )
    if quant is None and (not ggufs or any(folder.is_weights(n) for n in by_name)):
        return [by_name[n] for n in folder.select(by_name)]
    whole = [n for n in ggufs if not _SPLIT.search(n)]
    fitting = [n for n in whole if (quant or "Q4_K_M").lower() in n.lower()]
    if not whole or (quant and not fitting):
        raise NotFound(
            f"the repository has no single GGUF file for {quant or 'this model'}",
            "it has " + ", ".join(ggufs[:8]) if ggufs else "leave the tag away to take its safetensors",
        )
    return [by_name[(fitting or whole)[0]]]


class _Download:
    """One file on its way to a blob. tmp/pull-<key> holds what has arrived; its lock makes others wait."""

    def __init__(self, making: Making, hub: Hub, file: _File, commit: str) -> None:
        self._making = making
        self._blobs = making.registry.blobs
        self._hub = hub
        self._file = file
        self._path = f"/{hub.repo}/resolve/{commit}/{quote(file.name)}"
        self._partial = making.registry.paths.tmp / f"pull-{file.key}"
        self._next_line = 0.0

    def obtain(self) -> str:
        """The digest of the file's blob, which is downloaded unless it is here."""
        with self._exclusive():
            known = self._known()
            if known is not None:
                self._tell(self._file.size)
                return known
            resumed = _size(self._partial) > 0
            digest = self._fetched()
            if digest is None and resumed:  # what was there may have suffered in a power cut
                digest = self._fetched()
        if digest is None:
            raise Corrupt(
                f"{self._file.name} of {self._hub.repo} does not have the digest that {self._hub.host} lists",
                "pull it again",
            )
        return digest

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Two pulls of one file share one download: the second waits, then finds the blob."""
        with disk.guard(self._partial.parent):
            self._partial.parent.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(work.lock_of(self._partial))
            while True:
                check(self._making.cancelled)
                with contextlib.suppress(filelock.Timeout):
                    lock.acquire(timeout=0.5)
                    break
        try:
            yield
        finally:
            lock.release()

    def _known(self) -> str | None:
        """The digest when the very file is a blob already."""
        file = self._file
        if file.digest is not None:
            return file.digest if self._blobs.use(file.digest, file.size) is not None else None
        for stored in self._making.registry.manifests.all()[0]:
            for layer in stored.manifest.files:
                same = layer.name == file.name and self._blobs.use(layer.digest, file.size) is not None
                if same and _git_oid(self._blobs.path(layer.digest)) == file.oid:
                    return layer.digest
        return None

    def _fetched(self) -> str | None:
        """Download what is missing and make it a blob; None, having deleted it, when its digest is wrong."""
        self._hub.patiently(self._stream, lambda: _size(self._partial))
        with disk.guard(self._partial.parent):
            digest, size = hash_file(self._partial, lambda _: check(self._making.cancelled))
            right = (
                digest == self._file.digest
                if self._file.digest
                else _git_oid(self._partial) == self._file.oid
            )
            if not right:
                self._partial.unlink()
                return None
        return self._blobs.adopt(self._partial, digest, size).digest

    def _stream(self) -> None:
        """One request for what is missing of the file."""
        have = _size(self._partial)
        if have > self._file.size:
            have = 0
        elif have == self._file.size and have:
            return
        with self._hub.open(self._path, {"Range": f"bytes={have}-"} if have else {}) as response:
            if have and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                have = 0  # this server does not resume
            with self._append(have) as write:
                for chunk in response.iter_bytes():  # as it arrives, so that a cut loses nothing
                    have += len(chunk)
                    if have > self._file.size:
                        raise UpstreamError(
                            f"{self._hub.host} sends more of {self._file.name} than it listed",
                            "pull it again",
                        )
                    write(chunk)
                    check(self._making.cancelled)
                    self._tell(have)
        if have < self._file.size:
            raise Interrupted(
                UpstreamError(f"{self._hub.host} sends less of {self._file.name} than it listed")
            )

    @contextlib.contextmanager
    def _append(self, at: int) -> Iterator[Callable[[bytes], None]]:
        """Writes to the partial file from offset `at`. A full disk leaves what was written, to go on from."""
        with disk.guard(self._partial.parent):
            file = self._partial.open("r+b" if at else "wb", buffering=0)

        def write(chunk: bytes) -> None:
            with disk.guard(self._partial.parent):
                rest = memoryview(chunk)
                while rest:
                    rest = rest[file.write(rest) :]

        with file:
            file.seek(at)
            yield write

    def _tell(self, completed: int) -> None:
        """A progress line; for a small file only its name. Lines come no faster than a screen is redrawn."""
        file = self._file
        now = time.monotonic()
        if completed < file.size and now < self._next_line:
            return
        self._next_line = now + _PERIOD
        if file.digest is not None:
            status = f"pulling {short(file.digest)}"
            line = Progress(status=status, digest=file.digest, total=file.size, completed=completed)
        else:
            line = Progress(status=f"pulling {file.name}")
        self._making.report(line)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _git_oid(path: Path) -> str:
    """The SHA-1 by which Git names a file's content."""
    with path.open("rb") as f:
        hasher = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
        while chunk := f.read(CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest()
