"""`mlxo modelfile lint`, as a user types it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from mlxo.cli.main import dispatch

GOOD = (
    "# name: helper\nFROM smollm2\nPARAMETER stop <|im_end|>\nPARAMETER temperature 0.2\n"
    'SYSTEM """You are\n"brief"."""\nMESSAGE user hello\nMESSAGE assistant hi: there\n'
)
PARSED = [
    {"name": "from", "args": "smollm2"},
    {"name": "stop", "args": "<|im_end|>"},
    {"name": "temperature", "args": "0.2"},
    {"name": "system", "args": 'You are\n"brief".'},
    {"name": "message", "args": "user: hello"},
    {"name": "message", "args": "assistant: hi: there"},
]

Capture = pytest.CaptureFixture[str]


def lint(*words: str) -> int:
    return dispatch("modelfile", ["modelfile", "lint", *words])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "Modelfile"
    path.write_text(GOOD, encoding="utf-8")
    return path


def test_a_good_file(file: Path, capsys: Capture) -> None:
    assert lint(str(file)) == 0
    assert capsys.readouterr() == ("Modelfile: 6 instructions, no problems\n", "")


def test_json_is_one_document_in_order(file: Path, capsys: Capture) -> None:
    assert lint(str(file), "--json") == 0
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == (PARSED, "")


def test_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(GOOD.encode("utf-16"))))
    assert lint("--json", "-") == 0
    assert json.loads(capsys.readouterr().out) == PARSED


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("FROM m\nFOO bar\n", "Error: (line 2): command must be one of "),
        ("FROM m\r\nMESSAGE tool x\n", "Error: (line 3): message role must be one of "),
        ("FROM m\n\nPARAMETER top_k ten\n", "Error: (line 3): invalid int value [ten]\n"),
        ("FROM m\nPARAMETER tfs_z 1\n", "Error: (line 2): unknown parameter 'tfs_z'\n"),
        ("FROM m\nQUANTIZE 7\n", "Error: (line 2): invalid quantization '7'\n"),
        ('FROM m\nSYSTEM "open\n', "Error: (line 2): unexpected EOF\n"),
        ("SYSTEM x\n", "Error: no FROM line\n"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_an_error_names_its_line(
    tmp_path: Path, capsys: Capture, text: str, error: str, flags: list[str]
) -> None:
    path = tmp_path / "Modelfile"
    path.write_bytes(text.encode())
    assert lint(str(path), *flags) == 1
    out, err = capsys.readouterr()
    assert (out, err[: len(error)]) == ("", error)


def test_a_warning_is_no_error(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "Modelfile"
    path.write_text("FROM m\nPARAMETER mirostat 1\n")
    assert lint(str(path), "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)[1] == {"name": "mirostat", "args": "1"}
    assert err == "Warning: parameter mirostat is deprecated and ignored\n"


def test_a_file_that_cannot_be_read(tmp_path: Path, capsys: Capture) -> None:
    assert lint(str(tmp_path / "none")) == 1
    assert lint(str(tmp_path)) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "No such file" in err
    assert "Traceback" not in err
