"""One engine a model for all tests of this folder: they leave it idle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxo.core.types import ModelSpec
from mlxo.engine.engine import Engine
from tests import models


def spec(folder: Path, **changes: object) -> ModelSpec:
    return ModelSpec(name=folder.name, digest="", path=str(folder), **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def qwen3_engine() -> Engine:
    return Engine(spec(models.QWEN3), rows=4)


@pytest.fixture(scope="session")
def llama_engine() -> Engine:
    return Engine(spec(models.LLAMA), rows=4)


@pytest.fixture
def qwen3(qwen3_engine: Engine) -> Iterator[Engine]:
    yield qwen3_engine
    assert not qwen3_engine.busy, "a test left requests behind"


@pytest.fixture
def llama(llama_engine: Engine) -> Iterator[Engine]:
    yield llama_engine
    assert not llama_engine.busy, "a test left requests behind"
