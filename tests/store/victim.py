"""To be killed: `python -m tests.store.victim VERB HOME ...` prints `status completed`, a line a step.

pull HOME NAME        pull once
churn HOME            create, replace, copy and delete small models for ever
repull HOME NAME      delete and pull for ever
limited HOME BYTES    create a model while no file may grow beyond BYTES; prints the error's code
"""

from __future__ import annotations

import itertools
import resource
import sys
import threading
from pathlib import Path

from mlxo.core.errors import MlxoError
from mlxo.core.paths import Paths
from mlxo.store.create import Recipe, create
from mlxo.store.progress import Progress
from mlxo.store.pull import pull
from mlxo.store.registry import Registry
from tests.store import models

NEVER = threading.Event()


def say(progress: Progress) -> None:
    print(progress.status.replace(" ", "-"), progress.completed or 0, flush=True)


def step(name: str) -> None:
    say(Progress(status=name))


def make(registry: Registry, name: str, seed: int, rows: int = 3000) -> None:
    files = {}
    for file, data in models.files(seed, rows).items():
        step("upload")
        files[file] = registry.blobs.add_bytes(data).digest
    create(registry, name, Recipe(files=files, system=f"number {seed}"), say, NEVER)


def churn(registry: Registry) -> None:
    for number in itertools.count():
        make(registry, f"m{number % 2}", number)
        registry.resolve(f"m{number % 2}")
        step("resolved")
        registry.copy(f"m{number % 2}", "copied")
        step("copied")
        if number % 3 == 2:
            registry.delete("copied")
            step("deleted")
            registry.gc(0)
            step("collected")


def repull(registry: Registry, name: str) -> None:
    while True:
        pull(registry, name, say, NEVER)
        registry.delete(name)
        step("deleted")


def limited(registry: Registry, limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        make(registry, "big", 7, rows=100_000)
    except MlxoError as e:
        print(f"error {e.code} {e.message}", flush=True)


def main(verb: str, home: str, *rest: str) -> None:
    registry = Registry(Paths(Path(home)))
    match verb:
        case "pull":
            pull(registry, rest[0], say, NEVER)
        case "churn":
            churn(registry)
        case "repull":
            repull(registry, rest[0])
        case "limited":
            limited(registry, int(rest[0]))


if __name__ == "__main__":
    main(*sys.argv[1:])
