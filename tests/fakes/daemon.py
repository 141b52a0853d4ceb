"""A daemon that speaks the HTTP contract and answers from a script: real sockets, real chunks, no models."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from mlxo import __version__

PATIENCE = 30.0  # seconds until a test that waits for the other side is given up


@dataclass
class Reply:
    """One answer. `lines` make an NDJSON stream, `events` a server-sent one; else `body` is sent as JSON.

    With `hold` nothing follows the lines until the client leaves, which sets it. `cut` closes without an end.
    `asked` is set when the request is there; the answer begins once `go` is set.
    """

    status: int = 200
    body: Any = None
    lines: Sequence[Mapping[str, Any]] | None = None
    events: Sequence[Mapping[str, Any]] | None = None
    hold: threading.Event | None = None
    cut: bool = False
    asked: threading.Event | None = None
    go: threading.Event | None = None


@dataclass
class Seen:
    method: str
    path: str
    raw: bytes
    headers: Mapping[str, str | None]

    @property
    def json(self) -> Any:
        return json.loads(self.raw)


@dataclass
class FakeDaemon:
    """`script` maps a path to its replies: each is given once, the last one again and again."""

    port: int = 0
    server: str = f"mlxo/{__version__}"
    script: dict[str, list[Reply]] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    refuse_blobs: Reply | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def on(self, path: str, *replies: Reply) -> None:
        self.script[path] = list(replies)

    def calls(self, path: str) -> list[Any]:
        """The decoded bodies sent to `path`, in order."""
        return [s.json for s in self.seen if s.path == path and s.raw]

    def reply(self, path: str) -> Reply:
        waiting = self.script.get(path)
        if not waiting:
            return Reply(status=404, body={"error": f"the script has nothing for {path}"})
        return waiting.pop(0) if len(waiting) > 1 else waiting[0]

    def write_state(self, home: Path) -> None:
        """daemon.json as a daemon of this home writes it."""
        home.mkdir(parents=True, exist_ok=True)
        state = {"pid": 2**22 + 1, "address": self.address, "version": __version__}
        (home / "daemon.json").write_text(json.dumps(state))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeDaemon

    def version_string(self) -> str:
        return self.fake.server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _take(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.fake.seen.append(Seen(self.command, self.path, raw, defaultdict(lambda: None, self.headers)))
        digest = self.path.removeprefix("/api/blobs/")
        if digest != self.path:
            self._blob(digest, raw)
        else:
            self._send(self.fake.reply(self.path))

    do_GET = do_POST = do_DELETE = do_HEAD = _take  # noqa: N815

    def _blob(self, digest: str, raw: bytes) -> None:
        known = digest in self.fake.blobs
        if self.command == "HEAD":
            self._send(Reply(status=200 if known else 404))
        elif self.fake.refuse_blobs:
            self._send(self.fake.refuse_blobs)
        else:
            self.fake.blobs[digest] = raw
            self._send(Reply(status=200 if known else 201))

    def _send(self, reply: Reply) -> None:
        self.close_connection = True
        if reply.asked:
            reply.asked.set()
        if reply.go:
            assert reply.go.wait(PATIENCE)
        self.send_response(reply.status)
        if reply.lines is None and reply.events is None:
            data = b"" if reply.body is None else json.dumps(reply.body).encode()
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            return
        kind = "application/x-ndjson" if reply.events is None else "text/event-stream"
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for data in _framed(reply):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        if reply.hold:
            self._wait(reply.hold)
        if not reply.cut:
            self.wfile.write(b"0\r\n\r\n")

    def _wait(self, hold: threading.Event) -> None:
        """Until the client closes its side; `hold` tells the test that it did."""
        self.connection.settimeout(PATIENCE)
        assert self.connection.recv(1) == b""
        hold.set()


def _framed(reply: Reply) -> Iterator[bytes]:
    for line in reply.lines or ():
        yield json.dumps(line).encode() + b"\n"
    for event in reply.events or ():
        yield b"data: " + json.dumps(event).encode() + b"\n\n"
    if reply.events is not None and not reply.cut and not reply.hold:
        yield b"data: [DONE]\n\n"


@contextmanager
def running(fake: FakeDaemon) -> Iterator[FakeDaemon]:
    """Serve `fake` on a free port of 127.0.0.1."""
    handler = type("Handler", (_Handler,), {"fake": fake})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        fake.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield fake
        finally:
            server.shutdown()
            thread.join()


def tokens(*texts: str, **last: Any) -> list[dict[str, Any]]:
    """The lines of a generate stream that says `texts`."""
    lines: list[dict[str, Any]] = [{"model": "m", "response": t, "done": False} for t in texts]
    return [*lines, {"model": "m", "response": "", "done": True, "done_reason": "stop", **last}]


def turns(*texts: str, **last: Any) -> list[dict[str, Any]]:
    """The lines of a chat stream that says `texts`."""
    lines: list[dict[str, Any]] = [
        {"model": "m", "message": {"role": "assistant", "content": t}, "done": False} for t in texts
    ]
    end = {"model": "m", "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"}
    return [*lines, {**end, **last}]
