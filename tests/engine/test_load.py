"""Loading: number formats by machine, and failures in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model, quantize_model, save_model

from mlxo.core.errors import LoadFailed
from mlxo.engine import load as loading
from mlxo.engine.engine import Engine
from tests import models
from tests.engine.ask import chat, say
from tests.engine.conftest import spec
from tests.runner.test_runner import HOW, spoil

FRANCE = "What is the capital of France?"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    shutil.copytree(models.QWEN3, copy)
    return copy


def rewrite(folder: Path, change: Callable[[Any, dict[str, Any]], tuple[Any, dict[str, Any]]]) -> None:
    model, config = change(*load_model(folder))
    (folder / "model.safetensors").unlink()
    save_model(folder, model)
    for extra in folder.glob("model.safetensors.index.json"):
        extra.unlink()
    (folder / "config.json").write_text(json.dumps(config))


def types(model: Any) -> set[mx.Dtype]:
    return {array.dtype for _, array in tree_flatten(model.parameters())}


def half(folder: Path, kind: mx.Dtype) -> None:
    def change(model: Any, config: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        model.set_dtype(kind)
        return model, {**config, "torch_dtype": str(kind).rpartition(".")[2]}

    rewrite(folder, change)


@pytest.mark.parametrize("kind", [mx.float16, mx.bfloat16])
def test_a_cpu_computes_in_float32(folder: Path, kind: mx.Dtype) -> None:
    half(folder, kind)
    loaded = loading.load(spec(folder), "cpu")
    assert types(loaded.model) == {mx.float32}
    assert loaded.dtype == mx.float32


@pytest.mark.parametrize(
    ("mode", "bits", "group"), [("affine", 8, 32), ("affine", 4, 32), ("mxfp4", 4, 32), ("mxfp8", 8, 32)]
)
def test_a_cpu_unpacks_quantised_weights(folder: Path, mode: str, bits: int, group: int) -> None:
    rewrite(folder, lambda m, c: quantize_model(m, c, group, bits, mode))
    loaded = loading.load(spec(folder), "cpu")
    assert types(loaded.model) == {mx.float32}
    assert not any("scales" in m for m in loaded.model.modules())


def test_unpacked_is_the_same_model(folder: Path) -> None:
    rewrite(folder, lambda m, c: quantize_model(m, c, 32, 8))
    packed, _ = load_model(folder)
    unpacked = loading.load(spec(folder), "cpu").model
    ids = mx.array([[5, 6, 7, 8]])
    assert mx.allclose(packed(ids), unpacked(ids), atol=1e-4)
    engine = Engine(spec(folder), rows=1)
    assert say(engine, chat(FRANCE)).text == models.ANSWERS[FRANCE]
    engine.close()


def test_what_does_not_fit_stays_packed_with_float32_scales(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half(folder, mx.float16)
    rewrite(folder, lambda m, c: quantize_model(m, c, 32, 8))
    monkeypatch.setattr(loading, "total_memory", lambda: 1_000_000)
    loaded = loading.load(spec(folder), "cpu")
    assert types(loaded.model) == {mx.uint32, mx.float32}
    assert loaded.dtype == mx.float32


def test_a_dense_model_that_does_not_fit_stays_as_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half(folder, mx.bfloat16)
    monkeypatch.setattr(loading, "total_memory", lambda: 1_000_000)
    assert types(loading.load(spec(folder), "cpu").model) == {mx.bfloat16}


def test_a_gpu_keeps_weights_and_narrows_float32_scales(folder: Path) -> None:
    def change(model: Any, config: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        model, config = quantize_model(model, config, 32, 8)
        return model, {**config, "torch_dtype": "bfloat16"}

    rewrite(folder, change)  # as the GGUF import leaves it: float32 beside packed weights
    loaded = loading.load(spec(folder), "metal")
    assert types(loaded.model) == {mx.uint32, mx.bfloat16}
    assert loaded.dtype == mx.bfloat16


def test_a_gpu_leaves_a_float32_model_alone(folder: Path) -> None:
    assert types(loading.load(spec(folder), "metal").model) == {mx.float32}


@pytest.mark.parametrize("how", HOW)
def test_failures_are_one_sentence(folder: Path, how: str) -> None:
    spoil(folder, how)
    with pytest.raises(LoadFailed) as caught:
        loading.load(spec(folder), "cpu")
    message = caught.value.message
    assert HOW[how] in message
    assert message.startswith("the model model cannot be loaded: ")
    assert "\n" not in message
    assert len(message) < 400


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match=r"no config\.json"):
        loading.load(spec(tmp_path / "gone"), "cpu")


def test_the_backend_is_the_device_that_mlx_uses() -> None:
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    assert (loading.backend() == "cpu") == on_cpu
