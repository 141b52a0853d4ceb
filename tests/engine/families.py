"""Models of several families with random weights and tiny dimensions, float32: for what the weights do not
matter.
"""

from __future__ import annotations

import importlib
from typing import Any

import mlx.core as mx

VOCABULARY = 64
EOS = 1

_BASE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}

# Name -> (mlx_lm module, what differs from _BASE).
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "full attention": ("llama", {}),
    "sliding window": (
        "gemma3_text",
        {"sliding_window": 8, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8},
    ),
    "mixture of experts": (
        "qwen3_moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "moe_intermediate_size": 16,
            "norm_topk_prob": True,
        },
    ),
    "convolution and attention": (
        "lfm2",
        {
            "norm_eps": 1e-5,
            "conv_bias": False,
            "conv_L_cache": 3,
            "block_dim": 32,
            "block_ff_dim": 48,
            "block_multiple_of": 16,
            "block_ffn_dim_multiplier": 1.0,
            "block_auto_adjust_ff_dim": False,
            "full_attn_idxs": [1],
        },
    ),
    "state space": (
        "mamba2",
        {
            "num_heads": 4,
            "head_dim": 16,
            "state_size": 8,
            "n_groups": 1,
            "conv_kernel": 4,
            "expand": 2,
            "layer_norm_epsilon": 1e-5,
            "use_bias": False,
            "use_conv_bias": True,
            "time_step_limit": (0.0, 100.0),
            "time_step_rank": 2,
            "ssm_state_size": 8,
        },
    ),
}
# Its chunked caches cannot merge.
CHUNKED: tuple[str, dict[str, Any]] = (
    "llama4",
    {
        "text_config": {
            **_BASE,
            "model_type": "llama4_text",
            "num_hidden_layers": 4,
            "intermediate_size_mlp": 48,
            "attention_chunk_size": 8,
            "attention_bias": False,
            "rope_scaling": None,
            "use_qk_norm": True,
            "interleave_moe_layer_step": 1,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
        }
    },
)


def build(module: str, changes: dict[str, Any], seed: int = 3) -> Any:
    """The model, its weights wide enough for every next token to depend on the context."""
    architecture = importlib.import_module(f"mlx_lm.models.{module}")
    mx.random.seed(seed)
    model = architecture.Model(architecture.ModelArgs.from_dict({**_BASE, "model_type": module, **changes}))
    widen = {name: value for name, value in _flat(model) if value.ndim > 1}
    model.load_weights([(n, v * 3.0) for n, v in widen.items()], strict=False)
    mx.eval(model.parameters())
    return model


def _flat(model: Any) -> list[tuple[str, mx.array]]:
    from mlx.utils import tree_flatten

    found: list[tuple[str, mx.array]] = tree_flatten(model.parameters())
    return found
