"""QUANTIZE: a folder or a float GGUF through mlx-lm's quantiser, tensor by tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest

from mlxo.core.errors import InvalidRequest, MlxoError, NotFound, UnsupportedModel
from mlxo.jobs.convert import Spec, convert
from mlxo.modelfile import Quantize
from tests.jobs.ggufs import BPE_TOKENS, Shape, model_file, weights

SHAPE = Shape(hidden=128, layers=1, inner=128, heads=2, kv_heads=1, head=64)
MODES = [
    *(Quantize(bits=bits, group_size=32) for bits in (2, 3, 4, 5, 6, 8)),
    Quantize(bits=4, group_size=64),
    Quantize(bits=8, group_size=128),
    Quantize(mode="mxfp4", bits=4, group_size=32),
    Quantize(mode="nvfp4", bits=4, group_size=16),
    Quantize(mode="mxfp8", bits=8, group_size=32),
]


def run(source: Path, out: Path, quantize: Quantize | None) -> list[tuple[str, int | None, int | None]]:
    lines: list[tuple[str, int | None, int | None]] = []
    convert(Spec(source=str(source), out=str(out), quantize=quantize), lambda *line: lines.append(line))
    return lines


def gguf_file(folder: Path, kind: str = "F32") -> Path:
    params = weights("qwen3", SHAPE, len(BPE_TOKENS))
    model_file(folder / "model.gguf", "qwen3", params, SHAPE, default=kind)
    return folder / "model.gguf"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of float32 safetensors with its tokenizer."""
    run(gguf_file(tmp_path), tmp_path / "source", None)
    return tmp_path / "source"


def tensors(folder: Path) -> dict[str, mx.array]:
    found = mx.load(str(folder / "model.safetensors"))
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("mode", MODES, ids=lambda m: f"{m.mode}-{m.bits}-{m.group_size}")
def test_each_mode(mode: Quantize, source: Path, tmp_path: Path) -> None:
    lines = run(source, tmp_path / "out", mode)
    plain, found = tensors(source), tensors(tmp_path / "out")
    path = "model.layers.0.mlp.up_proj"
    expected = mx.quantize(
        plain[f"{path}.weight"], group_size=mode.group_size, bits=mode.bits, mode=mode.mode
    )
    for suffix, array in zip(("weight", "scales", "biases"), expected, strict=False):
        assert mx.array_equal(found[f"{path}.{suffix}"], array), suffix
    assert mx.array_equal(found["model.norm.weight"], plain["model.norm.weight"])

    model, tokenizer, config = mlx_lm.load(str(tmp_path / "out"), return_config=True)
    assert isinstance(model.model.layers[0].mlp.up_proj, nn.QuantizedLinear)
    assert isinstance(model.model.embed_tokens, nn.QuantizedEmbedding)
    settings = {"bits": mode.bits, "group_size": mode.group_size, "mode": mode.mode}
    assert config["quantization"] == settings
    assert tokenizer.encode("hello") == [BPE_TOKENS.index("hello")]
    assert lines[0] == ("loading weights", None, None)
    done = [line[1] for line in lines[1:]]
    assert done == sorted(set(done), key=lambda n: n or 0), "progress by tensor"
    assert lines[-1] == ("quantizing", done[-1], done[-1])


def test_a_float_gguf_is_quantised_in_one_go(tmp_path: Path) -> None:
    mode = Quantize(bits=8, group_size=64)
    run(gguf_file(tmp_path, "F16"), tmp_path / "out", mode)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    found = tensors(tmp_path / "out")
    path = "model.layers.0.mlp.up_proj"
    assert found[f"{path}.scales"].dtype == mx.float16, "the type of the source"
    weight = weights("qwen3", SHAPE, len(BPE_TOKENS))[f"{path}.weight"]
    packed, scales, biases = (found[f"{path}.{suffix}"] for suffix in ("weight", "scales", "biases"))
    back = mx.dequantize(packed, scales, biases, group_size=64, bits=8)
    np.testing.assert_allclose(np.array(back), weight, atol=0.01)
    assert np.isfinite(np.array(mlx_lm.load(str(tmp_path / "out"))[0](mx.array([[5, 6]])))).all()


