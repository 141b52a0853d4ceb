"""The conversation on a real terminal, against a scripted daemon."""

from __future__ import annotations

import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mlxo.core.process import command
from tests.cli.terminal import Terminal
from tests.fakes.daemon import PATIENCE, FakeDaemon, Reply, turns

SHOWN = {
    "capabilities": ["completion"],
    "model_info": {},
    "details": {"family": "llama"},
    "parameters": "seed                           7",
    "modelfile": "FROM m",
}
Start = Callable[..., Terminal]


@pytest.fixture
def repl(fake: FakeDaemon) -> Iterator[Start]:
    """`repl("--verbose")` starts `mlxo run m --verbose` and waits for its prompt."""
    with ExitStack() as stack:

        def start(*options: str, **env: str) -> Terminal:
            fake.script.setdefault("/api/show", [Reply(body=SHOWN)])
            fake.on("/api/generate", Reply(body={"done": True, "done_reason": "load"}))
            terminal = stack.enter_context(Terminal(command("run", "m", *options), env))
            terminal.expect(">>> ")
            return terminal

        yield start


def messages(fake: FakeDaemon) -> list[dict[str, str]]:
    """The conversation as it was sent the last time."""
    found: list[dict[str, str]] = fake.calls("/api/chat")[-1]["messages"]
    return found


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_a_conversation_remembers_and_ends_with_ctrl_d(repl: Start, fake: FakeDaemon) -> None:
    fake.on("/api/chat", Reply(lines=turns("Par", "is.")), Reply(lines=turns("Two million.")))
    terminal = repl()
    assert "Send a message (/? for help)" in terminal.expect("for help)")
    terminal.enter("capital of France?")
    terminal.expect("Paris.")
    terminal.expect(">>> ")
    terminal.enter("how many people?")
    terminal.expect("Two million.")
    terminal.expect(">>> ")
    terminal.type("\x04")
    assert terminal.end() == 0
    assert messages(fake) == [
        said("user", "capital of France?"),
        said("assistant", "Paris."),
        said("user", "how many people?"),
    ]
    assert fake.calls("/api/generate") == [{"model": "m", "stream": False}]


def test_a_message_of_several_lines(repl: Start, fake: FakeDaemon) -> None:
    fake.on("/api/chat", Reply(lines=turns("ok.")))
    terminal = repl()
    terminal.enter('"""one')
    terminal.expect("...")
    terminal.enter("two")
    terminal.expect("...")
    terminal.enter('three"""')
    terminal.expect("ok.")
    terminal.type("first\nsecond\r")
    terminal.expect("ok.")
    terminal.expect("Send a message")
    terminal.type("\x1b[200~a\nb\x1b[201~\r")
    terminal.expect("ok.")
    contents = [m["content"] for m in messages(fake) if m["role"] == "user"]
    assert contents == ["one\ntwo\nthree", "first\nsecond", "a\nb"]


def test_ctrl_c_keeps_the_partial_answer(repl: Start, fake: FakeDaemon) -> None:
    left = threading.Event()
    fake.on(
        "/api/chat", Reply(lines=turns("half an ", "answer ")[:-1], hold=left), Reply(lines=turns("whole."))
    )
    terminal = repl()
    terminal.enter("long story")
    terminal.expect("half an answer")
    terminal.type("\x03")
    terminal.expect(">>> ")
    assert left.wait(PATIENCE), "the request was not cancelled"
    terminal.enter("go on")
    terminal.expect("whole.")
    assert messages(fake) == [
        said("user", "long story"),
        said("assistant", "half an answer "),
        said("user", "go on"),
    ]


def test_ctrl_c_on_an_empty_line_says_how_to_leave(repl: Start) -> None:
    terminal = repl()
    terminal.expect("for help)")
    terminal.type("\x03")
    left = terminal.expect("Use Ctrl + d or /bye to exit.")
    assert ">>> " + " " * len("Send a message (/? for help)") in left, "the placeholder was not erased"
    terminal.expect(">>> ")
    terminal.type("half a line\x03")
    assert "Use Ctrl" not in terminal.expect(">>> ")


