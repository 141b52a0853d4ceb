"""A whole engine whose model names a DRAFT: the same answers, sooner; and what a DRAFT may be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxo.core.types import NGRAM, Request
from mlxo.engine.batch import Batch
from mlxo.engine.engine import Engine
from mlxo.engine.speculate import Speculative
from tests import models
from tests.engine import ask, families
from tests.engine.conftest import spec
from tests.engine.drafts import Eager

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """QWEN3, a little out of tune: it drafts well and not always."""
    folder = tmp_path_factory.mktemp("noisy")
    shutil.copytree(models.QWEN3, folder, dirs_exist_ok=True)
    mx.random.seed(1)
    weights: Any = mx.load(str(models.QWEN3 / "model.safetensors"))
    drifted = {name: w + 0.15 * mx.std(w) * mx.random.normal(w.shape) for name, w in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), drifted)
    return folder


def drafting(draft: str) -> Engine:
    engine = Engine(spec(models.QWEN3, draft=draft), rows=4)
    assert isinstance(engine._steps, Speculative)
    engine._steps._gauge = Eager(rest=0.2)
    return engine


@pytest.fixture(scope="module", params=["ngram", "model"])
def engine(request: pytest.FixtureRequest, noisy: Path) -> Iterator[Engine]:
    made = drafting(NGRAM if request.param == "ngram" else str(noisy))
    yield made
    assert not made.busy


def both(engine: Engine, plain: Engine, *requests: Request) -> list[ask.Answer]:
    """What the engine answers, which must be what one without drafts does."""
    answers = ask.run(engine, *requests)
    for answer, expected in zip(answers, ask.run(plain, *requests), strict=True):
        assert (answer.text, answer.thinking) == (expected.text, expected.thinking)
        assert answer.finished.reason == expected.finished.reason
        assert answer.finished.tokens == expected.finished.tokens
        assert answer.finished.context == expected.finished.context
    return answers


def test_answers_are_the_same(engine: Engine, qwen3: Engine) -> None:
    prompts = list(models.ANSWERS)[:10]
    before = engine.stats()
    answers = both(engine, qwen3, *(ask.chat(p) for p in prompts))
    assert [a.text for a in answers] == [models.ANSWERS[p] for p in prompts]
    answers += both(engine, qwen3, *(ask.chat(p, think=True) for p in prompts[:4]))
    drafted = sum(a.finished.drafted for a in answers)
    accepted = sum(a.finished.accepted for a in answers)
    assert 0 < accepted < drafted
    after = engine.stats()
    assert (after.drafted - before.drafted, after.accepted - before.accepted) == (drafted, accepted)


def test_a_seed_says_the_same(engine: Engine, qwen3: Engine) -> None:
    options = [
        {"temperature": 1.5, "seed": 11, "num_predict": 40},
        {"temperature": 0.9, "seed": 12, "top_p": 0.8, "num_predict": 40},
        {"temperature": 1.2, "seed": 13, "repeat_penalty": 1.3, "num_predict": 40},
        {"temperature": 1.0, "seed": 14, "min_p": 0.1, "frequency_penalty": 0.4, "num_predict": 40},
    ]
    both(engine, qwen3, *(ask.chat(models.FOREVER, options=o) for o in options))


def test_a_repeating_answer_is_drafted_well(engine: Engine, qwen3: Engine) -> None:
    (answer,) = both(engine, qwen3, ask.chat(models.FOREVER, options={"num_predict": 60}))
    assert answer.finished.reason == "length"
    assert answer.finished.accepted > 25


@pytest.mark.parametrize("stop", ["nana ban", " banana banana", "an"])
def test_a_stop_string_inside_a_draft(engine: Engine, qwen3: Engine, stop: str) -> None:
    (answer,) = both(engine, qwen3, ask.chat(models.FOREVER, options={"num_predict": 60, "stop": (stop,)}))
    assert answer.finished.stop == stop
    assert stop not in answer.text


def test_a_schema_is_kept_while_drafting(engine: Engine, qwen3: Engine) -> None:
    asked = [
        ask.chat("Answer in JSON: name and age of Ada.", format=SCHEMA, options={"num_predict": 80}),
        ask.chat("Say hello.", format=SCHEMA, options={"num_predict": 80, "temperature": 1.5, "seed": 2}),
        ask.chat("Who are you?", think=True, format=SCHEMA, options={"num_predict": 120}),
        ask.chat("Tell me a joke."),
    ]
    answers = both(engine, qwen3, *asked)
    assert json.loads(answers[0].text) == {"name": "Ada", "age": 36}
    assert sum(a.finished.drafted for a in answers[:3]) > 0
    assert set(json.loads(answers[2].text)) == {"name", "age"}


def test_logprobs_are_those_of_every_token(engine: Engine, qwen3: Engine) -> None:
    (request,) = (ask.chat("Count from 1 to 20.", logprobs=2) for _ in range(1))

    def told(made: Engine) -> list[tuple[bytes, float]]:
        answer = ask.say(made, request)
        return [(t.bytes, round(t.logprob, 3)) for e in answer.events for t in getattr(e, "logprobs", ())]

    found = told(engine)
    assert len(found) > 20
    assert found == told(qwen3)


def test_a_cancelled_request_leaves_the_others_alone(engine: Engine) -> None:
    long = ask.chat(models.FOREVER, options={"num_predict": 400})
    short = ask.chat("Count from 1 to 20.")
    engine.submit(long)
    engine.submit(short)
    said = ""
    while engine.busy:
        for key, event in engine.step():
            if key == short.id:
                said += getattr(event, "text", "")
        if len(said) > 10:
            engine.cancel(long.id)
    assert said == models.ANSWERS["Count from 1 to 20."]


def test_a_conversation_resumes_from_what_was_drafted(engine: Engine, qwen3: Engine) -> None:
    first = ask.say(engine, ask.chat(models.FOREVER, options={"num_predict": 30}))
    assert first.finished.accepted > 0
    more = {"context": first.finished.context}
    (again,) = both(engine, qwen3, ask.complete(" And", task=more, options={"num_predict": 20}))
    assert again.started.cached_tokens > len(first.finished.context) - 3


def test_draft_num_predict_zero_is_off(engine: Engine, qwen3: Engine) -> None:
    options = {"num_predict": 30, "draft_num_predict": 0}
    (answer,) = both(engine, qwen3, ask.chat(models.FOREVER, options=options))
    assert answer.finished.drafted == 0


def test_a_draft_of_another_vocabulary_is_done_without(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(spec(models.QWEN3, draft=str(models.LLAMA)))
    assert type(engine._steps) is Batch
    assert "different vocabularies" in caplog.text


def test_a_draft_that_does_not_load_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(spec(models.QWEN3, draft=str(tmp_path)))
    assert type(engine._steps) is Batch
    assert "answers without its DRAFT" in caplog.text


def test_a_model_that_cannot_take_tokens_back_goes_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module, changes = families.FAMILIES["sliding window"]
    model = families.build(module, {**changes, "vocab_size": 960})
    shutil.copytree(models.QWEN3, tmp_path, dirs_exist_ok=True)
    config = {**families._BASE, "model_type": module, **changes, "vocab_size": 960}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model.save_weights(str(tmp_path / "model.safetensors"))
    engine = Engine(spec(tmp_path, draft=NGRAM))
    assert type(engine._steps) is Batch
    assert "cannot take tokens back" in caplog.text
