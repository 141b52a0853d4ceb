"""Every test runs in a home of its own and sees none of the user's settings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MLXO_HOME of this test; MLXO_*, OLLAMA_* and HF_* of the user's environment are gone."""
    for name in list(os.environ):
        if name.startswith(("MLXO_", "OLLAMA_", "HF_")):
            monkeypatch.delenv(name)
    path = tmp_path / "mlxo"
    monkeypatch.setenv("MLXO_HOME", str(path))
    return path