def test_an_error_does_not_end_the_conversation(repl: Start, fake: FakeDaemon) -> None:
    fake.on(
        "/api/chat",
        Reply(lines=turns("Hello.")),
        Reply(status=500, body={"error": "the runner died", "hint": "say it again"}),
        Reply(lines=[*turns("half")[:-1], {"error": "killed by signal 9"}]),
        Reply(lines=turns("Here I am.")),
    )
    terminal = repl()
    terminal.enter("hi")
    terminal.expect("Hello.")
    terminal.enter("lost")
    terminal.expect("Error: the runner died\nHint: say it again")
    terminal.enter("cut off")
    terminal.expect("half\n")
    terminal.expect("Error: killed by signal 9")
    terminal.enter("still there?")
    terminal.expect("Here I am.")
    assert messages(fake) == [
        said("user", "hi"),
        said("assistant", "Hello."),
        said("user", "cut off"),
        said("assistant", "half"),
        said("user", "still there?"),
    ]


def test_what_is_typed_during_an_answer_is_the_next_message(repl: Start, fake: FakeDaemon) -> None:
    asked, go = threading.Event(), threading.Event()
    fake.on("/api/chat", Reply(lines=turns("First."), asked=asked, go=go), Reply(lines=turns("Second.")))
    terminal = repl()
    terminal.enter("one")
    assert asked.wait(PATIENCE)
    terminal.enter("two")
    go.set()
    assert "two" not in terminal.expect("First.")
    terminal.expect("Second.")
    assert messages(fake)[-1] == said("user", "two")


def test_several_lines_typed_during_an_answer_wait_as_one_message(repl: Start, fake: FakeDaemon) -> None:
    asked, go = threading.Event(), threading.Event()
    fake.on("/api/chat", Reply(lines=turns("First."), asked=asked, go=go), Reply(lines=turns("Second.")))
    terminal = repl()
    terminal.enter("one")
    assert asked.wait(PATIENCE)
    terminal.enter("two\rthree\rfour")
    go.set()
    terminal.expect("First.")
    terminal.expect("four")
    assert len(fake.calls("/api/chat")) == 1
    terminal.type("\r")
    terminal.expect("Second.")
    assert messages(fake)[-1] == said("user", "two\nthree\nfour")


def test_ctrl_c_during_an_answer_drops_what_was_typed_ahead(repl: Start, fake: FakeDaemon) -> None:
    asked, left = threading.Event(), threading.Event()
    fake.on(
        "/api/chat", Reply(lines=turns("half ")[:-1], asked=asked, hold=left), Reply(lines=turns("Next."))
    )
    terminal = repl()
    terminal.type("one\rtwo\rthree\r")  # at once: the prompt reads the rest ahead
    assert asked.wait(PATIENCE)
    terminal.expect("half")
    terminal.type("four\r\x03")
    assert left.wait(PATIENCE)
    terminal.expect(">>> ")
    terminal.enter("five")
    terminal.expect("Next.")
    assert [m["content"] for m in messages(fake) if m["role"] == "user"] == ["one", "five"]


def test_bytes_that_are_no_text_do_not_end_the_conversation(repl: Start, fake: FakeDaemon) -> None:
    fake.on("/api/chat", Reply(lines=turns("ok.")))
    terminal = repl()
    terminal.bytes(b"a\xffb\r")
    terminal.expect("ok.")
    assert messages(fake) == [said("user", "a?b")]


def test_info_is_broken_between_words(repl: Start) -> None:
    terminal = repl(COLUMNS="40")
    terminal.enter("/set parameter seed")
    terminal.expect("Parameters: draft_num_predict,\nfrequency_penalty")


