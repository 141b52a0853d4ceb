"""The slash commands of a conversation. A command is matched whole; each is a row of `COMMANDS`."""

from __future__ import annotations

import sys
from collections.abc import Callable

from mlxo.cli.listing import list_table, matching
from mlxo.cli.output import clean, tell
from mlxo.cli.session import THINK_LEVELS, Session, parse_think
from mlxo.cli.show import blocks
from mlxo.core.errors import InvalidRequest, MlxoError, NotFound
from mlxo.core.names import ModelName
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
    name, rest = _split(line)
    if name in ("/bye", "/exit"):
        return False
    command = COMMANDS.get(name)
    if command is None:
        _unknown(name)
    else:
        command(session, rest)
    return True


def _split(text: str) -> tuple[str, str]:
    """The first word and the rest; either may be empty."""
    word, *rest = text.split(None, 1) or ("",)
    return word, "".join(rest).strip()


def _unknown(command: str) -> None:
    tell(f"Unknown command '{clean(command)}'. Type /? for help")


def _help(_: Session, rest: str) -> None:
    pages = {"": HELP, "set": SET_HELP, "show": SHOW_HELP, "shortcut": SHORTCUTS, "shortcuts": SHORTCUTS}
    page = pages.get(rest.removeprefix("/"))
    if page is None:
        tell(f"Unknown topic '{clean(rest)}'. There are set, show and shortcuts")
    else:
        tell(page, sys.stderr)


def _list(session: Session, prefix: str) -> None:
    rows = session.client().get("/api/tags").get("models") or []
    sys.stdout.write(list_table(matching(rows, prefix)))


def _clear(session: Session, _: str) -> None:
    session.clear()
    tell("Cleared session context")


def _load(session: Session, rest: str) -> None:
    if not rest:
        tell("Usage:\n  /load <modelname>")
        return
    ModelName.parse(rest)  # raises InvalidName
    before = (session.model, session.shown, session.messages)
    tell(f"Loading model '{rest}'")
    try:
        session.model, session.messages = rest, []
        session.show()
        session.load()
    except (MlxoError, KeyboardInterrupt) as e:
        session.model, session.shown, session.messages = before
        if not isinstance(e, NotFound):
            raise
        tell(f"Couldn't find model '{rest}'")
        return
    if session.think and not session.capable("thinking"):
        session.think = None
        tell(f"Model '{rest}' cannot think, so thinking is off.")


def _save(session: Session, rest: str) -> None:
    if not rest:
        tell("Usage:\n  /save <modelname>")
        return
    ModelName.parse(rest)  # raises InvalidName
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
    tell(f"Created new model '{rest}'")


# ---------------------------------------------------------------- /set


def _set(session: Session, rest: str) -> None:
    what, value = _split(rest)
    setter = SETTERS.get(what)
    if not what:
        tell(SET_HELP, sys.stderr)
    elif setter is None:
        _unknown(f"/set {what}")
    else:
        setter(session, value)


def _set_parameter(session: Session, rest: str) -> None:
    name, *values = rest.split() or ("",)
    if not values:
        tell("Usage:\n  /set parameter <name> <value>\n\nParameters: " + ", ".join(sorted(KINDS)))
        return
    try:
        parsed = [from_text(name, v) for v in (values if name == "stop" else [" ".join(values)])]
    except InvalidRequest as e:
        tell(f'Couldn\'t set parameter: "{clean(e.message)}"')
        return
    session.options[name] = parsed if name == "stop" else parsed[0]
    tell(f"Set parameter '{name}' to '{clean(', '.join(values))}'")


def _set_system(session: Session, text: str) -> None:
    if not text:
        tell("Usage:\n  /set system <string>")
        return
    quote = next(
        (q for q in ('"""', '"') if text.startswith(q) and text.endswith(q) and len(text) > len(q)), ""
    )
    session.set_system(text.removeprefix(quote).removesuffix(quote))
    tell("Set system message.")


def _set_format(session: Session, value: str) -> None:
    if value != "json":
        tell("Invalid or missing format. For 'json' mode use '/set format json'")
        return
    session.format = "json"
    tell("Set format to 'json' mode.")


def _set_noformat(session: Session, _: str) -> None:
    session.format = None
    tell("Disabled format.")


def _set_think(session: Session, level: str) -> None:
    if level and level not in (*THINK_LEVELS, "true", "false"):
        tell(f"Invalid think level '{clean(level)}'. It is one of {', '.join(THINK_LEVELS)}")
        return
    wanted = parse_think(level) if level else True
    if wanted and not session.capable("thinking"):
        tell(f"Model '{session.model}' cannot think, so nothing was set.")
        return
    session.think = wanted
    tell(f"Set 'think' mode to '{level}'." if level else "Set 'think' mode.")


def _set_nothink(session: Session, _: str) -> None:
    session.think = False
    tell("Set 'nothink' mode.")


def _switch(mode: str, attribute: str, value: bool) -> Callable[[Session, str], None]:
    def switch(session: Session, _: str) -> None:
        setattr(session, attribute, value)
        tell(f"Set '{mode}' mode.")

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
        _unknown(f"/show {rest}")
    else:
        tell(SHOW_HELP, sys.stderr)


def _show_parameters(session: Session) -> None:
    model = session.show().get("parameters")
    if model:
        tell("Model defined parameters:")
        tell("".join(f"  {line}\n" for line in str(model).splitlines()))
    if session.options:
        tell("User defined parameters:")
        for name, value in session.options.items():
            for one in value if isinstance(value, list) else [value]:
                tell(f"  {name:<30} {one}")
        tell("")
    if not model and not session.options:
        tell(ABSENT["parameters"] + "\n")


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
