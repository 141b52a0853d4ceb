"""Whatever a client sends to the newer routes is a request or an InvalidRequest, never another error."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlxo.core.errors import InvalidRequest, MlxoError
from mlxo.server.dialects import anthropic, embeddings, openai_responses, tokens
from mlxo.server.dialects.openai_responses_lines import ResponsesAnswer

FIELDS = (
    *("model", "input", "prompt", "content", "tokens", "messages", "dimensions", "truncate", "options"),
    *("instructions", "tools", "tool_choice", "text", "format", "reasoning", "effort", "summary", "metadata"),
    *("include", "top_logprobs", "temperature", "max_output_tokens", "store", "stream", "system", "role"),
    *("type", "id", "call_id", "name", "arguments", "output", "keep_alive", "encoding_format", "schema"),
)
WORDS = (
    *("m", "message", "reasoning", "function", "function_call", "function_call_output", "item_reference"),
    *("user", "assistant", "system", "input_text", "output_text", "summary_text", "json_schema", "auto"),
    *("required", "{}", "[1]", "", "low", "allowed_tools", "base64", "\ud800"),
)
LEAVES = st.none() | st.booleans() | st.integers(-5, 2**65) | st.floats() | st.sampled_from(WORDS) | st.text()
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=4), inner, max_size=6)
    ),
    max_leaves=30,
)
BODIES = st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=8).map(lambda b: {"model": "m"} | b)
DIALECTS = (
    anthropic.COUNT,
    embeddings.EMBED,
    embeddings.EMBEDDINGS,
    embeddings.V1_EMBEDDINGS,
    tokens.TOKENIZE,
    tokens.DETOKENIZE,
    tokens.V1_TOKENIZE,
)


def encoded(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()  # NaN and halves of characters included, as some clients send them


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(BODIES)
def test_no_body_is_met_with_a_surprise(body: dict[str, Any]) -> None:
    data = encoded(body)
    for dialect in DIALECTS:
        with contextlib.suppress(InvalidRequest):
            dialect.answer(dialect.parse(data, "r1"))


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(BODIES, st.lists(VALUES, max_size=5))
def test_nor_is_one_of_the_responses(body: dict[str, Any], items: list[Any]) -> None:
    for given_ in (body, {"model": "m", "input": items}):
        with contextlib.suppress(MlxoError):
            asked = openai_responses.parse(encoded(given_), "r1", lambda _: [], lambda _: None)
            answer = ResponsesAnswer(asked, lambda _: None)
            msgspec.json.decode(answer.collect([]))


def test_deep_items_are_refused() -> None:
    deep: Any = "x"
    for _ in range(500):
        deep = [deep]
    with pytest.raises(InvalidRequest, match="deep"):
        openai_responses.parse(
            encoded({"model": "m", "input": [{"role": "user", "content": deep}]}),
            "r",
            lambda _: [],
            lambda _: None,
        )
