"""Counting tokens with `anthropic`, and the routes that no client library has."""

from __future__ import annotations

from typing import Any

import httpx
from anthropic import Anthropic
from anthropic.types import ToolParam

from tests.clients.conftest import TINY
from tests.e2e.conftest import Mlxo
from tests.models import ANSWERS, TOOLS

FUNCTION = TOOLS["get_weather"]["function"]
TOOL: ToolParam = {
    "name": FUNCTION["name"],
    "description": FUNCTION["description"],
    "input_schema": FUNCTION["parameters"],
}


def test_count_tokens_is_what_the_message_reads(daemon: Mlxo) -> None:
    with Anthropic(base_url=daemon.url, api_key="any", max_retries=0) as client:
        conversations: list[dict[str, Any]] = [
            {"messages": [{"role": "user", "content": "What is 2 + 2?"}]},
            {
                "system": "You are kind.",
                "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
                "tools": [TOOL],
                "thinking": {"type": "disabled"},
            },
        ]
        for conversation in conversations:
            counted = client.messages.count_tokens(model=TINY, **conversation).input_tokens
            used = client.messages.create(model=TINY, max_tokens=1, **conversation).usage
            assert counted == used.input_tokens + (used.cache_read_input_tokens or 0) > 10


def test_tokenize_and_back(daemon: Mlxo) -> None:
    def post(path: str, **body: object) -> Any:
        response = httpx.post(f"{daemon.url}{path}", json={"model": TINY, **body})
        assert response.status_code == 200, response.text
        return response.json()

    text = ANSWERS["Reply with emoji."]
    ids = post("/api/tokenize", content=text)["tokens"]
    assert post("/api/detokenize", tokens=ids) == {"content": text}
    told = post("/v1/tokenize", prompt=text, return_token_strs=True)
    assert (told["tokens"], told["count"], len(told["token_strs"])) == (ids, len(ids), len(ids))
    assert post("/v1/detokenize", tokens=ids) == {"prompt": text}
    chat = post("/v1/tokenize", messages=[{"role": "user", "content": text}])
    assert chat["count"] > len(ids)
    wrong = httpx.post(f"{daemon.url}/api/detokenize", json={"model": TINY, "tokens": [10**9]})
    assert (wrong.status_code, "no token" in wrong.json()["error"]) == (400, True)
