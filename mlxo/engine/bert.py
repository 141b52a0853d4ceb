"""BERT, RoBERTa and XLM-RoBERTa encoders: token ids to one hidden state a token.

The attributes are called as in the checkpoints (https://arxiv.org/abs/1810.04805 and transformers'
`BertModel`), so that weights load by their own names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import BaseModelArgs

FAMILIES = ("bert", "roberta", "xlm-roberta")

_ACTIVATIONS = {
    "gelu": nn.gelu,
    "gelu_new": nn.gelu_approx,
    "gelu_pytorch_tanh": nn.gelu_approx,
    "relu": nn.relu,
}
_LEFT_OUT = ("pooler.", "cls.", "lm_head.", "classifier.", "embeddings.position_ids")


@dataclass
class ModelArgs(BaseModelArgs):  # type: ignore[misc]
    model_type: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"
    pad_token_id: int = 0
    position_embedding_type: str = "absolute"

    def __post_init__(self) -> None:
        if self.hidden_act not in _ACTIVATIONS:
            raise ValueError(f"its activation {self.hidden_act!r} is not supported")
        if self.position_embedding_type != "absolute":
            raise ValueError(f"its {self.position_embedding_type!r} positions are not supported")

    @property
    def first_position(self) -> int:
        """RoBERTa counts from behind its padding token."""
        return 0 if self.model_type == "bert" else self.pad_token_id + 1

    @property
    def context(self) -> int:
        """The most tokens there are positions for."""
        return self.max_position_embeddings - self.first_position


def _array(found: Any) -> mx.array:
    """MLX's modules are untyped."""
    assert isinstance(found, mx.array)
    return found


class _Embeddings(nn.Module):  # type: ignore[misc]
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(args.vocab_size, args.hidden_size)
        self.position_embeddings = nn.Embedding(args.max_position_embeddings, args.hidden_size)
        self.token_type_embeddings = nn.Embedding(args.type_vocab_size, args.hidden_size)
        self.LayerNorm = nn.LayerNorm(args.hidden_size, args.layer_norm_eps)
        self._first = args.first_position

    def __call__(self, ids: mx.array) -> mx.array:
        places = mx.arange(self._first, self._first + ids.shape[1])
        kinds = self.token_type_embeddings(mx.zeros((1,), dtype=mx.int32))
        x: mx.array = self.word_embeddings(ids) + self.position_embeddings(places) + kinds
        return _array(self.LayerNorm(x))


class _Projections(nn.Module):  # type: ignore[misc]
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.query = nn.Linear(args.hidden_size, args.hidden_size)
        self.key = nn.Linear(args.hidden_size, args.hidden_size)
        self.value = nn.Linear(args.hidden_size, args.hidden_size)
        self._heads = args.num_attention_heads
        self._scale = (args.hidden_size // args.num_attention_heads) ** -0.5

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:
        rows, length, width = x.shape
        q, k, v = (
            p(x).reshape(rows, length, self._heads, -1).transpose(0, 2, 1, 3)
            for p in (self.query, self.key, self.value)
        )
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=self._scale, mask=mask)
        return out.transpose(0, 2, 1, 3).reshape(rows, length, width)


class _Output(nn.Module):  # type: ignore[misc]
    def __init__(self, width: int, args: ModelArgs) -> None:
        super().__init__()
        self.dense = nn.Linear(width, args.hidden_size)
        self.LayerNorm = nn.LayerNorm(args.hidden_size, args.layer_norm_eps)

    def __call__(self, x: mx.array, residual: mx.array) -> mx.array:
        return _array(self.LayerNorm(self.dense(x) + residual))


class _Attention(nn.Module):  # type: ignore[misc]
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.self = _Projections(args)  # so it is called
        self.output = _Output(args.hidden_size, args)

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:
        return self.output(self.self(x, mask), x)


class _Intermediate(nn.Module):  # type: ignore[misc]
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.dense = nn.Linear(args.hidden_size, args.intermediate_size)
        self._activation = _ACTIVATIONS[args.hidden_act]

    def __call__(self, x: mx.array) -> mx.array:
        return _array(self._activation(self.dense(x)))


class _Layer(nn.Module):  # type: ignore[misc]
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.attention = _Attention(args)
        self.intermediate = _Intermediate(args)
        self.output = _Output(args.intermediate_size, args)

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:
        x = self.attention(x, mask)
        return self.output(self.intermediate(x), x)


class _Encoder(nn.Module):  # type: ignore[misc]
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.layer = [_Layer(args) for _ in range(args.num_hidden_layers)]


class Model(nn.Module):  # type: ignore[misc]
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.args = args
        self.embeddings = _Embeddings(args)
        self.encoder = _Encoder(args)

    def __call__(self, ids: mx.array, there: mx.array) -> mx.array:
        """`ids` and `there` (whether a place holds a token or padding) are (rows, length); the hidden states
        (rows, length, width). What stands at padding means nothing.
        """
        x = self.embeddings(ids)
        for layer in self.encoder.layer:
            x = layer(x, there[:, None, None, :])
        return x

    def sanitize(self, weights: dict[str, Any]) -> dict[str, Any]:
        """Without what is behind the encoder; with the newer names of a LayerNorm's weights."""
        found = {}
        for name, array in weights.items():
            head, _, rest = name.partition(".")
            name = rest if head in ("bert", "roberta") else name
            if not name.startswith(_LEFT_OUT):
                name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
                found[name.replace("LayerNorm.beta", "LayerNorm.bias")] = array
        return found
