"""Quantising a folder of floating-point safetensors: mlx-lm decides what, MLX does it, a piece at a time.

mlx-lm builds the model and its quantised twin, and both are lazy: the twin only tells names, shapes and
settings. Then each weight is read when its turn comes, quantised some rows at a time (the micro-scaled modes
take twenty times a tensor's memory on a CPU) and dropped once it is written.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from mlxo.core.errors import Corrupt, InvalidRequest, NotFound, UnsupportedModel
from mlxo.jobs.safetensors import Entry, Writer
from mlxo.modelfile import Quantize

if TYPE_CHECKING:
    from mlxo.jobs.convert import Report

# What travels along with the weights. No code and no pickles, whatever else the folder holds.
_COMPANIONS = (".json", ".jinja", ".txt", ".model", ".tiktoken")
_SUFFIXES = ("weight", "scales", "biases")  # in the order in which mx.quantize returns them
_PIECE = 1 << 20  # weights at a time
_REWRITTEN = ("config.json", "model.safetensors.index.json")


def quantise_folder(source: Path, out: Path, quantize: Quantize, report: Report) -> None:
    """Raises InvalidRequest for a quantised model, UnsupportedModel for one that mlx-lm does not know."""
    _refuse_quantised(source)
    report("loading weights", None, None)
    model = _lazily(source, quantize)
    for file in sorted(source.iterdir()):
        if file.suffix in _COMPANIONS and file.name not in _REWRITTEN and file.is_file():
            shutil.copyfile(file, out / file.name)
    (out / "config.json").write_bytes(msgspec.json.format(msgspec.json.encode(model.config), indent=2))
    _write(model, out / "model.safetensors", report)


def _refuse_quantised(source: Path) -> None:
    path = source / "config.json"
    try:
        config = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError as error:
        raise NotFound(f"there is no config.json in {source}") from error
    except msgspec.DecodeError as error:
        raise Corrupt(f"config.json of {source.name} is not a JSON object") from error
    if config.get("quantization") or config.get("quantization_config"):
        raise InvalidRequest(
            "this model is quantized already and cannot be quantized again",
            "leave QUANTIZE out, or start from an unquantized version of the model",
        )


class _Lazy(NamedTuple):
    """`plain` and `target`: parameters before and after, by name, not computed. `config` fits the latter."""

    plain: dict[str, Any]
    target: dict[str, Any]
    config: dict[str, Any]

    def settings(self, layer: str) -> dict[str, Any] | None:
        """mx.quantize's arguments for a layer, None when it is not quantised."""
        if f"{layer}.scales" not in self.target or f"{layer}.weight" not in self.plain:
            return None
        general = self.config["quantization"]
        own = general.get(layer, general)
        return {key: own.get(key, general[key]) for key in ("group_size", "bits", "mode")}


def _lazily(source: Path, quantize: Quantize) -> _Lazy:
    from mlx.utils import tree_flatten
    from mlx_lm.utils import load_model, quantize_model

    try:
        model, config = load_model(source, lazy=True)
    except ValueError as error:  # an unknown model_type, or parameters that do not fit the model
        raise UnsupportedModel(f"mlx-lm cannot load this model: {str(error).splitlines()[0]}") from error
    plain = dict(tree_flatten(model.parameters()))
    group, bits = quantize.group_size, quantize.bits
    model, config = quantize_model(model, config, group, bits, mode=quantize.mode)
    target = dict(tree_flatten(model.parameters()))
    if not any(name.endswith(".scales") for name in target):
        raise UnsupportedModel(
            f"no layer of this model can be quantized in groups of {group}", "try a smaller group, such as 32"
        )
    return _Lazy(plain, target, config)


def _write(model: _Lazy, path: Path, report: Report) -> None:
    import mlx.core as mx

    kinds = {
        mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16", mx.uint32: "U32", mx.uint8: "U8",
        mx.int32: "I32", mx.int64: "I64", mx.bool_: "BOOL",
    }  # fmt: skip
    entries = {name: Entry(kinds[value.dtype], tuple(value.shape)) for name, value in model.target.items()}
    total = sum(entry.size for entry in entries.values())
    done = 0
    with Writer(path, entries) as writer:
        for name in entries:
            if name not in model.target:  # the scales of a weight that came before
                continue
            for part, value in _parts(model, name):
                writer.write(part, _numpy(value))
                done += value.nbytes
            report("quantizing", done, total)


def _parts(model: _Lazy, name: str) -> Iterator[tuple[str, Any]]:
    """Take one parameter out of `model`; what to write of it, in order. A quantised layer is taken whole."""
    import mlx.core as mx

    layer, _, suffix = name.rpartition(".")
    settings = model.settings(layer) if suffix in _SUFFIXES else None
    if settings is None:
        model.plain.pop(name, None)  # the same array: dropped once it is written
        yield name, model.target.pop(name)
        return
    names = [part for suffix in _SUFFIXES if (part := f"{layer}.{suffix}") in model.target]
    for part in names:
        del model.target[part]
    weight = model.plain.pop(f"{layer}.weight")
    mx.eval(weight)
    rows = weight.reshape(-1, weight.shape[-1])  # a mixture of experts stacks its layers
    step = max(1, _PIECE // rows.shape[1])
    for start in range(0, rows.shape[0], step):
        yield from zip(names, mx.quantize(rows[start : start + step], **settings), strict=True)


def _numpy(value: Any) -> NDArray[Any]:
    import mlx.core as mx

    if value.dtype == mx.bfloat16:  # numpy has no such type; its bits are enough
        value = value.view(mx.uint16)
    return np.array(value, copy=False)
