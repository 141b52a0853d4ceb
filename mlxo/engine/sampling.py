"""Choosing the next token: Ollama's options, vectorised over the rows of a batch.

The order is Ollama's: logit_bias, penalties, temperature 0 is argmax, top-k, softmax under the temperature,
typical-p, top-p, min-p, XTC, one draw. Each is one call for the whole batch. For that call to know which row
is which, `Rows` rides as one more entry at the end of the list of layer caches, where mlx_lm merges, filters
and extends it in step with the KV caches; `WithRows` takes it off again before the model sees the list.

A draw takes one uniform number, made from (seed, how many tokens the row has drawn), and inverts the
cumulative distribution in the order of token ids. So a row's text depends on its own seed and options
alone, not on its neighbours. XTC takes a second one.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import Any, Self

import mlx.core as mx

from mlxo.core.options import DEFAULTS, Options, clamped
from mlxo.engine.logprobs import Measured, Scores
from mlxo.engine.shaping import Biasing, Past, Penalising, Shape
from mlxo.engine.topk import top_k

_MASK = (1 << 64) - 1


def _mix(x: int) -> int:
    """The finaliser of SplitMix64: a bijection of 64 bits in which every input bit moves every output bit."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def uniform(key: int, draw: int) -> float:
    """The `draw`-th number of the sequence of `key`, a mixed seed, in [0, 1), a multiple of 2**-23.

    With 23 bits the product with a float32 total always rounds below the total.
    """
    return (_mix((key + draw * 0x9E3779B97F4A7C15) & _MASK) >> 41) / (1 << 23)


_NOTHING = Shape()


class Row:
    """How one sequence draws. `draws` counts the tokens it has drawn; everything else is fixed.

    Values out of range are clamped as Ollama does, so that nothing can fail later. `top_k` 0 means all
    tokens. `logprobs` is how many alternatives of each token are told, None when nothing is. `prompt` is what
    penalties look back at.
    """

    __slots__ = (
        "bias",
        "draws",
        "key",
        "logprobs",
        "measured",
        "min_p",
        "past",
        "penalties",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
        "xtc_probability",
        "xtc_threshold",
    )

    def __init__(
        self,
        options: Options,
        logprobs: int | None = None,
        shape: Shape = _NOTHING,
        prompt: Sequence[int] = (),
    ) -> None:
        self.logprobs = logprobs
        # One for each token drawn and not yet told: a step's scores and the row's place in them.
        self.measured: deque[tuple[Measured, int]] = deque()
        self.bias, self.penalties = shape
        self.past = Past(prompt, shape.penalties.window if shape.penalties else 0)
        seed = DEFAULTS.seed if options.seed is None else options.seed
        self.key = _mix((random.getrandbits(63) if seed == -1 else (seed or 0)) & _MASK)
        self.draws = 0
        temperature = clamped(options.temperature, DEFAULTS.temperature, 0.0, 1e4)
        self.temperature = temperature if temperature > 1e-5 else 0.0
        self.top_k = int(clamped(options.top_k, DEFAULTS.top_k, 0, 1 << 30))
        self.top_p = clamped(options.top_p, DEFAULTS.top_p, 0.0, 1.0)
        self.min_p = clamped(options.min_p, DEFAULTS.min_p, 0.0, 1.0)
        self.typical_p = clamped(options.typical_p, DEFAULTS.typical_p, 0.0, 1.0)
        self.xtc_probability = clamped(options.xtc_probability, DEFAULTS.xtc_probability, 0.0, 1.0)
        self.xtc_threshold = clamped(options.xtc_threshold, DEFAULTS.xtc_threshold, 0.0, 1.0)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0 or self.top_k == 1

    def scores(self) -> Scores | None:
        """Those of the row's next token, in the order of drawing; None when they are not wanted."""
        if self.logprobs is None:
            return None
        measured, place = self.measured.popleft()
        return measured.scores(place, self.logprobs)


