"""A model folder to a model in memory, in the number format that is fast on this machine.

On a CPU that format is float32: half precision is emulated there (17 to 70 times slower), and quantised
products have no fast path while float32 ones go through BLAS. On a GPU weights stay as they are, except
that the float32 scales and norms a GGUF file carries take the model's own type, for one float32 factor
widens the whole net.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import mlx_lm.utils
from mlx.utils import tree_flatten, tree_map_with_path

from mlxo.core.errors import LoadFailed
from mlxo.core.types import ModelSpec
from mlxo.engine.detokenize import one_line
from mlxo.hardware.detect import Backend, total_memory

# The part of the machine's memory that weights may take as float32; else they stay as they are.
_WIDEN = 0.75
# What goes wrong in a folder that is not what it says: missing keys and tensors, bad shapes, bad JSON.
_FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


Classes = Callable[[dict[str, Any]], tuple[type[Any], type[Any]]]


class Loaded(NamedTuple):
    """`tokenizer` is mlx_lm's wrapper; `dtype` what the model computes in."""

    model: Any
    tokenizer: Any
    config: dict[str, Any]
    dtype: mx.Dtype


def backend() -> Backend:
    """The device that MLX computes on, by MLX's own word."""
    if mx.default_device() == mx.Device(mx.cpu):
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def load(spec: ModelSpec, device: Backend, classes: Classes = mlx_lm.utils._get_classes) -> Loaded:
    """Load `spec.path` on the calling thread, which must stay the model's thread. Raises LoadFailed.

    `classes` gives the classes of the model and of its arguments by its configuration.
    """
    if not Path(spec.path, "config.json").is_file():
        raise LoadFailed(f"the model {spec.name} cannot be loaded: it has no config.json")
    try:
        folder = Path(spec.path)
        model, config = mlx_lm.utils.load_model(folder, lazy=True, get_model_classes=classes)
        # The tokenizer is half a second of Rust and JSON: beside the weights, which are MLX's own threads.
        with ThreadPoolExecutor(1) as beside:
            reading = beside.submit(
                mlx_lm.utils.load_tokenizer,
                folder,
                {"trust_remote_code": False},
                eos_token_ids=config.get("eos_token_id"),
            )
            if device == "cpu":
                _without_compiler_if_unwritable()
                _widen(model)
            else:
                _narrow(model, config)
            # One at a time: the packed form of a weight is dropped before the next one is read.
            for _, array in tree_flatten(model.parameters()):
                mx.eval(array)
            tokenizer = reading.result()
    except _FAULTS as e:
        raise LoadFailed(f"the model {spec.name} cannot be loaded: {_explain(e)}") from e
    return Loaded(model, tokenizer, config, _compute_type(model))


def _explain(error: BaseException) -> str:
    """One line out of whatever mlx_lm raised."""
    if isinstance(error, KeyError):
        return (
            f"its configuration has no {error.args[0]!r}" if error.args else "its configuration is incomplete"
        )
    if isinstance(error, json.JSONDecodeError):
        return f"one of its JSON files is broken ({one_line(error)})"
    return one_line(error) or type(error).__name__


def _compute_type(model: nn.Module) -> mx.Dtype:
    for name, array in tree_flatten(model.parameters()):
        if mx.issubdtype(array.dtype, mx.floating) and not name.endswith((".scales", ".biases")):
            found: mx.Dtype = array.dtype
            return found
    return mx.float32


def _widen(model: nn.Module) -> None:
    """To float32, lazily: all of it when it fits; else what is not packed, if anything is packed."""
    # dequantize_model knows no global scale; a model with such layers stays packed.
    fits = _float32_bytes(model) <= _WIDEN * total_memory()
    fits = fits and not any("global_scale" in m for m in model.modules())
    if not fits and not _quantised(model):
        return
    _cast(model, lambda *_: mx.float32)
    if fits:
        mlx_lm.utils.dequantize_model(model)
        # Micro-scaled modes dequantise to bfloat16, exactly.
        _cast(model, lambda *_: mx.float32)


def _quantised(model: nn.Module) -> bool:
    return any("scales" in m for m in model.modules())


def _float32_bytes(model: nn.Module) -> int:
    total = 0
    for module in model.modules():
        for name, value in module.items():
            if not isinstance(value, mx.array) or name in ("scales", "biases"):
                continue
            packed = name == "weight" and "scales" in module
            total += 4 * (value.size * 32 // module.bits if packed else value.size)
    return total


def _narrow(model: nn.Module, config: dict[str, Any]) -> None:
    """float32 scales, biases and norms to the type that the configuration names, when that is a half one."""
    names = {"float16": mx.float16, "bfloat16": mx.bfloat16}
    target = names.get(str(config.get("torch_dtype") or config.get("dtype")).removeprefix("torch."))
    if target is None or not _quantised(model):
        return
    kinds = (".scales", ".biases", ".weight", ".bias")
    _cast(model, lambda name, a: target if a.dtype == mx.float32 and name.endswith(kinds) else None)


def _cast(model: nn.Module, rule: Callable[[str, mx.array], mx.Dtype | None]) -> None:
    """Cast each floating parameter to the type that `rule(name, array)` names; None leaves it alone."""

    def cast(name: str, array: mx.array) -> mx.array:
        if not mx.issubdtype(array.dtype, mx.floating):
            return array
        wanted = rule(name, array)
        return array if wanted is None or wanted == array.dtype else array.astype(wanted)

    model.update(tree_map_with_path(cast, model.parameters()))


def _without_compiler_if_unwritable() -> None:
    """mx.compile builds C++ under the temporary folder and fails hard where it may not write."""
    if not os.access(os.environ.get("TMPDIR") or "/tmp", os.W_OK):
        mx.disable_compile()
