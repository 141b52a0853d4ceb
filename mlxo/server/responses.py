"""The responses that clients may come back to, in memory; the least recently used go first.

Belongs to the event loop. They do not outlive the server, and no other client needs to be kept from them: who
can reach the server can ask for everything on it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec

from mlxo.core.errors import Cancelled, InvalidRequest, NotFound

COUNT = 1000
BYTES = 64 << 20  # of their JSON

Json = dict[str, Any]


class Kept(NamedTuple):
    """A response, and the items that it was made of, earlier turns first. `size` is the bytes of both."""

    response: Json
    items: Sequence[Json]
    size: int


class Open(NamedTuple):
    """A response that is being made; `cancel` ends its request, `fail` the response itself."""

    response: Json
    cancel: Callable[[], None]
    fail: Callable[[Cancelled], None]


class Responses:
    """By id. An item is kept as long as a response that has it."""

    def __init__(self, count: int = COUNT, size: int = BYTES) -> None:
        self._most = count
        self._room = size
        self._size = 0
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._index: dict[str, Json] | None = None  # made when it is asked for
        self._open: dict[str, Open] = {}

    def keep(self, response: Json, items: Sequence[Json]) -> None:
        """Keep what has ended; one that is larger than all the room is not kept."""
        size = len(msgspec.json.encode((response, items)))
        if size > self._room:
            return
        self._index = None
        self._kept[response["id"]] = Kept(response, items, size)
        self._size += size
        while len(self._kept) > self._most or self._size > self._room:
            _, oldest = self._kept.popitem(last=False)
            self._size -= oldest.size

    def get(self, id_: str) -> Json:
        """A response, as far as it is. Raises NotFound."""
        if id_ in self._open:
            return self._open[id_].response
        return self._find(id_).response

    def items(self, id_: str) -> Sequence[Json]:
        """What the response `id_` was made of. Raises NotFound."""
        return self._find(id_).items

    def turns(self, id_: str) -> list[Json]:
        """What a response that follows on `id_` goes by. Raises NotFound."""
        kept = self._find(id_)
        return [*kept.items, *kept.response["output"]]

    def item(self, id_: str) -> Json | None:
        """The item `id_` of any response, or of what one was made of."""
        if self._index is None:
            every = self._kept.values()
            self._index = {i["id"]: i for kept in every for i in (*kept.items, *kept.response["output"])}
        return self._index.get(id_)

    def delete(self, id_: str) -> None:
        """Raises NotFound."""
        self._size -= self._find(id_).size
        self._index = None
        del self._kept[id_]

    def cancel(self, id_: str) -> Json:
        """End a response that is being made; a cancelled one stays so. Raises NotFound, InvalidRequest."""
        running = self._open.get(id_)
        if running is not None:
            running.fail(Cancelled("the response was cancelled"))
            running.cancel()
            return running.response
        response = self._find(id_).response
        if response["status"] != "cancelled":
            raise InvalidRequest(f"the response {id_[:80]} has ended: it is {response['status']}")
        return response

    @contextmanager
    def opened(self, found: Open) -> Iterator[None]:
        """It can be looked at and cancelled, inside the block."""
        id_ = found.response["id"]
        self._open[id_] = found
        try:
            yield
        finally:
            del self._open[id_]

    def _find(self, id_: str) -> Kept:
        kept = self._kept.get(id_)
        if kept is None:
            raise NotFound(
                f"there is no response {id_[:80]!r}", "the server keeps the latest, until it is restarted"
            )
        self._kept.move_to_end(id_)
        return kept
