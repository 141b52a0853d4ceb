"""What the handlers find in the application, by typed key."""

from __future__ import annotations

from aiohttp import web

from mlxo.core.settings import Settings
from mlxo.server.jobs import Jobs
from mlxo.server.responses import Responses
from mlxo.server.running import Running
from mlxo.server.scheduler import Scheduler
from mlxo.server.specs import Specs
from mlxo.store.registry import Registry

SETTINGS = web.AppKey("settings", Settings)
REGISTRY = web.AppKey("registry", Registry)
SCHEDULER = web.AppKey("scheduler", Scheduler)
SPECS = web.AppKey("specs", Specs)
RUNNING = web.AppKey("running", dict[str, Running])
RESPONSES = web.AppKey("responses", Responses)
JOBS = web.AppKey("jobs", Jobs)
