"""Deleting what nobody refers to (the caller holds the store's lock), and checking what somebody does."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from mlxo.core.errors import StoreError
from mlxo.core.paths import Paths
from mlxo.core.types import Frozen, Layer
from mlxo.store import disk, work
from mlxo.store.blobs import Blobs, Tick, hash_file
from mlxo.store.manifests import Manifests, Stored
from mlxo.store.progress import Progress, Report, check
from mlxo.store.views import Views

log = logging.getLogger("mlxo.store")

GRACE = 3600.0  # seconds; an upload waits this long for the create that names it


class Freed(Frozen, frozen=True, kw_only=True):
    """How many files went, and their bytes."""

    removed: int = 0
    bytes: int = 0


class Problem(Frozen, frozen=True, kw_only=True):
    """`model` is the short name of a model that is hit; `digest` is empty when its manifest itself is."""

    model: str
    digest: str
    problem: str


class Checked(Frozen, frozen=True, kw_only=True):
    """`checked` counts blobs."""

    problems: tuple[Problem, ...]
    checked: int


def sweep(paths: Paths, blobs: Blobs, manifests: Manifests, candidates: Iterable[Layer]) -> Freed:
    """Delete those of a removed manifest's blobs that nothing else needs, running operations included."""
    stored, unreadable = manifests.all()
    if unreadable:
        return Freed()  # it may refer to any of them; gc takes them once it is readable or gone
    used = _referenced(stored)
    limit = work.oldest_live(paths)
    gone = {blobs.path(layer.digest) for layer in candidates if layer.digest not in used}
    return _unlink(gone, limit)


def collect(paths: Paths, blobs: Blobs, manifests: Manifests, views: Views, grace: float = GRACE) -> Freed:
    """Delete unreferenced blobs and views and the leftovers in tmp/ that are older than `grace` seconds.

    With one unreadable manifest no blob and no view is deleted, since it might refer to them.
    """
    stored, unreadable = manifests.all()
    limit = min(time.time() - max(grace, 0.0), work.oldest_live(paths))
    freed = _unlink((p for p in _entries(paths.tmp) if not work.is_live(p)), limit)
    if unreadable:
        log.warning("gc deletes no blobs: %d manifests cannot be read", len(unreadable))
        return freed
    used = _referenced(stored)
    orphans = _unlink((path for digest, path in blobs.all() if digest not in used), limit)
    wanted = {s.digest for s in stored}
    for view in views.all():
        if view.name not in wanted and view.lstat().st_mtime <= limit:
            views.remove(view.name)
    return Freed(removed=freed.removed + orphans.removed, bytes=freed.bytes + orphans.bytes)


def verify(blobs: Blobs, manifests: Manifests, report: Report, cancelled: threading.Event) -> Checked:
    """Hash every blob that a model refers to. Progress counts bytes."""
    stored, unreadable = manifests.all()
    problems = [Problem(model=name.short, digest="", problem=e.message) for name, e in unreadable]
    layers = {layer.digest: (layer, s.name.short) for s in stored for layer in s.manifest.blobs}
    total = sum(layer.size for layer, _ in layers.values())
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        check(cancelled)
        done += count
        report(Progress(status="verifying sha256 digest", total=total, completed=min(done, total)))

    for layer, model in layers.values():
        problem = _examine(blobs, layer, tick)
        if problem is not None:
            problems.append(Problem(model=model, digest=layer.digest, problem=problem))
    return Checked(problems=tuple(problems), checked=len(layers))


def _examine(blobs: Blobs, layer: Layer, tick: Tick) -> str | None:
    path = blobs.path(layer.digest)
    try:
        with disk.guard(path):
            size = blobs.size(layer.digest)
            if size is None:
                return "the blob is missing"
            if size != layer.size:
                return f"the blob has {size} bytes instead of {layer.size}"
            found, _ = hash_file(path, tick)
    except StoreError as e:
        return e.message
    return None if found == layer.digest else f"the blob's content has the digest {found}"


def _referenced(stored: Iterable[Stored]) -> set[str]:
    return {layer.digest for s in stored for layer in s.manifest.blobs}


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def _unlink(candidates: Iterable[Path], limit: float) -> Freed:
    """Delete files and folders last touched before `limit`."""
    removed = size = 0
    for path in candidates:
        with disk.guard(path.parent), contextlib.suppress(FileNotFoundError):
            info = path.lstat()
            if info.st_mtime > limit:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
            removed += 1
            size += info.st_size
    return Freed(removed=removed, bytes=size)
