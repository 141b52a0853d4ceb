"""GGUF files for tests: a writer of raw bytes that can also lie, and tiny models of every architecture."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from numpy.typing import NDArray

U32, F32, BOOL, STRING, ARRAY, U64 = 4, 6, 7, 8, 9, 10


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, kind: int, payload: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + payload


def string(key: str, value: str) -> bytes:
    return pair(key, STRING, text(value))


def u32(key: str, value: int) -> bytes:
    return pair(key, U32, struct.pack("<I", value))


def array_of(key: str, kind: int, count: int, payload: bytes) -> bytes:
    return pair(key, ARRAY, struct.pack("<IQ", kind, count) + payload)


def entry(name: str, shape: Sequence[int], kind: int, offset: int) -> bytes:
    """`shape` is innermost first, as the file has it."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def head(
    pairs: Sequence[bytes] = (),
    entries: Sequence[bytes] = (),
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """A whole header, padded to 32 bytes. `counts` may lie."""
    tensors, keys = counts or (len(entries), len(pairs))
    raw = b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + b"".join((*pairs, *entries))
    return raw + bytes(-len(raw) % 32)


# ---------------------------------------------------------------- tiny models


class Shape(NamedTuple):
    hidden: int = 64
    layers: int = 2
    inner: int = 96
    heads: int = 4
    kv_heads: int = 2
    head: int = 16


# The words of GPT-2's byte alphabet, as every byte-level vocabulary begins.
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_REST = [b for b in range(256) if b not in _PRINTABLE]
ALPHABET = [*map(chr, _PRINTABLE), *(chr(256 + i) for i in range(len(_REST)))]
BPE_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *ALPHABET, "he", "ll", "hell", "hello"]
BPE_MERGES = ["h e", "l l", "he ll", "hell o"]
SPM_TOKENS = [
    "<pad>", "<eos>", "<bos>", "<unk>", "<end_of_turn>", *(f"<0x{i:02X}>" for i in range(256)),
    *"▁abcdefghijklmnopqrstuvwxyz", "▁h", "he", "llo", "▁hello", "ll", "▁he", "bc", "ab",
]  # fmt: skip


def vocabulary(writer: gguf.GGUFWriter, *, spm: bool) -> int:
    """Add a vocabulary; its size."""
    if spm:
        tokens, special = SPM_TOKENS, 5
        writer.add_tokenizer_model("llama")
        normal = range(len(tokens) - special - 256)
        writer.add_token_scores([0.0] * (special + 256) + [-float(i) for i in normal])
        writer.add_token_types([3] * special + [6] * 256 + [1] * len(normal))
        writer.add_bos_token_id(2)
        writer.add_eos_token_id(1)
        writer.add_unk_token_id(3)
        writer.add_pad_token_id(0)
        writer.add_add_space_prefix(False)
    else:
        tokens = BPE_TOKENS
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_merges(BPE_MERGES)
        writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
    writer.add_token_list(tokens)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    return len(tokens)


