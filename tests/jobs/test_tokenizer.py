"""Tokenizers rebuilt from GGUF metadata, against llama.cpp's golden tokenisations and small cases."""

from __future__ import annotations

import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import gguf as writers
import msgspec
import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from mlxo.core.errors import Corrupt, UnsupportedModel
from mlxo.jobs import gguf_tokenizer
from mlxo.store import gguf
from tests.jobs.ggufs import BPE_MERGES, BPE_TOKENS, SPM_TOKENS, vocabulary
from tests.jobs.index import CACHE, fetch

# Vocabularies in the sdist of llama-cpp-python that come with golden cases -> how many.
FAMILIES = {
    "command-r": 46, "deepseek-coder": 46, "deepseek-llm": 46, "falcon": 46, "gpt-2": 46, "llama-bpe": 46,
    "llama-spm": 46, "mpt": 46, "phi-3": 46, "qwen2": 46, "qwen35": 50, "refact": 46, "starcoder": 46,
}  # fmt: skip
REFUSED = ("bert-bge", "gemma-4", "nomic-bert-moe")


@pytest.fixture(scope="session")
def vocabularies() -> Path:
    """The folder of ggml-vocab-*.gguf, unpacked once."""
    sdist = fetch(
        "llama-cpp-python==0.3.36",
        "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
        "--no-binary",
        "llama-cpp-python",
    )
    folder = CACHE / "vocabularies-0.3.36"
    if not folder.exists():
        part = folder.with_suffix(".part")
        part.mkdir(exist_ok=True)
        with tarfile.open(sdist) as archive:
            for member in archive:
                name = Path(member.name).name
                if "/models/ggml-vocab-" in member.name and (data := archive.extractfile(member)):
                    (part / name).write_bytes(data.read())
        part.rename(folder)
    return folder


def built(header: gguf.Header) -> Any:
    return Tokenizer.from_buffer(msgspec.json.encode(gguf_tokenizer.tokenizer_json(header)))


