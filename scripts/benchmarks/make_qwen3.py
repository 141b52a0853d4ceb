"""A model of Qwen3-0.6B's shape with random weights: real cost, meaningless text.

usage: make_qwen3.py FOLDER BITS TOKENIZER_DIR [tiny]     BITS: 0 is bfloat16, else affine groups of 64
The rows of the special tokens are zero in the (tied) embedding, so that no answer ends before its limit. The
other rows are scaled down: at full size the model would mostly repeat its last token.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models import qwen3

SHAPE = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
TINY = {"hidden_size": 128, "num_hidden_layers": 2, "intermediate_size": 256, "num_attention_heads": 2} | {
    "num_key_value_heads": 2,
    "head_dim": 64,
}
_SCALE = 0.25


def main(out: str, bits: str, tokenizer: str, *tiny: str) -> None:
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (file := Path(tokenizer, name)).is_file():
            shutil.copy(file, folder)
    added = json.loads((folder / "tokenizer.json").read_bytes())["added_tokens"]
    special = min(t["id"] for t in added)
    config = SHAPE | {"eos_token_id": special} | (TINY | {"vocab_size": special + len(added)} if tiny else {})
    mx.random.seed(7)
    model = qwen3.Model(qwen3.ModelArgs.from_dict(config))
    table = model.model.embed_tokens
    table.weight = mx.where(mx.arange(config["vocab_size"])[:, None] < special, table.weight * _SCALE, 0.0)
    model.set_dtype(mx.bfloat16)
    if int(bits):
        nn.quantize(model, 64, int(bits))
        config["quantization"] = {"group_size": 64, "bits": int(bits), "mode": "affine"}
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    main(*sys.argv[1:])
