"""views/<manifest digest>/: a folder of relative links with the original file names, for mlx-lm to read."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from mlxo.core.errors import Corrupt
from mlxo.core.paths import Paths
from mlxo.core.types import Layer
from mlxo.store import disk
from mlxo.store.blobs import Blobs
from mlxo.store.manifests import Stored


class Views:
    """A cache: a view is made whole under tmp/ and renamed, and made again when something is missing."""

    def __init__(self, paths: Paths, blobs: Blobs) -> None:
        self._folder = paths.views
        self._tmp = paths.tmp
        self._blobs = blobs

    def path(self, digest: str) -> Path:
        return self._folder / digest

    def ensure(self, stored: Stored) -> Path:
        """The folder of a model. Raises Corrupt when one of its blobs is missing or has another size."""
        files = stored.manifest.files
        for layer in files:
            if self._blobs.size(layer.digest) != layer.size:
                raise Corrupt(
                    f"{stored.name.short} cannot be read: its file {layer.name} is missing or damaged",
                    f"mlxo verify says more; mlxo pull {stored.name.short} fetches it again",
                )
        view = self.path(stored.digest)
        with disk.guard(self._folder):
            if not self._complete(view, files):
                self._build(view, files)
        return view

    def _target(self, layer: Layer) -> str:
        link = self.path("0" * 64) / str(layer.name)
        return os.path.relpath(self._blobs.path(layer.digest), link.parent)

    def _complete(self, view: Path, files: tuple[Layer, ...]) -> bool:
        return all(_links(view / str(layer.name), self._target(layer)) for layer in files)

    def _build(self, view: Path, files: tuple[Layer, ...]) -> None:
        temp = disk.temporary(self._tmp, "view")
        temp.mkdir()
        try:
            link_files(temp, {str(layer.name): self._target(layer) for layer in files})
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                temp.rename(view)
            except OSError as e:
                if e.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                if self._complete(view, files):  # another thread has just made it
                    return
                self.remove(view.name)
                temp.rename(view)
        finally:
            shutil.rmtree(temp, ignore_errors=True)

    def remove(self, digest: str) -> None:
        """Rename first, so that nobody meets half a view."""
        gone = disk.temporary(self._tmp, "view")
        try:
            self.path(digest).rename(gone)
        except FileNotFoundError:
            return
        shutil.rmtree(gone, ignore_errors=True)

    def all(self) -> list[Path]:
        try:
            return sorted(self._folder.iterdir())
        except FileNotFoundError:
            return []


def link_files(folder: Path, targets: dict[str, str]) -> None:
    """Make symbolic links; the names were checked when their manifest was read."""
    for name, target in targets.items():
        link = folder / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(target)


def _links(link: Path, target: str) -> bool:
    try:
        return os.readlink(link) == target
    except OSError:
        return False
