from __future__ import annotations

import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from mlxo.core.process import command
from tests.cli.conftest import Mlxo
from tests.cli.terminal import Terminal
from tests.fakes.daemon import PATIENCE, FakeDaemon, Reply, tokens

SHOWN = Reply(body={"capabilities": ["completion"], "model_info": {}, "details": {}})


@pytest.fixture
def model(fake: FakeDaemon) -> FakeDaemon:
    """A daemon with a model that answers `Paris.` in two pieces."""
    fake.on("/api/show", SHOWN)
    fake.on("/api/generate", Reply(lines=tokens("Par", "is.", total_duration=2_000_000_000)))
    return fake


def sent(fake: FakeDaemon) -> dict[str, Any]:
    (body,) = fake.calls("/api/generate")
    assert isinstance(body, dict)
    return body


def test_words_are_the_prompt_and_the_answer_is_plain_bytes(mlxo: Mlxo, model: FakeDaemon) -> None:
    done = mlxo("run", "m", "capital", "of France?")
    assert (done.code, done.out, done.err) == (0, b"Paris.\n", "")
    assert sent(model) == {"model": "m", "prompt": "capital of France?"}


def test_standard_input_is_the_prompt(mlxo: Mlxo, model: FakeDaemon) -> None:
    assert mlxo("run", "m", stdin="Frankreich → ?".encode()).out == b"Paris.\n"
    assert sent(model)["prompt"] == "Frankreich → ?"


def test_standard_input_stands_before_the_words(mlxo: Mlxo, model: FakeDaemon) -> None:
    mlxo("run", "m", "summarise", "this", stdin=b"a file\n")
    assert sent(model)["prompt"] == "a file\n summarise this"


def test_bytes_that_are_no_utf8_do_not_end_in_a_traceback(mlxo: Mlxo, model: FakeDaemon) -> None:
    assert mlxo("run", "m", stdin=b"\xff\xfe").code == 0
    assert sent(model)["prompt"] == "��"


def test_a_long_line_is_not_broken_in_a_pipe(mlxo: Mlxo, fake: FakeDaemon) -> None:
    fake.on("/api/show", SHOWN)
    words = ["word "] * 200
    fake.on("/api/generate", Reply(lines=tokens(*words)))
    assert mlxo("run", "m", "x").out == b"word " * 200 + b"\n"


def test_what_a_model_says_comes_out_unchanged_in_a_pipe(mlxo: Mlxo, fake: FakeDaemon) -> None:
    fake.on("/api/show", SHOWN)
    fake.on("/api/generate", Reply(lines=tokens("a\r\n", "\x1b[31m漢", "\n")))
    assert mlxo("run", "m", "x").out == "a\r\n\x1b[31m漢\n".encode()


def test_a_lone_surrogate_is_printed_as_something(mlxo: Mlxo, fake: FakeDaemon) -> None:
    fake.on("/api/show", SHOWN)
    fake.on("/api/generate", Reply(lines=tokens("a\ud83db")))
    assert mlxo("run", "m", "x").out == b"a?b\n"


def test_options_go_into_the_request(mlxo: Mlxo, model: FakeDaemon) -> None:
    mlxo("run", "m", "x", "--format", "json", "--keepalive", "10m", "--think=high")
    assert sent(model) == {
        "model": "m",
        "prompt": "x",
        "format": "json",
        "keep_alive": "10m",
        "think": "high",
    }


def test_a_schema_is_a_format(mlxo: Mlxo, model: FakeDaemon) -> None:
    mlxo("run", "m", "x", "--format", '{"type": "object"}')
    assert sent(model)["format"] == {"type": "object"}


def test_a_file_or_a_regex_is_a_format(mlxo: Mlxo, model: FakeDaemon, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"type": "array"}')
    mlxo("run", "m", "x", "--format", str(tmp_path / "s.json"))
    assert sent(model)["format"] == {"type": "array"}
    mlxo("run", "m", "x", "--format", "regex:[a-z]:x")
    assert model.calls("/api/generate")[1]["format"] == {"regex": "[a-z]:x"}


def test_think_alone_does_not_take_the_next_word(mlxo: Mlxo, model: FakeDaemon) -> None:
    mlxo("run", "m", "--think", "high", "tides")
    assert sent(model) == {"model": "m", "prompt": "high tides", "think": True}


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        (
            "--think=much",
            'Error: invalid value for --think: "much" (must be true, false, high, medium, low, or max)',
        ),
        ("--format=xml", 'Error: invalid format: "xml"; expected "json" or a valid JSON Schema object'),
        ("--keepalive=5", 'Error: time: missing unit in duration "5"'),
        ("--colour", "Error: No such option '--colour'"),
    ],
)
def test_a_bad_option_is_a_sentence_and_asks_nothing(
    mlxo: Mlxo, model: FakeDaemon, argument: str, sentence: str
) -> None:
    done = mlxo("run", "m", "x", argument)
    assert done.code == 1
    assert done.err.splitlines()[0].startswith(sentence)
    assert model.seen == []


