"""Several answers to one request: as many requests for the engine, their events as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import msgspec

from mlxo.core.types import Event, Request
from mlxo.server.stream import EventStream


def copies(request: Request, count: int) -> list[Request]:
    """The request `count` times, each with an id of its own; a seed that is given is counted up."""
    if count == 1:
        return [request]
    seed = request.options.seed
    made = []
    for i in range(count):
        options = request.options
        if seed is not None and seed != -1:
            options = msgspec.structs.replace(options, seed=(seed + i) % (1 << 63))
        made.append(msgspec.structs.replace(request, id=f"{request.id}-{i}", options=options))
    return made


async def merged(streams: Sequence[EventStream]) -> AsyncGenerator[tuple[int, list[Event]]]:
    """The batches of all streams, each with the index of its stream; an error of one ends them all."""

    async def look(stream: EventStream) -> list[Event] | None:
        return await anext(stream, None)

    pending = {asyncio.create_task(look(s)): i for i, s in enumerate(streams)}
    try:
        while pending:
            done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=pending.__getitem__):
                i = pending.pop(task)
                batch = task.result()
                if batch is not None:
                    yield i, batch
                    pending[asyncio.create_task(look(streams[i]))] = i
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
