"""Wires the server: settings, registry and scheduler behind typed keys, routes behind middleware."""

from __future__ import annotations

import asyncio

from aiohttp import web

from mlxo.core.errors import Busy
from mlxo.core.settings import Settings
from mlxo.server import keys, middleware, routes
from mlxo.server.jobs import Jobs
from mlxo.server.responses import Responses
from mlxo.server.scheduler import Scheduler
from mlxo.server.specs import Specs
from mlxo.store.registry import Registry

MAX_JSON = 64 << 20  # bytes of a JSON body: a chat with some pictures; blobs are streamed and have no limit


def init_app(settings: Settings, registry: Registry, scheduler: Scheduler) -> web.Application:
    """The application. The caller runs it; its shutdown ends every open answer with an error line."""
    app = web.Application(
        middlewares=[
            middleware.name,
            middleware.errors,
            middleware.guard(loopback=settings.address.is_loopback, origins=settings.origins),
        ],
        client_max_size=MAX_JSON,
    )
    app[keys.SETTINGS] = settings
    app[keys.REGISTRY] = registry
    app[keys.SCHEDULER] = scheduler
    app[keys.SPECS] = Specs(registry, scheduler)
    app[keys.JOBS] = Jobs()
    app[keys.RUNNING] = {}
    app[keys.RESPONSES] = Responses()
    app.on_response_prepare.append(middleware.stamp)
    app.on_shutdown.append(_end_requests)
    routes.add(app)
    return app


async def _end_requests(app: web.Application) -> None:
    reason = Busy("the server is shutting down")
    await asyncio.gather(app[keys.JOBS].close(reason), app[keys.SCHEDULER].close(reason))
