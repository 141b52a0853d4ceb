"""Specs of the models in memory, by the names that clients write: a busy model is not read from disk for
every request.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import NamedTuple

from mlxo.core.names import ModelName
from mlxo.core.types import ModelSpec
from mlxo.server.scheduler import Scheduler
from mlxo.store.registry import Registry

_MOST = 1024  # names


class _Known(NamedTuple):
    path: Path
    stamp: tuple[int, ...] | None
    spec: ModelSpec


class Specs:
    """A spec holds while its manifest is the same file and its model is in memory. Event loop only."""

    def __init__(self, registry: Registry, scheduler: Scheduler) -> None:
        self._registry = registry
        self._scheduler = scheduler
        self._known: dict[str, _Known] = {}

    async def resolve(self, name: str) -> ModelSpec:
        """Raises what Registry.resolve does."""
        known = self._known.get(name)
        if known and self._scheduler.holds(known.spec.digest) and _stamp(known.path) == known.stamp:
            return known.spec
        found = await asyncio.to_thread(self._read, name)
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[name] = found
        return found.spec

    def _read(self, name: str) -> _Known:
        path = self._registry.manifests.path(ModelName.parse(name))
        # Before the manifest is read: one that is replaced meanwhile is read again next time.
        stamp = _stamp(path)
        return _Known(path, stamp, self._registry.resolve(name))


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Which file it is; a manifest is always a new one, by rename."""
    try:
        s = os.stat(path)
    except OSError:
        return None
    return s.st_ino, s.st_mtime_ns, s.st_size
