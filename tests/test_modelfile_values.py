"""What the directives of a Modelfile mean, and how a value that means nothing is refused."""

from __future__ import annotations

import pytest

from mlxo.core.errors import InvalidRequest, ModelfileError
from mlxo.core.options import DEPRECATED, KINDS, Options
from mlxo.core.types import Message
from mlxo.modelfile import KEYWORDS, Quantize, parse, parse_quantize
from tests.test_modelfile import failure


def test_what_is_said_twice() -> None:
    text = "".join(
        f"FROM m{i}\nADAPTER a{i}\nDRAFT d{i}\nTEMPLATE t{i}\nSYSTEM s{i}\nRENDERER r{i}\nPARSER p{i}\n"
        f"REQUIRES v0.{i}.0\nLICENSE l{i}\nMESSAGE user u{i}: x\nMESSAGE assistant a{i}\nQUANTIZE {i * 4}\n"
        f"KEEP_ALIVE {i}m\nPARAMETER top_k {i}\nPARAMETER stop s{i}\n"
        for i in (1, 2)
    )
    m = parse(text)
    m.check()
    assert (m.from_, m.licenses) == (("m1", "m2"), ("l1", "l2"))
    assert (m.adapter, m.draft, m.template, m.system) == ("a2", "d2", "t2", "s2")
    assert (m.renderer, m.parser, m.requires, m.keep_alive) == ("r2", "p2", "0.2.0", 120.0)
    assert m.quantize == Quantize(mode="affine", bits=8, group_size=64)
    assert m.options == Options(top_k=2, stop=("s1", "s2"))
    assert m.messages == tuple(
        Message(role=role, content=content)
        for role, content in (("user", "u1: x"), ("assistant", "a1"), ("user", "u2: x"), ("assistant", "a2"))
    )


def test_what_is_not_said_is_none() -> None:
    m = parse("FROM m")
    assert (m.adapter, m.draft, m.template, m.system, m.renderer, m.parser) == (None,) * 6
    assert (m.requires, m.quantize, m.keep_alive, m.name) == (None,) * 4
    assert (m.licenses, m.messages, m.aliases, m.warnings, m.options) == ((), (), (), (), Options())
    assert parse('FROM m\nSYSTEM ""').system == ""


@pytest.mark.parametrize("name", KINDS)
def test_every_parameter_has_its_type(name: str) -> None:
    good: dict[type, list[tuple[str, object]]] = {
        int: [("7", 7), ("-1", -1), ("+3", 3)],
        float: [("0.5", 0.5), ("1", 1.0), ("-1e-3", -0.001), (".5", 0.5)],
        bool: [("true", True), ("1", True), ("T", True), ("false", False), ("0", False), ("F", False)],
        str: [("<|im_end|>", ("<|im_end|>",)), ("3", ("3",)), ('" a "', (" a ",))],
    }
    bad = {
        int: ["x", "1.5", "", "1_0", "٣", '" 5 "', "9223372036854775808", "true", "0x10"],
        float: ["x", "", "1_0.0", "nan", "inf", '"1 "', "1e999"],
        bool: ["yes", "2", "", "tRUE"],
        str: [],
    }
    kind = KINDS[name]
    for text, value in good[kind]:
        assert getattr(parse(f"FROM m\nPARAMETER {name} {text}").options, name) == value
    for text in bad[kind]:
        error = failure(f"FROM m\n\nPARAMETER {name} {text}")
        assert error.message == f"(line 3): invalid {kind.__name__} value [{text.strip(chr(34))}]"
        with pytest.raises(ModelfileError, match="line 3"):
            _ = parse(f"FROM m\n\nPARAMETER {name} {text}").options


@pytest.mark.parametrize("name", sorted(DEPRECATED))
def test_deprecated_parameters_warn_and_are_left_out(name: str) -> None:
    m = parse(f"FROM m\nPARAMETER {name} x\nPARAMETER {name} y\nPARAMETER top_k 1")
    m.check()
    assert m.options == Options(top_k=1)
    assert m.warnings == (f"parameter {name} is deprecated and ignored",)


