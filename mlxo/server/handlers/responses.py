"""OpenAI's /v1/responses: made like every answer, kept for those who come back to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from mlxo.core.errors import InvalidRequest, NotFound
from mlxo.server import keys
from mlxo.server.dialects.base import Dialect, Folded
from mlxo.server.dialects.openai_lines import error
from mlxo.server.dialects.openai_responses import counted, parse, parse_count
from mlxo.server.dialects.openai_responses_lines import ResponsesAnswer
from mlxo.server.handlers.generate import infer
from mlxo.server.middleware import PUBLIC_ID, REQUEST_ID, json_response
from mlxo.server.responses import Open

_PAGE = 20
_MOST = 100

Json = dict[str, Any]


async def create(http: web.Request) -> web.StreamResponse:
    kept = http.app[keys.RESPONSES]
    asked = parse(await http.read(), http[REQUEST_ID], kept.turns, kept.item)

    def keep(response: Json) -> None:
        if asked.store:
            kept.keep(response, asked.items)

    answer = ResponsesAnswer(asked, keep)
    running = http.app[keys.RUNNING][http[PUBLIC_ID]]
    with kept.opened(Open(answer.response, running.cancel, answer.fail)):
        return await infer(http, Dialect(lambda *_: asked.parsed, lambda _: answer, error))


async def count(http: web.Request) -> web.StreamResponse:
    kept = http.app[keys.RESPONSES]
    parsed = parse_count(await http.read(), http[REQUEST_ID], kept.turns, kept.item)
    return await infer(http, Dialect(lambda *_: parsed, lambda _: Folded(counted), error))


async def get(http: web.Request) -> web.Response:
    if http.query.get("stream") == "true":
        raise InvalidRequest("mlxo does not support stream for a response that is there already")
    return json_response(http.app[keys.RESPONSES].get(http.match_info["id"]))


async def delete(http: web.Request) -> web.Response:
    id_ = http.match_info["id"]
    http.app[keys.RESPONSES].delete(id_)
    return json_response({"id": id_, "object": "response", "deleted": True})


async def cancel(http: web.Request) -> web.Response:
    return json_response(http.app[keys.RESPONSES].cancel(http.match_info["id"]))


async def input_items(http: web.Request) -> web.Response:
    """A page of what a response was made of, the latest first unless `order` is asc."""
    items = http.app[keys.RESPONSES].items(http.match_info["id"])
    return json_response(_page(items, http.query))


def _page(items: Sequence[Json], query: Any) -> Json:
    order, limit = query.get("order", "desc"), query.get("limit", str(_PAGE))
    if order not in ("asc", "desc"):
        raise InvalidRequest("order must be asc or desc")
    if not (limit.isascii() and limit.isdigit() and len(limit) < 4 and 1 <= int(limit) <= _MOST):
        raise InvalidRequest(f"limit must be between 1 and {_MOST}")
    found = list(items) if order == "asc" else list(reversed(items))
    after = query.get("after")
    if after:
        places = [i for i, item in enumerate(found) if item["id"] == after]
        if not places:
            raise NotFound(f"there is no item {after[:80]!r}")
        found = found[places[0] + 1 :]
    page = found[: int(limit)]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(found) > len(page),
    }
