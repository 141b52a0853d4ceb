"""A runner without a model: a real process that speaks core.wire and does what the prompt says.

Run as `python tests/fakes/runner.py STAGE FD`. STAGE is a Unix socket on which the fake tells a test what
reaches it, one JSON object a line, and on which the test may answer `go`.

The model's name says how it loads (see `_load`), the last message of a request what is answered (`_answer`).
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Iterator

from mlxo.core import wire
from mlxo.core.types import (
    Call,
    Chat,
    Complete,
    Event,
    Failed,
    Finished,
    Function,
    Request,
    RunnerStats,
    Started,
    TextDelta,
    ThinkDelta,
    ToolCall,
)

Rows = dict[str, Iterator[list[Event]]]


class Fake:
    def __init__(self, stage: str, fd: int) -> None:
        self.end = socket.socket(fileno=fd)
        self.stage = socket.socket(socket.AF_UNIX)
        self.stage.connect(stage)
        self.inbox: queue.SimpleQueue[wire.ToRunner | None] = queue.SimpleQueue()
        self.rows: Rows = {}

    def tell(self, what: str, **more: object) -> None:
        self.stage.sendall(json.dumps({"what": what, "pid": os.getpid(), **more}).encode() + b"\n")

    def hear(self) -> None:
        if not self.stage.recv(16):
            sys.exit(0)

    def send(self, *frames: wire.FromRunner) -> None:
        self.end.sendall(wire.pack(frames))

    def read(self) -> None:
        unpacker = wire.to_runner()
        while data := self.end.recv(1 << 16):
            for frame in unpacker.feed(data):
                self.inbox.put(frame)
        self.inbox.put(None)

    def run(self) -> int:
        threading.Thread(target=self.read, daemon=True).start()
        self.send(wire.Warm(resident=4096))
        load = self.inbox.get()
        if load is None or isinstance(load, wire.Shutdown):
            return 0
        assert isinstance(load, wire.Load)
        name = load.spec.name.partition(":")[0]
        self.tell("load", name=name, rows=load.rows, context=load.context)
        if (code := self._load(name)) is not None:
            return code
        while True:
            try:
                frame = self.inbox.get(timeout=0.001 if self.rows else None)
            except queue.Empty:
                self._step()
                continue
            if frame is None or isinstance(frame, wire.Shutdown):
                self.tell("shutdown")
                return 0
            self._obey(frame)

    def _load(self, name: str) -> int | None:
        """slow: waits for the test; crash, broken, mute: three ways not to load; the rest loads at once."""
        if name == "slow":
            self.hear()
        elif name == "crash":
            print("the crash model\nis no good", file=sys.stderr, flush=True)
            return 3
        elif name == "broken":
            self.send(wire.Fatal(message="broken weights", code="unsupported_model", hint="try another"))
            return 1
        elif name == "mute":
            self.inbox.get()
        self.send(wire.Ready(stats=self.stats(), context=2048, load_ns=5))
        return None

    def stats(self) -> RunnerStats:
        return RunnerStats(active_bytes=1000 + len(self.rows), backend="cpu")

    def _obey(self, frame: wire.ToRunner) -> None:
        if isinstance(frame, wire.Submit):
            request = frame.request
            self.tell("submit", id=request.id, request=json.loads(_json(request)))
            self.rows[request.id] = self._answer(request)
        elif isinstance(frame, wire.Cancel):
            self.tell("cancel", id=frame.id)
            if self.rows.pop(frame.id, None) is not None:
                self.send(wire.Emit(id=frame.id, event=Failed(message="cancelled", code="cancelled")))
        elif isinstance(frame, wire.Ping):
            self.send(wire.Stats(stats=self.stats()))

    def _step(self) -> None:
        out: list[wire.FromRunner] = []
        for id_, row in list(self.rows.items()):
            events = next(row)
            out += [wire.Emit(id=id_, event=e) for e in events]
            if events and isinstance(events[-1], Finished | Failed):
                del self.rows[id_]
        if out:
            self.send(*out)

    def _answer(self, request: Request) -> Iterator[list[Event]]:
        task = request.task
        prompt = task.messages[-1].content if isinstance(task, Chat) else ""
        prompt = task.prompt if isinstance(task, Complete) else prompt
        verb, _, rest = prompt.partition(" ")
        if verb == "refuse":
            yield [Failed(message=rest, code="invalid_request", hint="hint")]
        yield [Started(prompt_tokens=7)]
        while verb == "silence":
            yield []
        if verb == "think":
            yield [ThinkDelta(text="hm")]
        if verb == "call":
            yield [Call(call=ToolCall(function=Function(name=rest, arguments={"b": 1, "a": [2]})))]
        if verb == "dump":
            rest = _json(request)
        for i, word in enumerate(rest.split(" ")):
            yield [TextDelta(text=word if i == 0 else f" {word}")]
        if verb == "break":
            yield [Failed(message="the model failed", code="internal_error")]
        if verb == "die":
            print("last words", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        while verb == "forever":
            yield [TextDelta(text=" x")]
        yield [
            Finished(reason="stop", prompt_tokens=7, tokens=3, prompt_ns=10, eval_ns=20, context=(1, 2, 3))
        ]


def _json(value: object) -> str:
    import msgspec

    return msgspec.json.encode(value).decode()


if __name__ == "__main__":
    sys.exit(Fake(sys.argv[1], int(sys.argv[2])).run())
