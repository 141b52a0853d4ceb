"""The embedding routes: fields to requests, vectors to bodies."""

from __future__ import annotations

import array
import base64
from datetime import UTC, datetime
from itertools import count
from typing import Any

import msgspec
import pytest

from mlxo.core.errors import InvalidRequest
from mlxo.core.types import Embed, Event, Finished, Touch, Vectors
from mlxo.server.dialects import embeddings
from mlxo.server.dialects.base import Clock, Dialect, Parsed
from mlxo.server.dialects.embeddings import EmbeddingAnswer, Route
from tests.server.conftest import Api

ROWS = [[1.0, -2.5], [0.1, 3.0], [7.0, 8.0]]


def events() -> list[Event]:
    """Three vectors, out of order."""

    def told(*places: int) -> Vectors:
        data = array.array("f", [x for place in places for x in ROWS[place]]).tobytes()
        return Vectors(places=places, width=2, data=data)

    return [told(2, 0), told(1), Finished(reason="stop", prompt_tokens=9)]


def parse(dialect: Dialect, **body: Any) -> Parsed:
    return dialect.parse(msgspec.json.encode(body), "r1")


def fold(route: Route, parsed: Parsed, told: list[Event]) -> Any:
    ticks = (n * 1000 for n in count())
    clock = Clock(now=lambda: datetime.now(UTC), monotonic=lambda: next(ticks))
    answer = EmbeddingAnswer(route, parsed, clock)
    answer.loaded()
    return msgspec.json.decode(answer.collect(told))


def test_ollama() -> None:
    parsed = parse(
        embeddings.EMBED,
        model="m",
        input=["a", ""],
        truncate=False,
        dimensions=3,
        keep_alive=9,
        options={"num_ctx": 8},
    )
    assert parsed.request.task == Embed(inputs=("a", ""), truncate=False, dimensions=3)
    assert (parsed.request.keep_alive, parsed.request.options.num_ctx, parsed.request.stream) == (9, 8, False)
    assert [need.capability for need in parsed.needs] == ["embedding"]
    assert parse(embeddings.EMBED, model="m", input="a").request.task == Embed(inputs=("a",))
    body = fold("embed", parsed, events())
    assert body.pop("embeddings") == [[1.0, -2.5], [pytest.approx(0.1), 3.0], [7.0, 8.0]]
    assert body == {"model": "m", "total_duration": 2000, "load_duration": 1000, "prompt_eval_count": 9}


@pytest.mark.parametrize("given", [{}, {"input": None}, {"input": ""}, {"input": []}])
def test_no_input_loads_the_model(given: dict[str, Any]) -> None:
    parsed = parse(embeddings.EMBED, model="m", **given)
    assert parsed.request.task == Touch()
    assert fold("embed", parsed, [Finished(reason="load")]) == {"model": "m", "embeddings": []}


def test_the_older_form() -> None:
    parsed = parse(embeddings.EMBEDDINGS, model="m", prompt="a")
    assert parsed.request.task == Embed(inputs=("a",), normalise=False)
    assert fold("embeddings", parsed, events()[1:]) == {"embedding": [pytest.approx(0.1), 3.0]}
    nothing = parse(embeddings.EMBEDDINGS, model="m")
    assert nothing.request.task == Touch()
    assert fold("embeddings", nothing, [Finished(reason="load")]) == {"embedding": []}


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
        ("", ("",)),
    ],
)
def test_openai(given: Any, inputs: Any) -> None:
    parsed = parse(embeddings.V1_EMBEDDINGS, model="m", input=given, dimensions=2)
    assert parsed.request.task == Embed(inputs=inputs, dimensions=2)
    body = fold("v1", parsed, events())
    assert [(d["object"], d["index"], d["embedding"]) for d in body.pop("data")] == [
        ("embedding", i, [pytest.approx(x) for x in row]) for i, row in enumerate(ROWS)
    ]
    usage = {"prompt_tokens": 9, "total_tokens": 9}
    assert body == {"object": "list", "model": "m", "usage": usage}


def test_base64_is_little_endian() -> None:
    parsed = parse(embeddings.V1_EMBEDDINGS, model="m", input="a", encoding_format="base64")
    data = fold("v1", parsed, events())["data"][0]["embedding"]
    assert base64.b64decode(data) == bytes.fromhex("0000803f000020c0")


@pytest.mark.parametrize(
    ("dialect", "body", "said"),
    [
        (embeddings.EMBED, {"input": "a"}, "model is required"),
        (embeddings.EMBED, {"model": "m", "input": 5}, "invalid input type"),
        (embeddings.EMBED, {"model": "m", "input": ["a", 5]}, "invalid input type"),
        (embeddings.EMBED, {"model": "m", "input": "a", "dimensions": -1}, "dimensions"),
        (embeddings.V1_EMBEDDINGS, {"model": "m"}, "invalid input"),
        (embeddings.V1_EMBEDDINGS, {"model": "m", "input": []}, "invalid input"),
        (embeddings.V1_EMBEDDINGS, {"model": "m", "input": ["a", 1]}, "invalid input"),
        (embeddings.V1_EMBEDDINGS, {"model": "m", "input": [-1]}, "invalid input"),
        (embeddings.V1_EMBEDDINGS, {"model": "m", "input": ["a"] * 2049}, "2048"),
        (embeddings.V1_EMBEDDINGS, {"model": "m", "input": "a", "encoding_format": "x"}, "encoding_format"),
    ],
)
def test_refusals(dialect: Dialect, body: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        parse(dialect, **body)


async def test_a_model_that_answers_makes_no_vectors(api: Api) -> None:
    status, value = await api.post("/api/embed", {"model": "tiny", "input": "x"})
    assert (status, value["error"]) == (400, '"tiny" does not support embeddings')
    status, value = await api.post("/api/embed", {"model": "nobody", "input": "x"})
    assert (status, value["error"]) == (404, 'model "nobody" not found, try pulling it first')
    status, value = await api.post("/v1/embeddings", {"model": "tiny", "input": "x"})
    assert (status, value["error"]["type"]) == (400, "invalid_request_error")
