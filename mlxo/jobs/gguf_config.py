"""GGUF metadata and tensor names -> config.json and parameter names, as mlx-lm's model classes want them.

Sources: llama.cpp's table of tensor names (src/llama-arch.cpp) and what its converter does to the weights:
    llama    the rows of attn_q and attn_k are interleaved within each head; undone with `heads` below
    gemma3   every norm is stored with 1 added, since ggml's norm lacks the `1 +`; undone with `shift`
    llama 3  the scaled rope is a tensor of factors, rope_freqs.weight; read back into its four numbers

Every parameter's name and shape is known before a weight is read, so a file that lacks one, has one too many
or one of a wrong shape is refused here, in a sentence.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mlxo.core.errors import Corrupt, UnsupportedModel
from mlxo.store.gguf import Header

_CLASSES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
}
# Of the Gemma 3 family the 27B alone scales its queries by hidden size / heads instead of head_dim.
_GEMMA_27B_LAYERS = 62
ROPE_FACTORS = "rope_freqs.weight"


class Parameter(NamedTuple):
    """Where a tensor goes. `heads` > 0: rows are interleaved within so many heads. `shift`: subtract 1."""

    name: str
    shape: tuple[int, ...]
    heads: int = 0
    shift: bool = False


class Sizes(NamedTuple):
    hidden: int
    layers: int
    inner: int
    heads: int
    kv_heads: int
    head: int
    vocab: int


def sizes(header: Header) -> Sizes:
    """The model's sizes; `vocab` counts the rows of the embedding, which may outnumber the tokens."""
    arch = header.architecture
    if arch not in _CLASSES:
        raise UnsupportedModel(
            f"GGUF files of the architecture {arch[:40]!r} cannot be imported",
            f"mlxo imports {', '.join(_CLASSES)}; for others use a safetensors version of the model",
        )
    if header.integer(f"{arch}.expert_count", 0) > 0:
        raise UnsupportedModel(
            f"this GGUF file is a mixture of experts ({arch}), which mlxo cannot import",
            "use a safetensors version of the model",
        )
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise Corrupt(
            "the GGUF file lacks token_embd.weight: it holds no model", "it may be a vocabulary only"
        )
    hidden = header.integer(f"{arch}.embedding_length")
    heads = header.integer(f"{arch}.attention.head_count")
    if heads < 1:
        raise Corrupt(f"the GGUF file's {arch}.attention.head_count should be positive")
    head = header.integer(f"{arch}.attention.key_length", hidden // heads)
    found = Sizes(
        hidden=hidden,
        layers=header.integer(f"{arch}.block_count"),
        inner=header.integer(f"{arch}.feed_forward_length"),
        heads=heads,
        kv_heads=header.integer(f"{arch}.attention.head_count_kv", heads),
        head=head,
        vocab=embedding.shape[0],
    )
    _check(header, found)
    return found


def _check(header: Header, found: Sizes) -> None:
    arch = header.architecture
    if min(found) < 1 or found.head % 2 or found.heads % found.kv_heads:
        raise Corrupt(
            "the GGUF file's sizes make no model: " + ", ".join(f"{k} {v}" for k, v in _named(found))
        )
    # Each layer has nine tensors at least: a huge count ends here and not in a loop.
    if found.layers * 9 > len(header.tensors):
        raise Corrupt(f"the GGUF file claims {found.layers} layers and has {len(header.tensors)} tensors")
    for key in ("attention.value_length", "rope.dimension_count"):
        if header.integer(f"{arch}.{key}", found.head) != found.head:
            raise UnsupportedModel(f"{arch}.{key} differs from the size of a head, which mlxo cannot import")


def _named(found: Sizes) -> Iterator[tuple[str, int]]:
    return iter(found._asdict().items())


# ---------------------------------------------------------------- parameters


def parameters(header: Header) -> dict[str, Parameter]:
    """GGUF tensor name -> parameter, for all tensors but the rope factors, checked to fit one to one."""
    size, arch = sizes(header), header.architecture
    shift = arch == "gemma3"
    wanted = {
        "token_embd.weight": Parameter("model.embed_tokens.weight", (size.vocab, size.hidden)),
        "output_norm.weight": Parameter("model.norm.weight", (size.hidden,), shift=shift),
    }
    if not tied(header):
        wanted["output.weight"] = Parameter("lm_head.weight", (size.vocab, size.hidden))
    for index in range(size.layers):
        for source, parameter in _layer(header, size, shift):
            name = f"model.layers.{index}.{parameter.name}"
            wanted[f"blk.{index}.{source}"] = parameter._replace(name=name)
    _compare(header, wanted)
    return wanted


def _layer(header: Header, size: Sizes, shift: bool) -> Iterator[tuple[str, Parameter]]:
    """The tensors of one layer; names without their `blk.N.` and `model.layers.N.`."""
    arch = header.architecture
    width, kv_width = size.heads * size.head, size.kv_heads * size.head
    interleaved = arch == "llama"
    projections = {
        "attn_q": ("self_attn.q_proj", width, size.hidden, size.heads if interleaved else 0),
        "attn_k": ("self_attn.k_proj", kv_width, size.hidden, size.kv_heads if interleaved else 0),
        "attn_v": ("self_attn.v_proj", kv_width, size.hidden, 0),
        "attn_output": ("self_attn.o_proj", size.hidden, width, 0),
        "ffn_gate": ("mlp.gate_proj", size.inner, size.hidden, 0),
        "ffn_up": ("mlp.up_proj", size.inner, size.hidden, 0),
        "ffn_down": ("mlp.down_proj", size.hidden, size.inner, 0),
    }
    biased = _biased(header)
    for source, (name, rows, columns, heads) in projections.items():
        yield f"{source}.weight", Parameter(f"{name}.weight", (rows, columns), heads)
        if source in biased:
            yield f"{source}.bias", Parameter(f"{name}.bias", (rows,), heads)
    norms = {"attn_norm": "input_layernorm"}
    if arch == "gemma3":
        norms |= {
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        }
    else:
        norms["ffn_norm"] = "post_attention_layernorm"
    for source, name in norms.items():
        yield f"{source}.weight", Parameter(f"{name}.weight", (size.hidden,), shift=shift)
    if arch in ("qwen3", "gemma3"):
        for letter in "qk":
            name = f"self_attn.{letter}_norm.weight"
            yield f"attn_{letter}_norm.weight", Parameter(name, (size.head,), shift=shift)


def _biased(header: Header) -> tuple[str, ...]:
    """The projections that carry a bias. mlx-lm's llama has it on whole blocks, so one stands for all."""
    if header.architecture == "qwen2":
        return ("attn_q", "attn_k", "attn_v")
    if header.architecture != "llama":
        return ()
    attention = ("attn_q", "attn_k", "attn_v", "attn_output")
    feed = ("ffn_gate", "ffn_up", "ffn_down")
    return (attention if attention_bias(header) else ()) + (feed if mlp_bias(header) else ())


def attention_bias(header: Header) -> bool:
    return "blk.0.attn_q.bias" in header.tensors


def mlp_bias(header: Header) -> bool:
    return "blk.0.ffn_gate.bias" in header.tensors


def tied(header: Header) -> bool:
    return "output.weight" not in header.tensors


def _compare(header: Header, wanted: Mapping[str, Parameter]) -> None:
    for name, parameter in wanted.items():
        tensor = header.tensors.get(name)
        if tensor is None:
            raise Corrupt(f"the GGUF file lacks the tensor {name}")
        if tensor.shape != parameter.shape:
            raise Corrupt(f"tensor {name} of the GGUF file has shape {tensor.shape}, not {parameter.shape}")
        if len(tensor.shape) == 1 and tensor.type.block > 1:
            raise UnsupportedModel(
                f"tensor {name} is a vector stored as {tensor.type.name}, which mlxo cannot read"
            )
    for name in header.tensors:
        if name not in wanted and name != ROPE_FACTORS:
            raise UnsupportedModel(
                f"the GGUF file has a tensor {name!r}, for which this architecture has no place"
            )


# ---------------------------------------------------------------- config.json


def model_config(header: Header, rope_factors: list[float] | None) -> dict[str, Any]:
    """config.json without what the weights decide (`quantization`, `torch_dtype`) and without token ids."""
    size, arch = sizes(header), header.architecture
    model_type, class_name = _CLASSES[arch]
    config: dict[str, Any] = {
        "model_type": model_type,
        "architectures": [class_name],
        "hidden_size": size.hidden,
        "num_hidden_layers": size.layers,
        "intermediate_size": size.inner,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "head_dim": size.head,
        "vocab_size": size.vocab,
        "max_position_embeddings": header.integer(f"{arch}.context_length"),
        "rms_norm_eps": header.number(f"{arch}.attention.layer_norm_rms_epsilon"),
        "rope_theta": header.number(f"{arch}.rope.freq_base", 1_000_000.0 if arch == "gemma3" else 10_000.0),
        "tie_word_embeddings": tied(header),
        "hidden_act": "gelu_pytorch_tanh" if arch == "gemma3" else "silu",
    }
    if scaling := _rope_scaling(header, config, rope_factors):
        config["rope_scaling"] = scaling
    if arch == "llama":
        config |= {"attention_bias": attention_bias(header), "mlp_bias": mlp_bias(header)}
    if arch == "gemma3":
        config |= _gemma(header, size)
    return config


def _gemma(header: Header, size: Sizes) -> dict[str, Any]:
    window = header.integer("gemma3.attention.sliding_window", 0)
    # Without a window every layer sees everything, which is the pattern 1.
    pattern = _pattern(header) if window else 1
    if not 1 <= pattern <= size.layers or window < 0:
        raise Corrupt(f"the GGUF file's sliding window ({window} tokens, pattern {pattern}) is impossible")
    return {
        "query_pre_attn_scalar": size.hidden // size.heads if size.layers == _GEMMA_27B_LAYERS else size.head,
        "sliding_window": window or header.integer("gemma3.context_length"),
        "sliding_window_pattern": pattern,
        "rope_local_base_freq": header.number("gemma3.rope.freq_base_swa", 10_000.0),
        "hidden_activation": "gelu_pytorch_tanh",
    }


def _pattern(header: Header) -> int:
    """Every how many layers one sees the whole context: a number, or a flag a layer (true: window only)."""
    key = "gemma3.attention.sliding_window_pattern"
    if not isinstance(header.metadata.get(key), array):
        return header.integer(key, 6)
    flags = [bool(flag) for flag in header.numbers(key)]
    pattern = flags.index(False) + 1 if False in flags else 0
    if not pattern or any(flag != bool((i + 1) % pattern) for i, flag in enumerate(flags)):
        raise UnsupportedModel("this GGUF file's sliding windows follow no regular pattern, which mlxo needs")
    return pattern


def _rope_scaling(
    header: Header, config: Mapping[str, Any], factors: list[float] | None
) -> dict[str, Any] | None:
    arch = header.architecture
    if factors is not None:
        return _llama3_scaling(factors, config)
    kind = header.text(f"{arch}.rope.scaling.type", "none")
    factor = header.number(f"{arch}.rope.scaling.factor", header.number(f"{arch}.rope.scale_linear", 1.0))
    if kind == "none" and f"{arch}.rope.scale_linear" in header.metadata:  # the key before there were types
        kind = "linear"
    if kind == "none" or factor in (0.0, 1.0):
        return None
    if factor < 0 or kind not in ("linear", "yarn"):
        raise UnsupportedModel(f"the rope scaling {kind[:40]!r} with factor {factor:g} cannot be imported")
    scaling: dict[str, Any] = {"type": kind, "rope_type": kind, "factor": factor}
    if header.number(f"{arch}.rope.scaling.attn_factor", 1.0) != 1.0:
        raise UnsupportedModel("a rope scaling with an attention factor of its own cannot be imported")
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = header.integer(
            f"{arch}.rope.scaling.original_context_length"
        )
    return scaling


def _llama3_scaling(factors: list[float], config: Mapping[str, Any]) -> dict[str, Any]:
    """The four numbers behind `factors` [head_dim / 2], which llama.cpp's converter computes from them.

    The first frequencies keep their length (1), the last are stretched by the whole factor; in between
    the factor fades in, and where that happens tells whether our numbers are the right ones.
    """
    head, theta = config["head_dim"], config["rope_theta"]
    factor = float(f"{max(factors, default=0.0):.7g}")
    scaling: dict[str, Any] = {
        "type": "llama3",
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    if len(factors) == head // 2 and theta > 0:
        expected = [
            _llama3_factor(2 * math.pi * theta ** (2 * i / head), scaling["factor"]) for i in range(head // 2)
        ]
        if all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(factors, expected, strict=True)):
            return scaling
    raise UnsupportedModel(
        "this GGUF file's rope factors are not those of Llama 3, which are all that mlxo knows"
    )


def _llama3_factor(wavelength: float, factor: float) -> float:
    low, high, original = 1.0, 4.0, 8192
    if wavelength < original / high:
        return 1.0
    if wavelength > original / low:
        return factor
    smooth = (original / wavelength - low) / (high - low)
    return 1 / ((1 - smooth) / factor + smooth)
