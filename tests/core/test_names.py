from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxo.core.errors import InvalidName
from mlxo.core.names import ModelName

FIRST = string.ascii_letters + string.digits + "_"


def part(rest: str, longest: int = 80) -> st.SearchStrategy[str]:
    tail = st.text(FIRST + rest, max_size=longest - 1)
    return st.builds(lambda a, b: a + b, st.sampled_from(FIRST), tail)


NAMES = st.builds(ModelName, part(".-:", 255), part("-"), part(".-"), part(".-")).filter(
    lambda n: ".." not in n.host
)


@pytest.mark.parametrize(
    ("text", "full", "short"),
    [
        ("qwen3", "registry.ollama.ai/library/qwen3:latest", "qwen3:latest"),
        ("qwen3:4b", "registry.ollama.ai/library/qwen3:4b", "qwen3:4b"),
        ("me/qwen3", "registry.ollama.ai/me/qwen3:latest", "me/qwen3:latest"),
        ("hf.co/Qwen/Qwen3-0.6B", "hf.co/Qwen/Qwen3-0.6B:latest", "hf.co/Qwen/Qwen3-0.6B:latest"),
        ("localhost:5000/a/b:c", "localhost:5000/a/b:c", "localhost:5000/a/b:c"),
        ("https://hf.co/a.b/c", "hf.co/a.b/c:latest", "hf.co/a.b/c:latest"),
    ],
)
def test_defaults_are_filled_in_and_hidden_again(text: str, full: str, short: str) -> None:
    name = ModelName.parse(text)
    assert (name.full, name.short) == (full, short)


@given(NAMES)
def test_the_full_and_the_short_form_parse_back(name: ModelName) -> None:
    assert ModelName.parse(name.full) == name
    assert ModelName.parse(name.short) == name


HOSTILE = [
    "",
    "h" * 256 + "/a/b",
    " ",
    ":",
    "a:",
    ":b",
    "a/",
    "/a",
    "a//b",
    "../../x",
    "..",
    ".",
    "a/../b",
    "x/..:y",
    "a:..",
    "a:.b",
    "a/.b",
    "-a",
    "a:-b",
    "a b",
    "a\x00b",
    "a\nb",
    "a\\b",
    "ä",
    "a" * 81,
    "a:" + "b" * 81,
    "n.s/m",
    "a/b/c/d",
    "a:b:c",
    "sha256:///",
    "~/.ssh/id",
    "%2e%2e/a",
    "a@sha256:abc",
    "//etc/passwd",
    "..:80/a/b",
    "h..x/a/b",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_could_leave_its_folder_or_mean_nothing_is_refused(text: str) -> None:
    with pytest.raises(InvalidName):
        ModelName.parse(text)


@given(st.text())
def test_any_text_is_a_safe_name_or_invalid(text: str) -> None:
    try:
        name = ModelName.parse(text)
    except InvalidName:
        return
    for piece in (name.host, name.namespace, name.model, name.tag):
        assert piece not in (".", "..")
        assert not set(piece) & set("/\\\0")


def test_case_is_kept_and_ignored_in_matching() -> None:
    assert ModelName.parse("Foo").short == "Foo:latest"
    assert ModelName.parse("Foo").key == ModelName.parse("fOO:Latest").key
