"""Inference: one path for every dialect and for streamed and whole answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack, aclosing

import msgspec
from aiohttp import web

from mlxo.core.errors import InvalidRequest, LoadFailed, ModelNotFound
from mlxo.core.options import DEFAULTS
from mlxo.core.types import Chat, Event, Finished, ModelSpec, Request, Tokenize, Touch
from mlxo.server import keys
from mlxo.server.dialects.base import Answer, Choices, Dialect, Parsed, Whole
from mlxo.server.handlers.choices import copies, merged
from mlxo.server.middleware import REQUEST_ID, json_response, start_stream
from mlxo.server.scheduler import Runner


async def infer(http: web.Request, dialect: Dialect) -> web.StreamResponse:
    """Parse, resolve, lease, submit, answer. Leaving early, by error or by client, cancels in the runner."""
    parsed = dialect.parse(await http.read(), http[REQUEST_ID])
    answer = dialect.answer(parsed)
    spec = await resolve(http, parsed.request.model, dialect.missing)
    try:
        return await _infer(http, parsed, answer, spec)
    except LoadFailed:
        # A create or a delete during the load takes the files away from under it.
        now = await resolve(http, parsed.request.model, dialect.missing)
        if now.digest == spec.digest:
            raise
        return await _infer(http, parsed, answer, now)


async def _infer(http: web.Request, parsed: Parsed, answer: Whole, spec: ModelSpec) -> web.StreamResponse:
    request = complete(parsed, spec)
    scheduler = http.app[keys.SCHEDULER]
    touch = isinstance(request.task, Touch)
    if touch and request.keep_alive == 0:
        await scheduler.unload(spec.name, spec.digest)
        return json_response(answer.collect([Finished(reason="unload")]))
    async with scheduler.lease(spec, request.keep_alive) as runner:
        if touch:
            return json_response(answer.collect([Finished(reason="load")]))
        answer.loaded()
        if parsed.copies > 1:
            return await _several(http, answer, runner, copies(request, parsed.copies))
        with runner.submit(request) as events:
            if request.stream:
                assert isinstance(answer, Answer)
                return await _stream(http, answer, (answer.encode(batch) async for batch in events))
            collected: list[Event] = []
            async for batch in events:
                collected += batch
    return json_response(answer.collect(collected))


async def _several(
    http: web.Request, answer: Whole, runner: Runner, requests: list[Request]
) -> web.StreamResponse:
    """One answer that has several choices. If one of them fails, or the client leaves, all end."""
    assert isinstance(answer, Choices)
    with ExitStack() as running:
        events = merged([running.enter_context(runner.submit(r)) for r in requests])
        async with aclosing(events):
            if requests[0].stream:
                pieces = (answer.encode_choice(i, batch) async for i, batch in events)
                return await _stream(http, answer, pieces)
            collected: list[list[Event]] = [[] for _ in requests]
            async for i, batch in events:
                collected[i] += batch
    return json_response(answer.collect_choices(collected))


async def resolve(http: web.Request, model: str, missing: str) -> ModelSpec:
    """The model of this name. Raises ModelNotFound, in words with the name as the client wrote it."""
    try:
        return await http.app[keys.SPECS].resolve(model)
    except ModelNotFound as e:
        raise ModelNotFound(missing.format(model), e.hint) from None


def complete(parsed: Parsed, spec: ModelSpec) -> Request:
    """The request with what the model says filled in. Raises InvalidRequest when the model cannot do it."""
    for need in parsed.needs:
        if need.capability not in spec.capabilities:
            raise InvalidRequest(need.complaint)
    request, task = parsed.request, parsed.request.task
    chat = task.of if isinstance(task, Tokenize) else task
    if isinstance(chat, Chat) and chat.think is None and "thinking" in spec.capabilities:
        chat = msgspec.structs.replace(chat, think=True)
        task = Tokenize(of=chat, names=task.names) if isinstance(task, Tokenize) else chat
    options = request.options.over(spec.options).over(DEFAULTS)
    return msgspec.structs.replace(request, task=task, options=options)


async def _stream(http: web.Request, answer: Answer, pieces: AsyncIterator[bytes]) -> web.StreamResponse:
    """The head goes out with the first bytes, so that an error before them has a status of its own."""
    response: web.StreamResponse | None = None
    async for data in pieces:
        if not data:
            continue
        if response is None:
            response = await start_stream(http, answer.content_type, answer.encode_error)
        await response.write(data)
    if response is None:
        return web.Response(headers={"Content-Type": answer.content_type})
    await response.write_eof()
    return response
