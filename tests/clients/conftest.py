"""One real daemon with the model `tiny`, and a hub that has another, for the clients that people use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Mlxo
from tests.fakes.hub import FakeHub, Repo
from tests.models import LLAMA, QWEN3

TINY = "tiny:latest"
SPACED = "you/tiny:latest"  # a name with a slash in it
HUB_MODEL = "hf.co/org/tiny"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.clients)


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mlxo]:
    folder = tmp_path_factory.mktemp("clients")
    file = folder / "Modelfile"
    file.write_text(f"FROM {QWEN3}\nPARAMETER temperature 0\nLICENSE free\n")
    with FakeHub() as hub:
        hub.repos["org/tiny"] = Repo({p.name: p.read_bytes() for p in LLAMA.iterdir()})
        command = Mlxo(folder / "home")
        command.env["HF_ENDPOINT"] = hub.url
        command("create", "tiny", "-f", str(file))
        command("cp", "tiny", SPACED)
        yield command
        command("daemon", "stop", ok=False)
