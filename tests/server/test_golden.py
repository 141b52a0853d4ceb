"""Golden cases: a request and the runner's events give these bytes. A new case is a folder and no code.

request.json: {"route", "body"}; events.json: a list of batches; response.*: what the client gets.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mlxo.core.errors import from_code
from mlxo.core.types import Event, Failed, Touch
from mlxo.server.dialects import anthropic, embeddings, ollama, openai, openai_responses, tokens
from mlxo.server.dialects.anthropic_lines import AnthropicAnswer
from mlxo.server.dialects.base import Answer, Clock, Parsed, Whole
from mlxo.server.dialects.embeddings import EmbeddingAnswer
from mlxo.server.dialects.ollama_lines import OllamaAnswer
from mlxo.server.dialects.openai_lines import OpenAIAnswer
from mlxo.server.dialects.openai_responses_lines import ResponsesAnswer

CASES = sorted((Path(__file__).parents[1] / "golden").glob("*/*"))
Parse = Callable[[bytes, str], Parsed]
Make = Callable[[Parsed, Clock, Callable[[str], str]], Whole]
ROUTES: dict[str, tuple[Parse, Make]] = {
    "/api/chat": (ollama.parse_chat, lambda p, c, i: OllamaAnswer("chat", p.request, c, i)),
    "/api/generate": (ollama.parse_generate, lambda p, c, i: OllamaAnswer("generate", p.request, c, i)),
    "/v1/chat/completions": (openai.parse_chat, lambda p, c, i: OpenAIAnswer("chat", p, c, i)),
    "/v1/completions": (openai.parse_completion, lambda p, c, i: OpenAIAnswer("text", p, c, i)),
    "/v1/messages/count_tokens": (anthropic.COUNT.parse, lambda p, c, i: anthropic.COUNT.answer(p)),
    "/api/tokenize": (tokens.TOKENIZE.parse, lambda p, c, i: tokens.TOKENIZE.answer(p)),
    "/v1/tokenize": (tokens.V1_TOKENIZE.parse, lambda p, c, i: tokens.V1_TOKENIZE.answer(p)),
    "/api/detokenize": (tokens.DETOKENIZE.parse, lambda p, c, i: tokens.DETOKENIZE.answer(p)),
    "/api/embed": (embeddings.parse_embed, lambda p, c, i: EmbeddingAnswer("embed", p, c)),
    "/v1/embeddings": (embeddings.parse_v1, lambda p, c, i: EmbeddingAnswer("v1", p, c)),
    "/v1/messages": (anthropic.parse, lambda p, c, i: AnthropicAnswer(p, i)),
}


class Case(msgspec.Struct):
    route: str
    body: dict[str, Any]


def respond(folder: Path) -> bytes:
    case = msgspec.json.decode((folder / "request.json").read_bytes(), type=Case)
    batches = msgspec.json.decode((folder / "events.json").read_bytes(), type=list[list[Event]])
    body = msgspec.json.encode(case.body)
    ticks = (n * 1_000_000 for n in count())
    clock = Clock(
        now=lambda: datetime(2026, 5, 6, 7, 8, 9, 123456, tzinfo=UTC), monotonic=lambda: next(ticks)
    )
    numbers = count()

    def make_id(prefix: str) -> str:
        return f"{prefix}{next(numbers):08}"

    if case.route == "/v1/responses":
        asked = openai_responses.parse(body, "r1", lambda _: [], lambda _: None, make_id)
        parsed = asked.parsed
        answer: Whole = ResponsesAnswer(asked, lambda _: None, clock, make_id)
    else:
        parse, make = ROUTES[case.route]
        parsed = parse(body, "r1")
        answer = make(parsed, clock, make_id)
    request = parsed.request
    answer.loaded()
    if isinstance(request.task, Touch) or not request.stream:
        return answer.collect([event for batch in batches for event in batch])
    assert isinstance(answer, Answer)
    out = b""
    for batch in batches:
        for event in batch:
            if isinstance(event, Failed):
                out += answer.encode_error(from_code(event.code, event.message, event.hint))
            else:
                out += answer.encode([event])
    return out


@pytest.mark.parametrize("folder", CASES, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_golden(folder: Path) -> None:
    (expected,) = folder.glob("response.*")
    assert respond(folder) == expected.read_bytes()


def test_there_are_cases() -> None:
    assert len(CASES) > 8
