"""`ollama` and `openai` with a tiny embedding model that was created from its folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import ollama
import openai
import pytest
from openai import OpenAI

from tests.clients.conftest import TINY
from tests.e2e.conftest import Mlxo
from tests.models import encoder

TEXTS = ["the cat sat on a mat", "a dog ran", ""]
FIRST = [2, 4, 5, 7, 8, 9, 10, 3]  # the tokens of the first


@pytest.fixture(scope="module")
def vectors(daemon: Mlxo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The model's name. It pools by its first token, which only its own configuration says."""
    folder = encoder.make(tmp_path_factory.mktemp("encoder") / "m", pooling={"pooling_mode_cls_token": True})
    file = folder.parent / "Modelfile"
    file.write_text(f"FROM {folder}\n")
    daemon("create", "vectors", "-f", str(file))
    yield "vectors"
    daemon("rm", "vectors")  # others count the models


@pytest.fixture
def client(daemon: Mlxo) -> Iterator[ollama.Client]:
    with ollama.Client(daemon.url) as found:
        yield found


def test_ollama(client: ollama.Client, vectors: str) -> None:
    assert client.show(vectors).capabilities == ["embedding"]
    answer = client.embed(vectors, TEXTS)
    assert len(answer.embeddings) == len(TEXTS)
    assert answer.prompt_eval_count == 8 + 5 + 2
    expected = encoder.reference(FIRST)[0]
    raw = client.embeddings(vectors, TEXTS[0]).embedding
    assert list(raw) == pytest.approx(list(expected), abs=1e-4)
    length = float((expected**2).sum() ** 0.5)
    assert list(answer.embeddings[0]) == pytest.approx([x / length for x in expected], abs=1e-4)
    assert [len(v) for v in client.embed(vectors, TEXTS, dimensions=4).embeddings] == [4] * 3
    assert client.embed(vectors, "").embeddings == []
    with pytest.raises(ollama.ResponseError, match="does not support chat"):
        client.chat(vectors, [{"role": "user", "content": "x"}])
    with pytest.raises(ollama.ResponseError, match="does not support generate"):
        client.generate(vectors, "x")
    with pytest.raises(ollama.ResponseError, match="does not support embeddings"):
        client.embed(TINY, "x")
    with pytest.raises(ollama.ResponseError, match="exceeds the context length"):
        client.embed(vectors, "the cat " * 50, truncate=False)
    assert len(client.embed(vectors, "the cat " * 50).embeddings) == 1


def test_openai(daemon: Mlxo, vectors: str) -> None:
    with OpenAI(base_url=f"{daemon.url}/v1", api_key="any", max_retries=0) as client:
        packed = client.embeddings.create(model=vectors, input=TEXTS)  # as base64, which the client unpacks
        plain = client.embeddings.create(model=vectors, input=TEXTS, encoding_format="float")
        assert [d.embedding for d in packed.data] == [pytest.approx(d.embedding) for d in plain.data]
        assert (packed.usage.prompt_tokens, packed.data[2].index) == (15, 2)
        tokens = client.embeddings.create(model=vectors, input=[FIRST], dimensions=16)
        assert tokens.data[0].embedding == pytest.approx(packed.data[0].embedding, abs=1e-5)
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(model=vectors, input=[[10**6]])


def test_tokens_of_an_embedding_model(daemon: Mlxo, vectors: str) -> None:
    body = {"model": vectors, "prompt": TEXTS[0]}
    assert httpx.post(f"{daemon.url}/v1/tokenize", json=body).json()["tokens"] == FIRST


def test_a_copy_has_its_pooling_too(
    daemon: Mlxo, client: ollama.Client, vectors: str, tmp_path: Path
) -> None:
    file = tmp_path / "Modelfile"
    file.write_text(f"FROM {vectors}\nPARAMETER num_ctx 4\n")
    daemon("create", "shorter", "-f", str(file))
    assert client.embed("shorter", TEXTS[0]).prompt_eval_count == 4
    cut = encoder.reference([*FIRST[:3], 3])[0]
    raw = client.embeddings("shorter", TEXTS[0]).embedding
    daemon("rm", "shorter")
    assert list(raw) == pytest.approx(list(cut), abs=1e-4)
