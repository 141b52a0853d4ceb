"""From a verb to an exit code. The one place of the CLI where errors become sentences.

Exit codes: 0 done, 1 an error (one sentence on standard error), 130 Ctrl-C, 141 the reader of a pipe left.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from mlxo import __version__
from mlxo.cli import output
from mlxo.core.errors import InvalidRequest, MlxoError

INTERRUPTED = 130
PIPE_CLOSED = 141

# What these verbs do when not a word follows them: nothing to parse, so click need not be imported,
# which would be a tenth of their time. With arguments they are click commands like all others.
_BARE = {"list": "mlxo.cli.listing:list_models", "ps": "mlxo.cli.listing:ps"}


def dispatch(verb: str, argv: list[str]) -> int:
    """Run `verb` (aliases already resolved) with the whole command line; never raises."""
    _prepare_streams()
    try:
        code = _run(verb, argv)
        sys.stdout.flush()
    except MlxoError as e:
        return _fail(e.message, e.hint)
    except KeyboardInterrupt:
        for stream in (sys.stderr, sys.stdout):
            if stream.isatty():
                print(file=stream)  # the prompt does not follow `^C` on its line
                break
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes standard output once more at exit; give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return PIPE_CLOSED
    except OSError as e:
        where = f": {e.filename}" if e.filename else ""
        return _fail(f"{e.strerror or e}{where}")
    except Exception as e:  # noqa: BLE001  the edge of the process: nobody above could say it better
        return _fail(f"mlxo met an error it did not expect: {type(e).__name__}: {e}", _record())
    return code


def _prepare_streams() -> None:
    """A model says whatever it says: no locale and no closed descriptor may turn that into an exception."""
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None:  # started with the descriptor closed
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  lives as long as we do
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="replace")


def _run(verb: str, argv: list[str]) -> int:
    # By name: the table sits above this layer, and `python -m mlxo` has it under another name.
    verbs: dict[str, tuple[str, str]] = importlib.import_module("mlxo.__main__").VERBS
    if verb in ("", "-h", "--help", "help"):
        if verb == "help" and len(argv) > 1 and argv[1] in verbs:
            return _run(argv[1], [argv[1], "--help"])
        sys.stdout.write(_overview(verbs))
        return 0
    if verb in ("-v", "--version"):
        print(f"mlxo version is {__version__}")
        return 0
    if verb not in verbs:
        if verb == "push":
            raise InvalidRequest("mlxo cannot push models yet")
        raise InvalidRequest(f'unknown command "{verb}" for "mlxo"', _nearest(verb, verbs))
    bare = _BARE.get(verb) if len(argv) == 1 else None
    module, _, name = (bare or verbs[verb][0]).partition(":")
    target = getattr(importlib.import_module(module), name)
    if hasattr(target, "make_context"):
        return _click(target, verb, argv[1:])
    return int((target() if bare else target(argv[1:])) or 0)


def _click(command: Any, verb: str, args: list[str]) -> int:
    """Run a click.Command; its usage errors become ours. A callback's return value is the exit code."""
    import click

    try:
        with command.make_context(f"mlxo {verb}", args, help_option_names=["-h", "--help"]) as context:
            return int(command.invoke(context) or 0)
    except click.exceptions.NoArgsIsHelpError as e:  # `mlxo daemon` alone; the help is its message
        print(e.format_message())
        return 0
    except click.exceptions.Exit as e:
        return e.exit_code
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.ClickException as e:
        at = getattr(e, "ctx", None)
        path = at.command_path if at else f"mlxo {verb}"
        raise InvalidRequest(e.format_message().rstrip("."), f"see: {path} --help") from None


def _overview(verbs: dict[str, tuple[str, str]]) -> str:
    rows = [f"  {verb:<12}{help}\n" for verb, (_, help) in verbs.items() if not verb.startswith("_")]
    return (
        "Usage: mlxo COMMAND [ARGUMENTS]\n\nCommands:\n" + "".join(rows) + "\n"
        "mlxo COMMAND --help says more. mlxo --version prints the version.\n"
        "MLXO_HOST is the server's address, MLXO_HOME the folder of models, logs and history.\n"
    )


def _nearest(verb: str, verbs: dict[str, tuple[str, str]]) -> str:
    import difflib

    if verb == "version":
        return "did you mean: mlxo --version"
    found = difflib.get_close_matches(verb, [v for v in verbs if not v.startswith("_")], 1)
    return f"did you mean: mlxo {found[0]}" if found else "see: mlxo --help"


def _fail(message: str, hint: str | None = None) -> int:
    try:
        sys.stdout.flush()  # what came before the error stands before it
        print(f"Error: {output.clean(message)}", file=sys.stderr)
        if hint:
            print(output.hint(hint), file=sys.stderr)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 1


def _record() -> str:
    """Append the current traceback to a file under MLXO_HOME; the sentence that says where it is."""
    import traceback

    from mlxo.core.paths import Paths
    from mlxo.core.settings import load

    try:
        path = Paths(load().home).daemon_log.with_name("cli.log")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", errors="replace") as log:
            log.write(f"mlxo {__version__} {sys.argv[1:]}\n{traceback.format_exc()}\n")
    except (OSError, MlxoError) as e:
        return f"the details could not be written down ({e})"
    return f"the details are in {path}"
