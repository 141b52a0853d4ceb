"""What every route has in common: routing, guards, bodies, errors; and the management routes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from datetime import datetime
from typing import Any

import msgspec
import pytest

from mlxo import OLLAMA_API_VERSION, __version__
from mlxo.core.settings import Settings
from mlxo.server import keys
from mlxo.server.middleware import host_allowed
from mlxo.server.routes import ROUTES
from tests.server.conftest import Api, until


async def test_every_answer_says_who_it_is_from(api: Api) -> None:
    for method, path in (("GET", "/"), ("GET", "/nope"), ("PUT", "/api/tags"), ("POST", "/api/chat")):
        _, _, response = await api.call(method, path)
        assert response.headers["Server"] == f"mlxo/{__version__}"


async def test_root_and_version(api: Api) -> None:
    status, text, response = await api.call("GET", "/")
    assert (status, text, response.content_type) == (200, "Ollama is running", "text/plain")
    _, value, _ = await api.call("GET", "/api/version")
    assert value == {"version": OLLAMA_API_VERSION, "mlxo": __version__}


async def test_head(api: Api) -> None:
    for path in ("/", "/api/version", "/api/tags"):
        assert (await api.call("HEAD", path))[:2] == (200, "")
    for path in ("/api/ps", "/api/chat"):
        assert (await api.call("HEAD", path))[0] == 405


@pytest.mark.parametrize(
    "path", ["/nope", "/api", "/api/", "/api/chat/", "/v1/nope", "/api/blobs/a/b", "/%2e%2e/x"]
)
async def test_unknown_paths(api: Api, path: str) -> None:
    status, text, response = await api.call("GET", path)
    assert (status, text, response.content_type) == (404, "404 page not found", "text/plain")


async def test_wrong_verbs(api: Api) -> None:
    for method, path in (
        ("GET", "/api/show"),
        ("POST", "/api/tags"),
        ("POST", "/api/delete"),
        ("PATCH", "/"),
    ):
        status, text, _ = await api.call(method, path)
        assert (status, text) == (405, "405 method not allowed")


POSTS = [r.path for r in ROUTES if r.method == "POST" and "{" not in r.path]


@pytest.mark.parametrize("path", POSTS)
async def test_garbage_is_one_sentence_on_every_route(api: Api, path: str) -> None:
    for body in (os.urandom(10 << 20), b'{"model": "m", "messages": ' + b"[" * (1 << 20)):
        status, value, _ = await api.call("POST", path, body)
        assert status == 400, value
        assert set(value) - {"type"} == {"error"}
        error = value["error"]
        assert len(error if isinstance(error, str) else error["message"]) < 300


async def test_a_body_over_the_limit_is_refused(api: Api) -> None:
    status, value, _ = await api.call("POST", "/api/chat", b'"' + b"x" * (64 << 20) + b'"')
    assert (status, value) == (413, {"error": "the request body is too large"})


async def test_a_body_that_is_not_what_its_headers_say(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    for path in ("/api/generate", "/v1/chat/completions"):
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n"
        )
        writer.write(head.encode() + b"{}")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 400 "), answer
        assert b"not encoded as its headers say" in answer
        writer.close()
        await writer.wait_closed()
    assert [r for r in caplog.records if r.name.startswith("mlxo") and r.exc_info] == []


async def test_headers_that_do_not_matter(api: Api) -> None:
    body = msgspec.json.encode({"model": "tiny", "prompt": "say x", "stream": False})
    headers = {"Content-Type": "text/plain", "Authorization": "Bearer whatever"}
    status, _, _ = await api.call("POST", "/api/generate", body, headers=headers)
    assert status == 200


async def test_an_unexpected_error_is_a_sentence_and_its_trace_goes_to_the_log(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    registry = api.app_runner.app[keys.REGISTRY]
    registry.paths = None  # type: ignore[assignment]  # breaks gc in a way that nobody foresaw
    status, value, _ = await api.call("POST", "/api/gc")
    assert status == 500
    assert value["error"] == "the server met an error it did not expect: AttributeError"
    assert "Traceback" in caplog.text


class TestGuards:
    @pytest.mark.parametrize(
        ("host", "allowed"),
        [
            ("", True),
            ("localhost", True),
            ("localhost:11434", True),
            ("127.0.0.1:11434", True),
            ("[::1]:80", True),
            ("0.0.0.0", True),
            ("192.168.1.5:11434", True),
            ("box.local", True),
            ("a.b.internal:1", True),
            ("x.localhost", True),
            ("evil.com", False),
            ("evil.com:11434", False),
            ("8.8.8.8", False),
            ("localhost.evil.com", False),
            ("[broken", False),
        ],
    )
    def test_hosts(self, host: str, allowed: bool) -> None:
        assert host_allowed(host) is allowed

    async def test_a_foreign_host_is_refused(self, api: Api) -> None:
        status, text, _ = await api.call("GET", "/api/tags", headers={"Host": "evil.com"})
        assert (status, text) == (403, "")

    @pytest.mark.parametrize(
        "origin",
        [
            "http://localhost:3000",
            "https://127.0.0.1",
            "app://obsidian.md",
            "vscode-webview://x",
            "tauri://localhost",
        ],
    )
    async def test_local_pages_may_ask(self, api: Api, origin: str) -> None:
        status, _, response = await api.call("GET", "/api/tags", headers={"Origin": origin})
        assert status == 200
        assert response.headers["Access-Control-Allow-Origin"] == origin
        assert response.headers["Vary"] == "Origin"

    @pytest.mark.parametrize(
        "origin", ["http://evil.com", "https://localhost.evil.com", "null", "http://8.8.8.8"]
    )
    async def test_foreign_pages_may_not(self, api: Api, origin: str) -> None:
        body = {"model": "tiny", "prompt": "say x"}
        for method in ("POST", "OPTIONS"):
            status, text, response = await api.call(method, "/api/generate", body, headers={"Origin": origin})
            assert (status, text) == (403, "")
            assert "Access-Control-Allow-Origin" not in response.headers

    async def test_preflight(self, api: Api) -> None:
        status, _, response = await api.call("OPTIONS", "/api/chat", headers={"Origin": "http://localhost"})
        assert status == 204
        assert "POST" in response.headers["Access-Control-Allow-Methods"]
        assert "x-stainless-os" in response.headers["Access-Control-Allow-Headers"]
        assert response.headers["Access-Control-Allow-Origin"] == "http://localhost"

    async def test_streams_carry_the_origin_too(self, api: Api) -> None:
        body = {"model": "tiny", "prompt": "say x"}
        _, _, response = await api.call("POST", "/api/generate", body, headers={"Origin": "http://localhost"})
        assert response.headers["Access-Control-Allow-Origin"] == "http://localhost"

    async def test_the_same_origin_needs_no_leave(self, api: Api) -> None:
        status, _, _ = await api.call("GET", "/", headers={"Origin": f"http://127.0.0.1:{api.port}"})
        assert status == 200


class TestOrigins:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return msgspec.structs.replace(settings, origins=("https://*.example.org",))

    async def test_mlxo_origins_are_added(self, api: Api) -> None:
        for origin, wanted in (
            ("https://a.example.org", 200),
            ("https://example.com", 403),
            ("app://x", 200),
        ):
            status, _, _ = await api.call("GET", "/", headers={"Origin": origin})
            assert status == wanted, origin


class TestModels:
    async def test_tags(self, api: Api) -> None:
        _, value, _ = await api.call("GET", "/api/tags")
        rows = {row["name"]: row for row in value["models"]}
        assert set(rows) == {f"{n}:latest" for n in ("tiny", "slow", "crash", "broken", "mute")}
        row = rows["tiny:latest"]
        assert set(row) == {"name", "model", "modified_at", "size", "digest", "details", "capabilities"}
        assert row["model"] == row["name"]
        assert len(row["digest"]) == 64
        assert datetime.fromisoformat(row["modified_at"]).tzinfo is not None
        details = row["details"]
        assert set(details) == {
            *("parent_model", "format", "family", "families", "parameter_size", "quantization_level"),
            *("context_length", "embedding_length"),
        }
        assert (details["format"], details["family"], details["families"]) == (
            "safetensors",
            "qwen3",
            ["qwen3"],
        )
        assert {"completion", "tools", "thinking"} <= set(row["capabilities"])
        stamps = [r["modified_at"] for r in value["models"]]
        assert stamps == sorted(stamps, reverse=True)

    async def test_show(self, api: Api) -> None:
        _, value, _ = await api.call("POST", "/api/show", {"model": "tiny"})
        assert value["system"] == "You are tiny."
        assert value["model_info"]["general.architecture"] == "qwen3"
        assert "SYSTEM You are tiny." in value["modelfile"]
        assert "thinking" in value["capabilities"]
        assert value["details"]["family"] == "qwen3"
        assert "tensors" not in value
        assert "license" not in value
        _, verbose, _ = await api.call("POST", "/api/show", {"name": "tiny", "verbose": True})
        assert {"name", "type", "shape"} <= set(verbose["tensors"][0])

    @pytest.mark.parametrize(
        ("body", "status", "words"),
        [
            ({}, 400, "model is required"),
            ({"model": "nope"}, 404, "model 'nope:latest' not found"),
            ({"model": "../../etc/passwd"}, 400, "invalid model name"),
            ({"model": "a" * 5000}, 400, "invalid model name"),
            ({"model": "x\u0000y"}, 400, "invalid model name"),
        ],
    )
    async def test_show_refuses(self, api: Api, body: dict[str, Any], status: int, words: str) -> None:
        got, value = await api.post("/api/show", body)
        assert got == status
        assert words in value["error"]
        assert len(value["error"]) < 200

    async def test_copy_and_delete(self, api: Api) -> None:
        status, text, _ = await api.call("POST", "/api/copy", {"source": "tiny", "destination": "me/twin:v1"})
        assert (status, text) == (200, "")
        _, value = await api.post("/api/show", {"model": "me/twin:v1"})
        assert value["system"] == "You are tiny."
        status, text, _ = await api.call("DELETE", "/api/delete", {"name": "me/twin:v1"})
        assert (status, text) == (200, "")
        assert (await api.post("/api/show", {"model": "me/twin:v1"}))[0] == 404
        assert (await api.post("/api/show", {"model": "tiny"}))[0] == 200

    @pytest.mark.parametrize(
        ("method", "path", "body", "status", "error"),
        [
            ("POST", "/api/copy", {"source": "nope", "destination": "b"}, 404, 'model "nope" not found'),
            ("POST", "/api/copy", {"source": "../a", "destination": "b"}, 400, 'source "../a" is invalid'),
            (
                "POST",
                "/api/copy",
                {"source": "tiny", "destination": "b:"},
                400,
                'destination "b:" is invalid',
            ),
            ("POST", "/api/copy", {}, 400, 'source "" is invalid'),
            ("DELETE", "/api/delete", {"model": "nope"}, 404, "model 'nope' not found"),
            ("DELETE", "/api/delete", {"model": "../../x"}, 400, 'name "../../x" is invalid'),
            ("DELETE", "/api/delete", {}, 400, 'name "" is invalid'),
            ("POST", "/api/chat", {"model": "nope", "messages": [{}]}, 404, "model 'nope' not found"),
            ("POST", "/api/pull", {}, 400, "model is required"),
            ("POST", "/api/create", {"from": "x"}, 400, "model is required"),
            ("POST", "/api/create", {"model": "x"}, 400, "neither 'from' or 'files' was specified"),
            (
                "POST",
                "/api/create",
                {"model": "x", "from": "tiny", "quantize": "q7x"},
                400,
                "invalid quantization",
            ),
            ("POST", "/api/create", {"model": "x", "from": "tiny", "keep_alive": "9"}, 400, "missing unit"),
            (
                "POST",
                "/api/create",
                {"model": "x", "files": {"a": "sha256:/../x"}},
                400,
                "invalid digest format",
            ),
        ],
    )
    async def test_refusals(
        self, api: Api, method: str, path: str, body: dict[str, Any], status: int, error: str
    ) -> None:
        got, value, _ = await api.call(method, path, body)
        assert got == status, value
        assert error in value["error"]

    async def test_gc_counts_what_it_frees(self, api: Api) -> None:
        data = b"nobody needs me"
        await api.call("POST", f"/api/blobs/sha256:{hashlib.sha256(data).hexdigest()}", data)
        _, value = await api.post("/api/gc", {"grace": 0})
        assert value == {"removed": 1, "freed": len(data)}
        assert (await api.post("/api/show", {"model": "tiny"}))[0] == 200


class TestBlobs:
    async def test_upload(self, api: Api) -> None:
        data = os.urandom(3 << 20)
        path = f"/api/blobs/sha256:{hashlib.sha256(data).hexdigest()}"
        assert (await api.call("HEAD", path))[0] == 404
        assert (await api.call("POST", path, data))[0] == 201
        assert (await api.call("HEAD", path))[0] == 200
        assert (await api.call("HEAD", path.replace("sha256:", "sha256-")))[0] == 200
        assert (await api.call("POST", path, data))[0] == 200
        assert (api.home / "blobs" / path.rpartition("/")[2].replace(":", "-")).read_bytes() == data

    async def test_a_wrong_digest_leaves_nothing(self, api: Api) -> None:
        wrong = f"sha256:{'0' * 64}"
        status, value, _ = await api.call("POST", f"/api/blobs/{wrong}", b"data")
        right = hashlib.sha256(b"data").hexdigest()
        assert (status, value["error"]) == (400, f'digest mismatch, expected "{wrong}", got "sha256:{right}"')
        assert not list((api.home / "tmp").iterdir())

    @pytest.mark.parametrize(
        "digest",
        ["sha256:short", "md5:" + "0" * 64, "..%2F..%2Fetc%2Fpasswd", "sha256:" + "0" * 63 + "%2F", "%00"],
    )
    async def test_hostile_digests(self, api: Api, digest: str) -> None:
        from yarl import URL

        for method in ("HEAD", "POST"):
            url = URL(api.url(f"/api/blobs/{digest}"), encoded=True)
            async with api.session.request(method, url, data=b"x") as response:
                assert response.status == 400

    async def test_an_upload_that_breaks_off_leaves_nothing(self, api: Api) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        head = (
            f"POST /api/blobs/sha256:{'a' * 64} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
        )
        writer.write(head.encode() + b"x" * 500)
        await writer.drain()
        async with asyncio.timeout(10):
            await until(lambda: os.listdir(api.home / "tmp"))
            writer.close()
            await writer.wait_closed()
            await until(lambda: not os.listdir(api.home / "tmp"))
        assert reader.at_eof() or not await reader.read()


class TestCreate:
    async def test_from_files_streams_progress(self, api: Api) -> None:
        from tests.models import QWEN3

        files = {}
        for path in sorted(QWEN3.iterdir()):
            data = path.read_bytes()
            files[path.name] = f"sha256:{hashlib.sha256(data).hexdigest()}"
            assert (await api.call("POST", f"/api/blobs/{files[path.name]}", data))[0] in (200, 201)
        body = {
            "model": "made",
            "files": files,
            "system": "Be brief.",
            "parameters": {"temperature": 0, "stop": ["a", "b"]},
            "license": ["MIT"],
            "messages": [{"role": "user", "content": "q"}],
            "keep_alive": "10m",
        }
        status, lines = await api.post("/api/create", body)
        assert status == 200
        assert [line["status"] for line in lines].count("success") == 1
        assert lines[-1] == {"status": "success"}
        assert "writing manifest" in [line["status"] for line in lines]
        _, value = await api.post("/api/show", {"model": "made"})
        assert value["license"] == "MIT"
        assert value["messages"] == [{"role": "user", "content": "q"}]
        assert "temperature" in value["parameters"]
        assert "KEEP_ALIVE" in value["modelfile"]

    @pytest.mark.parametrize(
        "content",
        [
            {"x.gguf": b"GGUF\x03\0"},
            {"model.safetensors": b"\xff" * 9, "config.json": b'{"model_type": "qwen3"}'},
            {"model.safetensors": b"", "config.json": b"{"},
        ],
    )
    async def test_a_broken_upload_is_the_client_s_mistake(self, api: Api, content: dict[str, bytes]) -> None:
        files = {name: f"sha256:{hashlib.sha256(data).hexdigest()}" for name, data in content.items()}
        for name, data in content.items():
            await api.call("POST", f"/api/blobs/{files[name]}", data)
        status, value = await api.post("/api/create", {"model": "m", "files": files, "stream": False})
        assert status == 400, value

    async def test_not_streaming_is_the_last_line_alone(self, api: Api) -> None:
        status, value = await api.post("/api/create", {"model": "b", "from": "tiny", "stream": False})
        assert (status, value) == (200, {"status": "success"})

    async def test_verify(self, api: Api) -> None:
        _, lines = await api.post("/api/verify", {})
        assert lines[-1]["status"] == "success"
        assert lines[-1]["problems"] == []
        assert lines[-1]["checked"] > 5
        victim = max((api.home / "blobs").iterdir(), key=lambda p: p.stat().st_size)
        victim.chmod(0o600)
        victim.write_bytes(b"rot" + victim.read_bytes()[3:])
        _, value = await api.post("/api/verify", {"stream": False})
        assert {p["digest"] for p in value["problems"]} == {victim.name.replace("-", ":")}
        assert {"digest", "model", "problem"} == set(value["problems"][0])

    async def test_a_pull_of_nothing_is_an_error(self, api: Api) -> None:
        status, value = await api.post("/api/pull", {"model": "nothing"})
        text = json.dumps(value)
        assert status in (200, 404)
        assert "pull model manifest: file does not exist" in text
