from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxo.core.errors import Corrupt, UnsupportedModel
from mlxo.store import inspect
from mlxo.store.weights import MAX_HEADER, Tensor, read_header
from tests.store import models
from tests.store.conftest import Bench


def describe(folder: Path, content: dict[str, bytes]) -> inspect.Facts:
    models.write(folder, content)
    return inspect.describe({name: folder / name for name in content})


def test_a_plain_model_is_described(tmp_path: Path) -> None:
    facts = describe(tmp_path / "m", models.files())
    assert facts.family == "llama"
    assert facts.parameters == 32 * 8 + 8
    assert facts.parameter_size == "264"
    assert facts.file_type == "F32"
    assert (facts.context_length, facts.embedding_length) == (128, 8)
    assert facts.template == models.TEMPLATE
    assert facts.info == {
        "general.architecture": "llama",
        "general.parameter_count": 264,
        "llama.context_length": 128,
        "llama.embedding_length": 8,
        "llama.block_count": 1,
        "llama.feed_forward_length": 16,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": 32,
    }
    assert facts.tensors[0] == Tensor(name="model.embed_tokens.weight", type="F32", shape=(32, 8))


@pytest.mark.parametrize(
    ("quantization", "packed", "label"),
    [
        ({"bits": 4, "group_size": 64}, 8, "4-bit"),
        ({"bits": 8, "group_size": 64}, 16, "8-bit"),
        ({"bits": 4, "group_size": 32, "mode": "mxfp4"}, 8, "MXFP4"),
    ],
)
def test_packed_weights_count_as_what_they_stand_for(
    tmp_path: Path, quantization: dict[str, Any], packed: int, label: str
) -> None:
    content = models.files()
    content["config.json"] = json.dumps(models.CONFIG | {"quantization": quantization}).encode()
    content["model.safetensors"] = models.safetensors(
        {
            "layer.weight": ("U32", [10, packed], bytes(10 * packed * 4)),  # 10 x 64 logical ones
            "layer.scales": ("F16", [10, 1], bytes(20)),
            "layer.biases": ("F16", [10, 1], bytes(20)),
            "norm.weight": ("F16", [64], bytes(128)),
            "norm.biases": ("F16", [64], bytes(128)),
        }
    )
    facts = describe(tmp_path / "m", content)
    assert facts.parameters == 10 * 64 + 64 + 64
    assert facts.file_type == label


def test_a_layer_may_have_its_own_width(tmp_path: Path) -> None:
    content = models.files()
    wide = {"bits": 4, "group_size": 64, "head": {"bits": 8, "group_size": 64}}
    content["config.json"] = json.dumps(models.CONFIG | {"quantization": wide}).encode()
    content["model.safetensors"] = models.safetensors(
        {"a.weight": ("U32", [1, 8], bytes(32)), "head.weight": ("U32", [1, 16], bytes(64))}
    )
    assert describe(tmp_path / "m", content).parameters == 128


def test_nested_text_config_is_read(tmp_path: Path) -> None:
    content = models.files()
    text = {"max_position_embeddings": 999, "hidden_size": 7}
    content["config.json"] = json.dumps({"model_type": "gemma3", "text_config": text}).encode()
    facts = describe(tmp_path / "m", content)
    assert (facts.family, facts.context_length, facts.embedding_length) == ("gemma3", 999, 7)


def test_the_chat_template_is_found_where_transformers_looks(tmp_path: Path) -> None:
    content = models.files()
    several = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    content["tokenizer_config.json"] = json.dumps({"chat_template": several}).encode()
    assert describe(tmp_path / "a", content).template == "D"
    content["chat_template.jinja"] = b"J"
    assert describe(tmp_path / "b", content).template == "J"
    del content["chat_template.jinja"], content["tokenizer_config.json"]
    assert describe(tmp_path / "c", content).template is None


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (999, "999"),
        (12_345, "12K"),
        (494_032_768, "494.03M"),
        (135_000_000, "135M"),
        (134_515_008, "134.52M"),
        (8_000_000_000, "8B"),
        (7_615_616_512, "7.6B"),
    ],
)
def test_counts_read_as_ollama_writes_them(count: int, text: str) -> None:
    assert inspect.human_number(count) == text


# ---------------------------------------------------------------- hostile files


