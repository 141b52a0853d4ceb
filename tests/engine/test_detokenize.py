"""Text that streams out of token ids, against whole decodes and known bytes."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders
from tokenizers import models as kinds
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mlxo.engine.detokenize import Detokenizer
from tests import models

QWEN3: Any = AutoTokenizer.from_pretrained(str(models.QWEN3))
LLAMA: Any = AutoTokenizer.from_pretrained(str(models.LLAMA))
DETOKENIZERS = [(t, Detokenizer(t)) for t in (QWEN3, LLAMA)]


def pieces(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    stream = detokenizer.stream()
    return [*(stream.feed(i) for i in ids), stream.finish()]


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40))
def test_text_survives(text: str) -> None:
    for tokenizer, detokenizer in DETOKENIZERS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        out = "".join(pieces(detokenizer, ids))
        # The SentencePiece-like one puts a space before a text and knows no NUL; spaces it must keep.
        assert out in (text, " " + text) or out == "".join(pieces(detokenizer, ids)).replace("\0", "")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 760), max_size=12))
def test_any_ids_decode_as_the_tokenizer_does(ids: list[int]) -> None:
    out = "".join(pieces(DETOKENIZERS[0][1], ids))
    assert out == QWEN3.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def test_leading_spaces_are_kept() -> None:
    for tokenizer, detokenizer in DETOKENIZERS:
        ids = tokenizer.encode(" lead", add_special_tokens=False)
        assert "".join(pieces(detokenizer, ids)).endswith(" lead")


def test_a_character_waits_for_its_last_byte() -> None:
    ids = LLAMA.encode("🎉", add_special_tokens=False)
    out = pieces(DETOKENIZERS[1][1], ids)
    assert [p for p in out if p.strip()] == ["🎉"]
    assert not any("\ufffd" in p for p in out)
    cut = pieces(DETOKENIZERS[1][1], ids[:-1])
    assert cut[-1] == "\ufffd"


def test_tokens_past_the_vocabulary_have_no_text() -> None:
    assert pieces(DETOKENIZERS[0][1], [10**6]) == ["", ""]


def test_marks_of_the_vocabulary_are_shown() -> None:
    """The splitter looks for them."""
    ids = QWEN3.encode("<think>so</think>", add_special_tokens=False)
    assert "".join(pieces(DETOKENIZERS[0][1], ids)) == "<think>so</think>"


@pytest.fixture(scope="module")
def wordpiece() -> Any:
    words = ["[UNK]", "the", "fox", "##es", "run", ",", "##ning", "far"]
    backend = Tokenizer(kinds.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece(prefix="##")
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_other_decoders_go_by_their_own_rules(wordpiece: Any) -> None:
    detokenizer = Detokenizer(wordpiece)
    assert detokenizer.table is None
    rng = random.Random(1)
    for _ in range(30):
        ids = [rng.randrange(1, 8) for _ in range(rng.randint(1, 30))]
        assert "".join(pieces(detokenizer, ids)) == wordpiece.decode(ids)


def test_other_decoders_see_the_end_of_the_prompt(wordpiece: Any) -> None:
    stream = Detokenizer(wordpiece).stream(before=[1, 2])
    assert [stream.feed(3), stream.feed(4)] == ["es", " run"]
