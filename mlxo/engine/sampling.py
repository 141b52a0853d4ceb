"""Choosing the next token: Ollama's options, vectorised over the rows of a batch.

The order is Ollama's: penalties, temperature 0 is argmax, top-k, softmax under the temperature, top-p,
min-p, typical-p, one draw. Penalties are a logits processor of a row; everything after them is one call for
the whole batch. For that call to know which row is which, `Rows` rides as one more entry at the end of the
list of layer caches, where BatchGenerator merges, filters and extends it in step with the KV caches;
`WithRows` takes it off again before the model sees the list.

A draw takes one uniform number, made from (seed, how many tokens the row has drawn), and inverts the
cumulative distribution in the order of token ids. So a row's text depends on its own seed and options
alone, not on its neighbours.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Self

import mlx.core as mx

from mlxo.core.options import DEFAULTS, Options

_MASK = (1 << 64) - 1


def _mix(x: int) -> int:
    """The finaliser of SplitMix64: a bijection of 64 bits in which every input bit moves every output bit."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def uniform(seed: int, draw: int) -> float:
    """The `draw`-th number of `seed`'s sequence, in [0, 1), a multiple of 2**-23.

    With 23 bits the product with a float32 total always rounds below the total.
    """
    return (_mix((_mix(seed & _MASK) + draw * 0x9E3779B97F4A7C15) & _MASK) >> 41) / (1 << 23)


def _clamp(value: float | None, default: float | None, low: float, high: float) -> float:
    number = default if value is None else value
    assert number is not None
    return min(max(number, low), high)


class Row:
    """How one sequence draws. `draws` counts the tokens it has drawn; everything else is fixed.

    Values out of range are clamped as Ollama does, so that nothing can fail later. `top_k` 0 means all
    tokens.
    """

    __slots__ = ("draws", "min_p", "seed", "temperature", "top_k", "top_p", "typical_p")

    def __init__(self, options: Options) -> None:
        seed = DEFAULTS.seed if options.seed is None else options.seed
        self.seed = random.getrandbits(63) if seed == -1 else (seed or 0)
        self.draws = 0
        temperature = _clamp(options.temperature, DEFAULTS.temperature, 0.0, 1e4)
        self.temperature = temperature if temperature > 1e-5 else 0.0
        self.top_k = int(_clamp(options.top_k, DEFAULTS.top_k, 0, 1 << 30))
        self.top_p = _clamp(options.top_p, DEFAULTS.top_p, 0.0, 1.0)
        self.min_p = _clamp(options.min_p, DEFAULTS.min_p, 0.0, 1.0)
        self.typical_p = _clamp(options.typical_p, DEFAULTS.typical_p, 0.0, 1.0)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0 or self.top_k == 1


class _Plan:
    """The rows' options as arrays [B, 1], made once for a set of rows and reused until the set changes."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.greedy = all(r.greedy for r in rows)
        if self.greedy:
            return
        self.any_greedy = any(r.greedy for r in rows)
        drawing = [r for r in rows if not r.greedy]
        # 0: some row wants the whole vocabulary.
        self.width = 0 if any(r.top_k == 0 for r in drawing) else max(r.top_k for r in drawing)
        self.nucleus = any(r.top_p < 1.0 for r in drawing)
        self.ranked = self.nucleus or any(r.top_k for r in drawing)
        self.floor = any(r.min_p > 0.0 for r in drawing)
        self.typical = any(r.typical_p < 1.0 for r in drawing)
        self.is_greedy = mx.array([[r.greedy] for r in rows])
        self.scale = mx.array([[1.0 if r.greedy else 1.0 / r.temperature] for r in rows])
        self.top_k = mx.array([[r.top_k or 1 << 30] for r in rows])
        self.top_p = mx.array([[r.top_p] for r in rows])
        self.min_p = mx.array([[r.min_p] for r in rows])
        self.typical_p = mx.array([[r.typical_p] for r in rows])


class Rows:
    """The rows of a batch in batch order, with the protocol of a KV cache. Owned by the engine thread."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self._plan: _Plan | None = None

    @property
    def plan(self) -> _Plan:
        if self._plan is None:
            self._plan = _Plan(self.rows)
        return self._plan

    @classmethod
    def merge(cls, caches: Sequence[Rows]) -> Rows:
        return cls([row for cache in caches for row in cache.rows])

    def extend(self, other: Rows) -> None:
        self.rows = self.rows + other.rows
        self._plan = None

    def filter(self, keep: Sequence[int]) -> None:
        self.rows = [self.rows[i] for i in keep]
        self._plan = None

    def extract(self, index: int) -> Rows:
        return Rows([self.rows[index]])

    def prepare(self, **_: object) -> None:
        """Padding does not concern rows."""

    def finalize(self) -> None:
        """Padding does not concern rows."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # BatchGenerator copies the cache list when a batch splits; the row itself moves on, it is not
        # doubled.
        return type(self)(list(self.rows))

    @property
    def state(self) -> list[mx.array]:
        return []

    @property
    def nbytes(self) -> int:
        return 0


class WithRows:
    """A model whose last cache is `Rows`; keeps those of its latest call for the sampler that follows."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.layers = model.layers
        self.rows = Rows([])

    def __call__(self, inputs: mx.array, cache: list[Any]) -> mx.array:
        self.rows = cache[-1]
        logits: mx.array = self.model(inputs, cache=cache[:-1])
        return logits

    def sample(self, logprobs: mx.array) -> mx.array:
        """[B, V] -> [B] token ids, for the rows of the latest call. Never raises nor waits for the device."""
        return sample(logprobs, self.rows)


