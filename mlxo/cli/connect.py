"""A client of the server, which is started when it is not there."""

from __future__ import annotations

import json
import os
import sys
from typing import NamedTuple

from mlxo.cli.client import Client
from mlxo.core import settings as core_settings
from mlxo.core.paths import Paths
from mlxo.core.settings import Settings


class State(NamedTuple):
    """daemon.json, as the daemon wrote it."""

    pid: int
    address: str
    version: str


def read_state(paths: Paths) -> State | None:
    try:
        raw = json.loads(paths.daemon_state.read_bytes())
        return State(int(raw["pid"]), str(raw["address"]), str(raw["version"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def connect() -> Client:
    """A client of a server that is there: started now if need be. Every verb begins with this."""
    return ensure(core_settings.load())


def ensure(settings: Settings) -> Client:
    client = Client(settings.address.client)
    if client.listening():
        _warn_of_other_home(settings)
        return client
    if not settings.address.is_local:
        raise client.unreachable("connection refused or no route")
    from mlxo.cli.daemon import start

    start(settings, client)
    return client


def _warn_of_other_home(settings: Settings) -> None:
    """A server that was started with another MLXO_HOME answers for other models than the user expects."""
    if "MLXO_HOME" not in os.environ or not settings.address.is_local:
        return
    state = read_state(Paths(settings.home))
    if state is None or core_settings.parse_address(state.address).port != settings.address.port:
        print(
            f"Warning: the server on {settings.address} was not started with MLXO_HOME={settings.home}; "
            "give this home an address of its own with MLXO_HOST",
            file=sys.stderr,
        )
