"""Tiny model folders, made without MLX: right in form, with random weights."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 16,
    "vocab_size": 32,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"


def safetensors(tensors: dict[str, tuple[str, list[int], bytes]]) -> bytes:
    """A file of named (dtype, shape, data)."""
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + b"".join(data for _, _, data in tensors.values())


def files(seed: int = 0, rows: int = 32) -> dict[str, bytes]:
    """The files of a model; `seed` makes other weights, `rows` more of them (32 bytes a row)."""
    data = random.Random(seed).randbytes(rows * 8 * 4)
    weights = safetensors(
        {
            "model.embed_tokens.weight": ("F32", [rows, 8], data),
            "model.norm.weight": ("F32", [8], bytes(32)),
        }
    )
    return {
        "config.json": json.dumps({**CONFIG, "vocab_size": rows}).encode(),
        "model.safetensors": weights,
        "tokenizer.json": json.dumps({"version": "1.0", "model": {"type": "BPE"}}).encode(),
        "tokenizer_config.json": json.dumps({"chat_template": TEMPLATE}).encode(),
    }


def write(folder: Path, content: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return folder
