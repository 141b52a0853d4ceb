"""The models on disk as OpenAI's clients ask for them, with their context length and capabilities beside."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from mlxo.core.errors import InvalidName, ModelNotFound
from mlxo.core.names import ModelName
from mlxo.server import keys
from mlxo.server.middleware import json_response
from mlxo.store.entries import Entry
from mlxo.store.registry import Registry


async def models(http: web.Request) -> web.Response:
    entries = await asyncio.to_thread(http.app[keys.REGISTRY].list)
    return json_response({"object": "list", "data": [_row(e) for e in entries]})


async def model(http: web.Request) -> web.Response:
    name = http.match_info["name"]
    try:
        entry = await asyncio.to_thread(_entry, http.app[keys.REGISTRY], name)
    except (ModelNotFound, InvalidName) as e:
        raise ModelNotFound(f"model '{name}' not found", e.hint) from None
    return json_response(_row(entry))


def _entry(registry: Registry, name: str) -> Entry:
    return registry.entry(registry.find(name))


def _row(entry: Entry) -> dict[str, Any]:
    """`created` is seconds since the epoch."""
    return {
        "id": entry.name,
        "object": "model",
        "created": int(entry.modified_at),
        "owned_by": ModelName.parse(entry.name).namespace,
        "context_length": entry.context_length,
        "capabilities": entry.capabilities,
    }
