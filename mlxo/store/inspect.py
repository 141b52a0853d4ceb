"""What a model is, told from its config.json and the heads of its weight files: no MLX, no weights read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlxo.chat.template import capabilities
from mlxo.core.errors import Corrupt, UnsupportedModel
from mlxo.core.types import Frozen
from mlxo.store import disk, gguf
from mlxo.store.weights import Tensor, decode_json, read_header

# general.file_type of GGUF (llama.cpp's llama_ftype).
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M",
    18: "Q6_K", 32: "BF16",
}  # fmt: skip

# config.json's key -> the tail of the GGUF key, and GGUF's name of the value.
_INFO = (
    ("max_position_embeddings", "context_length"),
    ("hidden_size", "embedding_length"),
    ("num_hidden_layers", "block_count"),
    ("intermediate_size", "feed_forward_length"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("rope_theta", "rope.freq_base"),
    ("sliding_window", "attention.sliding_window"),
    ("vocab_size", "vocab_size"),
    ("num_experts", "expert_count"),
    ("num_experts_per_tok", "expert_used_count"),
)
# What reads both ways and writes nothing, by model_type.
_ENCODERS = ("bert", "distilbert", "modernbert", "mpnet", "nomic_bert", "roberta", "xlm-roberta")
MAX_JSON = 64 << 20  # bytes; config.json, tokenizer_config.json and chat templates are far smaller


class Facts(Frozen, frozen=True, kw_only=True):
    """`template` is the model's own chat template (Jinja), None when it has none."""

    family: str
    parameters: int
    file_type: str
    context_length: int
    embedding_length: int
    capabilities: tuple[str, ...]
    template: str | None
    info: dict[str, Any]
    tensors: tuple[Tensor, ...]

    @property
    def embeds(self) -> bool:
        """Whether it makes vectors, and no text."""
        return self.capabilities == ("embedding",)

    @property
    def parameter_size(self) -> str:
        return human_number(self.parameters)


def describe(files: Mapping[str, Path]) -> Facts:
    """`files` maps the names in a model's folder to where they lie.

    Raises Corrupt or UnsupportedModel when they make no model that can be loaded.
    """
    if "config.json" not in files:
        raise UnsupportedModel(
            "there is no config.json beside the weights", "take a whole Hugging Face or mlx-lm folder"
        )
    config = _object(files["config.json"], "config.json")
    family = config.get("model_type")
    if not isinstance(family, str) or not re.fullmatch(r"[A-Za-z0-9_.-]{1,80}", family):
        raise UnsupportedModel("config.json does not name its model_type")
    shards = {name: path for name, path in files.items() if name.endswith(".safetensors")}
    _check_index(files, shards)
    tensors = tuple(t for name, path in sorted(shards.items()) for t in read_header(path, name))
    text = config.get("text_config")
    merged = {**config, **text} if isinstance(text, dict) else config
    _check_layers(merged, len(tensors))
    template = own_template(files)
    return Facts(
        family=family,
        parameters=count_parameters(tensors, config),
        file_type=quantization(tensors, config),
        context_length=_integer(
            merged, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length"
        ),
        embedding_length=_integer(merged, "hidden_size", "n_embd", "d_model", "dim"),
        capabilities=("embedding",) if _embeds(family, files) else capabilities(template),
        template=template,
        info=_model_info(family, merged, count_parameters(tensors, config)),
        tensors=tensors,
    )


def _embeds(family: str, files: Mapping[str, Path]) -> bool:
    """By its family, or as what Sentence Transformers wrote: then there is a list of its modules."""
    return family in _ENCODERS or "modules.json" in files


def gguf_file_type(path: Path) -> str:
    """The quantization that a GGUF file says it has, else that of most of its tensors."""
    header = gguf.read(path)
    label = _FILE_TYPES.get(header.integer("general.file_type", -1))
    if label is not None:
        return label
    kinds = [t.type.name for t in header.tensors.values()]
    return max(sorted(set(kinds)), key=kinds.count, default="unknown")


def own_template(files: Mapping[str, Path]) -> str | None:
    """The chat template that a model's folder carries, in the order in which transformers looks."""
    if "chat_template.jinja" in files:
        return _read(files["chat_template.jinja"], "chat_template.jinja").decode("utf-8", "replace")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if name not in files:
            continue
        found = _object(files[name], name).get("chat_template")
        if isinstance(found, list):  # several, by name
            named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
            found = named.get("default", next(iter(named.values()), None))
        if isinstance(found, str):
            return found
    return None


