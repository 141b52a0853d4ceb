from __future__ import annotations

import json

from tests.cli.conftest import Mlxo
from tests.fakes.daemon import FakeDaemon, Reply

DETAILS = {
    "license": "Apache License\n\n  Version 2.0\nmore of it\n",
    "modelfile": "FROM tiny:latest",
    "parameters": 'stop                           "<|im_end|>"\ntemperature                    0.2',
    "template": "{{ messages }}",
    "system": "Be brief.",
    "requires": "0.1.0",
    "details": {
        "family": "llama",
        "parameter_size": "135M",
        "quantization_level": "Q4_1",
        "context_length": 2048,
    },
    "model_info": {
        "general.architecture": "llama",
        "general.parameter_count": 134515008,
        "llama.block_count": 30,
    },
    "tensors": [{"name": "model.embed", "type": "F32", "shape": [2, 3]}],
    "capabilities": ["completion", "tools"],
}
BLOCKS = (
    b"  Model\n"
    b"    architecture      llama      \n"
    b"    parameters        134.52M    \n"
    b"    context length    2048       \n"
    b"    quantization      Q4_1       \n"
    b"    requires          0.1.0      \n"
    b"\n"
    b"  Capabilities\n"
    b"    completion    \n"
    b"    tools         \n"
    b"\n"
    b"  Parameters\n"
    b'    stop           "<|im_end|>"    \n'
    b"    temperature    0.2             \n"
    b"\n"
    b"  System\n"
    b"    Be brief.    \n"
    b"\n"
    b"  License\n"
    b"    Apache License    \n"
    b"    Version 2.0       \n"
    b"    ...               \n"
    b"\n"
)


def test_blocks(mlxo: Mlxo, fake: FakeDaemon) -> None:
    fake.on("/api/show", Reply(body=DETAILS))
    assert mlxo("show", "m").out == BLOCKS
    assert fake.calls("/api/show") == [{"model": "m", "verbose": False}]


def test_verbose_adds_metadata_and_tensors(mlxo: Mlxo, fake: FakeDaemon) -> None:
    fake.on("/api/show", Reply(body=DETAILS))
    out = mlxo("show", "m", "-v").out
    assert b"  Metadata\n    general.architecture       llama        \n" in out
    assert b"  Tensors\n    model.embed    F32    [2, 3]    \n" in out
    assert b"    more of it" in out
    assert fake.calls("/api/show") == [{"model": "m", "verbose": True}]


def test_a_model_without_anything_has_its_first_block(mlxo: Mlxo, fake: FakeDaemon) -> None:
    fake.on("/api/show", Reply(body={"model_info": {}, "details": {"family": "x"}}))
    out = mlxo("show", "m").out
    assert out.startswith(b"  Model\n    architecture    x    \n")
    assert b"License" not in out


def test_selectors(mlxo: Mlxo, fake: FakeDaemon) -> None:
    fake.on("/api/show", Reply(body=DETAILS))
    for selector in ("license", "modelfile", "parameters", "template", "system"):
        assert mlxo("show", "m", f"--{selector}").out.decode() == f"{DETAILS[selector]}\n"


def test_two_selectors_are_refused(mlxo: Mlxo, fake: FakeDaemon) -> None:
    done = mlxo("show", "m", "--system", "--license")
    assert done.code == 1
    assert done.err == (
        "Error: only one of '--license', '--modelfile', '--parameters', '--system', or '--template' "
        "can be specified\n"
    )
    assert fake.seen == []


def test_json(mlxo: Mlxo, fake: FakeDaemon) -> None:
    fake.on("/api/show", Reply(body=DETAILS))
    assert json.loads(mlxo("show", "m", "--json").out) == DETAILS
