"""The conversation of `mlxo run`: read a line, run a command or send it, say what went wrong, go on."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import termios
from collections.abc import Iterator

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import Completer, WordCompleter
from prompt_toolkit.filters import is_done
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from mlxo.cli import commands
from mlxo.cli.output import clean
from mlxo.cli.session import Session
from mlxo.core.errors import MlxoError
from mlxo.core.paths import Paths

QUOTE = '"""'
_OPENS = re.compile(r'\s*(?:/set\s+system\s+)?"""')


class Recorded(FileHistory):
    """The history file, written to while the session says so."""

    def __init__(self, session: Session) -> None:
        self.filename: str = str(Paths(session.settings.home).history)
        super().__init__(self.filename)
        self._session = session

    def store_string(self, string: str) -> None:
        if self._session.record:
            # Prompts are nobody else's to read. The home may be new: the server can be another machine's.
            os.makedirs(os.path.dirname(self.filename), exist_ok=True)
            os.close(os.open(self.filename, os.O_CREAT | os.O_APPEND, 0o600))
            super().store_string(string)


def converse(session: Session) -> None:
    """Load the model, then talk until /bye or Ctrl-D. An error ends the turn and never the conversation."""
    with _type_ahead():
        session.load()
        _loop(session)


@contextlib.contextmanager
def _type_ahead() -> Iterator[None]:
    """Keep what is typed during an answer for the next prompt, as keys: unseen, Enter as Enter.

    A terminal's usual mode would print it into the answer, and make Enter the newline of Ctrl-J.
    """
    before = termios.tcgetattr(sys.stdin)
    quiet = termios.tcgetattr(sys.stdin)
    quiet[0] &= ~termios.ICRNL
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _loop(session: Session) -> None:
    prompt: PromptSession[str] = PromptSession(
        history=Recorded(session),
        multiline=True,  # Enter sends all the same, see _keys
        key_bindings=_keys(),
        prompt_continuation="... ",
        placeholder=FormattedText([("ansibrightblack", "Send a message (/? for help)")]),
        completer=_completer(),
        complete_while_typing=False,
        tempfile_suffix=".txt",
    )
    _echo(session)
    while True:
        try:
            text = prompt.prompt(">>> ")
        except EOFError:
            return
        except KeyboardInterrupt:
            if not prompt.default_buffer.text:
                print("\nUse Ctrl + d or /bye to exit.\n")
            continue
        try:
            if not _turn(session, text):
                return
        except MlxoError as e:
            _complain(e.message, e.hint)
        except OSError as e:
            _complain(e.strerror or str(e))
        except KeyboardInterrupt:
            print()


def _turn(session: Session, text: str) -> bool:
    """False when the conversation is over."""
    text = text.strip()
    if text.startswith("/"):
        return commands.run(session, text)
    message = unquote(text)
    if message:
        session.say(message)
    return True


def unquote(text: str) -> str:
    '''What stands between the `"""` of a multi-line message; other text as it is.'''
    if not text.startswith(QUOTE):
        return text
    return text.removeprefix(QUOTE).removesuffix(QUOTE)


def unclosed(text: str) -> bool:
    '''Whether `"""` opens a multi-line message that does not end yet.'''
    opened = _OPENS.match(text)
    return opened is not None and not text[opened.end() :].rstrip().endswith(QUOTE)


def _complain(message: str, hint: str | None = None) -> None:
    print(f"Error: {clean(message)}", file=sys.stderr)
    if hint:
        print(clean(hint), file=sys.stderr)
    print(file=sys.stderr)


def _echo(session: Session) -> None:
    """The Modelfile's MESSAGE turns, as if they had just been said."""
    for message in session.shown.get("messages") or ():
        content = clean(str(message.get("content", "")))
        if message.get("role") == "user":
            print(f">>> {content}")
        elif message.get("role") == "assistant":
            print(f"{content}\n")


def _completer() -> Completer:
    return WordCompleter([*commands.WORDS], sentence=True)


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter", filter=~is_done)
    def _send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if unclosed(buffer.text):
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("c-j")
    def _newline(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add("c-g")
    def _editor(event: KeyPressEvent) -> None:
        event.current_buffer.open_in_editor()

    return keys