def count_parameters(tensors: Iterable[Tensor], config: Mapping[str, Any]) -> int:
    """Logical weights: a packed uint32 holds 32/bits of them; a quantization's scales and biases are none."""
    by_name = {t.name: t for t in tensors}
    total = 0
    for name, tensor in by_name.items():
        stem, _, tail = name.rpartition(".")
        packed = by_name.get(f"{stem}.weight")
        if tail in ("scales", "biases") and packed is not None and packed.type == "U32":
            continue
        if tail == "weight" and tensor.type == "U32":
            total += tensor.elements * 32 // _bits(config, stem)
        else:
            total += tensor.elements
    return total


def quantization(tensors: Iterable[Tensor], config: Mapping[str, Any]) -> str:
    """`4-bit`, `MXFP4`, or the floating type of most weights."""
    settings = _quantization(config)
    if settings:
        mode = settings.get("mode", "affine")
        if isinstance(mode, str) and mode != "affine":
            return mode[:20].upper()
        return f"{_bits(config, '')}-bit"
    weights: dict[str, int] = {}
    for tensor in tensors:
        weights[tensor.type] = weights.get(tensor.type, 0) + tensor.elements
    return max(sorted(weights), key=lambda t: weights[t], default="unknown")


def human_number(count: int) -> str:
    """A count as Ollama prints it: 8B, 7.6B, 494.03M, 12K."""
    if count >= 10**9:
        return f"{count / 1e9:.1f}".removesuffix(".0") + "B"
    if count >= 10**6:
        return f"{count / 1e6:.2f}".removesuffix(".00") + "M"
    return f"{count / 1e3:.0f}K" if count >= 10**3 else str(count)


def _model_info(family: str, config: Mapping[str, Any], parameters: int) -> dict[str, Any]:
    info: dict[str, Any] = {"general.architecture": family, "general.parameter_count": parameters}
    for key, tail in _INFO:
        value = config.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            info[f"{family}.{tail}"] = value
    return info


def _check_index(files: Mapping[str, Path], shards: Mapping[str, Path]) -> None:
    if not shards:
        raise UnsupportedModel("there is no model*.safetensors file", "mlxo reads safetensors and GGUF")
    if "model.safetensors.index.json" not in files:
        return
    index = _object(files["model.safetensors.index.json"], "model.safetensors.index.json").get("weight_map")
    wanted = {v for v in index.values() if isinstance(v, str)} if isinstance(index, dict) else set()
    missing = sorted(wanted - set(shards))
    if missing and "model.safetensors" not in shards:
        raise Corrupt(f"the weights are not complete: {missing[0][:80]} is missing", "fetch the model again")


def _check_layers(config: Mapping[str, Any], weights: int) -> None:
    """A loader builds every layer that is claimed before it misses the first weight: memory without end."""
    for key in ("num_hidden_layers", "num_layers", "n_layers", "n_layer"):
        layers = config.get(key)
        if isinstance(layers, int) and layers > weights:
            raise Corrupt(f"config.json claims {layers} layers, and there are only {weights} weights")


def _quantization(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found = config.get("quantization")
    return found if isinstance(found, dict) else {}


def _bits(config: Mapping[str, Any], layer: str) -> int:
    """Bits a weight of a quantised layer; a layer may have its own entry."""
    settings = _quantization(config)
    own = settings.get(layer)
    bits = own.get("bits") if isinstance(own, dict) else settings.get("bits")
    return bits if isinstance(bits, int) and not isinstance(bits, bool) and 1 <= bits <= 32 else 32


def _integer(config: Mapping[str, Any], *keys: str) -> int:
    """The first of the keys that holds a sensible positive integer, else 0."""
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 53:
            return value
    return 0


def _object(path: Path, name: str) -> dict[str, Any]:
    found = decode_json(_read(path, name), name)
    if not isinstance(found, dict):
        raise Corrupt(f"{name} is not a JSON object")
    return found


def _read(path: Path, name: str) -> bytes:
    with disk.guard(path), path.open("rb") as f:
        data = f.read(MAX_JSON + 1)
    if len(data) > MAX_JSON:
        raise Corrupt(f"{name} is larger than {MAX_JSON} bytes")
    return data
