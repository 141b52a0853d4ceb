"""logprobs, n and logit_bias through the packages that people use."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import ollama
import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.clients.conftest import TINY
from tests.e2e.conftest import Mlxo
from tests.models import ANSWERS, QWEN3, RAW, THOUGHTS

FRANCE = "What is the capital of France?"
EMOJI = "Reply with emoji."
WARM: dict[str, Any] = {
    "extra_body": {"think": False, "options": {"temperature": 5.0, "top_k": 20}},
    "max_tokens": 12,
}


@pytest.fixture
def client(daemon: Mlxo) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{daemon.url}/v1", api_key="any", max_retries=0) as found:
        yield found


@pytest.fixture
def llama(daemon: Mlxo) -> Iterator[ollama.Client]:
    with ollama.Client(host=daemon.url) as found:
        yield found


def user(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("effort", ["none", "high"])
def test_openai_chat(client: OpenAI, effort: Any) -> None:
    """The tokens of the content and no others, streamed or not, alternatives sorted."""
    ask: dict[str, Any] = {"model": TINY, "messages": user(FRANCE), "reasoning_effort": effort}
    whole = client.chat.completions.create(**ask, logprobs=True, top_logprobs=3).choices[0]
    assert whole.logprobs is not None
    tokens = whole.logprobs.content or []
    assert "".join(t.token for t in tokens) == whole.message.content == ANSWERS[FRANCE]
    assert bytes(b for t in tokens for b in t.bytes or []).decode() == ANSWERS[FRANCE]
    for token in tokens:
        assert token.logprob <= 0
        likely = [t.logprob for t in token.top_logprobs]
        assert likely == sorted(likely, reverse=True)
        assert len(likely) == 3
        # The model is greedy.
        assert (token.top_logprobs[0].token, likely[0]) == (token.token, token.logprob)
    streamed = [
        t
        for chunk in client.chat.completions.create(**ask, logprobs=True, top_logprobs=3, stream=True)
        for choice in chunk.choices
        if choice.logprobs
        for t in choice.logprobs.content or []
    ]
    assert [t.token for t in streamed] == [t.token for t in tokens]
    assert [t.logprob for t in streamed] == pytest.approx([t.logprob for t in tokens], abs=1e-4)
    bare = client.chat.completions.create(**ask, logprobs=True).choices[0]
    assert bare.logprobs is not None
    assert [t.top_logprobs for t in bare.logprobs.content or [None]] == [[] for _ in tokens]
    assert client.chat.completions.create(**ask).choices[0].logprobs is None


def test_openai_stream_helper(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model=TINY, messages=user(EMOJI), logprobs=True, top_logprobs=1, reasoning_effort="none"
    ) as stream:
        final = stream.get_final_completion().choices[0]
    assert final.logprobs is not None
    assert bytes(b for t in final.logprobs.content or [] for b in t.bytes or []).decode() == ANSWERS[EMOJI]


def test_openai_completions(client: OpenAI) -> None:
    for prompt, answer in RAW.items():
        choice = client.completions.create(model=TINY, prompt=prompt, logprobs=2).choices[0]
        told = choice.logprobs
        assert told is not None
        assert told.tokens
        assert "".join(told.tokens) == choice.text == answer
        assert told.text_offset == [len("".join(told.tokens[:i])) for i in range(len(told.tokens))]
        assert told.token_logprobs
        assert told.top_logprobs
        for token, logprob, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
            assert top[token] == logprob == max(top.values())
            assert len(top) == 2
        offsets = [
            at
            for chunk in client.completions.create(model=TINY, prompt=prompt, logprobs=0, stream=True)
            if (part := chunk.choices[0].logprobs)
            for at in part.text_offset or []
        ]
        assert offsets == told.text_offset


@pytest.mark.parametrize("stream", [False, True])
def test_ollama(llama: ollama.Client, stream: bool) -> None:
    """Every token the model wrote, its thinking too; as many as num_predict allows."""
    ask: Any = {"model": TINY, "messages": user(FRANCE), "think": True, "stream": stream}
    asked: Any = llama.chat(**ask, logprobs=True, top_logprobs=2)
    parts = list(asked) if stream else [asked]
    tokens = [t for p in parts for t in p.logprobs or ()]
    text = "".join(t.token for t in tokens)
    assert THOUGHTS[FRANCE] in text
    assert text.endswith(ANSWERS[FRANCE])
    # The last one ends the answer and has no text.
    assert len(tokens) == parts[-1].eval_count - 1
    assert all(t.token and t.logprob <= 0 and len(t.top_logprobs) == 2 for t in tokens)
    ask = {"model": TINY, "prompt": FRANCE, "think": False, "stream": stream, "options": {"num_predict": 4}}
    asked = llama.generate(**ask, logprobs=True)
    parts = list(asked) if stream else [asked]
    tokens = [t for p in parts for t in p.logprobs or ()]
    assert len(tokens) == 4
    assert "".join(t.token for t in tokens) == "".join(p.response for p in parts)
    assert all(t.top_logprobs is None for t in tokens)
    with pytest.raises(ollama.ResponseError, match="top_logprobs must be between 0 and 20"):
        llama.generate(model=TINY, prompt="hi", logprobs=True, top_logprobs=21)


def test_logit_bias(client: OpenAI) -> None:
    """Tokens are banned or forced, and logprobs go on to tell what the model itself thinks of them."""
    ask: dict[str, Any] = {"model": TINY, "messages": user(FRANCE), "reasoning_effort": "none"}
    names = json.loads((QWEN3 / "tokenizer.json").read_bytes())["model"]["vocab"]
    paris, tokyo = names["\u0120Paris"], names["\u0120Tokyo"]
    banned = client.chat.completions.create(**ask, logit_bias={paris: -100}, max_tokens=8)
    assert "Paris" not in (banned.choices[0].message.content or "")
    forced = client.chat.completions.create(**ask, logit_bias={tokyo: 100}, max_tokens=3, logprobs=True)
    assert forced.choices[0].message.content == " Tokyo" * 3
    assert forced.choices[0].logprobs
    assert all(t.logprob < -1 for t in forced.choices[0].logprobs.content or [])
    with pytest.raises(openai.BadRequestError, match="logit_bias names token 99999999"):
        client.chat.completions.create(**ask, logit_bias={"99999999": 1})
    with pytest.raises(openai.BadRequestError, match="between -100 and 100"):
        client.chat.completions.create(**ask, logit_bias={"1": 101})


def test_n(client: OpenAI) -> None:
    """Choices of their own, the same for the same seed, whole or streamed; the prompt counts once."""
    ask: dict[str, Any] = {"model": TINY, "messages": user(FRANCE), "seed": 5, **WARM}
    one = client.chat.completions.create(**ask)
    whole = client.chat.completions.create(**ask, n=4, logprobs=True)
    assert [c.index for c in whole.choices] == [0, 1, 2, 3]
    texts = [c.message.content for c in whole.choices]
    assert texts[0] == one.choices[0].message.content
    assert len(set(texts)) > 1
    assert client.chat.completions.create(**ask | {"seed": 6}).choices[0].message.content == texts[1]
    assert one.usage
    assert whole.usage
    assert whole.usage.prompt_tokens == one.usage.prompt_tokens
    assert whole.usage.completion_tokens > 4
    said: defaultdict[int, str] = defaultdict(str)
    ends: list[int] = []
    chunks = list(
        client.chat.completions.create(**ask, n=4, stream=True, stream_options={"include_usage": True})
    )
    for chunk in chunks:
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content or ""
            ends += [choice.index] if choice.finish_reason else []
    assert [said[i] for i in range(4)] == texts
    assert sorted(ends) == [0, 1, 2, 3]
    assert chunks[-1].usage
    assert chunks[-1].usage.to_dict()["completion_tokens"] == whole.usage.completion_tokens
    completions = client.completions.create(model=TINY, prompt="Once", n=2, best_of=2)
    assert len({c.text for c in completions.choices}) == 1
    with pytest.raises(openai.BadRequestError, match="best_of"):
        client.completions.create(model=TINY, prompt="Once", best_of=2)
