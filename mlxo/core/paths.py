"""Where things lie under MLXO_HOME. Nothing here touches the disk."""

from __future__ import annotations

from pathlib import Path

import msgspec


class Paths(msgspec.Struct, frozen=True):
    """The layout of a home.

    blobs/sha256-<hex>                          content-addressed files
    manifests/<host>/<namespace>/<model>/<tag>  what a name means, JSON
    views/<digest>/<file name>                  links that give mlx-lm a folder with the original names
    tmp/                                        half-written things; anything here may be deleted
    daemon.lock, daemon.json, start.lock        the daemon: its lock, its pid and address
    cache/                                      what may be deleted: it is made again
    cache/prompts/                              what models have read (core.cachedir)
    logs/daemon.log, history
    """

    home: Path

    @property
    def blobs(self) -> Path:
        return self.home / "blobs"

    @property
    def manifests(self) -> Path:
        return self.home / "manifests"

    @property
    def views(self) -> Path:
        return self.home / "views"

    @property
    def tmp(self) -> Path:
        return self.home / "tmp"

    @property
    def prompts(self) -> Path:
        return self.home / "cache" / "prompts"

    @property
    def store_lock(self) -> Path:
        return self.home / "store.lock"

    @property
    def daemon_lock(self) -> Path:
        """Held by the daemon for as long as it lives."""
        return self.home / "daemon.lock"

    @property
    def daemon_state(self) -> Path:
        return self.home / "daemon.json"

    @property
    def start_lock(self) -> Path:
        """Held by the one client that is starting a daemon."""
        return self.home / "start.lock"

    @property
    def daemon_log(self) -> Path:
        return self.home / "logs" / "daemon.log"

    @property
    def history(self) -> Path:
        return self.home / "history"
