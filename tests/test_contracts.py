"""The structure of the house: who catches what, how long things are, which process imports what."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from mlxo.__main__ import ALIASES, VERBS
from mlxo.modelfile import parse

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "mlxo").rglob("*.py"))
# The outermost line of each kind of process: nobody above it could say an unexpected error better.
EDGES = {"cli/main.py", "server/middleware.py", "runner/loop.py", "jobs/main.py"}
HEAVY = {"mlx", "mlx_lm", "mlx_vlm", "transformers", "numpy", "aiohttp", "huggingface_hub"}


def inside(path: Path) -> str:
    return path.relative_to(ROOT / "mlxo").as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def catches_all(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(
        k is None or (isinstance(k, ast.Name) and k.id in ("Exception", "BaseException")) for k in kinds
    )


def test_only_the_four_edges_catch_everything() -> None:
    found = [
        inside(path)
        for path in SOURCES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler) and catches_all(node)
    ]
    assert [f for f in found if f not in EDGES] == []
    assert len(found) <= len(EDGES)


def test_files_and_functions_are_short() -> None:
    long_files = {
        inside(p): n for p in SOURCES if (n := len(p.read_text(encoding="utf-8").splitlines())) > 400
    }
    long_functions = {
        f"{inside(path)}:{node.name}": length
        for path in SOURCES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > 60
    }
    assert long_files == {}
    assert long_functions == {}


def imported_by(code: str) -> set[str]:
    """The names in sys.modules of a fresh interpreter after `code`."""
    code += "\nimport json, sys\nsys.stdout.write('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def heavy(modules: Iterable[str]) -> set[str]:
    return {m.partition(".")[0] for m in modules} & HEAVY


def verb_modules(*roles: str) -> list[str]:
    modules = {target.partition(":")[0] for target, _ in VERBS.values()}
    return sorted(m for m in modules if m.split(".")[1] in roles)


def package_modules(package: str) -> list[str]:
    paths = [p for p in SOURCES if inside(p).startswith(f"{package}/")]
    return [".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in paths]


def test_no_cli_verb_imports_anything_heavy() -> None:
    modules = verb_modules("cli")
    assert len(modules) >= 5
    assert heavy(imported_by(f"import mlxo.__main__, mlxo.cli.main, {', '.join(modules)}")) == set()


def test_the_daemon_never_imports_mlx() -> None:
    modules = imported_by(f"import {', '.join(package_modules('server'))}")
    assert "mlxo.server.app" in modules
    assert heavy(modules) == {"aiohttp"}
    assert not {m for m in modules if m.startswith(("mlxo.engine", "mlxo.runner", "mlxo.jobs", "mlxo.cli"))}


def test_the_hub_is_imported_when_it_is_asked() -> None:
    assert heavy(imported_by(f"import {', '.join(package_modules('store'))}")) == set()


def test_help_imports_no_verb() -> None:
    code = (
        "import contextlib, runpy, sys\nsys.argv = ['mlxo', '--help']\n"
        "with contextlib.suppress(SystemExit): runpy.run_module('mlxo', run_name='__main__')"
    )
    modules = imported_by(code)
    assert "mlxo.cli.main" in modules
    assert modules & set(verb_modules("cli", "server", "runner", "jobs")) == set()
    assert "click" not in modules


def imports(path: Path) -> Iterator[str]:
    """Every module that a file of ours imports by name, at the top or inside a function."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("package", ["engine", "runner"])
def test_the_runner_sees_no_network_and_no_disk_format(package: str) -> None:
    # By what our files say: mlx_lm itself imports huggingface_hub.
    banned = (
        "aiohttp",
        "click",
        "huggingface_hub",
        "http",
        "urllib",
        "mlxo.store",
        "mlxo.server",
        "mlxo.cli",
    )
    found = {
        (inside(path), name)
        for path in SOURCES
        if inside(path).startswith(f"{package}/")
        for name in imports(path)
        if name.startswith(tuple(f"{b}." for b in banned)) or name in banned
    }
    assert found == set()


def test_the_runner_starts_without_the_rest_of_the_house() -> None:
    modules = imported_by(f"import {', '.join(verb_modules('runner', 'jobs'))}")
    assert modules & {"aiohttp", "click", "prompt_toolkit", "rich"} == set()
    assert not {m for m in modules if m.startswith(("mlxo.server", "mlxo.cli"))}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_names_a_function(verb: str) -> None:
    module, _, name = VERBS[verb][0].partition(":")
    path = ROOT / (module.replace(".", "/") + ".py")
    assert name in {getattr(node, "name", None) for node in tree(path).body}
    assert set(ALIASES.values()) <= set(VERBS)


def test_generated_files_are_current() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/generate.py", "--check"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_gallery_is_well_formed() -> None:
    files = [p for p in (ROOT / "Modelfiles").rglob("*") if p.is_file()]
    assert files
    for path in files:
        modelfile = parse(path.read_bytes())
        modelfile.check()
        assert modelfile.name == f"{path.parent.name}:{path.name}"
        assert modelfile.warnings == ()
