from __future__ import annotations

from pathlib import Path

import pytest

from mlxo.core import settings
from mlxo.core.errors import InvalidRequest
from mlxo.core.settings import Address, Settings, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("", Address("127.0.0.1", 11434)),
        ("0.0.0.0", Address("0.0.0.0", 11434)),
        (":8080", Address("127.0.0.1", 8080)),
        ("example.com:1234", Address("example.com", 1234)),
        ("http://example.com", Address("example.com", 80)),
        ("https://example.com/path", Address("example.com", 443)),
        ("::1", Address("::1", 11434)),
        ("[::1]:99", Address("::1", 99)),
    ],
)
def test_addresses_are_read_as_ollama_reads_them(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["a:x", "a:0", "a:65536", "a:-1"])
def test_a_bad_port_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="port"):
        parse_address(text)


def test_clients_of_an_unspecified_address_connect_to_this_machine() -> None:
    assert Address("0.0.0.0", 1).client == Address("127.0.0.1", 1)
    assert not Address("0.0.0.0", 1).is_loopback


def test_ours_beats_theirs_and_theirs_beats_the_default() -> None:
    found = settings.load(
        {"OLLAMA_HOST": "a:1", "MLXO_HOST": "b:2", "OLLAMA_KEEP_ALIVE": "-1", "MLXO_HOME": "/h"}
    )
    assert (found.address, found.keep_alive, found.home) == (Address("b", 2), -1.0, Path("/h"))
    assert settings.load({"MLXO_HOME": "/h"}) == Settings(home=Path("/h"))


@pytest.mark.parametrize(
    ("text", "size"), [("12G", 12 << 30), ("512MB", 512 << 20), ("1.5k", 1536), ("77", 77)]
)
def test_sizes(text: str, size: int) -> None:
    assert settings.load({"MLXO_MEMORY": text, "MLXO_HOME": "/h"}).memory == size


@pytest.mark.parametrize(
    "variable", ["MLXO_MEMORY", "MLXO_NUM_PARALLEL", "OLLAMA_MAX_QUEUE", "MLXO_KEEP_ALIVE", "MLXO_HOST"]
)
def test_a_setting_that_cannot_be_read_is_named(variable: str) -> None:
    value = "a:b" if variable == "MLXO_HOST" else "many"
    with pytest.raises(InvalidRequest) as e:
        settings.load({variable: value, "MLXO_HOME": "/h"})
    assert variable in str(e.value) or value in str(e.value)


def test_every_row_names_a_field() -> None:
    assert {row.field for row in settings.TABLE} == set(Settings.__struct_fields__)
