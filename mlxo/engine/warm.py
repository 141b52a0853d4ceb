"""What loading any model needs and no model has to be known for: done by a runner while it waits for one."""

from __future__ import annotations

import gc
import importlib

import mlx.core as mx

# Imported by the first load otherwise, lazily: transformers' and mlx_lm's ways to a tokenizer and a model.
_MODULES = (
    "llguidance",
    "mlx_lm.models.llama",
    "mlx_lm.tokenizer_utils",
    "tokenizers",
    "transformers.image_transforms",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.configuration_llama",
    "transformers.tokenization_utils_tokenizers",
    "transformers.video_utils",
)


def _import() -> None:
    for name in _MODULES:
        importlib.import_module(name)


def _compute() -> None:
    """The device, its stream and the BLAS: a product large enough to go through it."""
    mx.eval(mx.zeros((64, 64)) @ mx.zeros((64, 64)))


def _freeze() -> None:
    """The libraries' million objects live as long as the process: no collection looks at them again."""
    gc.collect()
    gc.freeze()


STEPS = (_import, _compute, _freeze)
