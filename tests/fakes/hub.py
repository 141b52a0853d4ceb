"""A Hugging Face hub on this machine: the endpoints that huggingface_hub uses, with faults to order.

GET  /api/models/REPO[/revision/REV]      the listing; ?blobs=true adds sizes and digests
GET  /api/models/REPO/tree/REV            the same as a tree
HEAD, GET  /REPO/resolve/REV/FILE         a small file itself; of a large one a redirect to the storage
HEAD, GET  /storage/SHA256                bytes, with ranges
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
STEP = 4096  # bytes sent at a time


@dataclass
class Repo:
    """`large` names are stored outside Git, as safetensors and GGUF files are."""

    files: dict[str, bytes]
    revisions: tuple[str, ...] = ("main", COMMIT)
    status: int = 200
    error_code: str = ""
    token: str | None = None
    # A listing entry of this name is changed before it is sent: a hostile or a broken hub.
    tampered: Callable[[dict[str, Any]], None] | None = None

    @staticmethod
    def is_large(name: str) -> bool:
        return name.endswith((".safetensors", ".gguf", ".bin"))


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class FakeHub:
    """`with FakeHub() as hub:`; then set HF_ENDPOINT to `hub.url`.

    `cuts[name]` lists after how many bytes the next answers for that file break off; `statuses[name]` lists
    statuses that its next answers have; `ranges` False makes the storage ignore Range; `gate`, when set, is
    waited for after the first `gate_after` bytes of every large file.
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    statuses: dict[str, list[int]] = field(default_factory=dict)
    ranges: bool = True
    gate: threading.Event | None = None
    gate_after: int = 0
    seen: list[Seen] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)

    def __enter__(self) -> Self:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._servers = [_Server(("127.0.0.1", 0), Handler) for _ in range(2)]
        self._threads = [threading.Thread(target=s.serve_forever, args=(0.02,)) for s in self._servers]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.gate is not None:
            self.gate.set()
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def storage(self) -> str:
        """Another origin, as the real hub's storage is: no token may be sent there."""
        return f"http://127.0.0.1:{self._servers[1].server_port}"

    def gets(self, name: str) -> list[Seen]:
        """The requests that asked for bytes of a file."""
        return [s for s in self.seen if s.method == "GET" and s.path.endswith(f"/{name}")]


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # joined when the server is closed: no thread outlives its test


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def end_headers(self) -> None:
        self.send_header("Connection", "close")
        super().end_headers()

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.close_connection = True  # one request a connection: a cut is then plainly a cut
        path = unquote(urlsplit(self.path).path)
        self.hub.seen.append(
            Seen(self.command, path, self.headers.get("Range"), self.headers.get("Authorization"))
        )
        if path.startswith("/storage/"):
            self._storage(path.removeprefix("/storage/"))
            return
        for repo_id, repo in self.hub.repos.items():
            for prefix, method in (
                (f"/api/models/{repo_id}", self._api),
                (f"/{repo_id}/resolve/", self._resolve),
            ):
                if path == prefix or path.startswith(prefix.rstrip("/") + "/"):
                    if repo.token and self.headers.get("Authorization") != f"Bearer {repo.token}":
                        self._refuse(401, "RepoNotFound")
                    elif repo.status != 200:
                        self._refuse(repo.status, repo.error_code)
                    else:
                        method(repo, path.removeprefix(prefix).strip("/"))
                    return
        self._refuse(401, "RepoNotFound")  # the real hub answers so for what does not exist

    def _api(self, repo: Repo, rest: str) -> None:
        kind, _, revision = rest.partition("/")
        if (revision or "main") not in repo.revisions:
            self._refuse(404, "RevisionNotFound")
            return
        entries = [_entry(name, data) for name, data in repo.files.items()]
        if repo.tampered is not None:
            for entry in entries:
                repo.tampered(entry)
        if kind == "tree":
            self._json([_tree(entry) for entry in entries])
        else:
            self._json({"id": "x/y", "sha": COMMIT, "private": False, "tags": [], "siblings": entries})

    def _resolve(self, repo: Repo, rest: str) -> None:
        revision, _, name = rest.partition("/")
        if revision not in repo.revisions:
            self._refuse(404, "RevisionNotFound")
        elif name not in repo.files:
            self._refuse(404, "EntryNotFound")
        elif self.hub.statuses.get(name):
            self._refuse(self.hub.statuses[name].pop(0), "")
        elif not repo.is_large(name):
            oid = git_oid(repo.files[name])
            self._bytes(name, repo.files[name], {"X-Repo-Commit": COMMIT, "ETag": f'"{oid}"'})
        else:
            digest = hashlib.sha256(repo.files[name]).hexdigest()
            self.send_response(302)
            self.send_header("Location", f"{self.hub.storage}/storage/{digest}/{name}")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-Etag", f'"{digest}"')
            self.send_header("X-Linked-Size", str(len(repo.files[name])))
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _storage(self, rest: str) -> None:
        digest, _, name = rest.partition("/")
        for repo in self.hub.repos.values():
            data = repo.files.get(name)
            if data is not None and hashlib.sha256(data).hexdigest() == digest:
                self._bytes(name, data, {"ETag": f'"{digest}"'})
                return
        self._refuse(404, "EntryNotFound")

    def _bytes(self, name: str, data: bytes, headers: dict[str, str]) -> None:
        start = 0
        wanted = self.headers.get("Range", "")
        if self.hub.ranges and wanted.startswith("bytes=") and wanted.endswith("-"):
            start = int(wanted[6:-1])
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(206 if start else 200)
        for key, value in headers.items():
            self.send_header(key, value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "GET":
            self._send(name, data[start:])

    def _send(self, name: str, body: bytes) -> None:
        cuts = self.hub.cuts.get(name)
        end = min(cuts.pop(0), len(body)) if cuts else len(body)
        at = 0
        try:
            while at < end:
                if self.hub.gate is not None and at >= self.hub.gate_after and Repo.is_large(name):
                    self.wfile.flush()
                    self.hub.gate.wait()
                step = body[at : min(at + STEP, end)]
                self.wfile.write(step)
                at += len(step)
                self.hub.sent[name] += len(step)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client was killed, or has left

    def _json(self, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _entry(name: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_oid(data)}
    if Repo.is_large(name):
        digest = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
    return entry


def _tree(entry: dict[str, Any]) -> dict[str, Any]:
    tree = {"type": "file", "path": entry["rfilename"], "size": entry["size"], "oid": entry["blobId"]}
    if "lfs" in entry:
        tree["lfs"] = {"oid": entry["lfs"]["sha256"], "size": entry["size"], "pointerSize": 134}
    return tree