class _Plan:
    """The rows' options as arrays [B, 1], made once for a set of rows and reused until the set changes."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.scored = [i for i, r in enumerate(rows) if r.logprobs is not None]
        self.alternatives = max((r.logprobs or 0 for r in rows), default=0)
        biased = {i: r.bias for i, r in enumerate(rows) if r.bias is not None}
        self.biasing = Biasing(list(biased.values()), list(biased)) if biased else None
        penalised = {i: r.penalties for i, r in enumerate(rows) if r.penalties is not None}
        self.pasts = [rows[i].past for i in penalised]
        self.penalised = mx.array(list(penalised)) if penalised else None
        self.penalising = (
            Penalising(list(penalised.values()), list(penalised), len(rows)) if penalised else None
        )
        self.plain = not (self.scored or biased or penalised)
        self.groups = _groups(rows)


class _Group:
    """Rows of a batch that draw alike, their options as arrays [G, 1]. `places` is None for all rows.

    `width` is how many candidates of a row there are: 1 takes the likeliest, 0 is the whole vocabulary.
    """

    def __init__(self, batch: Sequence[Row], places: Sequence[int], width: int) -> None:
        self.rows = rows = [batch[i] for i in places]
        self.places = None if len(rows) == len(batch) else mx.array(list(places))
        self.width = width
        if width == 1:
            return
        self.cut = any(r.top_k not in (0, width) for r in rows)
        self.nucleus = any(r.top_p < 1.0 for r in rows)
        self.floor = any(r.min_p > 0.0 for r in rows)
        self.typical = any(r.typical_p < 1.0 for r in rows)
        # Above a threshold of a half there are no two to choose from.
        self.xtc = any(r.xtc_probability > 0.0 and r.xtc_threshold <= 0.5 for r in rows)
        self.scale = mx.array([[1.0 / r.temperature] for r in rows])
        self.top_k = mx.array([[r.top_k or 1 << 30] for r in rows])
        self.top_p = mx.array([[r.top_p] for r in rows])
        self.min_p = mx.array([[r.min_p] for r in rows])
        self.typical_p = mx.array([[r.typical_p] for r in rows])
        self.xtc_threshold = mx.array([[r.xtc_threshold] for r in rows])


_NARROW = 128  # candidates: more of them cost as much as the whole vocabulary


def _groups(rows: Sequence[Row]) -> list[_Group]:
    """Rows apart whose draws cost differently, so that nobody pays for a neighbour's options."""
    kinds: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        wide = row.top_k == 0 or row.top_k > _NARROW
        kinds.setdefault("greedy" if row.greedy else "wide" if wide else "narrow", []).append(i)
    groups = []
    for kind, places in kinds.items():
        width = 1
        if kind != "greedy":
            counts = [rows[i].top_k for i in places]
            width = 0 if 0 in counts else max(counts)
        groups.append(_Group(rows, places, width))
    return groups


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
    """A model whose last cache is `Rows`. Its logits come out as the rows of that call want them shaped.

    Of the latest call it keeps what the sampler that follows it must know.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.layers = model.layers
        self.rows = Rows([])
        self._logits: mx.array | None = None
        self._past: mx.array | None = None

    def __call__(self, inputs: mx.array, cache: list[Any]) -> mx.array:
        self.rows = cache[-1]
        self._logits = self._past = None
        logits: mx.array = self.model(inputs, cache=cache[:-1])
        # Longer inputs are a piece of a prompt: nothing is drawn then.
        if inputs.shape[1] > 1 or self.rows.plan.plain:
            return logits
        plan = self.rows.plan
        shaped = logits[:, -1]
        self._logits = shaped if plan.scored else None
        if plan.biasing is not None:
            shaped = plan.biasing(shaped)
        if plan.penalising is not None:
            self._past = Past.stacked(plan.pasts, plan.penalising.width)
            shaped = plan.penalising(shaped, self._past)
        return shaped[:, None]

    def sample(self, logprobs: mx.array) -> mx.array:
        """[B, V] -> [B] token ids, for the rows of the latest call. Never raises nor waits for the device."""
        tokens = sample(logprobs, self.rows)
        plan = self.rows.plan
        if self._logits is not None:
            measure(self._logits, tokens, self.rows)
        if self._past is not None and plan.penalised is not None:
            Past.extend(plan.pasts, self._past, tokens[plan.penalised])
        self._logits = self._past = None
        return tokens


def measure(logits: mx.array, tokens: mx.array, rows: Rows) -> None:
    """Note how likely the model's own `logits` [B, V] made the `tokens` [B], for the rows that asked."""
    plan = rows.plan
    if not plan.scored:
        return
    if len(plan.scored) < len(rows.rows):
        some = mx.array(plan.scored)
        logits, tokens = logits[some], tokens[some]
    measured = Measured(logits, tokens, plan.alternatives)
    for place, i in enumerate(plan.scored):
        rows.rows[i].measured.append((measured, place))


