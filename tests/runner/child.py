"""A real runner child on a real socket pair, driven from a test."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mlxo.core import process, wire
from mlxo.core.options import Options
from mlxo.core.types import Chat, Event, Failed, Finished, Message, ModelSpec, Request

PATIENCE = 60.0  # seconds a reply may take on a loaded machine


class Child:
    def __init__(self, log: Path) -> None:
        self.end, theirs = socket.socketpair()
        self.end.settimeout(PATIENCE)
        self.log = log
        with theirs, log.open("wb") as out:
            self.process = subprocess.Popen(
                process.command("_runner", str(theirs.fileno())),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
            )
        self._unpacker = wire.from_runner()
        self._frames: list[wire.FromRunner] = []

    def send(self, *frames: wire.ToRunner) -> None:
        self.end.sendall(wire.pack(frames))

    def load(self, folder: Path, rows: int = 4) -> None:
        self.send(wire.Load(spec=ModelSpec(name=folder.name, digest="", path=str(folder)), rows=rows))

    def ready(self) -> wire.FromRunner:
        """The answer to Load. Warm goes before it when the imports were quicker than Load."""
        frame = self.next()
        return self.next() if isinstance(frame, wire.Warm) else frame

    def next(self) -> wire.FromRunner:
        while not self._frames:
            data = self.end.recv(1 << 16)
            assert data, f"the runner hung up: {self.log.read_text()}"
            self._frames += self._unpacker.feed(data)
        return self._frames.pop(0)

    def until(self, wanted: Callable[[wire.FromRunner], bool]) -> list[wire.FromRunner]:
        """Frames up to and including the first that is wanted."""
        seen = [self.next()]
        while not wanted(seen[-1]):
            seen.append(self.next())
        return seen

    def answer(self, id_: str) -> list[Event]:
        """The events of a request, to its end; frames of others are dropped."""
        frames = self.until(
            lambda f: isinstance(f, wire.Emit) and f.id == id_ and isinstance(f.event, Finished | Failed)
        )
        return [f.event for f in frames if isinstance(f, wire.Emit) and f.id == id_]

    def wait(self) -> int:
        return self.process.wait(PATIENCE)


def ask(id_: str, text: str, **options: object) -> wire.Submit:
    chosen = Options(**{"temperature": 0.0, **options})  # type: ignore[arg-type]
    task = Chat(messages=(Message(role="user", content=text),), think=False)
    return wire.Submit(request=Request(id=id_, model="m", task=task, options=chosen))


@contextmanager
def child(log: Path) -> Iterator[Child]:
    one = Child(log)
    try:
        yield one
    finally:
        one.end.close()
        one.process.kill()
        one.process.wait(PATIENCE)