@pytest.mark.weights
@pytest.mark.parametrize("family", FAMILIES)
def test_golden_tokenisations(family: str, vocabularies: Path) -> None:
    base = vocabularies / f"ggml-vocab-{family}.gguf"
    tokenizer = built(gguf.read(base))
    texts = base.with_suffix(".gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = base.with_suffix(".gguf.out").read_text().splitlines()
    expected = [[int(word) for word in line.split()] for line in lines]
    assert len(expected) == FAMILIES[family]
    for wanted, text in zip(expected, texts, strict=False):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == wanted, text
        if family == "llama-bpe":  # no normalisation: text survives whole
            assert tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.weights
@pytest.mark.parametrize("family", REFUSED)
def test_other_tokenizers_are_refused_by_name(family: str, vocabularies: Path) -> None:
    header = gguf.read(vocabularies / f"ggml-vocab-{family}.gguf")
    with pytest.raises(UnsupportedModel, match=header.text("tokenizer.ggml.model")):
        gguf_tokenizer.tokenizer_json(header)


@pytest.mark.weights
def test_tekken_cuts_as_mistral_says() -> None:
    """No vocabulary of Mistral's comes as GGUF; its own definition is in mistral-common."""
    wheel = fetch(
        "mistral-common==1.13.1", "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af"
    )
    with zipfile.ZipFile(wheel) as archive:
        definition = json.loads(archive.read("mistral_common/data/tekken_240911.json"))
    assert gguf_tokenizer._CUTS["tekken"].patterns == (definition["config"]["pattern"],)


# ---------------------------------------------------------------- small cases


def small(path: Path, *, spm: bool = False, **extra: Any) -> gguf.Header:
    writer = writers.GGUFWriter(path, "llama")
    vocabulary(writer, spm=spm)
    writer.add_context_length(128)
    for key, value in extra.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string, list: writer.add_array}
        writer.kv_data[0].pop(f"tokenizer.ggml.{key}", None)
        add[type(value)](f"tokenizer.ggml.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return gguf.read(path)


def test_the_files_as_transformers_reads_them(tmp_path: Path) -> None:
    gguf_tokenizer.write(small(tmp_path / "f"), 1000, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer.encode("<|im_start|>hello hell<|im_end|>")
    hello, hell = BPE_TOKENS.index("hello"), BPE_TOKENS.index("hell")
    assert ids == [1, hello, BPE_TOKENS.index("Ġ"), hell, 2]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hello hell"
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.model_max_length == 128
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [2, 0]}, "<|endoftext|> ends a text too"


@pytest.mark.parametrize("spm", [False, True])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("eos", [False, True])
def test_tokens_around_a_text(spm: bool, bos: bool, eos: bool, tmp_path: Path) -> None:
    """add_bos_token and add_eos_token hold in transformers as they do in the library below it."""
    header = small(tmp_path / "f", spm=spm, add_bos_token=bos, add_eos_token=eos)
    specials = gguf_tokenizer.write(header, 1000, tmp_path)
    assert specials.bos is not None
    assert specials.eos is not None
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    middle = tokenizer.encode("hello", add_special_tokens=False)
    wanted = [specials.bos] * bos + middle + [specials.eos] * eos
    assert tokenizer.encode("hello") == wanted
    assert built(header).encode("hello").ids == wanted


def test_sentencepiece_merges_by_score_and_spells_the_rest_in_bytes(tmp_path: Path) -> None:
    header = small(tmp_path / "f", spm=True)
    tokenizer = built(header)

    def pieces(text: str) -> list[str]:
        return [SPM_TOKENS[i] for i in tokenizer.encode(text, add_special_tokens=False).ids]

    assert pieces("abc") == ["a", "bc"], "bc scores higher than ab"
    assert pieces("abd") == ["ab", "d"]
    assert pieces("hello hello") == ["he", "llo", "▁hello"]
    assert pieces("<bos>") == ["<bos>"]
    assert pieces("é") == ["<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("a é b", add_special_tokens=False).ids) == "a é b"
    prefixed = built(small(tmp_path / "g", spm=True, add_space_prefix=True))
    assert prefixed.encode("a", add_special_tokens=False).ids == [
        SPM_TOKENS.index("▁"),
        SPM_TOKENS.index("a"),
    ]
    assert prefixed.decode(prefixed.encode("a b", add_special_tokens=False).ids) == "a b"


def test_user_defined_tokens_are_matched_first_and_stay_visible(tmp_path: Path) -> None:
    types = [3, 3, 3, *[1] * (len(BPE_TOKENS) - 3)]
    types[BPE_TOKENS.index("hell")] = 4
    tokenizer = built(small(tmp_path / "f", token_type=types))
    ids = tokenizer.encode("hello").ids
    assert ids == [BPE_TOKENS.index("hell"), BPE_TOKENS.index("o")]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hello"


def test_tokens_without_a_text_of_their_own_keep_their_ids(tmp_path: Path) -> None:
    tokens = [*BPE_TOKENS, "", "hello", ""]
    types = [3, 3, 3, *[1] * (len(tokens) - 3)]
    tokenizer = built(small(tmp_path / "f", tokens=tokens, token_type=types))
    assert tokenizer.get_vocab_size() == len(tokens)
    assert tokenizer.encode("hello").ids == [BPE_TOKENS.index("hello")]


def test_ends_by_id(tmp_path: Path) -> None:
    header = small(tmp_path / "f", eot_token_id=BPE_TOKENS.index("hell"), padding_token_id=2**32 - 1)
    specials = gguf_tokenizer.write(header, 1000, tmp_path)
    assert specials.ends == (2, BPE_TOKENS.index("hell"), 0)
    assert specials.pad is None
    assert built(header).encode("hello").ids == [BPE_TOKENS.index("hell"), BPE_TOKENS.index("o")]


def test_what_makes_no_tokenizer_is_refused(tmp_path: Path) -> None:
    types = [1] * len(BPE_TOKENS)
    cases: dict[str, dict[str, Any]] = {
        "'mystery' of this GGUF file": {"pre": "mystery"},
        "tokens and 3 token types": {"token_type": [1, 1, 1]},
        "merge 'x y'": {"merges": [*BPE_MERGES, "x y"]},
        "merge 'hello'": {"merges": ["hello"]},
        "should be a list of strings": {"tokens": types},
    }
    for words, extra in cases.items():
        with pytest.raises((Corrupt, UnsupportedModel), match=words):
            gguf_tokenizer.tokenizer_json(small(tmp_path / "f", **extra))
    with pytest.raises(Corrupt, match="scores"):
        gguf_tokenizer.tokenizer_json(small(tmp_path / "f", spm=True, scores=[1]))
    with pytest.raises(Corrupt, match="room for 10"):
        gguf_tokenizer.write(small(tmp_path / "f"), 10, tmp_path)
