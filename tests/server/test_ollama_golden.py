"""Golden cases: a request and the runner's events give these bytes. A new case is a folder and no code.

request.json: {"route", "body"}; events.json: a list of batches; response.ndjson: what the client gets.
"""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mlxo.core.errors import from_code
from mlxo.core.types import Event, Failed, Touch
from mlxo.server.dialects import ollama
from mlxo.server.dialects.base import Clock
from mlxo.server.dialects.ollama_lines import OllamaAnswer

CASES = sorted((Path(__file__).parents[1] / "golden" / "ollama").iterdir())


class Case(msgspec.Struct):
    route: str
    body: dict[str, Any]


def respond(folder: Path) -> bytes:
    case = msgspec.json.decode((folder / "request.json").read_bytes(), type=Case)
    batches = msgspec.json.decode((folder / "events.json").read_bytes(), type=list[list[Event]])
    chat = case.route == "/api/chat"
    dialect = ollama.CHAT if chat else ollama.GENERATE
    request = dialect.parse(msgspec.json.encode(case.body), "r1").request
    ticks = (n * 1_000_000 for n in count())
    clock = Clock(
        now=lambda: datetime(2026, 5, 6, 7, 8, 9, 123456, tzinfo=UTC), monotonic=lambda: next(ticks)
    )
    ids = (f"call_{n:08}" for n in count())
    answer = OllamaAnswer("chat" if chat else "generate", request, clock, lambda: next(ids))
    answer.loaded()
    if isinstance(request.task, Touch) or not request.stream:
        return answer.collect([event for batch in batches for event in batch])
    out = b""
    for batch in batches:
        for event in batch:
            if isinstance(event, Failed):
                out += answer.encode_error(from_code(event.code, event.message, event.hint))
            else:
                out += answer.encode([event])
    return out


@pytest.mark.parametrize("folder", CASES, ids=lambda p: p.name)
def test_golden(folder: Path) -> None:
    assert respond(folder) == (folder / "response.ndjson").read_bytes()


def test_there_are_cases() -> None:
    assert len(CASES) > 8
