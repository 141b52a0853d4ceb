"""What the rows may take of the memory: who may join, and who must leave when it gets tight.

A row's keys and values grow with its tokens, at a rate that is the model's own. A request joins when the
weights and all that the rows which run and it itself are expected to hold are within the limit; answers count
up to a size that most of them stay below. What was expected wrongly shows as pressure.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from mlxo.core.errors import InvalidRequest
from mlxo.hardware.detect import Backend, total_memory

# Tokens of an answer that are counted before they are there.
ANSWER = 1024
# The part of the machine's memory that a runner may take, where the device does not say.
_PART = 0.85
# The part of the limit that is for all else: the scores of a prompt's piece, copies when rows join, padding.
_WORK = 1 / 16
_LENGTHS = (512, 1024)  # tokens between which the rate is taken: windows are full by then, or grow on


def limit(device: Backend) -> int:
    """Bytes that this process should stay below on the device's memory."""
    if device == "cpu":
        return int(total_memory() * _PART)
    known = mx.device_info()
    if device == "metal" and (size := known.get("max_recommended_working_set_size")):
        return int(size)
    return int(int(known.get("total_memory") or known.get("memory_size") or total_memory()) * _PART)


def measure(model: Any) -> tuple[int, int]:
    """Bytes of a row that are there whatever its length, and of each of its tokens. Nothing is computed."""
    sizes = []
    for length in _LENGTHS:
        caches = make_prompt_cache(model)
        model(mx.zeros((1, length), dtype=mx.int32), cache=caches)
        sizes.append(sum(c.nbytes for c in caches))
    rate = (sizes[1] - sizes[0]) // (_LENGTHS[1] - _LENGTHS[0])
    return max(0, sizes[0] - rate * _LENGTHS[0]), rate


def weights(model: Any) -> int:
    """Bytes of the model's arrays."""
    return sum(a.nbytes for _, a in tree_flatten(model.parameters()))


class Memory:
    """`fixed` bytes a row and `rate` bytes a token of it, beside `held` that stay. Engine thread only."""

    def __init__(self, limit: int, held: int, fixed: int, rate: int) -> None:
        self.limit = limit
        self._held = held
        self._fixed = fixed
        self._rate = max(1, rate)
        self._rows: dict[str, int] = {}

    @property
    def _free(self) -> int:
        """What is left for rows by expectation; below zero when the model alone is too much."""
        return int(self.limit * (1 - _WORK)) - self._held - sum(self._rows.values())

    def _need(self, prompt: int, answer: int) -> int:
        return self._fixed + self._rate * (prompt + min(answer, ANSWER))

    def check(self, prompt: int, answer: int) -> None:
        """Raises InvalidRequest for a request of so many tokens that would not fit by itself."""
        most = int(self.limit * (1 - _WORK)) - self._held - self._fixed
        tokens = max(0, most // self._rate)
        if prompt + min(answer, ANSWER) > tokens:
            raise InvalidRequest(
                f"the prompt of {prompt} tokens and its answer do not fit the memory beside the model, "
                f"which holds {tokens} tokens at most",
                f"set num_ctx to {tokens} or less" if tokens >= 512 else "use a smaller model",
            )

    def admits(self, prompt: int, answer: int) -> bool:
        """Whether a request may join those that run. The only one always may: `check` let it in."""
        return not self._rows or self._need(prompt, answer) <= self._free

    def join(self, key: str, prompt: int, answer: int) -> None:
        self._rows[key] = self._need(prompt, answer)

    def leave(self, key: str) -> None:
        self._rows.pop(key, None)

    def over(self) -> int:
        """By how many bytes too much is held at this moment."""
        return max(0, int(mx.get_active_memory()) - self.limit)
