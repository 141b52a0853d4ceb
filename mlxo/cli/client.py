"""HTTP to the server with http.client alone, one connection a request: `mlxo ps` must start fast."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, BinaryIO

from mlxo import __version__
from mlxo.core.errors import (
    Busy,
    Cancelled,
    DiskFull,
    Forbidden,
    InvalidRequest,
    MlxoError,
    NotFound,
    ServerUnreachable,
    UpstreamError,
)
from mlxo.core.settings import Address

Json = dict[str, Any]

CONNECT_SECONDS = 10.0
LISTING_SECONDS = 30.0
ANSWER_SECONDS = 120.0  # for other requests that do not stream; a model's load and answer have no limit
BLOCK = 1 << 20
MAX_LINE = 256 << 20  # bytes of one NDJSON line; a real one is far shorter

_BY_STATUS: dict[int, type[MlxoError]] = {
    400: InvalidRequest,
    403: Forbidden,
    404: NotFound,
    499: Cancelled,
    502: UpstreamError,
    503: Busy,
    507: DiskFull,
}


class Client:
    """Speaks to one server. Raises the errors of core.errors; ServerUnreachable when there is no mlxo."""

    _warned = False

    def __init__(self, address: Address) -> None:
        self.address = address

    def listening(self) -> bool:
        """Whether anything accepts connections at the address."""
        try:
            self._dial().close()
        except OSError:
            return False
        return True

    def _dial(self) -> socket.socket:
        """Raises OSError."""
        host = self.address.host
        # As bytes: Python would import its table of international names to encode even 127.0.0.1.
        address: Any = (host.encode() if host.isascii() else host, self.address.port)
        try:
            return socket.create_connection(address, CONNECT_SECONDS)
        except UnicodeError as e:
            raise OSError(0, f"{host!r} is no host name") from e

    def get(self, path: str, timeout: float = LISTING_SECONDS) -> Json:
        return self._json("GET", path, None, timeout)

    def post(self, path: str, body: Json, timeout: float | None = ANSWER_SECONDS) -> Json:
        return self._json("POST", path, body, timeout)

    def delete(self, path: str, body: Json) -> Json:
        return self._json("DELETE", path, body)

    def head(self, path: str) -> bool:
        """False when the server says 404."""
        connection, response = self._send("HEAD", path, None, {}, ANSWER_SECONDS)
        connection.close()
        if response.status not in (200, 404):
            raise _error(response.status, b"")
        return response.status == 200

    def stream(self, path: str, body: Json) -> Generator[Json, None, None]:
        """Every NDJSON line of the answer. Closing the iterator closes the connection, which cancels.

        A line {"error"} is raised, and so is an answer that ends without its last line.
        """
        connection, response = self._send("POST", path, *_encoded(body), None)
        try:
            if response.status >= 400:
                raise _error(response.status, response.read())
            last: Json = {}
            while raw := _line(response):
                last = _decoded(raw)
                if "error" in last:
                    raise MlxoError(str(last["error"]), _hint(last))
                yield last
            if not (last.get("done") or last.get("status") == "success"):
                raise MlxoError("the server ended its answer early", "see: mlxo daemon logs")
        finally:
            connection.close()

    def upload(self, path: str, file: BinaryIO, size: int, report: Callable[[int], None]) -> None:
        """POST `size` bytes of `file`; `report` is told how many went out so far."""

        def blocks() -> Iterator[bytes]:
            sent = 0
            while sent < size and (block := file.read(min(BLOCK, size - sent))):
                sent += len(block)
                yield block
                report(sent)

        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        connection, response = self._send("POST", path, blocks(), headers, None)
        try:
            if response.status >= 400:
                raise _error(response.status, response.read())
        finally:
            connection.close()

    def _json(
        self, method: str, path: str, body: Json | None = None, timeout: float | None = ANSWER_SECONDS
    ) -> Json:
        data, headers = _encoded(body) if body is not None else (None, {})
        connection, response = self._send(method, path, data, headers, timeout)
        try:
            answer = response.read()
        except (OSError, http.client.HTTPException) as e:
            raise MlxoError(f"the server ended its answer early: {e!r}", "see: mlxo daemon logs") from e
        finally:
            connection.close()
        if response.status >= 400:
            raise _error(response.status, answer)
        return _decoded(answer) if answer.strip() else {}

    def _send(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None,
        headers: dict[str, str],
        timeout: float | None,
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(self.address.host, self.address.port, blocksize=BLOCK)
        try:
            connection.sock = self._dial()
        except OSError as e:
            raise self.unreachable(e.strerror or str(e)) from e
        with contextlib.ExitStack() as until_answered:
            until_answered.callback(connection.close)
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sock.settimeout(timeout)
            try:
                # A server that refuses an upload half-way has answered before it closed.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.request(method, path, body, {"Connection": "close", **headers})
                response = connection.getresponse()
            except (OSError, http.client.HTTPException) as e:
                raise self._no_answer(e) from e
            server = response.getheader("Server", "")
            if not server.startswith("mlxo/"):
                raise self._foreign(server)
            until_answered.pop_all()
        self._compare(server.removeprefix("mlxo/"))
        return connection, response

    def unreachable(self, reason: str) -> ServerUnreachable:
        if self.address.is_local:
            return ServerUnreachable(
                f"no mlxo server answers on {self.address}: {reason}", "start it with: mlxo daemon restart"
            )
        return ServerUnreachable(
            f"could not connect to the mlxo server on {self.address}: {reason}",
            "run mlxo serve on that machine, or unset MLXO_HOST to use this one",
        )

    def _no_answer(self, e: Exception) -> ServerUnreachable:
        if isinstance(e, TimeoutError):
            what = "did not answer in time"
        elif isinstance(e, OSError):
            what = "closed the connection"
        else:
            what = "does not speak HTTP"
        return ServerUnreachable(
            f"the program that listens on {self.address} {what}",
            f"if it is no mlxo server, give mlxo another address: MLXO_HOST={self._other()}; "
            "if it is, see: mlxo daemon logs",
        )

    def _foreign(self, server: str) -> ServerUnreachable:
        """Say which program answered where mlxo's server should be."""
        who = f"another program ({server})" if server else "another program"
        connection = http.client.HTTPConnection(self.address.host, self.address.port, timeout=2)
        try:
            connection.request("GET", "/api/version")
            version = json.loads(connection.getresponse().read(4096))["version"]
            who = f"Ollama {version}"
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
            pass
        finally:
            connection.close()
        return ServerUnreachable(
            f"{who} holds {self.address}, where mlxo's server should be",
            f"stop it, or give mlxo another address: MLXO_HOST={self._other()}",
        )

    def _other(self) -> Address:
        return Address(self.address.host, self.address.port + 1 if self.address.port < 65535 else 11434)

    def _compare(self, version: str) -> None:
        """Warn once when an upgrade left an older server running."""
        if version == __version__ or Client._warned or not self.address.is_local:
            return
        Client._warned = True
        sys.stderr.write(
            f"Warning: the server is mlxo {version} and this is mlxo {__version__}; "
            "to use one version: mlxo daemon restart\n"
        )


def _encoded(body: Json) -> tuple[bytes, dict[str, str]]:
    return json.dumps(body).encode(), {"Content-Type": "application/json"}


def _decoded(raw: bytes) -> Json:
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise MlxoError(f"the server's answer is no JSON: {e}", "see: mlxo daemon logs") from e
    if not isinstance(answer, dict):
        raise MlxoError("the server's answer is no JSON object", "see: mlxo daemon logs")
    return answer


def _line(response: http.client.HTTPResponse) -> bytes:
    """The next line that is not empty; b"" at the end, however it came."""
    try:
        while raw := response.readline(MAX_LINE):
            if raw.strip():
                return raw
    except (OSError, http.client.HTTPException):
        return b""
    return b""


def _hint(answer: Json) -> str | None:
    return str(answer["hint"]) if answer.get("hint") else None


def _error(status: int, body: bytes) -> MlxoError:
    cls = _BY_STATUS.get(status, MlxoError)
    try:
        answer = json.loads(body)
        return cls(str(answer["error"]), _hint(answer))
    except (ValueError, RecursionError, KeyError, TypeError):
        text = body[:200].decode("utf-8", "replace").strip()
        return cls(f"the server answered with status {status}" + (f": {text}" if text else ""))
