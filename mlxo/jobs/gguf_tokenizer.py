"""GGUF metadata -> tokenizer.json and its companions, as `tokenizers` and transformers read them.

Two kinds of vocabulary (`tokenizer.ggml.model`):
    gpt2   byte-level BPE with a list of merges; `tokenizer.ggml.pre` names how text is cut before merging
    llama  SentencePiece BPE: no merges but scores, `<0xNN>` tokens for bytes, a blank is written U+2581

The patterns in `_CUTS` are those of the models' own tokenizer.json. A `pre` that is not in the table is
refused: a wrong cut gives a model that runs and is slightly stupid, which nobody would trace back to here.

`tokenizer.ggml.token_type`: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte. Control tokens
become special (skipped in text), user-defined ones are matched before anything else and stay visible.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from mlxo.core.errors import Corrupt, UnsupportedModel
from mlxo.store.gguf import Header

_NORMAL, _UNKNOWN, _CONTROL, _USER = 1, 2, 3, 4
_BLANK = "\u2581"

_DIGIT = r"\p{N}"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_QWEN35 = _QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]+", r"[^\s\p{L}\p{M}\p{N}]+")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The letters that have case, the punctuation and the ideographs and syllables, as DeepSeek lists them.
_CASED = (
    "A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376"
    "\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-"
    "\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b"
    "\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59"
    "\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3"
    "\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d"
    "\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184"
    "\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-"
    "\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-"
    "\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_PUNCTUATION = "!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002"
_CJK = "\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff"
_DIGITS = (_DIGIT, _GPT2)


class _Cut(NamedTuple):
    """`patterns` are applied in turn, each to the pieces that the one before has left.

    `whole`: a word that is itself a token is taken without merging (`ignore_merges`). `nfc`: normalise first.
    `bos`: a beginning-of-sequence token where the file does not say.
    """

    patterns: tuple[str, ...]
    whole: bool = False
    nfc: bool = False
    bos: bool = False


_LLAMA3_CUT = _Cut((_LLAMA3,), whole=True, bos=True)
_QWEN2_CUT = _Cut((_QWEN2,), nfc=True)
_CUTS: Mapping[str, _Cut] = {
    "gpt-2": _Cut((_GPT2,)),
    "default": _Cut((_GPT2,)),  # files older than the key: GPT-NeoX and its like
    "mpt": _Cut((_GPT2,), nfc=True),
    "smollm": _Cut(_DIGITS),
    "starcoder": _Cut(_DIGITS),
    "refact": _Cut(_DIGITS),
    "command-r": _Cut(_DIGITS, nfc=True),
    "llama-bpe": _LLAMA3_CUT,
    "llama3": _LLAMA3_CUT,
    "llama-v3": _LLAMA3_CUT,
    "tekken": _Cut((_TEKKEN,), whole=True, bos=True),
    "qwen2": _QWEN2_CUT,
    "deepseek-r1-qwen": _QWEN2_CUT,
    "qwen35": _Cut((_QWEN35,)),
    "falcon": _Cut((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "deepseek-llm": _Cut(
        (r"[\r\n]", rf"\s?[{_CASED}]+", rf"\s?[{_PUNCTUATION}]+", r"\s+$", f"[{_CJK}]+", r"\p{N}+")
    ),
    "deepseek-coder": _Cut((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", f"[{_CJK}]+", _DIGIT)),
}

# Tokens that end a turn, whatever else the metadata says is the end of a sequence.
_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
)


class Vocabulary(NamedTuple):
    """Token `i` has the text `tokens[i]` (unique) and the type `types[i]`."""

    tokens: list[str]
    types: Sequence[float]
    ids: dict[str, int]


class Specials(NamedTuple):
    """Token ids. `ends` are all that stop generation, the end of sequence first."""

    bos: int | None
    eos: int | None
    unknown: int | None
    pad: int | None
    ends: tuple[int, ...]
    add_bos: bool
    add_eos: bool

    def ids(self) -> dict[str, Any]:
        """As config.json and generation_config.json name them."""
        named = {
            "bos_token_id": self.bos,
            "eos_token_id": list(self.ends) or None,
            "pad_token_id": self.pad,
        }
        return {name: value for name, value in named.items() if value is not None}


def write(header: Header, rows: int, folder: Path) -> Specials:
    """Write tokenizer.json, tokenizer_config.json, chat_template.jinja and generation_config.json.

    `rows` is the size of the embedding: more tokens than that would index outside it.
    """
    vocabulary = _vocabulary(header)
    if len(vocabulary.tokens) > rows:
        raise Corrupt(
            f"the GGUF file has {len(vocabulary.tokens)} tokens and room for {rows} in its embedding"
        )
    specials = _specials(header, vocabulary)
    _dump(folder / "tokenizer.json", tokenizer_json(header))
    _dump(folder / "tokenizer_config.json", _tokenizer_config(header, vocabulary, specials))
    _dump(folder / "generation_config.json", specials.ids())
    if template := header.text("tokenizer.chat_template", ""):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8", newline="")
    return specials


def tokenizer_json(header: Header) -> dict[str, Any]:
    vocabulary = _vocabulary(header)
    specials = _specials(header, vocabulary)
    parts = (
        _sentencepiece(header, vocabulary, specials) if _is_spm(header) else _byte_level(header, vocabulary)
    )
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(vocabulary, specials),
        "post_processor": _post_processor(vocabulary, specials),
        **parts,
    }


# ---------------------------------------------------------------- vocabulary


def _is_spm(header: Header) -> bool:
    kind = header.text("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise UnsupportedModel(f"the tokenizer type {kind[:40]!r} of this GGUF file cannot be imported")
    return kind == "llama"


def _vocabulary(header: Header) -> Vocabulary:
    texts = header.strings("tokenizer.ggml.tokens")
    types: Sequence[float] = [_NORMAL] * len(texts)
    if "tokenizer.ggml.token_type" in header.metadata:
        types = header.numbers("tokenizer.ggml.token_type")
    if len(types) != len(texts) or not texts:
        raise Corrupt(f"the GGUF file has {len(texts)} tokens and {len(types)} token types")
    ids: dict[str, int] = {}
    for index, text in enumerate(texts):
        # Padding of the vocabulary may be empty or repeat itself; an id needs a text of its own.
        unique = text if text and text not in ids else f"<|mlxo_unused_{index}|>"
        ids[unique] = index
    if len(ids) != len(texts):
        raise Corrupt("the GGUF file's tokens cannot be told apart")
    return Vocabulary(list(ids), types, ids)


def _specials(header: Header, vocabulary: Vocabulary) -> Specials:
    spm = _is_spm(header)
    bos, eos = _id(header, "bos", vocabulary), _id(header, "eos", vocabulary)
    named = [_id(header, "eot", vocabulary), _id(header, "eom", vocabulary), *map(vocabulary.ids.get, _ENDS)]
    ends = dict.fromkeys(i for i in (eos, *named) if i is not None)
    add_bos = header.flag("tokenizer.ggml.add_bos_token", spm or _cut(header).bos)
    add_eos = header.flag("tokenizer.ggml.add_eos_token", False)
    return Specials(
        bos=bos,
        eos=eos,
        unknown=_id(header, "unknown", vocabulary),
        pad=_id(header, "padding", vocabulary),
        ends=tuple(ends),
        add_bos=add_bos and bos is not None,
        add_eos=add_eos and eos is not None,
    )


def _id(header: Header, name: str, vocabulary: Vocabulary) -> int | None:
    """An id of the metadata. One outside the vocabulary means none: -1 and 2**32 - 1 are in use for that."""
    value = header.integer(f"tokenizer.ggml.{name}_token_id", -1)
    return value if 0 <= value < len(vocabulary.tokens) else None


def _added(vocabulary: Vocabulary, specials: Specials) -> list[dict[str, Any]]:
    always = {specials.bos, specials.eos, specials.pad, *specials.ends}
    return [
        {
            "id": index,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": special,
        }
        for index, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if (special := kind in (_UNKNOWN, _CONTROL) or index in always) or kind == _USER
    ]


def _post_processor(vocabulary: Vocabulary, specials: Specials) -> dict[str, Any] | None:
    """Puts the beginning- and end-of-sequence tokens around a text, where the model wants them."""
    before = [specials.bos] if specials.add_bos and specials.bos is not None else []
    after = [specials.eos] if specials.add_eos and specials.eos is not None else []
    if not before and not after:
        return None
    texts = [vocabulary.tokens[i] for i in (*before, *after)]
    around = [{"SpecialToken": {"id": text, "type_id": 0}} for text in texts]

    def sequence(name: str) -> list[dict[str, Any]]:
        return [*around[: len(before)], {"Sequence": {"id": name, "type_id": 0}}, *around[len(before) :]]

    return {
        "type": "TemplateProcessing",
        "single": sequence("A"),
        "pair": [*sequence("A"), *sequence("B")],
        "special_tokens": {
            text: {"id": text, "ids": [vocabulary.ids[text]], "tokens": [text]} for text in texts
        },
    }


# ---------------------------------------------------------------- byte-level BPE


def _cut(header: Header) -> _Cut:
    name = header.text("tokenizer.ggml.pre", "default")
    if name not in _CUTS:
        raise UnsupportedModel(
            f"the tokenizer {name[:40]!r} of this GGUF file cannot be imported",
            "use a safetensors version of the model; known are " + ", ".join(_CUTS),
        )
    return _CUTS[name]


def _byte_level(header: Header, vocabulary: Vocabulary) -> dict[str, Any]:
    cut = _cut(header)
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in cut.patterns
    ]
    spell = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "normalizer": {"type": "NFC"} if cut.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, spell]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe(vocabulary, _merges(header, vocabulary), ignore_merges=cut.whole),
    }


def _merges(header: Header, vocabulary: Vocabulary) -> list[tuple[str, str]]:
    merges = []
    for line in header.strings("tokenizer.ggml.merges"):
        left, blank, right = line.partition(" ")
        if (
            not blank
            or left not in vocabulary.ids
            or right not in vocabulary.ids
            or left + right not in vocabulary.ids
        ):
            raise Corrupt(f"the merge {line[:40]!r} of the GGUF file is not made of its tokens")
        merges.append((left, right))
    return merges


def _bpe(vocabulary: Vocabulary, merges: list[tuple[str, str]], **options: Any) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **options,
        "vocab": vocabulary.ids,
        "merges": merges,
    }


# ---------------------------------------------------------------- SentencePiece BPE


def _sentencepiece(header: Header, vocabulary: Vocabulary, specials: Specials) -> dict[str, Any]:
    prefix = header.flag("tokenizer.ggml.add_space_prefix", True)
    blank = {"type": "Replace", "pattern": {"String": " "}, "content": _BLANK}
    unblank = {"type": "Replace", "pattern": {"String": _BLANK}, "content": " "}
    normalizers = [{"type": "Prepend", "prepend": _BLANK}, blank] if prefix else [blank]
    decoders: list[dict[str, Any]] = [unblank, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = None if specials.unknown is None else vocabulary.tokens[specials.unknown]
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(
            vocabulary,
            _scored_merges(header, vocabulary),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        ),
    }


def _scored_merges(header: Header, vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """SentencePiece joins the two neighbours whose joint piece scores highest.

    So each way to cut a piece in two is a merge, in the order of the pieces' scores. Normal pieces only.
    """
    scores = header.numbers("tokenizer.ggml.scores")
    if len(scores) != len(vocabulary.tokens):
        raise Corrupt(f"the GGUF file has {len(vocabulary.tokens)} tokens and {len(scores)} scores")
    pieces = {t: i for t, i in vocabulary.ids.items() if vocabulary.types[i] == _NORMAL}
    found = []
    for piece, index in pieces.items():
        for at in range(1, len(piece)):
            left = pieces.get(piece[:at])
            if left is not None and (right := pieces.get(piece[at:])) is not None:
                found.append((-scores[index], left, right))
    found.sort()
    return [(vocabulary.tokens[left], vocabulary.tokens[right]) for _, left, right in found]


# ---------------------------------------------------------------- the small files


def _tokenizer_config(header: Header, vocabulary: Vocabulary, specials: Specials) -> dict[str, Any]:
    named = {"bos": specials.bos, "eos": specials.eos, "unk": specials.unknown, "pad": specials.pad}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": specials.add_bos,
        "add_eos_token": specials.add_eos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": header.integer(f"{header.architecture}.context_length"),
        **{f"{name}_token": vocabulary.tokens[i] for name, i in named.items() if i is not None},
    }


def _dump(path: Path, value: object) -> None:
    path.write_bytes(msgspec.json.encode(value))
