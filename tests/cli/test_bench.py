from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from mlxo.core.process import command
from tests.cli.conftest import Mlxo
from tests.cli.terminal import Terminal
from tests.fakes.daemon import PATIENCE, FakeDaemon, Reply

CHAT = "/v1/chat/completions"
SHORT = ("--streams", "1,3", "--rounds", "2", "--tokens", "4")


def events(*texts: str, usage: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """The chunks of an answer in OpenAI's manner."""
    out: list[dict[str, Any]] = [{"choices": [{"delta": {"content": t}}]} for t in texts]
    out.append({"choices": [{"delta": {}, "finish_reason": "length"}]})
    return [*out, {"choices": [], "usage": usage}] if usage else out


def usage(prompt: int, cached: int = 0) -> dict[str, Any]:
    details = {"cached_tokens": cached}
    return {"prompt_tokens": prompt, "completion_tokens": 4, "prompt_tokens_details": details}


@pytest.fixture
def rival(fake: FakeDaemon) -> FakeDaemon:
    """A server that is no mlxo: 30 tokens of template, then one and a half for each word."""
    fake.server = "uvicorn"
    prompt = Reply(events=events("a", "b", "c", "d", usage=usage(100, 88)))
    short = Reply(events=events("a", usage=usage(30 + 30)))
    long = Reply(events=events("a", usage=usage(30 + 30 + 150 - 1)))
    fake.on(CHAT, short, long, prompt)
    return fake


def prompts(fake: FakeDaemon) -> list[str]:
    return [body["messages"][0]["content"] for body in fake.calls(CHAT)]


def test_the_table(mlxo: Mlxo, rival: FakeDaemon) -> None:
    done = mlxo("bench", "--url", rival.address, "--model", "m", *SHORT)
    assert done.code == 0
    headers, one, three, empty, what, again = done.out.decode().splitlines()
    assert headers.split("  ")[0] == "STREAMS"
    assert one.startswith("1   ")
    assert three.startswith("3   ")
    assert empty == ""
    assert what == f"m on {rival.address}: prompts of 100 tokens, 4 tokens out"
    assert again.startswith("the same prompt again: 88 of 100 tokens remembered, first token after ")
    assert done.err.splitlines() == ["warm-up", "1 stream", "3 streams", "the same prompt again"]


def test_json_has_the_same_figures(mlxo: Mlxo, rival: FakeDaemon) -> None:
    done = mlxo("bench", "m", "--url", f"http://{rival.address}/v1", *SHORT, "--json")
    report = json.loads(done.out)
    one, three = report["rows"]
    assert (one["streams"], one["requests"], one["tokens"], one["prompt_tokens"]) == (1, 2, 8, 100)
    assert (three["streams"], three["requests"], three["tokens"]) == (3, 6, 24)
    assert three["ttft_p99"] >= three["ttft_p50"] > 0
    assert three["aggregate"] == pytest.approx(24 / three["seconds"])
    assert report["cache"]["cached_tokens"] == 88
    assert report["asked"] == {"prompt_tokens": 100, "tokens": 4, "rounds": 2}


def test_every_prompt_is_another_but_the_one_that_is_to_be_remembered(mlxo: Mlxo, rival: FakeDaemon) -> None:
    mlxo("bench", "m", "--url", rival.address, *SHORT)
    sent = prompts(rival)
    measured, again = sent[2:-4], sent[-4:]
    assert len(measured) == len(set(measured)) == 4 + 2 * 4  # the warm-up rounds, then two of each
    assert again[0] == again[1] != again[2] == again[3]
    mlxo("bench", "m", "--url", rival.address, *SHORT)
    later = prompts(rival)[len(sent) :]
    assert not set(sent) & set(later)  # a server may keep what it saw in an earlier run


def test_prompts_get_the_length_that_was_asked_for(mlxo: Mlxo, rival: FakeDaemon) -> None:
    """A word is one and a half tokens here, so that forty tokens beyond the template are 27 words."""
    mlxo("bench", "m", "--url", rival.address, *SHORT)
    short, long, first, *_ = prompts(rival)
    around = len(short.split()) - 1
    assert len(long.split()) - around == 100
    assert len(first.split()) - around == 1 + round((100 - 60) / (149 / 99))


class _Together(threading.Event):
    """Set once `count` requests wait for it: they are answered only when all of them are there."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._missing = threading.Semaphore(count - 1)

    def wait(self, timeout: float | None = None) -> bool:
        if not self._missing.acquire(blocking=False):
            self.set()
        return super().wait(timeout)


def test_the_streams_of_a_round_are_there_at_once(mlxo: Mlxo, fake: FakeDaemon) -> None:
    alone = Reply(events=events("a", usage=usage(50)))
    rounds = [Reply(events=events("a"), go=together) for together in map(_Together, (5, 5)) for _ in range(5)]
    fake.on(CHAT, alone, alone, *rounds, alone)
    assert mlxo("bench", "m", "--url", fake.address, "--streams", "5", "--rounds", "1").code == 0


def test_a_server_that_does_not_count_is_said_to(mlxo: Mlxo, fake: FakeDaemon) -> None:
    fake.on(CHAT, Reply(events=events("a", "b")))
    done = mlxo("bench", "m", "--url", fake.address, *SHORT)
    lines = done.out.decode().splitlines()
    assert lines[1].split()[-1] == "-"
    assert lines[4:6] == [
        f"m on {fake.address}: prompts of unknown length, 4 tokens out",
        "answers ended early, after 2, 2 tokens",
    ]
    assert lines[6].startswith("the server counts no tokens: ")
    assert "remembered" not in lines[7]


def test_a_key_goes_to_the_other_server_alone(
    mlxo: Mlxo, rival: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "from-the-environment")
    mlxo("bench", "m", "--url", rival.address, *SHORT)
    assert {s.headers["Authorization"] for s in rival.seen} == {"Bearer from-the-environment"}
    rival.seen.clear()
    mlxo("bench", "m", "--url", rival.address, "--api-key", "given", *SHORT)
    assert {s.headers["Authorization"] for s in rival.seen} == {"Bearer given"}


def test_mlxos_own_server_gets_the_model_loaded_first(mlxo: Mlxo, fake: FakeDaemon) -> None:
    fake.on("/api/show", Reply(body={}))
    fake.on("/api/generate", Reply(body={"done": True}))
    fake.on(CHAT, Reply(events=events("a", usage=usage(100))))
    assert mlxo("bench", "m", *SHORT).code == 0
    assert fake.seen[1].path == "/api/generate"
    chats = fake.calls(CHAT)
    assert {c["model"] for c in chats} == {"m"}
    assert all(c["options"] == {"repeat_penalty": 1.0} for c in chats)
    assert {s.headers["Authorization"] for s in fake.seen} == {None}


def test_a_model_that_is_not_there_is_fetched(mlxo: Mlxo, fake: FakeDaemon) -> None:
    fake.on("/api/show", Reply(404, {"error": "model 'm' not found"}))
    fake.on("/api/pull", Reply(lines=[{"error": "there is no such model anywhere"}]))
    done = mlxo("bench", "m")
    assert (done.code, done.err) == (1, "Error: there is no such model anywhere\n")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), "which model?"),
        (("--url", "h:1"), "which model of h:1?"),
        (("m", "--model", "x"), "--model and --api-key are for another server"),
        (("m", "--api-key", "x"), "--model and --api-key are for another server"),
        (("m", "--url", "ftp://h"), 'invalid --url: "ftp://h"'),
        (("m", "--url", "h:99999"), 'invalid --url: "http://h:99999"'),
        (("m", "--url", "http://h/a b"), "invalid --url"),
        (("m", "--url", "h:1", "--api-key", "a\nX: y"), "characters that no key has"),
        (("m", "--streams", "1,0"), "from 1 to 1024"),
        (("m", "--streams", ""), "from 1 to 1024"),
        (("m", "--tokens", "1"), "x>=2"),
    ],
)
def test_slips(mlxo: Mlxo, argv: tuple[str, ...], words: str) -> None:
    done = mlxo("bench", *argv)
    assert (done.code, done.out) == (1, b"")
    assert done.err.startswith("Error: ")
    assert words in done.err


def test_an_error_of_one_stream_ends_the_measuring(mlxo: Mlxo, fake: FakeDaemon) -> None:
    fine = Reply(events=events("a"))
    fake.on(CHAT, fine, fine, fine, Reply(503, {"error": {"message": "the queue is full"}}), fine)
    done = mlxo("bench", "m", "--url", fake.address, *SHORT)
    assert done.code == 1
    assert done.err.endswith(f"Error: {fake.address} answered 503: the queue is full\n")


def test_a_server_that_dies_in_the_middle(mlxo: Mlxo, fake: FakeDaemon) -> None:
    fake.on(CHAT, Reply(events=events("a")[:1], cut=True))
    done = mlxo("bench", "m", "--url", fake.address)
    assert done.code == 1
    assert f"Error: {fake.address} closed the connection in the middle of an answer\n" in done.err


def test_nobody_there(mlxo: Mlxo) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take the port
        done = mlxo("bench", "m", "--url", f"127.0.0.1:{s.getsockname()[1]}")
    assert done.code == 1
    assert "Error: no server answers on 127.0.0.1:" in done.err
    assert "Connection refused" in done.err


@contextmanager
def listening(serve: Callable[[socket.socket], object]) -> Iterator[str]:
    """`serve` gets the first connection once its request is there. That the client leaves is its end."""

    def run() -> None:
        connection, _ = listener.accept()
        with connection, suppress(ConnectionError):
            connection.settimeout(PATIENCE)
            connection.recv(65536)
            serve(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=run)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join(PATIENCE)
        assert not thread.is_alive()


def endless(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
    while True:
        connection.sendall(b": " + b"x" * (1 << 20) + b"\n\n")


def test_an_answer_without_an_end_is_given_up(mlxo: Mlxo) -> None:
    with listening(endless) as address:
        done = mlxo("bench", "m", "--url", address)
    assert done.code == 1
    assert f"{address} sent more than 64 MiB for one answer" in done.err


def test_a_terminal_gets_a_bar_for_each_stage(rival: FakeDaemon) -> None:
    with Terminal(command("bench", "m", "--url", rival.address, *SHORT), {}) as terminal:
        assert terminal.end() == 0
    text = terminal.text
    assert all(stage in text for stage in ("warm-up", "1 stream", "3 streams", "the same prompt again"))
    assert "tok/s" in text
    assert text.index("STREAMS") > text.rindex("the same prompt again ")
    assert terminal.raw.rindex(b"\x1b[?25h") > terminal.raw.rindex(b"\x1b[?25l")


def test_ctrl_c_leaves_the_server_and_the_terminal_in_order() -> None:
    asked, left = threading.Event(), []

    def silent(connection: socket.socket) -> None:
        asked.set()
        left.append(connection.recv(1))

    with listening(silent) as address, Terminal(command("bench", "m", "--url", address), {}) as terminal:
        terminal.expect("warm-up")
        assert asked.wait(PATIENCE)
        terminal.type("\x03")
        assert terminal.end() == 130
        assert "Traceback" not in terminal.text
        assert terminal.raw.rindex(b"\x1b[?25h") > terminal.raw.rindex(b"\x1b[?25l")
    assert left == [b""]
