"""Management: what is on disk, what is in memory, names and blobs. Shapes are Ollama's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from mlxo import OLLAMA_API_VERSION, __version__
from mlxo.core.errors import InvalidName, InvalidRequest, ModelNotFound, NotFound, StoreError
from mlxo.core.names import ModelName
from mlxo.core.types import RunnerStats
from mlxo.server import keys
from mlxo.server.dialects.body import decode
from mlxo.server.middleware import json_response
from mlxo.server.scheduler import Resident
from mlxo.store import gc
from mlxo.store.blobs import check_digest
from mlxo.store.entries import Details, Entry
from mlxo.store.registry import Registry

CHUNK = 1 << 20  # bytes of an upload that are hashed and written at a time
LONG = 5  # items of a metadata list that are shown unless the client wants all

R = TypeVar("R")


class NameBody(msgspec.Struct):
    """`name` is the older spelling of `model`."""

    model: str | None = None
    name: str | None = None
    stream: bool | None = None
    verbose: bool | None = None

    @property
    def wanted(self) -> str:
        return (self.model or self.name or "").strip()


class CopyBody(msgspec.Struct):
    source: str | None = None
    destination: str | None = None


class GcBody(msgspec.Struct):
    grace: float | None = None


async def root(http: web.Request) -> web.Response:
    return web.Response(text="Ollama is running")


async def version(http: web.Request) -> web.Response:
    return json_response({"version": OLLAMA_API_VERSION, "mlxo": __version__})


async def tags(http: web.Request) -> web.Response:
    entries = await asyncio.to_thread(http.app[keys.REGISTRY].list)
    rows = [
        {
            "name": e.name,
            "model": e.name,
            "modified_at": stamp(e.modified_at),
            "size": e.size,
            "digest": e.digest,
            "details": details(e),
            "capabilities": e.capabilities,
        }
        for e in entries
    ]
    return json_response({"models": rows})


async def ps(http: web.Request) -> web.Response:
    residents = http.app[keys.SCHEDULER].residents()
    rows = await asyncio.to_thread(_ps_rows, http.app[keys.REGISTRY], residents)
    return json_response({"models": rows})


def _ps_rows(registry: Registry, residents: Sequence[Resident]) -> list[dict[str, Any]]:
    rows = []
    for r in residents:
        stats = r.runner.stats if r.runner else RunnerStats()
        backend = stats.backend if r.runner else ""
        try:
            found: dict[str, Any] | None = details(registry.entry(registry.find(r.spec.name)))
        except (NotFound, StoreError):
            found = None  # deleted or damaged since it was loaded
        rows.append(
            {
                "name": r.spec.name,
                "model": r.spec.name,
                "size": r.size,
                "digest": r.spec.digest,
                "details": found or {},
                "expires_at": stamp(r.until),
                "size_vram": r.size if backend in ("metal", "cuda") else 0,
                "context_length": r.runner.context if r.runner else r.spec.context,
                "backend": backend,
                "running": stats.rows,
                "waiting": stats.waiting,
                "prefix_cache_bytes": stats.prefix_bytes,
            }
        )
    return rows


async def show(http: web.Request) -> web.Response:
    sent = decode(await http.read(), NameBody)
    if not sent.wanted:
        raise InvalidRequest("model is required")
    found = await asyncio.to_thread(http.app[keys.REGISTRY].show, sent.wanted)
    return json_response(show_body(found, verbose=bool(sent.verbose)))


def show_body(found: Details, *, verbose: bool) -> dict[str, Any]:
    """Absent texts are left out; long metadata lists are null and tensors absent unless `verbose`."""
    texts = {
        "license": "\n".join(found.licenses),
        "modelfile": found.modelfile,
        "parameters": found.parameters,
        "template": found.template,
        "system": found.system,
        "renderer": found.renderer,
        "parser": found.parser,
        "requires": found.requires,
    }
    body: dict[str, Any] = {key: text for key, text in texts.items() if text}
    body["details"] = details(found)
    if found.messages:
        body["messages"] = found.messages
    body["model_info"] = {
        key: None if isinstance(value, list | tuple) and len(value) > LONG and not verbose else value
        for key, value in found.model_info.items()
    }
    if verbose:
        body["tensors"] = found.tensors
    body["capabilities"] = found.capabilities
    body["modified_at"] = stamp(found.modified_at)
    return body


async def copy(http: web.Request) -> web.Response:
    sent = decode(await http.read(), CopyBody)
    source, destination = sent.source or "", sent.destination or ""
    for what, text in (("source", source), ("destination", destination)):
        check_name(what, text)
    try:
        await asyncio.to_thread(http.app[keys.REGISTRY].copy, source, destination)
    except ModelNotFound:
        raise ModelNotFound(f'model "{source}" not found') from None
    return web.Response()


async def delete(http: web.Request) -> web.Response:
    """A loaded model is let go first."""
    name = decode(await http.read(), NameBody).wanted
    check_name("name", name)
    registry = http.app[keys.REGISTRY]
    try:
        try:
            stored = await asyncio.to_thread(registry.find, name)
            await http.app[keys.SCHEDULER].unload(stored.name.short, stored.digest)
        except StoreError:
            pass  # its manifest cannot be read, so it is not loaded under this name; it can still be removed
        await asyncio.to_thread(registry.delete, name)
    except ModelNotFound:
        raise ModelNotFound(f"model '{name}' not found") from None
    return web.Response()


async def has_blob(http: web.Request) -> web.Response:
    """HEAD of a blob. Marks it as wanted, so that gc leaves it to the create that follows."""
    digest = check_digest(http.match_info["digest"])
    if await asyncio.to_thread(http.app[keys.REGISTRY].blobs.use, digest) is None:
        raise NotFound(f'blob "{digest}" not found')
    return web.Response()


async def put_blob(http: web.Request) -> web.Response:
    """Stream the body to disk: 201 when it is new, 200 when it was there, 400 when its digest is another."""
    digest = check_digest(http.match_info["digest"])
    blobs = http.app[keys.REGISTRY].blobs
    if await asyncio.to_thread(blobs.use, digest) is not None:
        return web.Response(status=200)
    with blobs.writer() as writer:
        async for chunk in http.content.iter_chunked(CHUNK):
            await _in_thread(writer.write, chunk)
        blob = await _in_thread(writer.commit, digest)
    return web.Response(status=200 if blob.existed else 201)


async def collect_garbage(http: web.Request) -> web.Response:
    body = await http.read()
    grace = decode(body, GcBody).grace if body else None
    freed = await asyncio.to_thread(http.app[keys.REGISTRY].gc, gc.GRACE if grace is None else grace)
    return json_response({"removed": freed.removed, "freed": freed.bytes})


def check_name(what: str, text: str) -> None:
    """Raises InvalidRequest: `<what> "<text>" is invalid`."""
    try:
        ModelName.parse(text)
    except InvalidName as e:
        shown = text.encode("unicode_escape").decode("ascii")[:80]
        raise InvalidName(f'{what} "{shown}" is invalid', e.hint) from None


def details(entry: Entry) -> dict[str, Any]:
    return {
        "parent_model": entry.parent_model,
        "format": entry.format,
        "family": entry.family,
        "families": entry.families,
        "parameter_size": entry.parameter_size,
        "quantization_level": entry.quantization,
        "context_length": entry.context_length,
        "embedding_length": entry.embedding_length,
    }


def stamp(seconds: float) -> str:
    """RFC 3339 with this machine's offset, of seconds since the epoch."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat()


async def _in_thread(function: Callable[..., R], *args: Any) -> R:
    """Like asyncio.to_thread, but a cancelled caller waits for the thread, which still uses its file."""
    future = asyncio.ensure_future(asyncio.to_thread(function, *args))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        future.exception()  # seen: the caller is past hearing it
        raise
