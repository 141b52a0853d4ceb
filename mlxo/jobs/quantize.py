"""Quantising a folder of floating-point safetensors with mlx-lm's own machinery, one tensor at a time.

mlx-lm builds the model and decides which layers to quantise; all of it is lazy, so a weight is read when its
turn comes and dropped once it is written.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from mlxo.core.errors import Corrupt, InvalidRequest, NotFound, UnsupportedModel
from mlxo.jobs.safetensors import Entry, Writer
from mlxo.modelfile import Quantize

if TYPE_CHECKING:
    from mlxo.jobs.convert import Report

# What travels along with the weights. No code and no pickles, whatever else the folder holds.
_COMPANIONS = (".json", ".jinja", ".txt", ".model", ".tiktoken")
_REWRITTEN = ("config.json", "model.safetensors.index.json")


def quantise_folder(source: Path, out: Path, quantize: Quantize, report: Report) -> None:
    """Raises InvalidRequest for a quantised model, UnsupportedModel for one that mlx-lm does not know."""
    _refuse_quantised(source)
    report("loading weights", None, None)
    parameters, config = _quantised(source, quantize)
    for file in sorted(source.iterdir()):
        if file.suffix in _COMPANIONS and file.name not in _REWRITTEN and file.is_file():
            shutil.copyfile(file, out / file.name)
    (out / "config.json").write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=2))
    _write(parameters, out / "model.safetensors", report)


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


def _quantised(source: Path, quantize: Quantize) -> tuple[list[tuple[str, Any]], dict[str, Any]]:
    """The model's parameters, not yet computed, and the config.json that fits them."""
    from mlx.utils import tree_flatten
    from mlx_lm.utils import load_model, quantize_model

    try:
        model, config = load_model(source, lazy=True)
    except ValueError as error:  # an unknown model_type, or parameters that do not fit the model
        raise UnsupportedModel(f"mlx-lm cannot load this model: {str(error).splitlines()[0]}") from error
    group, bits = quantize.group_size, quantize.bits
    model, config = quantize_model(model, config, group, bits, mode=quantize.mode)
    parameters = tree_flatten(model.parameters())
    if not any(name.endswith(".scales") for name, _ in parameters):
        raise UnsupportedModel(
            f"no layer of this model can be quantized in groups of {group}", "try a smaller group, such as 32"
        )
    return parameters, config


def _write(parameters: list[tuple[str, Any]], path: Path, report: Report) -> None:
    import mlx.core as mx

    kinds = {
        mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16", mx.uint32: "U32", mx.uint8: "U8",
        mx.int32: "I32", mx.int64: "I64", mx.bool_: "BOOL",
    }  # fmt: skip
    entries = {name: Entry(kinds[value.dtype], tuple(value.shape)) for name, value in parameters}
    total = sum(entry.size for entry in entries.values())
    done = 0
    parameters.reverse()
    with Writer(path, entries) as writer:
        while parameters:
            name, value = parameters.pop()
            if value.dtype == mx.bfloat16:  # numpy has no such type; its bits are enough
                value = value.view(mx.uint16)
            writer.write(name, np.array(value, copy=False))
            done += entries[name].size
            report("quantizing", done, total)
