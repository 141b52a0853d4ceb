from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxo.core import options
from mlxo.core.errors import InvalidRequest
from mlxo.core.options import DEFAULTS, KINDS, Options


def test_request_beats_modelfile_beats_default_one_key_at_a_time() -> None:
    modelfile = Options(temperature=0.1, top_k=5, stop=("a",))
    request = Options(temperature=0.0, stop=("b", "c"))
    merged = request.over(modelfile.over(DEFAULTS))
    assert (merged.temperature, merged.top_k, merged.top_p, merged.stop) == (0.0, 5, 0.9, ("b", "c"))


@given(st.sampled_from(sorted(k for k, v in KINDS.items() if v is int)), st.integers(-(2**63), 2**63 - 1))
def test_ints_are_read_from_text_and_json_and_integral_floats(name: str, value: int) -> None:
    assert options.from_text(name, str(value)) == value
    assert getattr(options.from_json({name: value}), name) == value
    if abs(value) < 2**53:
        assert getattr(options.from_json({name: float(value)}), name) == value


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("num_ctx", "x", "invalid int value [x]"),
        ("num_ctx", "1.5", "invalid int value [1.5]"),
        ("num_ctx", "1_000", "invalid int value [1_000]"),
        ("temperature", "warm", "invalid float value [warm]"),
        ("temperature", "nan", "invalid float value [nan]"),
        ("use_mmap", "yes", "invalid bool value [yes]"),
        ("tfs_z", "1", "unknown parameter 'tfs_z'"),
    ],
)
def test_bad_text_is_refused_in_the_words_of_ollama(name: str, text: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as e:
        options.from_text(name, text)
    assert e.value.message == words


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"num_ctx": "4096"}, 'option "num_ctx" must be of type integer'),
        ({"num_ctx": True}, 'option "num_ctx" must be of type integer'),
        ({"num_ctx": 1e300}, 'option "num_ctx" must be of type integer'),
        ({"temperature": []}, 'option "temperature" must be of type float32'),
        ({"use_mmap": 1}, 'option "use_mmap" must be of type boolean'),
        ({"stop": [1]}, 'option "stop" must be of type array'),
    ],
)
def test_a_wrong_json_type_is_named(raw: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest) as e:
        options.from_json(raw)
    assert e.value.message == words


@given(
    st.dictionaries(
        st.sampled_from([*KINDS, "unknown"]), st.one_of(st.none(), st.floats(), st.text(), st.integers())
    )
)
def test_any_json_is_options_or_invalid(raw: dict[str, Any]) -> None:
    try:
        found = options.from_json(raw)
    except InvalidRequest:
        return
    assert isinstance(found, Options)


def test_one_stop_is_a_list_of_one_and_unknown_keys_are_ignored() -> None:
    assert options.from_json({"stop": "a", "nonsense": object()}).stop == ("a",)
