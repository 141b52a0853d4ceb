"""Memory estimates by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlxo.hardware.estimate import PROCESS, of_folder, resident_bytes, stored_bits

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
