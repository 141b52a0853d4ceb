"""The verb table: each verb is a string that names its function, imported only when it is called."""

from __future__ import annotations

import sys

# verb -> (module:function, one line of help). A verb that starts with "_" is a child process's role.
VERBS: dict[str, tuple[str, str]] = {
    "run": ("mlxo.cli.run:run", "run a model: one answer, or a conversation"),
    "serve": ("mlxo.server.main:serve", "run the server in the foreground"),
    "create": ("mlxo.cli.create:create", "make a model from a Modelfile"),
    "show": ("mlxo.cli.show:show", "show what a model is made of"),
    "list": ("mlxo.cli.models:list_models", "list the models on disk"),
    "ps": ("mlxo.cli.models:ps", "list the models in memory"),
    "pull": ("mlxo.cli.models:pull", "fetch a model"),
    "cp": ("mlxo.cli.models:cp", "copy a model"),
    "rm": ("mlxo.cli.models:rm", "remove models"),
    "stop": ("mlxo.cli.models:stop", "unload a model"),
    "bench": ("mlxo.cli.bench:bench", "measure how fast a model answers"),
    "verify": ("mlxo.cli.system:verify", "check every blob against its digest"),
    "gc": ("mlxo.cli.system:gc", "delete what no model refers to"),
    "cache": ("mlxo.cli.cache:cache", "status of the prompts kept on disk, or clear them"),
    "doctor": ("mlxo.cli.doctor:doctor", "find what is slow or missing here, and what mends it"),
    "modelfile": ("mlxo.cli.modelfile:modelfile", "check a Modelfile without a server"),
    "daemon": ("mlxo.cli.daemon:daemon", "status, stop, restart or logs of the server"),
    "_runner": ("mlxo.runner.main:main", "the child that holds one model"),
    "_job": ("mlxo.jobs.main:main", "the child that converts weights"),
}
ALIASES = {"ls": "list", "start": "serve"}


def main() -> None:
    argv = sys.argv[1:]
    verb = ALIASES.get(argv[0], argv[0]) if argv else ""
    if verb.startswith("_") and verb in VERBS:
        module, _, function = VERBS[verb][0].partition(":")
        __import__(module)
        sys.exit(getattr(sys.modules[module], function)(argv[1:]))
    from mlxo.cli.main import dispatch

    sys.exit(dispatch(verb, argv))


if __name__ == "__main__":
    main()
