"""DRAFT: a model by name, found again when the model that names it is resolved; or ngram."""

from __future__ import annotations

import pytest

from mlxo.core.errors import InvalidName, ModelNotFound
from mlxo.store.create import Recipe
from tests.store import models
from tests.store.conftest import Bench


def test_a_draft_is_a_model_by_name(bench: Bench) -> None:
    bench.create_from("tiny", models.files())
    bench.create("m", Recipe(from_="tiny", draft="tiny"))
    tiny, spec = bench.registry.resolve("tiny"), bench.registry.resolve("m")
    assert (spec.draft, spec.draft_weights) == (tiny.path, tiny.weights)
    assert spec.draft_weights > 0
    assert bench.registry.show("m").draft == "tiny"
    assert "DRAFT tiny" in bench.registry.show("m").modelfile


def test_a_draft_that_went_away_is_done_without(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.create_from("tiny", models.files())
    bench.create("m", Recipe(from_="tiny", draft="tiny"))
    bench.registry.delete("tiny")
    spec = bench.registry.resolve("m")
    assert (spec.draft, spec.draft_weights) == (None, 0)
    assert "m:latest answers without its DRAFT tiny" in caplog.text


def test_a_draft_of_ngram_needs_no_model(bench: Bench) -> None:
    bench.create("m", Recipe(files=bench.upload(models.files()), draft="ngram"))
    assert bench.registry.resolve("m").draft == "ngram"


def test_a_draft_that_is_not_here_is_refused(bench: Bench) -> None:
    with pytest.raises(ModelNotFound, match="DRAFT names the model 'gone'") as e:
        bench.create("m", Recipe(files=bench.upload(models.files()), draft="gone"))
    assert "mlxo pull gone" in str(e.value.hint)
    assert bench.registry.list() == []


def test_a_draft_that_is_no_name_is_refused(bench: Bench) -> None:
    with pytest.raises(InvalidName):
        bench.create("m", Recipe(files=bench.upload(models.files()), draft="a b"))


def test_a_model_takes_the_draft_of_its_base(bench: Bench) -> None:
    bench.create("base", Recipe(files=bench.upload(models.files()), draft="ngram"))
    bench.create("m", Recipe(from_="base"))
    assert bench.registry.resolve("m").draft == "ngram"
