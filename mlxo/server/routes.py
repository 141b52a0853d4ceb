"""The route table. README's list of endpoints is made from it."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from aiohttp import web

from mlxo.server.dialects import anthropic, embeddings, ollama, ollama_lines, openai, openai_lines, tokens
from mlxo.server.dialects.base import Dialect, ErrorShape
from mlxo.server.handlers import catalogue, jobs, models, responses, status
from mlxo.server.handlers.generate import infer
from mlxo.server.middleware import SHAPES, Handler


class Route(NamedTuple):
    """`head`: whether HEAD is answered too, as GET without its body. `error`: how its errors look."""

    method: str
    path: str
    handler: Handler
    help: str
    head: bool = False
    error: ErrorShape = ollama_lines.error


def _inference(path: str, dialect: Dialect, help: str) -> Route:
    return Route("POST", path, partial(infer, dialect=dialect), help, error=dialect.error)


def _v1(method: str, path: str, handler: Handler, help: str) -> Route:
    return Route(method, path, handler, help, error=openai_lines.error)


ROUTES: tuple[Route, ...] = (
    Route("GET", "/", models.root, "says `Ollama is running`", head=True),
    Route("GET", "/api/version", models.version, "the version of the API, and mlxo's", head=True),
    _inference("/api/generate", ollama.GENERATE, "answer a prompt; without one, load or unload the model"),
    _inference("/api/chat", ollama.CHAT, "answer a conversation"),
    Route("DELETE", "/api/requests/{id}", status.cancel, "end a request, by its X-Request-Id"),
    Route("GET", "/health", status.health, "whether every model in memory moves; 503 when one stands still"),
    Route("GET", "/api/tags", models.tags, "the models on disk", head=True),
    Route("GET", "/api/ps", models.ps, "the models in memory"),
    Route("POST", "/api/show", models.show, "what a model is made of"),
    Route("POST", "/api/create", jobs.create, "make a model from files, a package, a hub or another model"),
    Route("POST", "/api/pull", jobs.pull, "fetch a model from the gallery or from Hugging Face"),
    Route("POST", "/api/copy", models.copy, "give a model a second name"),
    Route("DELETE", "/api/delete", models.delete, "remove a model"),
    Route("HEAD", "/api/blobs/{digest}", models.has_blob, "whether a file is there"),
    Route("POST", "/api/blobs/{digest}", models.put_blob, "upload a file for a create"),
    _inference("/v1/chat/completions", openai.CHAT, "OpenAI: answer a conversation"),
    _inference(
        "/v1/completions", openai.COMPLETION, "OpenAI: go on with a text as it is, without a template"
    ),
    Route(
        "GET",
        "/v1/models",
        catalogue.models,
        "OpenAI: the models on disk, with what they can do",
        error=openai_lines.error,
    ),
    Route("GET", "/v1/models/{name:.+}", catalogue.model, "OpenAI: one of them", error=openai_lines.error),
    _v1("POST", "/v1/responses", responses.create, "OpenAI: answer, and keep it for what comes after"),
    _v1("POST", "/v1/responses/input_tokens", responses.count, "OpenAI: how many tokens such a request is"),
    _v1("GET", "/v1/responses/{id}", responses.get, "OpenAI: an answer that was kept"),
    _v1("DELETE", "/v1/responses/{id}", responses.delete, "OpenAI: forget it"),
    _v1("POST", "/v1/responses/{id}/cancel", responses.cancel, "OpenAI: end it while it is being made"),
    _v1("GET", "/v1/responses/{id}/input_items", responses.input_items, "OpenAI: what it was made of"),
    _inference("/v1/messages", anthropic.MESSAGES, "Anthropic: answer a conversation"),
    _inference("/v1/messages/count_tokens", anthropic.COUNT, "Anthropic: how many tokens a conversation is"),
    _inference("/api/embed", embeddings.EMBED, "vectors of texts"),
    _inference("/api/embeddings", embeddings.EMBEDDINGS, "the older form of it, for one text"),
    _inference("/v1/embeddings", embeddings.V1_EMBEDDINGS, "OpenAI: vectors of texts or token ids"),
    _inference("/api/tokenize", tokens.TOKENIZE, "the token ids of a text"),
    _inference("/api/detokenize", tokens.DETOKENIZE, "the text of token ids"),
    _inference("/v1/tokenize", tokens.V1_TOKENIZE, "vLLM: the token ids of a text or a conversation"),
    _inference("/v1/detokenize", tokens.V1_DETOKENIZE, "vLLM: the text of token ids"),
    Route("POST", "/api/verify", jobs.verify, "check every file against its digest"),
    Route("POST", "/api/gc", models.collect_garbage, "delete what no model refers to"),
)


def add(app: web.Application) -> None:
    app[SHAPES] = {route.handler: route.error for route in ROUTES}
    for route in ROUTES:
        app.router.add_route(route.method, route.path, route.handler)
        if route.head:
            app.router.add_route("HEAD", route.path, route.handler)