def test_a_layer_that_has_a_bias_keeps_it(tmp_path: Path) -> None:
    params = weights("qwen2", SHAPE, len(BPE_TOKENS))
    model_file(tmp_path / "model", "qwen2", params, SHAPE)
    run(tmp_path / "model", tmp_path / "out", Quantize())
    found = tensors(tmp_path / "out")
    path = "model.layers.0.self_attn.k_proj"
    assert {f"{path}.{suffix}" for suffix in ("weight", "scales", "biases", "bias")} <= set(found)
    np.testing.assert_array_equal(np.array(found[f"{path}.bias"]), params[f"{path}.bias"])


def test_pieces_make_the_same_file(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(source, tmp_path / "whole", Quantize())
    monkeypatch.setattr("mlxo.jobs.quantize._PIECE", 1)
    run(source, tmp_path / "rows", Quantize())
    whole, rows = (tmp_path / name / "model.safetensors" for name in ("whole", "rows"))
    assert whole.read_bytes() == rows.read_bytes()


def test_bfloat16_stays(source: Path, tmp_path: Path) -> None:
    halved = {name: array.astype(mx.bfloat16) for name, array in tensors(source).items()}
    mx.save_safetensors(str(source / "model.safetensors"), halved)
    run(source, tmp_path / "out", Quantize())
    found = tensors(tmp_path / "out")
    assert mx.array_equal(found["model.norm.weight"], halved["model.norm.weight"])
    assert found["model.embed_tokens.scales"].dtype == mx.bfloat16


def test_what_travels_along(source: Path, tmp_path: Path) -> None:
    for name in ("vocab.txt", "tokenizer.model", "evil.py", "weights.bin", "model.safetensors.index.json"):
        (source / name).write_text("{}")
    (source / "folder.json").mkdir()
    run(source, tmp_path / "out", Quantize())
    copied = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"vocab.txt", "tokenizer.model", "tokenizer.json", "chat_template.jinja"} <= copied
    assert not copied & {"evil.py", "weights.bin", "model.safetensors.index.json", "folder.json"}


def refused(kind: type[MlxoError], words: str, source: Path, out: Path, mode: Quantize | None) -> None:
    with pytest.raises(kind, match=words):
        run(source, out, mode)
    assert not (out / "model.safetensors").exists()


def test_what_cannot_be_quantised_is_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(InvalidRequest, "nothing to convert", source, out, None)
    for kind in ("Q8_0", "Q4_1"):
        file = gguf_file(tmp_path, kind)
        refused(InvalidRequest, f"quantized already .{kind}.", file, out, Quantize())
    config = json.loads((source / "config.json").read_text())

    def rewrite(**values: Any) -> None:
        (source / "config.json").write_text(json.dumps({**config, **values}))

    rewrite(quantization_config={"quant_method": "awq"})
    refused(InvalidRequest, "quantized already", source, out, Quantize())
    rewrite(model_type="no_such_model")
    refused(UnsupportedModel, "no_such_model not supported", source, out, Quantize())
    rewrite(model_file="evil.py")
    (source / "evil.py").write_text("raise SystemExit('it ran')")
    refused(UnsupportedModel, "disabled by default", source, out, Quantize())
    (source / "config.json").unlink()
    refused(NotFound, "no config.json", source, out, Quantize())
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / "file").touch()
    refused(InvalidRequest, "not empty", source, tmp_path / "busy", Quantize())


def test_groups_that_fit_no_layer(tmp_path: Path) -> None:
    shape = Shape(hidden=32, layers=1, inner=32, heads=1, kv_heads=1, head=32)
    model_file(tmp_path / "model", "qwen3", weights("qwen3", shape, len(BPE_TOKENS)), shape)
    refused(UnsupportedModel, "groups of 64", tmp_path / "model", tmp_path / "out", Quantize())
