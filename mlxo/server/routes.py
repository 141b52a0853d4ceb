"""The route table. README's list of endpoints is made from it."""

from __future__ import annotations

from typing import NamedTuple

from aiohttp import web

from mlxo.server.handlers import generate, jobs, models
from mlxo.server.middleware import Handler


class Route(NamedTuple):
    """`head`: whether HEAD is answered too, as GET without its body."""

    method: str
    path: str
    handler: Handler
    help: str
    head: bool = False


ROUTES: tuple[Route, ...] = (
    Route("GET", "/", models.root, "says `Ollama is running`", head=True),
    Route("GET", "/api/version", models.version, "the version of the API, and mlxo's", head=True),
    Route(
        "POST", "/api/generate", generate.generate, "answer a prompt; without one, load or unload the model"
    ),
    Route("POST", "/api/chat", generate.chat, "answer a conversation"),
    Route("GET", "/api/tags", models.tags, "the models on disk", head=True),
    Route("GET", "/api/ps", models.ps, "the models in memory"),
    Route("POST", "/api/show", models.show, "what a model is made of"),
    Route("POST", "/api/create", jobs.create, "make a model from files, a package, a hub or another model"),
    Route("POST", "/api/pull", jobs.pull, "fetch a model from the gallery or from Hugging Face"),
    Route("POST", "/api/copy", models.copy, "give a model a second name"),
    Route("DELETE", "/api/delete", models.delete, "remove a model"),
    Route("HEAD", "/api/blobs/{digest}", models.has_blob, "whether a file is there"),
    Route("POST", "/api/blobs/{digest}", models.put_blob, "upload a file for a create"),
    Route("POST", "/api/verify", jobs.verify, "check every file against its digest"),
    Route("POST", "/api/gc", models.collect_garbage, "delete what no model refers to"),
)


def add(app: web.Application) -> None:
    for route in ROUTES:
        app.router.add_route(route.method, route.path, route.handler)
        if route.head:
            app.router.add_route("HEAD", route.path, route.handler)
