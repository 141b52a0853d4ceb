"""A registry in a home of its own, and what it reports."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from mlxo.core.paths import Paths
from mlxo.store import hub_http
from mlxo.store.create import Recipe, create
from mlxo.store.progress import Progress
from mlxo.store.pull import pull
from mlxo.store.registry import Registry
from tests.fakes.hub import FakeHub, Repo
from tests.store import models

NAME = "hf.co/org/tiny"
BIG = 40_000  # rows of weights: 1.3 MB, many packets


class Bench:
    """A registry with the arguments that every operation wants."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.registry = Registry(Paths(home))
        self.cancelled = threading.Event()
        self.lines: list[Progress] = []

    @property
    def statuses(self) -> list[str]:
        return [line.status for line in self.lines]

    def report(self, progress: Progress) -> None:
        self.lines.append(progress)

    def upload(self, files: Mapping[str, bytes]) -> dict[str, str]:
        return {name: self.registry.blobs.add_bytes(data).digest for name, data in files.items()}

    def create(self, name: str, recipe: Recipe) -> None:
        create(self.registry, name, recipe, self.report, self.cancelled)

    def create_from(self, name: str, files: Mapping[str, bytes]) -> None:
        self.create(name, Recipe(files=self.upload(files)))

    def problems(self) -> list[str]:
        return [p.problem for p in self.registry.verify(lambda _: None, self.cancelled).problems]

    def leftovers(self) -> list[str]:
        """What lies in tmp/, lock files aside."""
        tmp = self.registry.paths.tmp
        return [p.name for p in tmp.iterdir() if p.suffix != ".lock"] if tmp.exists() else []


@pytest.fixture
def bench(home: Path) -> Bench:
    return Bench(home)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A local hub that HF_ENDPOINT names."""
    from huggingface_hub.utils import close_session  # type: ignore[attr-defined]

    with FakeHub() as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        yield fake
        close_session()


def run(bench: Bench, name: str = NAME) -> None:
    """Pull."""
    pull(bench.registry, name, bench.report, bench.cancelled)


@pytest.fixture
def content(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The files of org/tiny, of a hub that is asked again without a pause."""
    monkeypatch.setattr(hub_http, "_PAUSE", 0.001)
    files = models.files(rows=BIG)
    hub.repos["org/tiny"] = Repo(files)
    return files
