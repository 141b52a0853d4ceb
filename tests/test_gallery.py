"""Every Modelfile of the gallery parses, can be made, and is named by what it holds."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from mlxo.core.names import DEFAULT_HOST, DEFAULT_NAMESPACE, ModelName
from mlxo.modelfile import parse
from mlxo.store import gallery
from mlxo.store.create import check_recipe, recipe_from_modelfile
from tests.cli.conftest import Mlxo, mlxo  # noqa: F401  a fixture

FILES = sorted(gallery.folder().glob("*/*"))
IDS = [f"{path.parent.name}:{path.name}" for path in FILES]
QUANTISED = re.compile(r"-(?:\d+bit|MXFP4|Q\d)", re.IGNORECASE)
every = pytest.mark.parametrize("path", FILES, ids=IDS)


def test_there_are_families_enough() -> None:
    assert len(gallery.families()) >= 25
    assert not [path for path in gallery.folder().rglob("*") if path.is_file() and path not in FILES]


@every
def test_a_file_says_what_it_makes(path: Path) -> None:
    modelfile = parse(path.read_bytes())
    modelfile.check()
    check_recipe(recipe_from_modelfile(modelfile))
    assert modelfile.warnings == ()
    assert modelfile.name == f"{path.parent.name}:{path.name}"
    # The one alias there may be is the family's name without a tag.
    assert modelfile.aliases in ((), (f"{path.parent.name}:latest",))
    for name in gallery.names(modelfile):
        assert (name.host, name.namespace) == (DEFAULT_HOST, DEFAULT_NAMESPACE)
        assert name.short == name.short.lower()


@every
def test_a_file_says_where_it_comes_from(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    modelfile = parse(text.encode())
    (licence,) = modelfile.licenses
    assert len(licence) < 40
    # A DRAFT must be here before the model is made, which a pull cannot promise.
    assert modelfile.draft is None
    assert re.search(r"^# source: \S", text, re.MULTILINE)
    # Figures are the makers': the file says where they say so. Those of the starter are our own.
    if modelfile.options != type(modelfile.options)() and path.parent.name != "smollm2":
        assert re.search(r"^# sampling: \S", text, re.MULTILINE)


@every
def test_the_tag_is_that_of_the_repository(path: Path) -> None:
    (source,) = parse(path.read_bytes()).from_
    if source.startswith("package:"):
        return
    name = ModelName.parse(source)
    assert name.host == "hf.co"
    repository = name.model.lower()
    assert [part for part in path.name.split("-") if part not in repository] == []
    assert QUANTISED.search(name.model) or name.namespace != "mlx-community"
    digits = re.findall(r"\d+(?:\.\d+)?", path.parent.name)  # qwen3.5 is no Qwen3 and no Qwen2.5
    assert [d for d in digits if not re.search(rf"(?<![\d.]){re.escape(d)}(?![\d]|\.\d)", repository)] == []


def test_names_are_used_once_and_each_family_has_one_default() -> None:
    made = Counter(name.key for modelfile in gallery.entries() for name in gallery.names(modelfile))
    assert [name for name, count in made.items() if count > 1] == []
    for family, variants in gallery.families().items():
        assert [m.aliases for m in variants] == [(f"{family}:latest",), *([()] * (len(variants) - 1))]
        assert len({m.licenses for m in variants}) == 1
    assert len({m.from_ for m in gallery.entries()}) == len(FILES)


@pytest.mark.parametrize(
    ("name", "made"),
    [("qwen3", "qwen3:8b"), ("QWEN3:latest", "qwen3:8b"), ("qwen3:0.6b", "qwen3:0.6b"), ("qwen3:7b", None)],
)
def test_a_family_without_a_tag_is_its_default(name: str, made: str | None) -> None:
    found = gallery.find(ModelName.parse(name))
    assert (found.name if found else None) == made


def test_what_a_family_comes_as() -> None:
    assert gallery.variants(ModelName.parse("Llama3.2:7b")) == ["llama3.2:3b", "llama3.2:1b"]
    assert gallery.variants(ModelName.parse("llama")) == []
    assert gallery.variants(ModelName.parse("somebody/llama3.2")) == []


def test_lint_takes_them_all(mlxo: Mlxo) -> None:  # noqa: F811
    for path in FILES:
        done = mlxo("modelfile", "lint", str(path))
        assert (done.code, done.err) == (0, ""), path
