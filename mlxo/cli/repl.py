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
from prompt_toolkit.filters import is_done, is_searching
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory
from prompt_toolkit.input import Input
from prompt_toolkit.input.typeahead import clear_typeahead, get_typeahead, store_typeahead
from prompt_toolkit.key_binding import KeyBindings, KeyPress, KeyPressEvent
from prompt_toolkit.keys import Keys

from mlxo.cli import commands
from mlxo.cli.output import clean, hint, tell
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
        if not self._session.record:
            return
        with contextlib.suppress(OSError):  # a disk that is full or not ours must not end the conversation
            # Prompts are nobody else's to read. The home may be new: the server can be another machine's.
            os.makedirs(os.path.dirname(self.filename), exist_ok=True)
            os.close(os.open(self.filename, os.O_CREAT | os.O_APPEND, 0o600))
            super().store_string(_text(string))


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
        placeholder=_placeholder,
        completer=_completer(),
        complete_while_typing=False,
        tempfile_suffix=".txt",
    )
    _echo(session)
    _hold(prompt.input)
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
            print("\n" if session.last and session.last.text + session.last.thinking else "")
            _drop(prompt.input)
        if not text.lstrip().startswith("/"):
            _hold(prompt.input)


def _placeholder() -> FormattedText:
    """Neither left behind when the prompt is done, nor in the way of what Ctrl-R finds."""
    shown = "" if is_done() or is_searching() else "Send a message (/? for help)"
    return FormattedText([("ansibrightblack", shown)])


def _drop(keyboard: Input) -> None:
    """Ctrl-C takes back what was typed ahead too."""
    termios.tcflush(sys.stdin, termios.TCIFLUSH)
    clear_typeahead(keyboard)


def _hold(keyboard: Input) -> None:
    """Make one message of the lines typed during an answer; several wait for an Enter of their own."""
    keys = get_typeahead(keyboard)
    while more := keyboard.read_keys():
        keys += more
    keys += keyboard.flush_keys()
    enters = [at for at, key in enumerate(keys) if key.key == Keys.ControlM]
    if enters and enters != [len(keys) - 1]:
        if enters[-1] == len(keys) - 1:
            keys.pop()
        keys = [KeyPress(Keys.ControlJ) if key.key == Keys.ControlM else key for key in keys]
    store_typeahead(keyboard, keys)


def _text(typed: str) -> str:
    """Bytes that were no UTF-8 come from the terminal as lone surrogates, which no file and no JSON takes."""
    return typed.encode("utf-8", "replace").decode()


def _turn(session: Session, text: str) -> bool:
    """False when the conversation is over."""
    text = _text(text).strip()
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


def _complain(message: str, advice: str | None = None) -> None:
    tell(f"Error: {clean(message)}", sys.stderr)
    if advice:
        tell(hint(advice), sys.stderr)
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
