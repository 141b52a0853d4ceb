"""The convert job: a GGUF file, or a folder to be quantised, -> a folder as mlx-lm reads it.

Importing GGUF needs numpy alone: starting it takes a tenth of a second, where mlx-lm takes three. Weights
go through in pieces of about a million, so memory does not grow with the model. All that can be refused is
refused before the first byte is written.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mlxo.core.errors import InvalidRequest
from mlxo.core.types import Frozen
from mlxo.jobs import gguf_config, gguf_tokenizer, gguf_weights
from mlxo.jobs.gguf_config import Parameter
from mlxo.jobs.gguf_weights import GROUP, Bytes, Floats, bits_of
from mlxo.jobs.safetensors import Entry, Writer
from mlxo.modelfile import Quantize
from mlxo.store import gguf
from mlxo.store.gguf import Header, Tensor

# status, completed, total: bytes of weights, None where there is nothing to count
Report = Callable[[str, int | None, int | None], None]

_PIECE = 1 << 20  # weights at a time: the arrays of one piece fit the processor's cache
_FLOATS = ("F32", "F16", "BF16")
WEIGHTS = "model.safetensors"


class Spec(Frozen, frozen=True, kw_only=True):
    """`source` is a GGUF file or a folder of safetensors; `out` a folder, empty or not there yet."""

    source: str
    out: str
    quantize: Quantize | None = None


def convert(spec: Spec, report: Report) -> None:
    source, out = Path(spec.source), Path(spec.out)
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise InvalidRequest(f"{out} is not empty")
    if not source.is_dir():
        header = gguf.read(source)
        if spec.quantize is None:
            import_gguf(header, source, out, report)
            return
        _refuse_quantised(header)
        plain = out / "unquantized"
        plain.mkdir()
        import_gguf(header, source, plain, report)
        _quantise(plain, out, spec.quantize, report)
        shutil.rmtree(plain)
    elif spec.quantize is None:
        raise InvalidRequest(f"{source} is a folder of weights already: there is nothing to convert")
    else:
        _quantise(source, out, spec.quantize, report)


def _quantise(source: Path, out: Path, quantize: Quantize, report: Report) -> None:
    from mlxo.jobs.quantize import quantise_folder  # imports mlx-lm, which takes seconds

    quantise_folder(source, out, quantize, report)


def _refuse_quantised(header: Header) -> None:
    kinds = Counter(t.type.name for t in header.tensors.values() if t.type.name not in _FLOATS)
    if kinds:
        kind = kinds.most_common(1)[0][0]
        raise InvalidRequest(
            f"this GGUF file is quantized already ({kind}) and cannot be quantized again",
            "leave QUANTIZE out, or start from an F16 or BF16 file",
        )


# ---------------------------------------------------------------- GGUF


def import_gguf(header: Header, source: Path, out: Path, report: Report) -> None:
    """Raises Corrupt and UnsupportedModel."""
    parameters = gguf_config.parameters(header)
    data = np.memmap(source, dtype=np.uint8, mode="r")
    config = gguf_config.model_config(header, _rope_factors(header, data))
    rows = config["vocab_size"]
    specials = gguf_tokenizer.write(header, rows, out)
    config |= {"torch_dtype": _compute_type(header), **specials.ids()}
    if quantization := _quantization(header, parameters):
        config["quantization"] = quantization
    (out / "config.json").write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=2))
    _write_weights(header, parameters, data, out / WEIGHTS, report)


def _rope_factors(header: Header, data: NDArray[np.uint8]) -> list[float] | None:
    tensor = header.tensors.get(gguf_config.ROPE_FACTORS)
    return None if tensor is None else [float(x) for x in _vector(tensor, data)]


def _compute_type(header: Header) -> str:
    """The type to compute in on hardware that has halves: the widest range that the family was trained for.

    Only files of the llama family are at home in float16, which is the type of their scales as well.
    """
    kinds = {t.type.name for t in header.tensors.values()}
    if kinds == {"F32"}:
        return "float32"
    return "float16" if header.architecture == "llama" and "BF16" not in kinds else "bfloat16"


def _quantization(header: Header, parameters: Mapping[str, Parameter]) -> dict[str, Any] | None:
    """mlx-lm's entry of config.json: the commonest width for all, the others by the layer's path."""
    widths = {
        parameter.name.removesuffix(".weight"): bits
        for name, parameter in parameters.items()
        if (bits := bits_of(header.tensors[name].type)) is not None
    }
    if not widths:
        return None
    common = Counter(widths.values()).most_common(1)[0][0]
    found: dict[str, Any] = {"group_size": GROUP, "bits": common, "mode": "affine"}
    for path, bits in widths.items():
        if bits != common:
            found[path] = {"group_size": GROUP, "bits": bits, "mode": "affine"}
    return found


def _write_weights(
    header: Header, parameters: Mapping[str, Parameter], data: NDArray[np.uint8], path: Path, report: Report
) -> None:
    vectors = _vector_type(header)
    entries: dict[str, Entry] = {}
    for name, parameter in parameters.items():
        entries.update(_entries(header.tensors[name], parameter, vectors))
    total = sum(header.tensors[name].size for name in parameters)
    done = 0
    with Writer(path, entries) as writer:
        for name, parameter in parameters.items():
            tensor = header.tensors[name]
            for target, piece in _pieces(tensor, parameter, data, vectors):
                writer.write(target, piece)
            done += tensor.size
            report("converting weights", done, total)


def _vector_type(header: Header) -> str:
    """Norms and biases are stored as float32; they follow the matrices, lest they widen every activation.

    The scales of quantised matrices are float32, so there they may stay.
    """
    kind = header.tensors["token_embd.weight"].type.name
    return kind if kind in _FLOATS else "F32"


def _entries(tensor: Tensor, parameter: Parameter, vectors: str) -> Iterator[tuple[str, Entry]]:
    bits = bits_of(tensor.type)
    if len(tensor.shape) == 1:
        yield parameter.name, Entry(vectors, tensor.shape)
    elif bits is None:
        yield parameter.name, Entry(tensor.type.name, tensor.shape)
    else:
        rows, columns = tensor.shape
        path = parameter.name.removesuffix(".weight")
        yield parameter.name, Entry("U32", (rows, columns * bits // 32))
        yield f"{path}.scales", Entry("F32", (rows, columns // GROUP))
        yield f"{path}.biases", Entry("F32", (rows, columns // GROUP))


def _pieces(
    tensor: Tensor, parameter: Parameter, data: NDArray[np.uint8], vectors: str
) -> Iterator[tuple[str, NDArray[Any]]]:
    """The bytes of one tensor under the names that _entries gave it."""
    order = _row_order(tensor.shape[0], parameter.heads)
    if len(tensor.shape) == 1:
        values = _vector(tensor, data)[order] - np.float32(parameter.shift)
        yield parameter.name, _narrow(values, vectors)
        return
    path = parameter.name.removesuffix(".weight")
    rows, columns = tensor.shape
    raw = data[tensor.offset : tensor.offset + tensor.size].reshape(rows, -1)
    step = max(1, _PIECE // columns)
    for start in range(0, rows, step):
        piece: Bytes = np.asarray(raw[order[start : start + step]])
        if bits_of(tensor.type) is None:
            yield parameter.name, piece
        else:
            packed = gguf_weights.repack(tensor.type, piece)
            yield parameter.name, packed.weight
            yield f"{path}.scales", packed.scales
            yield f"{path}.biases", packed.biases


def _row_order(rows: int, heads: int) -> NDArray[np.intp]:
    """Which stored row each row of the result is.

    llama.cpp lays the two halves of a head that rope rotates together next to each other, row by row:
    stored (head, i, half) is (head, half, i) of the original.
    """
    order = np.arange(rows)
    return order.reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1) if heads else order


def _vector(tensor: Tensor, data: NDArray[np.uint8]) -> Floats:
    """A floating-point tensor of one dimension, as float32."""
    raw = np.array(data[tensor.offset : tensor.offset + tensor.size])
    if tensor.type.name == "BF16":
        return (raw.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    return raw.view("<f2" if tensor.type.name == "F16" else "<f4").astype(np.float32)


def _narrow(values: Floats, kind: str) -> NDArray[Any]:
    if kind == "F32":
        return values
    return values.astype(np.float16) if kind == "F16" else gguf_weights.bfloat16(values)