def test_set_changes_what_is_sent(repl: Start, fake: FakeDaemon) -> None:
    fake.on("/api/show", Reply(body={**SHOWN, "capabilities": ["completion", "thinking"]}))
    fake.on("/api/chat", Reply(lines=turns("ok.", total_duration=1_000_000_000)))
    terminal = repl()
    for line, answer in (
        ("/set parameter seed 42", "Set parameter 'seed' to '42'"),
        ("/set parameter stop AA BB", "Set parameter 'stop' to 'AA, BB'"),
        ("/set parameter seed x", 'Couldn\'t set parameter: "invalid int value [x]"'),
        ("/set parameter what 1", "Couldn't set parameter: \"unknown parameter 'what'\""),
        ("/set system Be brief.", "Set system message."),
        ("/set system Be kind.", "Set system message."),
        ("/set format json", "Set format to 'json' mode."),
        ("/set format xml", "Invalid or missing format."),
        ("/set think high", "Set 'think' mode to 'high'."),
        ("/set nothink", "Set 'nothink' mode."),
        ("/set verbose", "Set 'verbose' mode."),
        ("/set nowordwrap", "Set 'nowordwrap' mode."),
        ("/set sideways", "Unknown command '/set sideways'. Type /? for help"),
        ("hi", "total duration:       1s"),
    ):
        terminal.enter(line)
        terminal.expect(answer)
    assert fake.calls("/api/chat") == [
        {
            "model": "m",
            "messages": [said("system", "Be kind."), said("user", "hi")],
            "options": {"seed": 42, "stop": ["AA", "BB"]},
            "format": "json",
            "think": False,
        }
    ]
    terminal.enter("/set noformat")
    terminal.expect("Disabled format.")
    terminal.enter("/set quiet")
    terminal.expect("Set 'quiet' mode.")
    terminal.enter("/clear")
    terminal.expect("Cleared session context")
    terminal.enter("hi")
    terminal.expect("ok.")
    assert "total duration" not in terminal.expect(">>> ")
    assert messages(fake) == [said("system", "Be kind."), said("user", "hi")]
    assert "format" not in fake.calls("/api/chat")[-1]


def test_a_system_message_of_several_lines(repl: Start, fake: FakeDaemon) -> None:
    fake.on("/api/chat", Reply(lines=turns("ok.")))
    terminal = repl()
    terminal.enter('/set system """You are')
    terminal.expect("...")
    terminal.enter('a pirate."""')
    terminal.expect("Set system message.")
    terminal.enter("/show system")
    terminal.expect("You are\na pirate.\n")


def test_show_and_help(repl: Start, fake: FakeDaemon) -> None:
    fake.on("/api/tags", Reply(body={"models": []}))
    terminal = repl()
    for line, answer in (
        ("/show info", "  Model\n    architecture"),
        ("/show license", "No license was specified for this model."),
        ("/show system", "No system message was specified for this model."),
        ("/show template", "No prompt template was specified for this model."),
        ("/show modelfile", "FROM m"),
        ("/show parameters", "Model defined parameters:\n  seed"),
        ("/show weather", "Unknown command '/show weather'. Type /? for help"),
        ("/show", "/show info         Show details for this model"),
        ("/set", "/set parameter ..."),
        ("/?", "/load <model>"),
        ("/? set", "/set nohistory"),
        ("/help shortcuts", "Available keyboard shortcuts:"),
        ("/list", "NAME    ID    SIZE    MODIFIED"),
        ("/listxyz", "Unknown command '/listxyz'. Type /? for help"),
    ):
        terminal.enter(line)
        terminal.expect(answer)


def test_load_goes_back_when_there_is_no_such_model(repl: Start, fake: FakeDaemon) -> None:
    fake.on("/api/chat", Reply(lines=turns("ok.")))
    missing = Reply(status=404, body={"error": "model 'x' not found"})
    fake.on("/api/show", Reply(body=SHOWN), missing, Reply(body=SHOWN))
    terminal = repl()
    terminal.enter("hi")
    terminal.expect("ok.")
    terminal.enter("/load x")
    terminal.expect("Loading model 'x'\nCouldn't find model 'x'")
    terminal.enter("again")
    terminal.expect("ok.")
    assert (fake.calls("/api/chat")[-1]["model"], len(messages(fake))) == ("m", 3)
    terminal.enter("/load other")
    terminal.expect("Loading model 'other'")
    terminal.enter("hello")
    terminal.expect("ok.")
    assert (fake.calls("/api/chat")[-1]["model"], len(messages(fake))) == ("other", 1)