def sample(logprobs: mx.array, rows: Rows) -> mx.array:
    """[B, V] log-probabilities -> [B] token ids, lazily; counts one draw for every row."""
    plan = rows.plan
    draws = []
    for row in rows.rows:
        draws.append(uniform(row.seed, row.draws))
        row.draws += 1
    if plan.greedy:
        return mx.argmax(logprobs, axis=-1)
    drawn = _draw(logprobs, mx.array(draws)[:, None], plan)
    if not plan.any_greedy:
        return drawn
    return mx.where(plan.is_greedy[:, 0], mx.argmax(logprobs, axis=-1).astype(drawn.dtype), drawn)


def _draw(logprobs: mx.array, draws: mx.array, plan: _Plan) -> mx.array:
    """`draws` [B, 1] in [0, 1). Looks at each row's largest `width` candidates, at all when that is 0."""
    vocabulary = logprobs.shape[-1]
    ids: mx.array | None = None
    if 0 < plan.width < vocabulary:
        ids = mx.argpartition(-logprobs, kth=plan.width - 1, axis=-1)[:, : plan.width]
        ids = mx.sort(ids, axis=-1)
        logprobs = mx.take_along_axis(logprobs, ids, axis=-1)
    logits = logprobs.astype(mx.float32) * plan.scale
    weights = mx.exp(logits - logits.max(axis=-1, keepdims=True))
    if plan.ranked:
        weights = _truncate(weights, plan)
    if plan.floor:
        weights = mx.where(weights < plan.min_p * weights.max(axis=-1, keepdims=True), 0.0, weights)
    if plan.typical:
        weights = _typical(weights, plan.typical_p)
    mass = mx.cumsum(weights, axis=-1)
    hit = (mass > draws * mass[:, -1:]) & (weights > 0)
    # A scan may round so that nothing is hit; then, and only then, take the likeliest.
    index = mx.where(hit.any(axis=-1), mx.argmax(hit, axis=-1), mx.argmax(weights, axis=-1))
    if ids is None:
        return index
    return mx.take_along_axis(ids, index[:, None], axis=-1)[:, 0]


def _truncate(weights: mx.array, plan: _Plan) -> mx.array:
    """Top-k by rank, top-p by the mass of the better ones. Weights [B, N] of any sum; cut ones become 0."""
    order = mx.argsort(-weights, axis=-1)
    ranked = mx.take_along_axis(weights, order, axis=-1)
    ranked = mx.where(mx.arange(weights.shape[-1])[None] < plan.top_k, ranked, 0.0)
    if plan.nucleus:
        total = ranked.sum(axis=-1, keepdims=True)
        better = mx.cumsum(ranked, axis=-1, inclusive=False)
        # The best one always stays, top_p 0 included; 1 must not cut by rounding.
        keep = (better < plan.top_p * total) | (better == 0) | (plan.top_p >= 1.0)
        ranked = mx.where(keep, ranked, 0.0)
    return mx.put_along_axis(mx.zeros_like(weights), order, ranked, axis=-1)


def _typical(weights: mx.array, typical_p: mx.array) -> mx.array:
    """Keep the tokens whose surprise is nearest to the entropy, up to a mass of typical_p [B, 1]."""
    p = weights / weights.sum(axis=-1, keepdims=True)
    surprise = -mx.log(mx.maximum(p, 1e-30))
    entropy = (p * surprise).sum(axis=-1, keepdims=True)
    order = mx.argsort(mx.where(p > 0, mx.abs(surprise - entropy), mx.inf), axis=-1)
    ranked = mx.take_along_axis(p, order, axis=-1)
    before = mx.cumsum(ranked, axis=-1, inclusive=False)
    keep = (before < typical_p) | (before == 0) | (typical_p >= 1.0)
    kept = mx.where(keep, mx.take_along_axis(weights, order, axis=-1), 0.0)
    return mx.put_along_axis(mx.zeros_like(weights), order, kept, axis=-1)


class Penalties:
    """Repeat, presence and frequency penalties over the last `window` tokens of prompt and answer.

    A logits processor of one row: (tokens [n], logits [1, V]) -> logits [1, V].
    """

    def __init__(self, repeat: float, presence: float, frequency: float, window: int) -> None:
        self.repeat = repeat
        self.presence = presence
        self.frequency = frequency
        self.window = window

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        window = tokens[-self.window :]
        count = mx.zeros((logits.shape[-1],), dtype=logits.dtype).at[window].add(1)[None]
        scaled = mx.where(logits > 0, logits / self.repeat, logits * self.repeat)
        return mx.where(count > 0, scaled - count * self.frequency - self.presence, logits)


def penalties(options: Options, num_ctx: int) -> Penalties | None:
    """The row's penalties, or None when they change nothing. `repeat_last_n` -1 is num_ctx, 0 is off."""
    window = DEFAULTS.repeat_last_n if options.repeat_last_n is None else options.repeat_last_n
    assert window is not None
    window = num_ctx if window < 0 else window
    repeat = _clamp(options.repeat_penalty, DEFAULTS.repeat_penalty, 0.0, 1e4) or 1.0
    presence = _clamp(options.presence_penalty, DEFAULTS.presence_penalty, -1e4, 1e4)
    frequency = _clamp(options.frequency_penalty, DEFAULTS.frequency_penalty, -1e4, 1e4)
    if window == 0 or (repeat == 1.0 and presence == 0.0 and frequency == 0.0):
        return None
    return Penalties(repeat, presence, frequency, window)
