"""How much memory a model will take, before it is loaded. Afterwards the runner's own count replaces this.

Weights, what computing with them takes beside, and the keys and values (KV) of one context: of the num_ctx
that somebody chose, else of 8,192 tokens. More rows or longer ones are the runner's own guard's to allow.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PROCESS = 256 << 20  # bytes: the interpreter, MLX and the tokenizer of one runner
CONTEXT = 8192  # tokens of KV that are counted when nobody chose a num_ctx
_SLACK = 1.1  # activations and the buffers that MLX keeps
_WIDEN = 0.75  # of the machine's memory: what engine.load lets float32 weights take
_DTYPE_BITS = {"float32": 32.0, "float16": 16.0, "bfloat16": 16.0}


def resident_bytes(weights: int, bits: float, backend: str, machine: int) -> int:
    """Bytes that a model of `weights` bytes on disk takes once it is resident.

    `bits` is what one weight takes on disk, `machine` the machine's memory in bytes. A GPU keeps weights as
    they are. On a CPU the engine widens them to float32, where quantised and half-precision products are many
    times slower, unless the machine is too small for that.
    """
    widened = int(weights * 32 / bits)
    if backend == "cpu" and widened <= _WIDEN * machine:
        weights = widened
    return int(weights * _SLACK) + PROCESS


def stored_bits(config: dict[str, Any]) -> float:
    """Bits that one weight takes on disk by a model's config.json, a group's scale and bias included."""
    quantization = config.get("quantization")
    if isinstance(quantization, dict):
        bits, group = quantization.get("bits"), quantization.get("group_size")
        if isinstance(bits, int) and isinstance(group, int) and bits > 0 and group > 0:
            return bits + 32 / group
    return _DTYPE_BITS.get(str(config.get("torch_dtype") or config.get("dtype")).removeprefix("torch."), 16.0)


def kv_bytes(config: dict[str, Any], tokens: int, backend: str) -> int:
    """Bytes of the keys and values of `tokens` tokens of one sequence, by a model's config.json.

    0 when that does not say. Layers that look back on a window keep no more than the window, linear ones
    nothing that grows. The names are those of the transformers configurations.
    """
    text = config.get("text_config")
    known = {**config, **text} if isinstance(text, dict) else config
    layers, heads = _count(known, "num_hidden_layers"), _count(known, "num_attention_heads")
    width = _count(known, "head_dim") or (_count(known, "hidden_size") // heads if heads else 0)
    numbers = 2 * width * (_count(known, "num_key_value_heads") or heads)
    if rank := _count(known, "kv_lora_rank"):  # the latent attention of DeepSeek
        numbers = rank + _count(known, "qk_rope_head_dim")
    kinds = known.get("layer_types")
    positions = layers * tokens
    if isinstance(kinds, list) and len(kinds) == layers:
        window = min(tokens, _count(known, "sliding_window") or tokens)
        positions = kinds.count("full_attention") * tokens + kinds.count("sliding_attention") * window
    return positions * numbers * (4 if backend == "cpu" else 2)


def _count(config: dict[str, Any], name: str) -> int:
    found = config.get(name)
    return found if isinstance(found, int) and 0 < found < 1 << 40 else 0


def of_folder(folder: Path, weights: int, backend: str, machine: int, tokens: int = CONTEXT) -> int:
    """`resident_bytes` of the model in `folder` and `kv_bytes` of `tokens`, as far as it was trained for.

    Without a config.json it counts as half precision.
    """
    try:
        found = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        found = None
    config = found if isinstance(found, dict) else {}
    tokens = min(tokens, _count(config, "max_position_embeddings") or tokens)
    resident = resident_bytes(weights, stored_bits(config), backend, machine)
    return resident + kv_bytes(config, tokens, backend)
