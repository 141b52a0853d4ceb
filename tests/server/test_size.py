"""What a model is expected to take, its DRAFT included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlxo.core.types import NGRAM, ModelSpec
from mlxo.hardware import estimate
from mlxo.server.main import _size

MB = 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"torch_dtype": "float32"}))
    return tmp_path


def size(folder: Path, draft: str | None, draft_weights: int) -> int:
    spec = ModelSpec(
        name="m",
        digest="",
        path=str(folder),
        weights=800 * MB,
        draft=draft,
        draft_weights=draft_weights,
    )
    return _size(spec, "cpu", 64 << 30, 1024)


def test_a_draft_counts_and_its_process_does_not(folder: Path) -> None:
    plain = size(folder, None, 0)
    alone = _size(ModelSpec(name="d", digest="", path=str(folder), weights=100 * MB), "cpu", 64 << 30, 1024)
    assert size(folder, str(folder), 100 * MB) == plain + alone - estimate.PROCESS
    assert alone - estimate.PROCESS >= 100 * MB


def test_a_lookup_takes_nothing(folder: Path) -> None:
    assert size(folder, NGRAM, 0) == size(folder, None, 0)
