"""How much memory a model will take, before it is loaded. Afterwards the runner's own count replaces this."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PROCESS = 256 << 20  # bytes: the interpreter, MLX and the tokenizer of one runner
_SLACK = 1.1  # activations and the first KV cache
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


def of_folder(folder: Path, weights: int, backend: str, machine: int) -> int:
    """`resident_bytes` of the model in `folder`; without a config.json it counts as half precision."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        config = None
    return resident_bytes(weights, stored_bits(config if isinstance(config, dict) else {}), backend, machine)
