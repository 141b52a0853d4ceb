"""Each architecture end to end: a tiny GGUF is imported, loaded by mlx-lm, and says what its origin says.

The origin is the same weights in Hugging Face's layout, put straight into mlx-lm's model class.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from numpy.typing import NDArray

from mlxo.core.errors import Corrupt, UnsupportedModel
from mlxo.jobs.convert import Spec, convert
from tests.jobs.ggufs import BPE_TOKENS, SPM_TOKENS, Shape, model_file, weights

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")
# Every sixth layer of gemma3 sees the whole context, so it takes six to have one.
LAYERS = {"gemma3": 6}
TOKENS = [[5, 17, 40, 41, 99, 3, 260, 7, 7, 130, 12, 77]]  # longer than gemma's window of 8


def run(source: Path, out: Path) -> list[tuple[str, int | None, int | None]]:
    lines: list[tuple[str, int | None, int | None]] = []
    convert(Spec(source=str(source), out=str(out)), lambda *line: lines.append(line))
    return lines


def logits(model: Any) -> NDArray[np.float32]:
    return np.array(model(mx.array(TOKENS)).astype(mx.float32))


def original(config: dict[str, Any], params: Mapping[str, NDArray[np.float32]]) -> Any:
    """mlx-lm's model with the weights as Hugging Face lays them out."""
    plain = {k: v for k, v in config.items() if k != "quantization"}
    model_class, args_class = mlx_lm.utils._get_classes(plain)
    model = model_class(args_class.from_dict(plain))
    model.load_weights(list(model.sanitize({k: mx.array(v) for k, v in params.items()}).items()), strict=True)
    return model


def vocab(arch: str) -> int:
    return len(SPM_TOKENS if arch == "gemma3" else BPE_TOKENS)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_float32_gives_the_same_logits(arch: str, tmp_path: Path) -> None:
    shape = Shape(layers=LAYERS.get(arch, 2))
    params = weights(arch, shape, vocab(arch))
    model_file(tmp_path / "model", arch, params, shape)  # no extension, like a blob
    lines = run(tmp_path / "model", tmp_path / "out")
    model, tokenizer, config = mlx_lm.load(str(tmp_path / "out"), return_config=True)
    np.testing.assert_allclose(logits(model), logits(original(config, params)), atol=1e-4)
    assert config["torch_dtype"] == "float32"
    assert config["tie_word_embeddings"] is (arch != "llama")
    assert {array.dtype for _, array in tree_flatten(model.parameters())} == {mx.float32}

    status, done, total = lines[-1]
    assert status == "converting weights"
    assert done == total == sum(value.nbytes for value in params.values())
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert text == "hello"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == "hello"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_quantised_weights_are_what_the_file_means(arch: str, tmp_path: Path) -> None:
    shape = Shape(hidden=256, layers=LAYERS.get(arch, 2), inner=256, head=64)
    kinds = {
        "embed": "Q8_0",
        "v_proj": "Q5_K",
        "o_proj": "Q5_1",
        "gate": "Q5_0",
        "up": "Q4_1",
        "lm_head": "Q8_0",
    }
    params = weights(arch, shape, vocab(arch))
    meaning = model_file(tmp_path / "model", arch, params, shape, default="Q4_K", kinds=kinds)
    run(tmp_path / "model", tmp_path / "out")
    model, _, config = mlx_lm.load(str(tmp_path / "out"), return_config=True)
    np.testing.assert_allclose(logits(model), logits(original(config, meaning)), atol=2e-3)

    quantization = config["quantization"]
    assert {k: quantization[k] for k in ("bits", "group_size", "mode")} == {
        "bits": 4, "group_size": 32, "mode": "affine",
    }  # fmt: skip
    assert quantization["model.embed_tokens"] == {"bits": 8, "group_size": 32, "mode": "affine"}
    assert quantization["model.layers.1.self_attn.v_proj"]["bits"] == 5
    assert "model.layers.1.mlp.up_proj" not in quantization, "it has the common width"
    assert config["torch_dtype"] == ("float16" if arch == "llama" else "bfloat16")
    widths = {array.dtype for name, array in tree_flatten(model.parameters()) if "norm" in name}
    assert widths == {mx.float32}, "norms are as wide as the scales"


def test_gemma_with_a_mixture_like_q4_k_m(tmp_path: Path) -> None:
    """Q6_K is rounded, so the logits may move a little and no more."""
    shape = Shape(hidden=256, layers=6, inner=256, head=64)
    kinds = {"embed": "Q8_0", "down": "Q6_K", "q_proj": "Q5_0"}
    params = weights("gemma3", shape, vocab("gemma3"))
    meaning = model_file(tmp_path / "model", "gemma3", params, shape, default="Q4_K", kinds=kinds)
    run(tmp_path / "model", tmp_path / "out")
    model, _, config = mlx_lm.load(str(tmp_path / "out"), return_config=True)
    expected = logits(original(config, meaning))
    error = logits(model) - expected
    assert np.sqrt((error**2).mean()) < 0.02 * expected.std()