def sample(logprobs: mx.array, rows: Rows) -> mx.array:
    """[B, V] log-probabilities -> [B] token ids, lazily; counts one draw for every row."""
    groups = rows.plan.groups
    drawn = [_chosen(logprobs if g.places is None else logprobs[g.places], g) for g in groups]
    for row in rows.rows:
        row.draws += 1
    if len(groups) == 1:
        return drawn[0]
    tokens = mx.zeros((len(rows.rows),), dtype=mx.uint32)
    for group, some in zip(groups, drawn, strict=True):
        assert group.places is not None
        tokens[group.places] = some
    return tokens


def _chosen(logprobs: mx.array, group: _Group) -> mx.array:
    """[G, V] -> [G]"""
    return mx.argmax(logprobs, axis=-1) if group.width == 1 else _draw(logprobs, group)


def _draw(logprobs: mx.array, plan: _Group) -> mx.array:
    """[G, V] -> [G] token ids, out of each row's `width` likeliest."""
    ids: mx.array | None = None
    if 0 < plan.width < logprobs.shape[-1]:
        ids = mx.sort(top_k(logprobs, plan.width), axis=-1)
        logprobs = mx.take_along_axis(logprobs, ids, axis=-1)
    logprobs = logprobs.astype(mx.float32)
    scaled = logprobs * plan.scale
    weights = mx.exp(scaled - scaled.max(axis=-1, keepdims=True))
    weights = _truncated(weights, plan)
    if plan.floor:
        weights = mx.where(weights < plan.min_p * weights.max(axis=-1, keepdims=True), 0.0, weights)
    if plan.xtc:
        weights = _without_top_choices(weights, logprobs, plan)
    draws = mx.array([uniform(r.key, r.draws) for r in plan.rows])[:, None]
    mass = mx.cumsum(weights, axis=-1)
    hit = (mass > draws * mass[:, -1:]) & (weights > 0)
    # A scan may round so that nothing is hit; then, and only then, take the likeliest.
    index = mx.where(hit.any(axis=-1), mx.argmax(hit, axis=-1), mx.argmax(weights, axis=-1))
    if ids is None:
        return index
    return mx.take_along_axis(ids, index[:, None], axis=-1)[:, 0]


def _truncated(weights: mx.array, plan: _Group) -> mx.array:
    """Top-k by rank, typical-p, top-p by the mass of the better ones. Weights [B, N] of any sum; cut ones
    become 0.
    """
    if not plan.cut and not plan.nucleus:
        return _typical(weights, plan.typical_p) if plan.typical else weights
    order = mx.argsort(-weights, axis=-1)
    ranked = mx.take_along_axis(weights, order, axis=-1)
    if plan.cut:
        ranked = mx.where(mx.arange(weights.shape[-1])[None] < plan.top_k, ranked, 0.0)
    if plan.typical:
        ranked = _typical(ranked, plan.typical_p)
    if plan.nucleus:
        total = ranked.sum(axis=-1, keepdims=True)
        better = mx.cumsum(ranked, axis=-1, inclusive=False)
        # The best one always stays, top_p 0 included; 1 must not cut by rounding.
        keep = (better < plan.top_p * total) | (better == 0) | (plan.top_p >= 1.0)
        ranked = mx.where(keep, ranked, 0.0)
    return mx.put_along_axis(mx.zeros_like(weights), order, ranked, axis=-1)


def _without_top_choices(weights: mx.array, logprobs: mx.array, plan: _Group) -> mx.array:
    """XTC (https://github.com/oobabooga/text-generation-webui/pull/6335), where llama.cpp has it.

    By a chance of xtc_probability all choices at or above the threshold go, but the least likely of them.
    The probabilities are those before the temperature, of what is left [B, N].
    """
    # The second number of this draw: far from any that a first one takes.
    chances = [uniform(r.key, r.draws + (1 << 62)) for r in plan.rows]
    happens = mx.array(
        [
            [r.xtc_threshold <= 0.5 and chance < r.xtc_probability]
            for r, chance in zip(plan.rows, chances, strict=True)
        ]
    )
    left = mx.where(weights > 0, logprobs, -mx.inf)
    p = mx.softmax(left, axis=-1)
    top = p >= plan.xtc_threshold
    least = mx.where(top, p, mx.inf).min(axis=-1, keepdims=True)
    return mx.where(happens & top & (p > least), 0.0, weights)


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