@pytest.mark.parametrize("name", ["numa", "num_gqa", "rope_frequency_base", "tfs_z", "TOP_K", "nope"])
def test_unknown_parameters(name: str) -> None:
    assert failure(f"FROM m\nPARAMETER {name} 1").message == f"(line 2): unknown parameter '{name}'"


def test_an_unknown_parameter_is_told_its_neighbour() -> None:
    assert failure("FROM m\nPARAMETER num_ctxx 1").hint == "did you mean num_ctx?"


@pytest.mark.parametrize("name", KEYWORDS)
def test_a_parameter_never_becomes_a_directive(name: str) -> None:
    assert failure(f"FROM m\nPARAMETER {name} 1").message == f"(line 2): unknown parameter '{name}'"


@pytest.mark.parametrize("text", ["0.14.0", "v0.14.0", "1", "v1.2", "1.2.3-rc.1+build.5", "10.0.0--x"])
def test_requires(text: str) -> None:
    m = parse(f"FROM m\nREQUIRES {text}")
    m.check()
    assert m.requires == text.removeprefix("v")


@pytest.mark.parametrize(
    "text", ["", "x", "01.2.3", "1.2.3.4", "1.2-rc", "vv1", "1.", "1.2.3-01", ">=1.0", "1.2.3 "]
)
def test_requires_refused(text: str) -> None:
    error = failure(f'FROM m\nREQUIRES "{text}"')
    assert error.message == "(line 2): requires must be a valid semver (e.g. 0.14.0)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((str(bits), Quantize(bits=bits)) for bits in (2, 3, 4, 5, 6, 8)),
        *((f"4 {group}", Quantize(bits=4, group_size=group)) for group in (32, 64, 128)),
        *((alias, Quantize(bits=4)) for alias in ("q4", "Q4", "int4", "INT4", "Q4_K_M", "q4_K_S", "q4_0")),
        *((alias, Quantize(bits=8)) for alias in ("q8", "int8", "Q8_0")),
        ("mxfp4", Quantize(mode="mxfp4", bits=4, group_size=32)),
        ("MXFP4 32", Quantize(mode="mxfp4", bits=4, group_size=32)),
        ("nvfp4", Quantize(mode="nvfp4", bits=4, group_size=16)),
        ("mxfp8", Quantize(mode="mxfp8", bits=8, group_size=32)),
    ],
)
def test_quantize(text: str, expected: Quantize) -> None:
    assert parse_quantize(text) == expected
    assert parse(f"FROM m\nQUANTIZE {text}").quantize == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "1",
        "16",
        "4 16",
        "4 48",
        "4 32 1",
        "mxfp4 64",
        "nvfp4 32",
        "q",
        "qq4",
        "q4_K_XL",
        "q4_7",
        "-4",
        "٤",
    ],
)
def test_quantize_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="invalid quantization"):
        parse_quantize(text)
    assert failure(f"FROM m\nQUANTIZE {text}").line == 2


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5m", 300.0), ("300", 300.0), ("-1", -1.0), ("-1s", -1.0), ("0", 0.0), ("1h30m", 5400.0)],
)
def test_keep_alive(text: str, seconds: float) -> None:
    assert parse(f"FROM m\nKEEP_ALIVE {text}").keep_alive == seconds


@pytest.mark.parametrize("text", ["", "soon", "5 minutes", "nan"])
def test_keep_alive_refused(text: str) -> None:
    assert failure(f"FROM m\nKEEP_ALIVE {text}").line == 2


def test_check_finds_what_a_later_line_overrides() -> None:
    assert failure("FROM m\nQUANTIZE 7\nQUANTIZE 4").line == 2


def test_names_in_comments() -> None:
    m = parse(
        "# name: smollm2:135m\n#alias:smollm2:latest\n # Alias : smol\n# name: second\n# name: two words\n"
        'FROM m\nSYSTEM "\n# alias: inside a value\n"\n# alias:\n'
    )
    assert m.name == "smollm2:135m"
    assert m.aliases == ("smollm2:latest", "smol")