@pytest.mark.parametrize(("kind", "dtype"), [("F16", mx.float16), ("BF16", mx.bfloat16)])
def test_half_precision_is_kept_bit_for_bit(kind: str, dtype: mx.Dtype, tmp_path: Path) -> None:
    shape = Shape(layers=1)
    params = weights("qwen2", shape, vocab("qwen2"))
    meaning = model_file(tmp_path / "model", "qwen2", params, shape, default=kind)
    run(tmp_path / "model", tmp_path / "out")
    found = mx.load(str(tmp_path / "out" / "model.safetensors"))
    assert isinstance(found, dict)
    assert set(found) == set(meaning)
    for name, value in meaning.items():
        assert found[name].dtype == dtype, "norms and biases follow the matrices"
        assert mx.array_equal(found[name], mx.array(value).astype(dtype)), name
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_a_wide_tensor_goes_through_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of a piece changes nothing: row by row gives the same file."""
    shape = Shape()
    params = weights("llama", shape, vocab("llama"))
    model_file(tmp_path / "model", "llama", params, shape, default="Q8_0")
    run(tmp_path / "model", tmp_path / "whole")
    monkeypatch.setattr("mlxo.jobs.convert._PIECE", 1)
    run(tmp_path / "model", tmp_path / "rows")
    whole, rows = (tmp_path / name / "model.safetensors" for name in ("whole", "rows"))
    assert whole.read_bytes() == rows.read_bytes()


def config_of(tmp_path: Path, arch: str, shape: Shape, **extra: Any) -> dict[str, Any]:
    params = weights(arch, shape, vocab(arch))
    source = tmp_path / "model"
    source.unlink(missing_ok=True)
    rope = extra.pop("factors", None)
    if rope is not None:
        params["rope_freqs.weight"] = np.array(rope, np.float32)
    model_file(source, arch, params, shape, extra=extra)
    out = tmp_path / "out"
    for file in out.glob("*"):
        file.unlink()
    run(source, out)
    found: dict[str, Any] = json.loads((out / "config.json").read_text())
    return found


def llama3_factors(head: int, theta: float, factor: float) -> list[float]:
    """As transformers computes them (modeling_rope_utils), by numpy."""
    inverse = theta ** -(np.arange(0, head, 2) / head)
    wavelength = 2 * np.pi / inverse
    smooth = (8192 / wavelength - 1) / (4 - 1)
    scaled = np.where(wavelength > 8192, inverse / factor, inverse)
    middle = (wavelength <= 8192) & (wavelength >= 8192 / 4)
    scaled = np.where(middle, (1 - smooth) * inverse / factor + smooth * inverse, scaled)
    return [float(x) for x in inverse / scaled]


def test_rope_scaling(tmp_path: Path) -> None:
    shape = Shape(layers=1)
    assert "rope_scaling" not in config_of(tmp_path, "qwen2", shape)
    linear = {"qwen2.rope.scaling.type": "linear", "qwen2.rope.scaling.factor": 4.0}
    assert config_of(tmp_path, "qwen2", shape, **linear)["rope_scaling"] == {
        "type": "linear", "rope_type": "linear", "factor": 4.0,
    }  # fmt: skip
    yarn = {
        "qwen3.rope.scaling.type": "yarn",
        "qwen3.rope.scaling.factor": 4.0,
        "qwen3.rope.scaling.original_context_length": 32768,
    }
    assert config_of(tmp_path, "qwen3", shape, **yarn)["rope_scaling"] == {
        "type": "yarn", "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768,
    }  # fmt: skip
    llama3 = config_of(tmp_path, "llama", Shape(layers=1, head=64), factors=llama3_factors(64, 10000.0, 32.0))
    assert llama3["rope_scaling"] == {
        "type": "llama3", "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    mlx_lm.load(str(tmp_path / "out"))
    with pytest.raises(UnsupportedModel, match="Llama 3"):
        config_of(tmp_path, "llama", Shape(layers=1, head=64), factors=[1.0] * 16 + [1.7] * 16)
    with pytest.raises(UnsupportedModel, match="longrope"):
        config_of(
            tmp_path,
            "llama",
            shape,
            **{"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0},
        )


def test_gemmas_window(tmp_path: Path) -> None:
    shape = Shape(layers=6)
    config = config_of(tmp_path, "gemma3", shape, **{"gemma3.rope.freq_base_swa": 20000.0})
    assert (config["sliding_window"], config["sliding_window_pattern"]) == (8, 6)
    assert config["rope_local_base_freq"] == 20000.0
    assert config["query_pre_attn_scalar"] == shape.head
    pattern = config_of(tmp_path, "gemma3", shape, **{"gemma3.attention.sliding_window_pattern": 3})
    assert pattern["sliding_window_pattern"] == 3
    with pytest.raises(Corrupt, match="pattern 7"):
        config_of(tmp_path, "gemma3", shape, **{"gemma3.attention.sliding_window_pattern": 7})


def test_a_model_that_does_not_fit_is_refused_in_a_sentence(tmp_path: Path) -> None:
    shape = Shape(layers=1)
    good = weights("qwen3", shape, vocab("qwen3"))

    def refused(
        kind: type[Exception], words: str, params: Mapping[str, NDArray[np.float32]], arch: str
    ) -> None:
        (tmp_path / "model").unlink(missing_ok=True)
        model_file(tmp_path / "model", arch, params, shape)
        with pytest.raises(kind, match=words):
            run(tmp_path / "model", tmp_path / "out")
        assert list((tmp_path / "out").iterdir()) == [], "nothing is written before everything is checked"

    lacking = {k: v for k, v in good.items() if "k_norm" not in k}
    refused(Corrupt, "lacks the tensor blk.0.attn_k_norm.weight", lacking, "qwen3")
    refused(
        UnsupportedModel,
        "blk.0.extra.weight",
        {**good, "model.layers.0.extra.weight": good["model.norm.weight"]},
        "qwen3",
    )
    wrong = {**good, "model.layers.0.mlp.up_proj.weight": np.zeros((32, 64), np.float32)}
    refused(Corrupt, r"ffn_up.weight of the GGUF file has shape \(32, 64\)", wrong, "qwen3")
    refused(UnsupportedModel, "'phi3' cannot be imported", good, "phi3")
    few = {**good, "model.embed_tokens.weight": np.zeros((100, 64), np.float32)}
    refused(Corrupt, "tokens and room for 100", few, "qwen3")
