from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from mlxo.core.errors import Corrupt, InvalidName, InvalidRequest, ModelNotFound, StoreError
from mlxo.core.names import ModelName
from mlxo.store import manifests
from tests.store import models
from tests.store.conftest import Bench

HOSTILE_NAMES = [
    "../../x",
    "../x",
    "/etc/passwd",
    "a/b/c/d",
    "x:../y",
    "x:y/z",
    "a\\b",
    "",
    ":",
    "a:",
    "x\0y",
    ".x",
]
LIBRARY = "manifests/registry.ollama.ai/library"


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_names_reach_no_path(bench: Bench, name: str) -> None:
    bench.create_from("good", models.files())
    before = sorted(bench.home.rglob("*"))
    for use in (bench.registry.resolve, bench.registry.show, bench.registry.delete):
        with pytest.raises(InvalidName):
            use(name)
    with pytest.raises(InvalidName):
        bench.registry.copy("good", name)
    with pytest.raises(InvalidName):
        bench.create_from(name, models.files(2))
    assert [p for p in sorted(bench.home.rglob("*")) if p.parent.name != "blobs"] == [
        p for p in before if p.parent.name != "blobs"
    ]


def test_the_manifest_is_dockers_and_its_hash_the_digest(bench: Bench) -> None:
    bench.create_from("good", models.files())
    data = (bench.home / LIBRARY / "good" / "latest").read_bytes()
    found = json.loads(data)
    assert found["schemaVersion"] == 2
    assert found["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
    assert found["config"]["mediaType"] == "application/vnd.docker.container.image.v1+json"
    assert {(layer["mediaType"], layer.get("name")) for layer in found["layers"]} == {
        ("application/vnd.mlxo.image.weights", "model.safetensors"),
        ("application/vnd.ollama.image.json", "config.json"),
        ("application/vnd.ollama.image.json", "tokenizer.json"),
        ("application/vnd.ollama.image.json", "tokenizer_config.json"),
    }
    entry = bench.registry.list()[0]
    assert entry.digest == hashlib.sha256(data).hexdigest()
    assert entry.size == found["config"]["size"] + sum(layer["size"] for layer in found["layers"])
    config = json.loads(bench.registry.blobs.read(found["config"]["digest"]))
    assert config["model_format"] == "safetensors"
    assert config["rootfs"]["type"] == "layers"


def test_names_are_matched_without_case_and_keep_their_first_spelling(bench: Bench) -> None:
    bench.create_from("Foo:Q4", models.files())
    assert bench.registry.resolve("fOO:q4").name == "Foo:Q4"
    bench.create_from("foo:q4", models.files(1))
    bench.create_from("FOO:other", models.files(2))
    assert sorted(e.name for e in bench.registry.list()) == ["Foo:Q4", "Foo:other"]
    bench.registry.copy("foo:Q4", "FOO:OTHER")
    assert sorted(e.name for e in bench.registry.list()) == ["Foo:Q4", "Foo:other"]
    bench.registry.delete("foo:q4")
    bench.registry.delete("foo:other")
    assert bench.registry.list() == []
    assert not (bench.home / "manifests/registry.ollama.ai").exists()


def test_a_manifest_lands_whole_by_rename(bench: Bench) -> None:
    bench.create_from("m", models.files())
    path = bench.home / LIBRARY / "m" / "latest"
    old = path.read_bytes()
    with path.open("rb") as reader:
        bench.create_from("m", models.files(1))
        assert reader.read() == old
    assert path.read_bytes() != old


def test_folders_that_cannot_be_read_are_a_sentence(bench: Bench) -> None:
    bench.home.mkdir()
    for folder in ("manifests", "blobs"):
        (bench.home / folder).symlink_to(folder)
    with pytest.raises(StoreError, match="manifests"):
        bench.registry.find("m")
    for ask in (bench.registry.blobs.use, bench.registry.blobs.size):
        with pytest.raises(StoreError, match="blobs"):
            ask("sha256:" + "0" * 64)


def test_a_missing_model_is_named_with_what_to_type(bench: Bench) -> None:
    with pytest.raises(ModelNotFound, match="model 'nope:latest' not found") as caught:
        bench.registry.resolve("nope")
    assert caught.value.hint == "mlxo pull nope:latest"
    with pytest.raises(ModelNotFound):
        bench.registry.delete("nope")
    with pytest.raises(ModelNotFound):
        bench.registry.copy("nope", "other")


def _layer(**changes: object) -> dict[str, object]:
    return {
        "mediaType": manifests.JSON,
        "digest": f"sha256:{'0' * 64}",
        "size": 1,
        "name": "config.json",
    } | changes


GOOD_CONFIG = {"mediaType": manifests.CONFIG, "digest": f"sha256:{'0' * 64}", "size": 1}
BROKEN = [
    b"",
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b"{}",
    b"null",
    b"x" * (manifests.MAX_BYTES + 10),
    *(
        json.dumps({"schemaVersion": 2, "mediaType": "m", "config": GOOD_CONFIG, "layers": [layer]}).encode()
        for layer in (
            _layer(digest="sha256:../../../etc/passwd"),
            _layer(digest=7),
            _layer(name="../../../evil"),
            _layer(name="/etc/passwd"),
            _layer(name="a/b"),
            _layer(name=""),
            _layer(name=None),
            _layer(size=-1),
            _layer(size=1.5),
        )
    ),
]


@pytest.mark.parametrize("data", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_manifest_harms_no_other_model(
    bench: Bench, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    bench.create_from("good", models.files())
    bench.registry.copy("good", "broken")
    (bench.home / LIBRARY / "broken" / "latest").write_bytes(data)
    assert [e.name for e in bench.registry.list()] == ["good:latest"]
    assert "broken:latest" in caplog.text
    for use in (bench.registry.resolve, bench.registry.show):
        with pytest.raises(Corrupt):
            use("broken")
    assert len(bench.problems()) == 1
    blobs = list(bench.registry.blobs.all())
    bench.registry.blobs.add_bytes(b"an orphan, which the broken manifest might mean")
    assert bench.registry.gc(0).removed == 0
    bench.registry.delete("broken")
    assert bench.registry.gc(0).removed == 1
    assert list(bench.registry.blobs.all()) == blobs
    assert bench.problems() == []


def test_a_broken_manifest_can_be_made_anew(bench: Bench) -> None:
    bench.create_from("m", models.files())
    (bench.home / LIBRARY / "m" / "latest").write_bytes(b"garbage")
    bench.create_from("m", models.files())
    assert bench.problems() == []
    assert bench.registry.resolve("m").name == "m:latest"


def test_a_broken_configuration_harms_no_other_model(bench: Bench) -> None:
    bench.create_from("good", models.files())
    bench.create_from("broken", models.files(1))
    stored = bench.registry.find("broken")
    bench.registry.blobs.path(stored.manifest.config.digest).write_bytes(b'{"model_format": 3}')
    assert [e.name for e in bench.registry.list()] == ["good:latest"]
    with pytest.raises(Corrupt, match="configuration of broken:latest"):
        bench.registry.resolve("broken")


@pytest.mark.parametrize("name", ["../x", "a/b", "/x", ".hidden", "", "x\ny", "a" * 300, "a\\b", "nul\0"])
def test_file_names_are_plain(name: str) -> None:
    with pytest.raises(InvalidRequest):
        manifests.check_file_name(name)


def test_files_that_are_no_manifests_are_left_alone(bench: Bench) -> None:
    bench.create_from("m", models.files())
    (bench.home / LIBRARY / "m" / ".DS_Store").write_bytes(b"x")
    (bench.home / LIBRARY / "stray").write_bytes(b"x")
    assert [n.short for n in bench.registry.manifests.names()] == ["m:latest"]
    orphan = bench.registry.blobs.add_bytes(b"orphan")
    assert bench.registry.gc(0).removed == 1
    assert not bench.registry.blobs.has(orphan.digest)


def test_a_hub_name_keeps_its_host(bench: Bench, tmp_path: Path) -> None:
    bench.create_from("hf.co/org.x/repo", models.files())
    assert bench.registry.has(ModelName.parse("hf.co/org.x/repo:latest"))
    assert bench.registry.list()[0].name == "hf.co/org.x/repo:latest"
