"""The slash commands of a conversation. A command is matched whole; each is a row of `COMMANDS`."""

from __future__ import annotations

import sys
from collections.abc import Callable

from mlxo.cli.listing import list_table
from mlxo.cli.session import THINK_LEVELS, Session, parse_think
from mlxo.cli.show import blocks
from mlxo.core.errors import InvalidRequest, MlxoError, NotFound
from mlxo.core.options import KINDS, from_text

HELP = """\
Available Commands:
  /set            Set session variables
  /show           Show model information
  /list           List the models on disk
  /load <model>   Talk to another model
  /save <model>   Save this session as a model
  /clear          Clear session context
  /bye            Exit
  /?, /help       Help for a command
  /? shortcuts    Help for keyboard shortcuts

Use \""" to begin a multi-line message.
"""
SET_HELP = """\
Available Commands:
  /set parameter ...     Set a parameter
  /set system <string>   Set system message
  /set history           Enable history
  /set nohistory         Disable history
  /set wordwrap          Enable wordwrap
  /set nowordwrap        Disable wordwrap
  /set format json       Enable JSON mode
  /set noformat          Disable formatting
  /set verbose           Show what each answer took
  /set quiet             Do not show what each answer took
  /set think [level]     Enable thinking
  /set nothink           Disable thinking
"""
SHOW_HELP = """\
Available Commands:
  /show info         Show details for this model
  /show license      Show model license
  /show modelfile    Show Modelfile for this model
  /show parameters   Show parameters for this model
  /show system       Show system message
  /show template     Show prompt template
"""
SHORTCUTS = """\
Available keyboard shortcuts:
  Ctrl + a          Move to the beginning of the line (Home)
  Ctrl + e          Move to the end of the line (End)
   Alt + b          Move back (left) one word
   Alt + f          Move forward (right) one word
  Ctrl + k          Delete the text after the cursor
  Ctrl + u          Delete the text before the cursor
  Ctrl + w          Delete the word before the cursor
  Ctrl + j          Begin a new line
  Ctrl + g          Edit the message in $VISUAL or $EDITOR
  Ctrl + r          Search the history
  Ctrl + l          Clear the screen
  Ctrl + c          Stop the model from responding
  Ctrl + d          Exit (/bye)
"""
ABSENT = {
    "license": "No license was specified for this model.",
    "modelfile": "No Modelfile was specified for this model.",
    "parameters": "No parameters were specified for this model.",
    "system": "No system message was specified for this model.",
    "template": "No prompt template was specified for this model.",
}


def run(session: Session, line: str) -> bool:
    """Run one command line. False when the conversation is over."""
    name, _, rest = line.partition(" ")
    if name in ("/bye", "/exit"):
        return False
    command = COMMANDS.get(name)
    if command is None:
        print(f"Unknown command '{name}'. Type /? for help")
    else:
        command(session, rest.strip())
    return True


def _help(_: Session, rest: str) -> None:
    pages = {"set": SET_HELP, "show": SHOW_HELP, "shortcut": SHORTCUTS, "shortcuts": SHORTCUTS}
    print(pages.get(rest.removeprefix("/"), HELP), file=sys.stderr)


def _list(session: Session, _: str) -> None:
    sys.stdout.write(list_table(session.client().get("/api/tags").get("models") or []))


def _clear(session: Session, _: str) -> None:
    session.clear()
    print("Cleared session context")


def _load(session: Session, rest: str) -> None:
    if not rest or " " in rest:
        print("Usage:\n  /load <modelname>")
        return
    before = (session.model, session.shown, session.messages)
    print(f"Loading model '{rest}'")
    try:
        session.model, session.messages = rest, []
        session.show()
        session.load()
    except (MlxoError, KeyboardInterrupt) as e:
        session.model, session.shown, session.messages = before
        if not isinstance(e, NotFound):
            raise
        print(f"Couldn't find model '{rest}'")


def _save(session: Session, rest: str) -> None:
    if not rest or " " in rest:
        print("Usage:\n  /save <modelname>")
        return
    said = [m for m in session.messages if m["role"] != "system"]
    body = {
        "model": rest,
        "from": session.model,
        "system": session.system,
        "parameters": session.options,
        "messages": [*(session.shown.get("messages") or ()), *said],
        "stream": False,
    }
    session.client().post(
        "/api/create", {k: v for k, v in body.items() if v not in ("", {}, [])}, timeout=None
    )
    print(f"Created new model '{rest}'")


# ---------------------------------------------------------------- /set