def weights(arch: str, shape: Shape, vocab: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Random weights under mlx-lm's names, in the layout of Hugging Face checkpoints."""
    rng = np.random.default_rng(seed)
    width, kv_width = shape.heads * shape.head, shape.kv_heads * shape.head

    def matrix(rows: int, columns: int) -> NDArray[np.float32]:
        return np.asarray(rng.standard_normal((rows, columns)) / np.sqrt(columns), dtype=np.float32)

    def vector(size: int) -> NDArray[np.float32]:
        return rng.uniform(0.5, 1.5, size).astype(np.float32)

    found = {
        "model.embed_tokens.weight": matrix(vocab, shape.hidden),
        "model.norm.weight": vector(shape.hidden),
    }
    if arch == "llama":
        found["lm_head.weight"] = matrix(vocab, shape.hidden)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        attention = {"q": width, "k": kv_width, "v": kv_width}
        for letter, rows in attention.items():
            found[f"{prefix}self_attn.{letter}_proj.weight"] = matrix(rows, shape.hidden)
            if arch == "qwen2":
                found[f"{prefix}self_attn.{letter}_proj.bias"] = vector(rows)
        if arch in ("qwen3", "gemma3"):
            found[f"{prefix}self_attn.q_norm.weight"] = vector(shape.head)
            found[f"{prefix}self_attn.k_norm.weight"] = vector(shape.head)
        found[f"{prefix}self_attn.o_proj.weight"] = matrix(shape.hidden, width)
        found[f"{prefix}mlp.gate_proj.weight"] = matrix(shape.inner, shape.hidden)
        found[f"{prefix}mlp.up_proj.weight"] = matrix(shape.inner, shape.hidden)
        found[f"{prefix}mlp.down_proj.weight"] = matrix(shape.hidden, shape.inner)
        norms = ["input_layernorm", "post_attention_layernorm"]
        if arch == "gemma3":
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        for norm in norms:
            found[f"{prefix}{norm}.weight"] = vector(shape.hidden)
    return found


_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "model.layers": "blk", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
}  # fmt: skip
_PLAIN_NORMS = {"post_attention_layernorm": "ffn_norm"}
_GEMMA_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def stored(arch: str, shape: Shape, name: str, value: NDArray[np.float32]) -> tuple[str, NDArray[np.float32]]:
    """What llama.cpp's converter makes of one tensor: its name and its values."""
    short = name
    for ours, theirs in {**_NAMES, **(_GEMMA_NORMS if arch == "gemma3" else _PLAIN_NORMS)}.items():
        short = short.replace(ours, theirs)
    if arch == "gemma3" and "norm" in short:
        value = value + 1
    for letter, heads in (("q", shape.heads), ("k", shape.kv_heads)):
        if arch == "llama" and f"attn_{letter}." in short:
            split = value.reshape(heads, 2, shape.head // 2, *value.shape[1:])
            value = split.swapaxes(1, 2).reshape(value.shape)
    return short, value


def kind_of(name: str, value: NDArray[np.float32], kinds: Mapping[str, str], default: str) -> str:
    """The tensor type that a test asks for by a part of the name; vectors are always F32."""
    if value.ndim == 1:
        return "F32"
    return next((kind for part, kind in kinds.items() if part in name), default)


def model_file(
    path: Path,
    arch: str,
    params: Mapping[str, NDArray[np.float32]],
    shape: Shape,
    *,
    default: str = "F32",
    kinds: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Write a model; what its stored tensors mean in float32, by the names and in the layout of `params`."""
    writer = gguf.GGUFWriter(path, arch)
    vocabulary(writer, spm=arch == "gemma3")
    writer.add_context_length(512)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head)
    writer.add_value_length(shape.head)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    if arch == "gemma3":
        writer.add_sliding_window(8)
    for key, value in (extra or {}).items():
        {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)](key, value)
    meaning = {}
    for name, value in params.items():
        short, stored_value = stored(arch, shape, name, value)
        kind = gguf.GGMLQuantizationType[kind_of(name, value, kinds or {}, default)]
        raw = encode(stored_value, kind)
        writer.add_tensor(short, raw, raw_dtype=kind)
        rounded = gguf.quants.dequantize(raw, kind).reshape(value.shape)
        meaning[name] = _unstored(arch, shape, name, rounded)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meaning


def encode(values: NDArray[np.float32], kind: gguf.GGMLQuantizationType) -> NDArray[Any]:
    """`values` as `kind` stores them; the K types, which gguf cannot write, as random blocks of like size."""
    if not kind.name.endswith("_K"):
        return gguf.quants.quantize(values, kind)  # type: ignore[no-any-return]
    return random_blocks(kind.name, values.size // 256, 0.3 / np.sqrt(values.shape[1])).reshape(
        len(values), -1
    )


# Where a block keeps its float16 factors, and how far the integers they multiply reach.
HALVES = {
    "Q4_0": ((0,), 8), "Q4_1": ((0, 2), 8), "Q5_0": ((0,), 16), "Q5_1": ((0, 2), 16), "Q8_0": ((0,), 128),
    "Q2_K": ((80, 82), 48), "Q3_K": ((108,), 128), "Q4_K": ((0, 2), 512), "Q5_K": ((0, 2), 1024),
    "Q6_K": ((208,), 4096),
}  # fmt: skip


def random_blocks(kind: str, count: int, size: float, seed: int = 1) -> NDArray[np.uint8]:
    """[count, bytes of a block]: every bit random but the factors, which make weights of about `size`."""
    rng = np.random.default_rng(seed)
    _, width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = rng.integers(0, 256, (count, width), dtype=np.uint8)
    places, reach = HALVES[kind]
    for place in places:
        factors = rng.uniform(0.5, 1.5, (count, 1)) * size / reach
        blocks[:, place : place + 2] = factors.astype(np.float16).view(np.uint8)
    return blocks


def _unstored(arch: str, shape: Shape, name: str, value: NDArray[np.float32]) -> NDArray[np.float32]:
    """The inverse of `stored`, written out row by row."""
    if arch == "gemma3" and "norm" in name:
        return value - 1
    for letter, heads in (("q", shape.heads), ("k", shape.kv_heads)):
        if arch == "llama" and f"self_attn.{letter}_proj" in name:
            out = np.empty_like(value)
            for h in range(heads):
                for i in range(shape.head // 2):
                    for half in range(2):
                        row = h * shape.head + half * (shape.head // 2) + i
                        out[row] = value[h * shape.head + 2 * i + half]
            return out
    return value