def head(entries: object, data: bytes = b"") -> bytes:
    raw = json.dumps(entries).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HOSTILE = {
    "empty": b"",
    "short": b"\x01\x00",
    "length beyond the file": (10_000).to_bytes(8, "little") + b"{}",
    "length of exabytes": b"\xff" * 8 + b"{}",
    "length beyond the limit": (MAX_HEADER + 1).to_bytes(8, "little") + b"{}",
    "not JSON": (4).to_bytes(8, "little") + b"!!!!",
    "not UTF-8": (4).to_bytes(8, "little") + b"\xff\xfe\xfd\xfc",
    "deep": (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "a list": head([]),
    "no entry": head({"x": 1}),
    "no offsets": head({"x": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    "a strange type": head({"x": entry(dtype="Q9")}, bytes(4)),
    "a type of no type": head({"x": entry(dtype=None)}, bytes(4)),
    "offsets beyond the file": head({"x": entry(offsets=(4, 8))}, bytes(4)),
    "offsets below zero": head({"x": entry(offsets=(-4, 0))}, bytes(4)),
    "offsets backwards": head({"x": entry(offsets=(4, 0))}, bytes(4)),
    "a shape below zero": head({"x": entry(shape=(-1, -1))}, bytes(4)),
    "a shape too large": head({"x": entry(shape=(2**62, 2**62))}, bytes(4)),
    "a shape of fractions": head({"x": entry(shape=(0.5, 2))}, bytes(4)),
    "overlap": head({"x": entry(), "y": entry()}, bytes(4)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_refused_before_anything_is_written(bench: Bench, name: str) -> None:
    content = models.files() | {"model.safetensors": HOSTILE[name]}
    files = bench.upload(content)
    before = sorted(bench.home.rglob("*"))
    with pytest.raises((Corrupt, UnsupportedModel)) as caught:
        bench.create_from("m", content)
    assert "model.safetensors" in caught.value.message
    assert len(caught.value.message) < 300
    assert bench.registry.list() == []
    assert sorted(bench.home.rglob("*")) in (before, sorted([*before, bench.home / "store.lock"]))
    assert files


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_no_bytes_make_the_reader_fall_over(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("w") / "f"
    for content in (data, len(data).to_bytes(8, "little") + data):
        path.write_bytes(content)
        with contextlib.suppress(Corrupt, UnsupportedModel):
            read_header(path, "f")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (b"", "config.json is not valid JSON"),
        (b"[]", "config.json is not a JSON object"),
        (b"{}", "does not name its model_type"),
        (b'{"model_type": 7}', "does not name its model_type"),
        (b'{"model_type": "../../x"}', "does not name its model_type"),
        (b"\xff\xff", "config.json is not valid JSON"),
        (b"[" * 100_000, "config.json is not valid JSON"),
        (b'{"model_type": "x", "num_hidden_layers": 2147483648}', "claims 2147483648 layers"),
        (b'{"model_type": "x", "text_config": {"n_layer": 1152921504606846976}}', "only . weights"),
        (None, "there is no config.json"),
    ],
)
def test_a_config_that_says_nothing_is_refused(bench: Bench, config: bytes | None, words: str) -> None:
    content = models.files()
    del content["config.json"]
    if config is not None:
        content["config.json"] = config
    with pytest.raises((Corrupt, UnsupportedModel), match=words):
        bench.create_from("m", content)


def test_odd_values_in_a_config_do_no_harm(tmp_path: Path) -> None:
    content = models.files()
    odd = {
        "model_type": "x",
        "hidden_size": "8",
        "max_position_embeddings": -1,
        "quantization": [],
        "text_config": 3,
    }
    content["config.json"] = json.dumps(odd | {"vocab_size": True, "num_experts": None}).encode()
    facts = describe(tmp_path / "m", content)
    assert (facts.context_length, facts.embedding_length) == (0, 0)
    content["config.json"] = json.dumps({"model_type": "x", "quantization": {"bits": 0}}).encode()
    assert describe(tmp_path / "m", content).file_type == "32-bit"


def test_a_missing_shard_is_named(bench: Bench) -> None:
    content = models.files()
    content["model-00001-of-00002.safetensors"] = content.pop("model.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    content["model.safetensors.index.json"] = json.dumps(index).encode()
    with pytest.raises(Corrupt, match=r"model-00002-of-00002\.safetensors is missing"):
        bench.create_from("m", content)
    content["model-00002-of-00002.safetensors"] = models.files(1)["model.safetensors"]
    bench.create_from("m", content)
    assert len(list(Path(bench.registry.resolve("m").path).glob("model*.safetensors"))) == 2