def _set(session: Session, rest: str) -> None:
    what, _, value = rest.partition(" ")
    setter = SETTERS.get(what)
    if not what:
        print(SET_HELP, file=sys.stderr)
    elif setter is None:
        print(f"Unknown command '/set {what}'. Type /? for help")
    else:
        setter(session, value.strip())


def _set_parameter(session: Session, rest: str) -> None:
    name, *values = rest.split()
    if not values:
        print("Usage:\n  /set parameter <name> <value>\n\nParameters: " + ", ".join(sorted(KINDS)))
        return
    try:
        parsed = [from_text(name, v) for v in (values if name == "stop" else [" ".join(values)])]
    except InvalidRequest as e:
        print(f'Couldn\'t set parameter: "{e.message}"')
        return
    session.options[name] = parsed if name == "stop" else parsed[0]
    print(f"Set parameter '{name}' to '{', '.join(values)}'")


def _set_system(session: Session, text: str) -> None:
    if not text:
        print("Usage:\n  /set system <string>")
        return
    quote = next(
        (q for q in ('"""', '"') if text.startswith(q) and text.endswith(q) and len(text) > len(q)), ""
    )
    session.set_system(text.removeprefix(quote).removesuffix(quote))
    print("Set system message.")


def _set_format(session: Session, value: str) -> None:
    if value != "json":
        print("Invalid or missing format. For 'json' mode use '/set format json'")
        return
    session.format = "json"
    print("Set format to 'json' mode.")


def _set_noformat(session: Session, _: str) -> None:
    session.format = None
    print("Disabled format.")


def _set_think(session: Session, level: str) -> None:
    if level and level not in (*THINK_LEVELS, "true", "false"):
        print(f"Invalid think level '{level}'. It is one of {', '.join(THINK_LEVELS)}")
        return
    session.think = parse_think(level) if level else True
    print(f"Set 'think' mode to '{level}'." if level else "Set 'think' mode.")
    if session.think and not session.capable("thinking"):
        print(f'warning: model "{session.model}" does not support thinking output', file=sys.stderr)


def _set_nothink(session: Session, _: str) -> None:
    session.think = False
    print("Set 'nothink' mode.")
    if not session.capable("thinking"):
        print(f'warning: model "{session.model}" does not support thinking output', file=sys.stderr)


def _switch(mode: str, attribute: str, value: bool) -> Callable[[Session, str], None]:
    def switch(session: Session, _: str) -> None:
        setattr(session, attribute, value)
        print(f"Set '{mode}' mode.")

    return switch


# ---------------------------------------------------------------- /show


def _show(session: Session, rest: str) -> None:
    if rest == "info":
        sys.stderr.write(blocks(session.show()))
    elif rest == "parameters":
        _show_parameters(session)
    elif rest in ABSENT:
        session.show()
        text = session.system if rest == "system" else session.shown.get(rest)
        text = "\n".join(text) if isinstance(text, list) else text
        print(f"{text}\n" if text else f"{ABSENT[rest]}\n")
    elif rest:
        print(f"Unknown command '/show {rest}'. Type /? for help")
    else:
        print(SHOW_HELP, file=sys.stderr)


def _show_parameters(session: Session) -> None:
    model = session.show().get("parameters")
    if model:
        print("Model defined parameters:")
        print("".join(f"  {line}\n" for line in str(model).splitlines()))
    if session.options:
        print("User defined parameters:")
        for name, value in session.options.items():
            for one in value if isinstance(value, list) else [value]:
                print(f"  {name:<30} {one}")
        print()
    if not model and not session.options:
        print(ABSENT["parameters"] + "\n")


COMMANDS: dict[str, Callable[[Session, str], None]] = {
    "/set": _set,
    "/show": _show,
    "/list": _list,
    "/load": _load,
    "/save": _save,
    "/clear": _clear,
    "/?": _help,
    "/help": _help,
}
SETTERS: dict[str, Callable[[Session, str], None]] = {
    "parameter": _set_parameter,
    "system": _set_system,
    "history": _switch("history", "record", True),
    "nohistory": _switch("nohistory", "record", False),
    "wordwrap": _switch("wordwrap", "wrap", True),
    "nowordwrap": _switch("nowordwrap", "wrap", False),
    "verbose": _switch("verbose", "verbose", True),
    "quiet": _switch("quiet", "verbose", False),
    "format": _set_format,
    "noformat": _set_noformat,
    "think": _set_think,
    "nothink": _set_nothink,
}
# What Tab completes.
WORDS = (
    *COMMANDS,
    "/bye",
    *(f"/set {name}" for name in SETTERS),
    *(f"/set parameter {name}" for name in KINDS),
    *(f"/show {name}" for name in ("info", *ABSENT)),
    "/? set",
    "/? show",
    "/? shortcuts",
)