def test_save_makes_a_model_of_the_conversation(repl: Start, fake: FakeDaemon) -> None:
    fake.on("/api/chat", Reply(lines=turns("Hello.")))
    fake.on(
        "/api/create",
        Reply(body={"status": "success"}),
        Reply(status=400, body={"error": "invalid model name"}),
    )
    terminal = repl()
    terminal.enter("/set parameter seed 1")
    terminal.enter("/set system Be brief.")
    terminal.enter("hi")
    terminal.expect("Hello.")
    terminal.enter("/save mine")
    terminal.expect("Created new model 'mine'")
    assert fake.calls("/api/create") == [
        {
            "model": "mine",
            "from": "m",
            "system": "Be brief.",
            "parameters": {"seed": 1},
            "messages": [said("user", "hi"), said("assistant", "Hello.")],
            "stream": False,
        }
    ]
    terminal.enter("/save ../x")
    terminal.expect("Error: invalid model name")


def test_the_turns_of_the_modelfile_are_shown(repl: Start, fake: FakeDaemon) -> None:
    turns_of_the_model = [said("user", "Who are you?"), said("assistant", "A tiny model.")]
    fake.on("/api/show", Reply(body={**SHOWN, "messages": turns_of_the_model}))
    assert repl().expect("A tiny model.").startswith("Who are you?\n")


def test_thinking_goes_back_to_the_model_and_escapes_do_not_reach_the_terminal(
    repl: Start, fake: FakeDaemon
) -> None:
    thought = {"message": {"role": "assistant", "content": "", "thinking": "hm"}, "done": False}
    fake.on("/api/chat", Reply(lines=[thought, *turns("a\x1b]52;c;cm0=\x07b")]))
    terminal = repl()
    terminal.enter("hi")
    terminal.expect("Thinking...\nhm\n...done thinking.\n\na]52;c;cm0=b")
    assert b"\x1b]52" not in terminal.raw
    terminal.enter("again")
    terminal.expect("done thinking")
    assert messages(fake)[1] == {"role": "assistant", "content": "a\x1b]52;c;cm0=\x07b", "thinking": "hm"}


def test_lines_are_broken_between_words_but_json_is_not(repl: Start, fake: FakeDaemon) -> None:
    fake.on("/api/chat", Reply(lines=turns(*["lorem "] * 20)))
    terminal = repl(COLUMNS="40")
    terminal.enter("hi")
    terminal.expect("lorem lorem lorem lorem lorem lorem\nlorem lorem")
    terminal.enter("/set format json")
    terminal.expect("mode.")
    terminal.enter("hi")
    terminal.expect("lorem " * 20)
    terminal.enter("/set noformat")
    terminal.expect("Disabled format.")
    terminal.enter("/set nowordwrap")
    terminal.expect("Set 'nowordwrap' mode.")
    terminal.enter("hi")
    terminal.expect("lorem " * 20)


def history(home: Path) -> str:
    return (home / "history").read_text()


def test_history_is_kept_private_and_can_be_switched_off(repl: Start, fake: FakeDaemon, home: Path) -> None:
    fake.on("/api/chat", Reply(lines=turns("ok.")))
    terminal = repl()
    for line in ("remember me", "/set nohistory", "forget me", "/set history", "me too"):
        terminal.enter(line)
        terminal.expect("mode." if line.startswith("/") else "ok.")
        terminal.expect(">>> ")
    terminal.type("\x04")
    assert terminal.end() == 0
    kept = [line[1:] for line in history(home).splitlines() if line.startswith("+")]
    assert kept == ["remember me", "/set nohistory", "me too"]
    assert stat.S_IMODE((home / "history").stat().st_mode) == 0o600
    again = repl()
    again.type("\x1b[A\r")
    again.expect("ok.")
    assert messages(fake)[-1] == said("user", "me too")


def test_no_history_is_written_when_the_setting_says_so(repl: Start, fake: FakeDaemon, home: Path) -> None:
    fake.on("/api/chat", Reply(lines=turns("ok.")))
    terminal = repl(MLXO_HISTORY="0")
    terminal.enter("hi")
    terminal.expect("ok.")
    terminal.enter("/bye")
    assert terminal.end() == 0
    assert not (home / "history").exists()
