"""Whether the server is well, and the end of a request that is not wanted any more."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from mlxo.core.errors import NotFound
from mlxo.server import keys
from mlxo.server.middleware import json_response
from mlxo.server.scheduler import Resident

SILENT = 30.0  # seconds without a word from an engine that has work: longer than a step takes anywhere


async def health(http: web.Request) -> web.Response:
    """503 when an engine is dead or stands still, though the port is open.

    An idle engine is asked for a word, too: what it owes by the next time counts.
    """
    residents = http.app[keys.SCHEDULER].residents()
    states = {r.spec.name: _state(r) for r in residents}
    for resident in residents:
        if resident.runner is not None and resident.runner.alive:
            resident.runner.ping()
    well = not {"dead", "stalled"} & set(states.values())
    body: dict[str, Any] = {"status": "ok" if well else "unhealthy", "models": states}
    response = json_response(body, 200 if well else 503)
    if not well:
        response.headers["Retry-After"] = "5"
    return response


def _state(resident: Resident) -> str:
    runner = resident.runner
    if runner is None:
        return "loading"
    if not runner.alive:
        return "dead"
    if runner.silent >= SILENT:
        return "stalled"
    return "busy" if resident.refs else "idle"


async def cancel(http: web.Request) -> web.Response:
    """End a request by the X-Request-Id that it brought or was given."""
    id_ = http.match_info["id"]
    running = http.app[keys.RUNNING].get(id_)
    if running is None:
        raise NotFound(f"no request {id_[:128]!r} is running", "its answer's X-Request-Id header names it")
    running.cancel()
    return json_response({"status": "cancelled"})
