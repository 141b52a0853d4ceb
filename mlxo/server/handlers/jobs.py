"""Create, pull and verify: store operations whose progress is streamed as NDJSON."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from contextlib import aclosing
from typing import Any

import msgspec
from aiohttp import web

from mlxo.core import duration
from mlxo.core.errors import Corrupt, InvalidRequest, MlxoError
from mlxo.core.names import ModelName
from mlxo.core.options import from_json
from mlxo.modelfile import parse_quantize
from mlxo.server import keys
from mlxo.server.dialects import ollama
from mlxo.server.dialects.body import decode
from mlxo.server.dialects.ollama_lines import error as error_body
from mlxo.server.handlers.models import NameBody
from mlxo.server.jobs import Work
from mlxo.server.middleware import json_response, start_stream
from mlxo.store import create as creation
from mlxo.store import pull as pulling
from mlxo.store.create import Recipe
from mlxo.store.progress import Report

NDJSON = "application/x-ndjson"


class CreateBody(NameBody):
    """Ollama's fields, and `keep_alive` and `draft` of ours. `files` and `adapters` map paths to digests."""

    from_: str | None = msgspec.field(default=None, name="from")
    files: dict[str, str] | None = None
    adapters: dict[str, str] | None = None
    draft_files: dict[str, str] | None = None
    template: str | None = None
    system: str | None = None
    parameters: dict[str, Any] | None = None
    license: str | list[str] | None = None
    messages: list[ollama.MessageBody] | None = None
    quantize: str | None = None
    quantization: str | None = None
    keep_alive: Any = None
    draft: str | None = None
    renderer: str | None = None
    parser: str | None = None
    requires: str | None = None


async def create(http: web.Request) -> web.StreamResponse:
    body = await http.read()
    sent = decode(body, CreateBody)
    name = wanted_name(sent)
    wanted = recipe(sent)
    registry = http.app[keys.REGISTRY]

    def work(report: Report, cancelled: threading.Event) -> None:
        try:
            creation.create(registry, name.full, wanted, report, cancelled)
        except Corrupt as e:
            if not wanted.files:
                raise
            raise InvalidRequest(e.message, e.hint) from e  # the client's upload is broken, not our store

    return await run_job(http, ("create", name.key, body), str(name.key), work, stream=sent.stream)


async def pull(http: web.Request) -> web.StreamResponse:
    sent = decode(await http.read(), NameBody)
    name = wanted_name(sent)
    registry = http.app[keys.REGISTRY]

    def work(report: Report, cancelled: threading.Event) -> None:
        pulling.pull(registry, name.full, report, cancelled)

    return await run_job(http, ("pull", name.key), str(name.key), work, stream=sent.stream)


async def verify(http: web.Request) -> web.StreamResponse:
    body = await http.read()
    sent = decode(body, NameBody) if body else NameBody()
    registry = http.app[keys.REGISTRY]

    def work(report: Report, cancelled: threading.Event) -> dict[str, Any]:
        checked = registry.verify(report, cancelled)
        return {"problems": checked.problems, "checked": checked.checked}

    return await run_job(http, "verify", "verify", work, stream=sent.stream)


def wanted_name(sent: NameBody) -> ModelName:
    """Raises InvalidRequest."""
    if not sent.wanted:
        raise InvalidRequest("model is required")
    return ModelName.parse(sent.wanted)


def recipe(sent: CreateBody) -> Recipe:
    """Raises InvalidRequest."""
    if sent.draft_files:
        raise InvalidRequest(
            "draft_files are not supported", "create the draft as a model, and name it in draft"
        )
    licenses = [sent.license] if isinstance(sent.license, str) else sent.license or []
    quantize = sent.quantize or sent.quantization
    return Recipe(
        from_=(sent.from_ or "").strip(),
        files=sent.files or {},
        adapter=", ".join(sent.adapters) if sent.adapters else None,
        template=sent.template,
        system=sent.system,
        options=from_json(sent.parameters or {}),
        messages=tuple(ollama.message(m) for m in sent.messages or ()),
        licenses=tuple(text for text in licenses if text),
        quantize=parse_quantize(quantize) if quantize else None,
        keep_alive=duration.keep_alive(sent.keep_alive),
        draft=sent.draft,
        renderer=sent.renderer,
        parser=sent.parser,
        requires=sent.requires,
    )


async def run_job(
    http: web.Request, key: Hashable, turn: str, work: Work, *, stream: bool | None
) -> web.StreamResponse:
    """Run `work` and send its progress, then {"status": "success"} with what it returned.

    `stream` False sends the last line alone. The store says `success` too, before its last file is closed:
    ours is the one that counts.
    """
    job = http.app[keys.JOBS].join(key, turn, work)
    response: web.StreamResponse | None = None
    async with aclosing(job.follow()) as progress:
        async for batch in progress:
            lines = b"".join(msgspec.json.encode(p) + b"\n" for p in batch if p.status != "success")
            if stream is False or not lines:
                continue
            if response is None:
                response = await start_stream(http, NDJSON, encode_error)
            await response.write(lines)
    last = msgspec.json.encode({"status": "success"} | (job.result() or {}))
    if response is None and stream is False:
        return json_response(last)
    if response is None:
        response = await start_stream(http, NDJSON, encode_error)
    await response.write(last + b"\n")
    await response.write_eof()
    return response


def encode_error(error: MlxoError) -> bytes:
    return msgspec.json.encode(error_body(error)[1]) + b"\n"