def test_thinking_is_marked_and_can_be_hidden(mlxo: Mlxo, fake: FakeDaemon) -> None:
    fake.on("/api/show", SHOWN)
    thoughts = [{"response": "", "thinking": "it is ", "done": False}, {"thinking": "4", "done": False}]
    fake.on("/api/generate", Reply(lines=[*thoughts, *tokens("Four.")]))
    assert mlxo("run", "m", "x").out == b"Thinking...\nit is 4\n...done thinking.\n\nFour.\n"
    assert mlxo("run", "m", "x", "--hidethinking").out == b"Four.\n"


def test_verbose_says_on_standard_error_what_it_took(mlxo: Mlxo, model: FakeDaemon) -> None:
    done = mlxo("run", "m", "x", "--verbose")
    assert (done.out, done.err) == (b"Paris.\n", "total duration:       2s\n")


def test_a_missing_model_is_pulled_first(mlxo: Mlxo, model: FakeDaemon) -> None:
    model.on("/api/show", Reply(status=404, body={"error": "model 'm' not found"}), SHOWN)
    model.on("/api/pull", Reply(lines=[{"status": "pulling manifest"}, {"status": "success"}]))
    done = mlxo("run", "m", "x")
    assert (done.code, done.out, done.err) == (0, b"Paris.\n", "pulling manifest\n")
    assert [s.path for s in model.seen] == ["/api/show", "/api/pull", "/api/show", "/api/generate"]


def test_a_model_that_is_nowhere_is_one_sentence(mlxo: Mlxo, fake: FakeDaemon) -> None:
    fake.on("/api/show", Reply(status=404, body={"error": "model 'm' not found"}))
    fake.on("/api/pull", Reply(lines=[{"error": "pull model manifest: file does not exist"}]))
    done = mlxo("run", "m", "x")
    assert (done.code, done.out, done.err) == (1, b"", "Error: pull model manifest: file does not exist\n")


@pytest.mark.parametrize("lines", [[{"error": "the runner died", "hint": "try again"}], []])
def test_what_came_before_an_error_stays(mlxo: Mlxo, fake: FakeDaemon, lines: list[dict[str, str]]) -> None:
    fake.on("/api/show", SHOWN)
    fake.on("/api/generate", Reply(lines=[*tokens("half an an")[:-1], *lines], cut=not lines))
    done = mlxo("run", "m", "x")
    assert (done.code, done.out) == (1, b"half an an\n")
    wanted = "the runner died\nHint: try again\n" if lines else "the server ended its answer early\n"
    assert done.err.startswith(f"Error: {wanted}")


def test_ctrl_c_cancels_and_exits_with_130(fake: FakeDaemon) -> None:
    left = threading.Event()
    fake.on("/api/show", SHOWN)
    fake.on("/api/generate", Reply(lines=tokens("one ", "two")[:-1], hold=left))
    with subprocess.Popen(
        command("run", "m", "x"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(7) == b"one two"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        assert (process.stdout.read(), process.stderr.read()) == (b"\n", b"")
    assert left.wait(PATIENCE), "the request was not cancelled"


def test_ctrl_c_on_a_terminal_ends_the_line_and_says_no_more(fake: FakeDaemon) -> None:
    left = threading.Event()
    fake.on("/api/show", SHOWN)
    fake.on("/api/generate", Reply(lines=tokens("one ", "two")[:-1], hold=left))
    with Terminal(command("run", "m", "x"), {}) as terminal:
        terminal.expect("one ")
        terminal.type("\x03")
        assert terminal.end() == 130
    assert terminal.text.endswith("one ^C\n")
    assert left.wait(PATIENCE)


def test_an_empty_prompt_in_a_pipe_loads_and_prints_nothing(mlxo: Mlxo, fake: FakeDaemon) -> None:
    fake.on("/api/show", SHOWN)
    fake.on("/api/generate", Reply(body={"response": "", "done": True, "done_reason": "load"}))
    done = mlxo("run", "m")
    assert (done.code, done.out, done.err) == (0, b"", "")


def test_an_answer_on_a_terminal_without_a_conversation(fake: FakeDaemon) -> None:
    fake.on("/api/show", SHOWN)
    fake.on("/api/generate", Reply(lines=tokens("Par", "is.")))
    with Terminal(command("run", "m", "capital?"), {}) as terminal:
        assert terminal.end() == 0
    assert terminal.text.endswith("Paris.\n\n")
