"""A prompt that was read once is not read again: by any API, after a kill, after a restart."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from mlxo.core import cachedir
from mlxo.core.paths import Paths
from tests.e2e.conftest import Mlxo
from tests.e2e.test_life import modelfile, runner_pids

SYSTEM = "You are kind to everybody who asks you anything at all. " * 15
TURNS = [{"role": "user", "content": "Count from 1 to 20."}]


@pytest.fixture
def tiny(mlxo: Mlxo, tmp_path: Path) -> Mlxo:
    mlxo("create", "tiny", "-f", str(modelfile(tmp_path)))
    return mlxo


def post(mlxo: Mlxo, path: str, **body: Any) -> dict[str, Any]:
    data = json.dumps({"model": "tiny", "stream": False, **body}).encode()
    request = urllib.request.Request(mlxo.url + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def ollama(mlxo: Mlxo) -> tuple[str, int, int]:
    """The answer, the prompt's tokens, and how many of them were cached."""
    turns = [{"role": "system", "content": SYSTEM}, *TURNS]
    answer = post(mlxo, "/api/chat", messages=turns, think=False, options={"temperature": 0})
    return answer["message"]["content"], answer["prompt_eval_count"], answer.get("cached_tokens", 0)


def openai(mlxo: Mlxo) -> tuple[int, int]:
    turns = [{"role": "system", "content": SYSTEM}, *TURNS]
    usage = post(mlxo, "/v1/chat/completions", messages=turns, max_tokens=4)["usage"]
    return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def anthropic(mlxo: Mlxo) -> tuple[int, int]:
    usage = post(mlxo, "/v1/messages", system=SYSTEM, messages=TURNS, max_tokens=4)["usage"]
    return usage["input_tokens"] + usage["cache_read_input_tokens"], usage["cache_read_input_tokens"]


@pytest.mark.slow
def test_what_was_read_is_not_read_again(tiny: Mlxo) -> None:
    cold, tokens, cached = ollama(tiny)
    assert (cached, tokens > 150) == (0, True)
    # On disk soon after the request, so not only an orderly end is survived.
    deadline = time.monotonic() + 30
    while not cachedir.scan(Paths(tiny.home).prompts) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in runner_pids(tiny):
        os.kill(pid, signal.SIGKILL)
    tiny("daemon", "restart")
    assert ollama(tiny) == (cold, tokens, tokens - 1)
    for total, cached in (openai(tiny), anthropic(tiny)):
        assert tokens // 2 < cached < total
    status = json.loads(tiny("cache", "status", "--json").stdout)
    (model,) = status["models"]
    assert model["name"] == "tiny:latest"
    removed = json.loads(tiny("cache", "clear", "--json").stdout)["removed"]
    assert removed >= model["records"] >= 1
    tiny("daemon", "restart")
    assert ollama(tiny) == (cold, tokens, 0)
