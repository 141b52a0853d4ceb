"""Memory estimates by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlxo.hardware.estimate import PROCESS, kv_bytes, of_folder, resident_bytes, stored_bits

GB = 1 << 30


@pytest.mark.parametrize(
    ("config", "bits"),
    [
        ({"quantization": {"bits": 4, "group_size": 64}}, 4.5),
        ({"quantization": {"bits": 4, "group_size": 32}}, 5.0),
        ({"torch_dtype": "float32"}, 32.0),
        ({"dtype": "torch.bfloat16"}, 16.0),
        ({"quantization": {"bits": "4", "group_size": 0}}, 16.0),
        ({"quantization": []}, 16.0),
        ({}, 16.0),
    ],
)
def test_bits(config: dict[str, Any], bits: float) -> None:
    assert stored_bits(config) == bits


def test_a_gpu_keeps_weights_and_a_processor_widens_what_fits() -> None:
    assert resident_bytes(10 * GB, 16, "metal", 16 * GB) == int(11 * GB) + PROCESS
    assert resident_bytes(4 * GB, 16, "cpu", 64 * GB) == int(8 * GB * 1.1) + PROCESS
    assert resident_bytes(40 * GB, 16, "cpu", 64 * GB) == int(44 * GB) + PROCESS


@pytest.mark.parametrize("text", [None, "{", "[]", '{"torch_dtype": "float32"}'])
def test_a_folder_never_raises(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    expected = GB if text and json.dumps("float32") in text else 2 * GB
    assert of_folder(tmp_path, GB, "cpu", 64 * GB) == int(expected * 1.1) + PROCESS


LLAMA = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 256,
    "max_position_embeddings": 1000,
}


@pytest.mark.parametrize(
    ("config", "numbers"),
    [
        (LLAMA, 2 * 2 * 2 * 64 * 100),  # layers, keys and values, heads, width, tokens
        (LLAMA | {"head_dim": 16}, 2 * 2 * 2 * 16 * 100),
        ({"text_config": LLAMA}, 2 * 2 * 2 * 64 * 100),
        (
            LLAMA | {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 10},
            2 * 2 * 64 * 110,
        ),
        (LLAMA | {"layer_types": ["linear_attention", "full_attention"]}, 2 * 2 * 64 * 100),
        (LLAMA | {"kv_lora_rank": 30, "qk_rope_head_dim": 4}, 2 * 34 * 100),
        (LLAMA | {"num_hidden_layers": "2"}, 0),
        ({}, 0),
    ],
)
def test_keys_and_values(config: dict[str, Any], numbers: int) -> None:
    assert kv_bytes(config, 100, "metal") == 2 * numbers
    assert kv_bytes(config, 100, "cpu") == 4 * numbers


def test_a_context_counts_as_far_as_the_model_was_trained(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    none = of_folder(tmp_path, GB, "metal", 64 * GB, 0)
    assert of_folder(tmp_path, GB, "metal", 64 * GB, 500) == none + kv_bytes(LLAMA, 500, "metal")
    assert of_folder(tmp_path, GB, "metal", 64 * GB, 5000) == none + kv_bytes(LLAMA, 1000, "metal")
