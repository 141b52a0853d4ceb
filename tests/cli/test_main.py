from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import mlxo.__main__
from mlxo import __version__
from mlxo.core.process import command
from tests.cli.conftest import Mlxo
from tests.fakes.daemon import FakeDaemon, Reply


@pytest.mark.parametrize("argv", [(), ("--help",), ("-h",), ("help",)])
def test_the_overview_names_every_verb(mlxo: Mlxo, argv: tuple[str, ...]) -> None:
    done = mlxo(*argv)
    assert (done.code, done.err) == (0, "")
    for verb, (_, help) in mlxo_verbs().items():
        assert (f"  {verb:<12}{help}\n" in done.out.decode()) == (not verb.startswith("_"))


def mlxo_verbs() -> dict[str, tuple[str, str]]:
    return mlxo.__main__.VERBS


def test_version(mlxo: Mlxo) -> None:
    assert mlxo("-v").out == mlxo("--version").out == f"mlxo version is {__version__}\n".encode()


def test_an_unknown_verb_is_answered_with_the_nearest(mlxo: Mlxo) -> None:
    done = mlxo("pul", "m")
    assert (done.code, done.err) == (
        1,
        'Error: unknown command "pul" for "mlxo"\nHint: did you mean: mlxo pull\n',
    )


@pytest.mark.parametrize("verb", [v for v in mlxo_verbs() if not v.startswith("_") and v != "serve"])
def test_every_verb_has_help_and_asks_no_server(mlxo: Mlxo, home: Path, verb: str) -> None:
    done = mlxo(verb, "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"Usage: mlxo {verb} ".encode())
    assert mlxo("help", verb).out == done.out
    assert not home.exists()


def test_a_usage_error_is_a_sentence_and_where_the_help_is(mlxo: Mlxo) -> None:
    done = mlxo("run")
    assert (done.code, done.err) == (1, "Error: Missing argument 'MODEL'\nHint: see: mlxo run --help\n")
    done = mlxo("daemon", "dance")
    assert (done.code, done.err) == (1, "Error: No such command 'dance'\nHint: see: mlxo daemon --help\n")


@pytest.mark.parametrize("verb", [v for v in mlxo_verbs() if not v.startswith("_")])
def test_h_is_help(mlxo: Mlxo, home: Path, verb: str) -> None:
    assert mlxo(verb, "-h") == mlxo(verb, "--help")
    if verb in ("daemon", "modelfile"):
        assert mlxo(verb, "-h") == mlxo(verb)
        assert b"..." not in mlxo(verb).out.replace(b"...]", b"").replace(b"[ARGS]...", b"")
        assert mlxo(verb, "-h").code == 0
    if verb == "daemon":
        assert mlxo("daemon", "stop", "-h").out.startswith(b"Usage: mlxo daemon stop")


@pytest.mark.parametrize(
    ("verb", "sentence"),
    [
        ("version", "Hint: did you mean: mlxo --version\n"),
        ("push", "Error: mlxo cannot push models yet\n"),
    ],
)
def test_verbs_of_ollama_that_are_something_else_here(mlxo: Mlxo, verb: str, sentence: str) -> None:
    done = mlxo(verb, "m")
    assert done.code == 1
    assert sentence in done.err


def test_an_error_nobody_expected_is_one_sentence_and_a_log(mlxo: Mlxo, fake: FakeDaemon, home: Path) -> None:
    fake.on("/api/tags", Reply(body={"models": [{"name": "no digest"}]}))
    done = mlxo("list")
    log = home / "logs" / "cli.log"
    assert done.code == 1
    assert done.err == (
        f"Error: mlxo met an error it did not expect: KeyError: 'digest'\nHint: the details are in {log}\n"
    )
    assert "Traceback" in log.read_text()


def test_a_home_that_cannot_be_made_is_one_sentence(
    mlxo: Mlxo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLXO_HOME", str(tmp_path / "file" / "home"))
    monkeypatch.setenv("MLXO_HOST", "127.0.0.1:1")
    done = mlxo("list")
    assert (done.code, done.err) == (1, f"Error: Not a directory: {tmp_path}/file/home/logs\n")


def test_a_reader_that_leaves_ends_it_quietly(fake: FakeDaemon) -> None:
    rows = [{"name": f"m{i}", "digest": "a" * 64, "size": 1, "modified_at": ""} for i in range(5000)]
    fake.on("/api/tags", Reply(body={"models": rows}))
    with subprocess.Popen(
        command("list"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_standard_output_may_be_closed(fake: FakeDaemon) -> None:
    fake.on("/api/tags", Reply(body={"models": []}))
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command("list")], capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


HEAVY = (
    "mlx",
    "mlx_lm",
    "transformers",
    "numpy",
    "aiohttp",
    "asyncio",
    "huggingface_hub",
    "rich",
    "prompt_toolkit",
)


def imported(*argv: str) -> set[str]:
    """The top-level modules in a fresh interpreter after it ran `mlxo ARGV`."""
    code = (
        "import sys, mlxo.cli.main as main; main.dispatch(sys.argv[1], sys.argv[1:]);"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, check=True, stdin=subprocess.DEVNULL
    )
    return {name.partition(".")[0] for name in done.stderr.decode().splitlines()[-1].split()}


def test_listing_imports_next_to_nothing(fake: FakeDaemon) -> None:
    fake.on("/api/ps", Reply(body={"models": []}))
    assert not imported("ps").intersection({*HEAVY, "filelock", "subprocess", "platformdirs", "click"})


@pytest.mark.parametrize(
    "argv", [("run", "m", "x"), ("pull", "m"), ("show", "m"), ("create", "m"), ("verify",)]
)
def test_no_verb_imports_what_the_server_and_the_runner_are_made_of(
    fake: FakeDaemon, argv: tuple[str, ...]
) -> None:
    assert not imported(*argv).intersection(HEAVY)
