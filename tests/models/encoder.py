"""A tiny BERT or RoBERTa with random weights and a WordPiece vocabulary, made anew for each test run.

`reference` is the architecture once more, in NumPy and one text at a time: an independent second opinion.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "dog", "sat", "on", "a", "mat", "##s", "ran")
WIDTH, LAYERS, HEADS, INNER, PLACES = 16, 2, 4, 24, 20


def make(folder: Path, family: str = "bert", pooling: dict[str, Any] | None = None) -> Path:
    """A model's folder as Sentence Transformers writes it; without `pooling` it says nothing of that."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    config = {
        "model_type": family,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": INNER,
        "vocab_size": len(WORDS),
        "max_position_embeddings": PLACES,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: v.astype(np.float32) for k, v in weights().items()}, folder / "model.safetensors")
    _write_tokenizer(folder)
    if pooling is not None:
        (folder / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Pooling"}]))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def weights() -> dict[str, Array]:
    random = np.random.default_rng(7)
    found: dict[str, Array] = {}

    def linear(name: str, out: int, into: int) -> None:
        found[f"{name}.weight"] = random.normal(0, 0.3, (out, into))
        found[f"{name}.bias"] = random.normal(0, 0.1, out)

    def norm(name: str) -> None:
        found[f"{name}.weight"] = random.normal(1, 0.1, WIDTH)
        found[f"{name}.bias"] = random.normal(0, 0.1, WIDTH)

    for name, rows in (("word", len(WORDS)), ("position", PLACES), ("token_type", 1)):
        found[f"embeddings.{name}_embeddings.weight"] = random.normal(0, 1, (rows, WIDTH))
    norm("embeddings.LayerNorm")
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}"
        for name in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{name}", WIDTH, WIDTH)
        linear(f"{layer}.attention.output.dense", WIDTH, WIDTH)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", INNER, WIDTH)
        linear(f"{layer}.output.dense", WIDTH, INNER)
        norm(f"{layer}.output.LayerNorm")
    linear("pooler.dense", WIDTH, WIDTH)
    return found


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    made = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=None, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.save(str(folder / "tokenizer.json"))
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def reference(ids: Sequence[int], first: int = 0) -> Array:
    """The hidden states (tokens, width); `first` is the position of the first token."""
    w = weights()

    def linear(name: str, x: Array) -> Array:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: Array) -> Array:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)
        return np.asarray(x * w[f"{name}.weight"] + w[f"{name}.bias"])

    x = w["embeddings.word_embeddings.weight"][list(ids)]
    x = x + w["embeddings.position_embeddings.weight"][first : first + len(ids)]
    x = norm("embeddings.LayerNorm", x + w["embeddings.token_type_embeddings.weight"][0])
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}"
        q, k, v = (
            linear(f"{layer}.attention.self.{name}", x).reshape(len(ids), HEADS, -1).transpose(1, 0, 2)
            for name in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(WIDTH // HEADS)
        part = np.exp(scores - scores.max(-1, keepdims=True))
        seen = (part / part.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(len(ids), WIDTH)
        x = norm(f"{layer}.attention.output.LayerNorm", linear(f"{layer}.attention.output.dense", seen) + x)
        inner = linear(f"{layer}.intermediate.dense", x)
        inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        x = norm(f"{layer}.output.LayerNorm", linear(f"{layer}.output.dense", inner) + x)
    return np.asarray(x)
