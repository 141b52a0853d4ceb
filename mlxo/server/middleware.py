"""Around every handler: request ids, who may ask, and errors as answers.

One of the four places of mlxo that catch every exception: whatever a handler raises becomes one JSON
sentence, and its traceback goes to the log alone.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import logging
import re
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from mlxo import __version__
from mlxo.core.errors import Busy, Cancelled, InvalidRequest, MlxoError
from mlxo.server import keys, running
from mlxo.server.dialects import ollama_lines
from mlxo.server.dialects.base import ErrorShape

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SERVER = f"mlxo/{__version__}"
JSON = "application/json; charset=utf-8"
ALLOWED_METHODS = "GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS"
ALLOWED_HEADERS = ", ".join(
    (
        *("Authorization", "Content-Type", "User-Agent", "Accept", "X-Requested-With", "OpenAI-Beta"),
        *("x-stainless-lang", "x-stainless-package-version", "x-stainless-os", "x-stainless-arch"),
        *("x-stainless-retry-count", "x-stainless-runtime", "x-stainless-runtime-version"),
        *("x-stainless-async", "x-stainless-helper-method", "x-stainless-poll-helper"),
        *("x-stainless-custom-poll-interval", "x-stainless-timeout"),
        *("X-Api-Key", "anthropic-version", "anthropic-beta", "anthropic-dangerous-direct-browser-access"),
    )
)
LOCAL_ORIGINS = (
    *(
        f"{s}://{h}{p}"
        for s in ("http", "https")
        for h in ("localhost", "127.0.0.1", "0.0.0.0")
        for p in ("", ":*")
    ),
    *("app://*", "file://*", "tauri://*", "vscode-webview://*", "vscode-file://*"),
    *("chrome-extension://*", "moz-extension://*", "safari-web-extension://*"),
)

_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_ids = itertools.count(1)


@dataclass(frozen=True)
class Stream:
    """A response whose first bytes are out: errors can only be told as its last line."""

    response: web.StreamResponse
    encode_error: Callable[[MlxoError], bytes]


# How the errors of a route look, where they do not look like Ollama's.
SHAPES = web.AppKey("shapes", dict[Handler, ErrorShape])
PUBLIC_ID = web.RequestKey("public id", str)
REQUEST_ID = web.RequestKey("id", str)
STREAM = web.RequestKey("stream", Stream)
ALLOWED_ORIGIN = web.RequestKey("origin", str)


def _public_id(request: web.Request) -> str:
    """What the client calls it, if it may be called so, else what we do."""
    wanted = request.headers.get("X-Request-Id", "")
    free = _ID.fullmatch(wanted) and wanted not in request.app[keys.RUNNING]
    return wanted if free else request[REQUEST_ID]


async def start_stream(
    request: web.Request, content_type: str, encode_error: Callable[[MlxoError], bytes]
) -> web.StreamResponse:
    """Send the head of a streamed answer; from here on `errors` ends it with a line instead of a status."""
    response = web.StreamResponse(headers={"Content-Type": content_type})
    request[STREAM] = Stream(response, encode_error)
    await response.prepare(request)
    return response


def json_response(body: object, status: int = 200) -> web.Response:
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return web.Response(body=data, status=status, headers={"Content-Type": JSON})


@web.middleware
async def name(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Number the request and log how it went."""
    request[REQUEST_ID] = f"r{next(_ids)}"
    started = time.monotonic()
    status: int | str = "left"
    try:
        with running.registered(request.app[keys.RUNNING], _public_id(request)) as request[PUBLIC_ID]:
            response = await handler(request)
        status = response.status
        return response
    finally:
        level = logging.DEBUG if status == 200 and request.method in ("GET", "HEAD") else logging.INFO
        took, path = time.monotonic() - started, request.raw_path[:200]
        log.log(level, "%s %s %s %s %.3fs", request[REQUEST_ID], request.method, path, status, took)


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every exception becomes an answer; a client that has left gets none."""
    error: MlxoError
    try:
        return await handler(request)
    except web.HTTPException as e:
        return _plain(e, _shape(request))
    except MlxoError as e:
        error = e
    except asyncio.CancelledError:
        if not request.app[keys.RUNNING][request[PUBLIC_ID]].was_cancelled():
            raise
        error = Cancelled("the request was cancelled")
    except Exception as e:
        if request.transport is None or request.transport.is_closing():
            error = Cancelled("the client left")
        elif isinstance(e, web.RequestPayloadError):
            error = InvalidRequest("the request body is not encoded as its headers say")
        else:
            log.exception("%s %s %s failed", request[REQUEST_ID], request.method, request.raw_path[:200])
            error = MlxoError(
                f"the server met an error it did not expect: {type(e).__name__}", "see: mlxo daemon logs"
            )
    stream = request.get(STREAM)
    if stream is None:
        status, body = _shape(request)(error)
        response = json_response(body, status)
        if isinstance(error, Busy):
            response.headers["Retry-After"] = str(error.retry_after)
        return response
    return await _end_stream(stream, error)


async def _end_stream(stream: Stream, error: MlxoError) -> web.StreamResponse:
    try:
        await stream.response.write(stream.encode_error(error))
        await stream.response.write_eof()
    except ConnectionError:
        log.debug("the client left before it could be told: %s", error.message)
    return stream.response


def _shape(request: web.Request) -> ErrorShape:
    return request.app[SHAPES].get(request.match_info.handler, ollama_lines.error)


def _plain(e: web.HTTPException, shape: ErrorShape) -> web.StreamResponse:
    """aiohttp's own refusals, in the words of Ollama's router where it has some."""
    if isinstance(e, web.HTTPRequestEntityTooLarge):
        return json_response(shape(InvalidRequest("the request body is too large"))[1], e.status)
    texts = {404: "404 page not found", 405: "405 method not allowed"}
    headers = {"Allow": e.headers["Allow"]} if "Allow" in e.headers else {}
    return web.Response(status=e.status, text=texts.get(e.status, f"{e.status} {e.reason}"), headers=headers)


def guard(*, loopback: bool, origins: Sequence[str]) -> Middleware:
    """Refuse browsers of foreign pages: by Host when the server is bound to this machine alone (a page cannot
    then reach it through a name of its own), and by Origin unless it is allowed.
    """
    allowed = _patterns((*origins, *LOCAL_ORIGINS))
    everybody = "*" in origins

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if loopback and not host_allowed(request.headers.get("Host", "")):
            return web.Response(status=403)
        origin = request.headers.get("Origin", "")
        if origin and origin.partition("://")[2] != request.headers.get("Host"):
            if not everybody and not allowed.fullmatch(origin):
                return web.Response(status=403)
            request[ALLOWED_ORIGIN] = "*" if everybody else origin
            if request.method == "OPTIONS":
                return web.Response(status=204, headers=_PREFLIGHT)
        return await handler(request)

    return check


_PREFLIGHT = {
    "Access-Control-Allow-Methods": ALLOWED_METHODS,
    "Access-Control-Allow-Headers": ALLOWED_HEADERS,
    "Access-Control-Max-Age": "43200",
}


async def stamp(request: web.Request, response: web.StreamResponse) -> None:
    """On every response, streamed ones included: who answers, and for which page."""
    response.headers["Server"] = SERVER
    response.headers["X-Request-Id"] = request[PUBLIC_ID]
    origin = request.get(ALLOWED_ORIGIN)
    if origin is not None:
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Vary"] = "Origin"


def host_allowed(header: str) -> bool:
    """Whether a Host header names this machine or its local network, rather than a page's domain."""
    try:
        host = urlsplit(f"//{header}").hostname
        if not host or host == "localhost" or host == socket.gethostname().lower():
            return True
        address = ipaddress.ip_address(host)
    except ValueError:
        return header.partition(":")[0].lower().endswith((".localhost", ".local", ".internal"))
    return address.is_loopback or address.is_private or address.is_unspecified


def _patterns(origins: Sequence[str]) -> re.Pattern[str]:
    """One pattern of all origins, in which `*` stands for anything."""
    return re.compile("|".join(re.escape(o).replace(r"\*", ".*") for o in origins), re.IGNORECASE)
