"""Slash commands in this process: whatever is typed, the conversation goes on."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlxo.cli import commands
from mlxo.cli.session import Session
from mlxo.core import settings as core_settings
from mlxo.core.errors import InvalidName, MlxoError
from tests.fakes.daemon import FakeDaemon, Reply

ROW = {"digest": "a" * 64, "size": 1, "modified_at": ""}
WORDS = st.one_of(
    st.sampled_from([*commands.SETTERS, *commands.ABSENT, "info", "shortcuts", "stop", "seed", '"""', '"']),
    st.text(max_size=12),
)
LINES = st.builds(
    lambda command, gap, words: (command + gap + gap.join(words)).strip(),
    st.sampled_from([*commands.COMMANDS, "/", "/x", "/set parameter", "/set think", "/set format"]),
    st.sampled_from([" ", "\t", "\n", "  "]),
    st.lists(WORDS, max_size=4),
)


@pytest.fixture
def session(fake: FakeDaemon) -> Session:
    fake.on("/api/show", Reply(body={"capabilities": ["completion"], "model_info": {}, "details": {}}))
    fake.on("/api/generate", Reply(body={"done": True}))
    fake.on("/api/create", Reply(body={"status": "success"}))
    fake.on("/api/tags", Reply(body={"models": [{"name": "a:1", **ROW}, {"name": "b:1", **ROW}]}))
    return Session(core_settings.load(), "m")


@given(line=LINES)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_command_ends_the_conversation(session: Session, line: str) -> None:
    with contextlib.suppress(MlxoError):  # the conversation shows it and goes on
        assert commands.run(session, line)


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("/set parameter", "Usage:\n  /set parameter <name> <value>"),
        ("/set\tparameter\tseed 4", "Set parameter 'seed' to '4'"),
        ("/? bogus", "Unknown topic 'bogus'"),
        ("/set think", "Model 'm' cannot think, so nothing was set.\n"),
        ("/set think=x", "Unknown command '/set think=x'"),
        ("/load", "Usage:\n  /load <modelname>"),
        ("/save", "Usage:\n  /save <modelname>"),
    ],
)
def test_too_few_or_odd_arguments(
    session: Session, capsys: pytest.CaptureFixture[str], line: str, answer: str
) -> None:
    assert commands.run(session, line)
    assert capsys.readouterr().out.startswith(answer)
    assert session.think is None


def test_nothink_is_no_matter_for_a_model_that_cannot_think(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.run(session, "/set nothink")
    assert capsys.readouterr() == ("Set 'nothink' mode.\n", "")


def test_thinking_goes_off_with_a_model_that_cannot(session: Session) -> None:
    session.think = "high"
    commands.run(session, "/load other")
    assert session.request(prompt="") == {"model": "other", "prompt": ""}


def test_list_takes_a_prefix(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    commands.run(session, "/list B")
    out = capsys.readouterr().out
    assert "b:1" in out
    assert "a:1" not in out


@pytest.mark.parametrize("command", ["/save", "/load"])
def test_a_bad_name_is_named_and_nothing_is_asked(session: Session, fake: FakeDaemon, command: str) -> None:
    with pytest.raises(InvalidName, match="invalid model name: Bad Name"):
        commands.run(session, f"{command} Bad Name")
    assert fake.seen == []


def test_a_home_that_takes_no_history_does_not_matter(session: Session, home: Path) -> None:
    from mlxo.cli.repl import Recorded

    (home / "history").mkdir()
    Recorded(session).store_string("hello")
