"""What a request does to the model's logits before anything is drawn: logit_bias, then penalties.

Both ride in the rows and are one call for all of them. Penalties look at the last `window` tokens of prompt
and answer. Those of the answer are on the device and may not be known here yet: so each row's past stays
there, as a line of the array that its batch wrote at the latest step. Only the logits of those tokens change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import mlx.core as mx

from mlxo.core.errors import InvalidRequest
from mlxo.core.options import DEFAULTS, Options, clamped


class Penalties(NamedTuple):
    """Repeat, presence and frequency penalties over the last `window` tokens, at least one."""

    repeat: float
    presence: float
    frequency: float
    window: int

    def apply(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """As a logits processor of one row: tokens [n], logits [1, V] -> [1, V]."""
        return Penalising([self], [0], 1, len(tokens))(logits, tokens[None])


class Bias(NamedTuple):
    """What is added to the logits of some tokens."""

    values: Mapping[int, float]

    def apply(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """As a logits processor of one row: logits [1, V] -> [1, V]."""
        del tokens
        return Biasing([self], [0])(logits)


class Shape(NamedTuple):
    """What is done to the logits of one row. Empty: nothing."""

    bias: Bias | None = None
    penalties: Penalties | None = None

    @property
    def steps(self) -> list[Callable[[mx.array, mx.array], mx.array]]:
        """In order, as logits processors, for a back end that does not shape all rows at once."""
        return [*filter(None, (self.bias and self.bias.apply, self.penalties and self.penalties.apply))]


def shape(options: Options, bias: Mapping[int, float], longest: int, vocabulary: int) -> Shape:
    """Raises InvalidRequest for a bias of no token. `longest`: what prompt and answer may come to."""
    for token in bias:
        if not 0 <= token < vocabulary:
            raise InvalidRequest(
                f"logit_bias names token {token}, which this model does not have", f"it has {vocabulary}"
            )
    return Shape(Bias(bias) if bias else None, _penalties(options, longest))


def _penalties(options: Options, longest: int) -> Penalties | None:
    """None when they change nothing. `repeat_last_n` -1 looks back at everything, 0 is off."""
    window = DEFAULTS.repeat_last_n if options.repeat_last_n is None else options.repeat_last_n
    assert window is not None
    window = longest if window < 0 else min(window, longest)
    repeat = clamped(options.repeat_penalty, DEFAULTS.repeat_penalty, 0.0, 1e4) or 1.0
    presence = clamped(options.presence_penalty, DEFAULTS.presence_penalty, -1e4, 1e4)
    frequency = clamped(options.frequency_penalty, DEFAULTS.frequency_penalty, -1e4, 1e4)
    if window == 0 or (repeat == 1.0 and presence == 0.0 and frequency == 0.0):
        return None
    return Penalties(repeat, presence, frequency, window)


class Biasing:
    """The biases of a batch: `places[i]` is the row of `biases[i]`."""

    def __init__(self, biases: Sequence[Bias], places: Sequence[int]) -> None:
        entries = [(p, t, v) for p, b in zip(places, biases, strict=True) for t, v in b.values.items()]
        rows, tokens, values = zip(*entries, strict=True)
        self._rows, self._tokens, self._values = mx.array(rows), mx.array(tokens), mx.array(values)

    def __call__(self, logits: mx.array) -> mx.array:
        """[B, V] -> [B, V]"""
        return logits.at[self._rows, self._tokens].add(self._values.astype(logits.dtype))


class Penalising:
    """The penalties of a batch of `count` rows: `places[i]` is the row of `penalties[i]`.

    `width` W is how far back they look: the widest window, or less where there is less to see.
    """

    def __init__(
        self, penalties: Sequence[Penalties], places: Sequence[int], count: int, width: int = 1 << 30
    ) -> None:
        self.width = min(width, max(p.window for p in penalties))
        self._places = None if len(places) == count else mx.array(list(places))
        self._repeat = mx.array([[p.repeat] for p in penalties])
        self._presence = mx.array([[p.presence] for p in penalties])
        self._frequency = mx.array([[p.frequency] for p in penalties])
        self._counts = any(p.frequency for p in penalties)
        far = mx.array([[self.width - p.window] for p in penalties])
        self._near = mx.arange(self.width)[None] >= far

    def __call__(self, logits: mx.array, past: mx.array) -> mx.array:
        """Logits [B, V] -> [B, V]. `past` [P, >= W]: token ids, the latest last; -1 where there was none."""
        some = logits if self._places is None else logits[self._places]
        past = past[:, -self.width :].astype(mx.int32)
        seen = (past >= 0) & self._near
        # What is not seen stands for the latest token, which always is: it is written there once more.
        tokens = mx.where(seen, past, past[:, -1:])
        values = mx.take_along_axis(some, tokens, axis=-1).astype(mx.float32)
        lowered = mx.where(values > 0, values / self._repeat, values * self._repeat) - self._presence
        if self._counts:
            lowered = lowered - self._frequency * self._count(tokens, seen, some.shape)
        some = mx.put_along_axis(some, tokens, lowered.astype(some.dtype), axis=-1)
        if self._places is None:
            return some
        whole = logits[:]
        whole[self._places] = some
        return whole

    def _count(self, tokens: mx.array, seen: mx.array, shape: Sequence[int]) -> mx.array:
        """How often each of `tokens` [P, W] was seen in its row."""
        rows = mx.arange(shape[0])[:, None]
        counts = mx.zeros(shape).at[rows, tokens].add(seen.astype(mx.float32))
        return mx.take_along_axis(counts, tokens, axis=-1)


class Past:
    """The latest tokens of one row: on the device once it has drawn one, until then the end of its prompt."""

    __slots__ = ("_array", "_index", "_prompt")

    def __init__(self, prompt: Sequence[int], window: int) -> None:
        self._prompt = list(prompt[-window:])
        self._array: mx.array | None = None
        self._index = 0

    def line(self, width: int) -> mx.array:
        """[width] token ids, -1 in front where there are fewer."""
        found = mx.array(self._prompt, dtype=mx.int32) if self._array is None else self._array[self._index]
        found = found[-width:]
        return mx.pad(found, (width - found.shape[0], 0), constant_values=mx.array(-1))

    @staticmethod
    def stacked(pasts: Sequence[Past], width: int) -> mx.array:
        """[P, width]: without any work when they were the rows of the latest step."""
        array = pasts[0]._array
        if array is not None and array.shape == (len(pasts), width):
            latest = all(p._array is array and p._index == i for i, p in enumerate(pasts))
            if latest:
                return array
        return mx.stack([p.line(width) for p in pasts])

    @staticmethod
    def extend(pasts: Sequence[Past], array: mx.array, tokens: mx.array) -> None:
        """`array` is what `stacked` gave, `tokens` [P] were drawn since."""
        array = mx.concatenate([array[:, 1:], tokens.astype(mx.int32)[:, None]], axis=1)
        for i, past in enumerate(pasts):
            past._array, past._index = array, i
