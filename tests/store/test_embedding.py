"""Models that make vectors: what they can do, and the one file of theirs that lies in a folder of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlxo.core.errors import InvalidRequest
from mlxo.store import folder
from mlxo.store.create import Recipe
from tests.fakes.hub import FakeHub, Repo
from tests.store import models
from tests.store.conftest import Bench

POOLING = b'{"pooling_mode_cls_token": true}'


def files(family: str = "bert") -> dict[str, bytes]:
    content = models.files()
    content["config.json"] = json.dumps({**models.CONFIG, "model_type": family}).encode()
    return content | {"modules.json": b"[]", folder.POOLING: POOLING}


def write(path: Path) -> Path:
    (path / "1_Pooling").mkdir(parents=True)
    return models.write(path, files())


@pytest.mark.parametrize("family", ["bert", "qwen3"])
def test_it_is_told_apart_and_keeps_its_pooling(bench: Bench, family: str) -> None:
    bench.create_from("m", files(family))
    spec = bench.registry.resolve("m")
    assert spec.capabilities == ("embedding",)
    link = Path(spec.path, folder.POOLING)
    assert link.is_symlink()
    assert link.read_bytes() == POOLING
    link.unlink()
    assert Path(bench.registry.resolve("m").path, folder.POOLING).read_bytes() == POOLING
    bench.create("copy", Recipe(from_="m", system="x"))
    assert bench.registry.resolve("copy").capabilities == ("embedding",)
    assert Path(bench.registry.resolve("copy").path, folder.POOLING).read_bytes() == POOLING
    bench.registry.delete("m")
    bench.registry.delete("copy")
    assert bench.leftovers() == []


def test_a_family_of_encoders_needs_no_list_of_modules(bench: Bench) -> None:
    content = files()
    del content["modules.json"], content[folder.POOLING]
    bench.create_from("m", content)
    assert bench.registry.resolve("m").capabilities == ("embedding",)


@pytest.mark.parametrize("name", ["2_Pooling/config.json", "1_Pooling/other.json", "a/1_Pooling/config.json"])
def test_no_other_folder_comes_along(bench: Bench, name: str) -> None:
    bench.create_from("m", {**models.files(), name: b"{}"})
    assert sorted(bench.registry.files(bench.registry.find("m"))) == sorted(models.files())


def test_a_folder_of_a_package(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "some_weights"
    write(package / "model")
    (package / "__init__.py").write_text("raise AssertionError('the package was imported')")
    monkeypatch.syspath_prepend(str(package.parent))
    bench.create("m", Recipe(from_="package:some_weights/model"))
    assert Path(bench.registry.resolve("m").path, folder.POOLING).read_bytes() == POOLING


def test_its_pooling_must_lie_in_its_folder(tmp_path: Path) -> None:
    made = write(tmp_path / "m")
    assert folder.POOLING in folder.scan(made)
    (tmp_path / "secret").write_bytes(POOLING)
    (made / folder.POOLING).unlink()
    (made / folder.POOLING).symlink_to("../../secret")
    with pytest.raises(InvalidRequest, match="leaves"):
        folder.scan(made)


def test_from_the_hub(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeHub() as hub:
        hub.repos["org/vectors"] = Repo(files())
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        bench.create("m", Recipe(from_="hf.co/org/vectors"))
    assert Path(bench.registry.resolve("m").path, folder.POOLING).read_bytes() == POOLING
