"""Speculative decoding inside the batch: rows write several tokens a step where a draft of them comes true.

A row's draft is read in one call of the model with the token before it, and each drafted token is accepted
while the row would have chosen it anyway: the same processors and the same seeded draw run at every position
as would without a draft, so the text is the same. Rows accept different counts, hence `Ragged`.

Only the rows that write differ from `Batch`: its lanes are `Writers` here, which stand in for mlx_lm's
GenerationBatch. While drafting does not pay they step just as that does, a step ahead of what was read.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
from mlx_lm.generate import GenerationBatch

from mlxo.engine.batch import SLACK, Batch, Job, Out
from mlxo.engine.gain import MOST, Chance, Gauge
from mlxo.engine.prefix import Prefixes
from mlxo.engine.ragged import Ragged
from mlxo.engine.sampling import Row, Rows, measure, sample

_Response = GenerationBatch.Response


class Drafter(Protocol):
    """Where drafts come from. A key is a row's, from `join` to `leave`.

    `steady` is False when the latest `draft` did more than drafting, so that its time tells nothing.
    """

    steady: bool

    def join(self, job: Job) -> None:
        """A row begins to write; it has read its prompt."""

    def feed(self, key: str, tokens: Sequence[int]) -> tuple[int, int]:
        """The row wrote `tokens`: how many drafted ones were right, of how many that were put to the test."""

    def leave(self, key: str) -> None: ...

    def offer(self, key: str, most: int) -> int:
        """How many tokens `draft` would return for the row, at most `most`. Costs nothing."""

    def draft(self, wants: dict[str, int]) -> dict[str, list[int]]:
        """Up to so many tokens that may come next, for each key."""


class _Writer:
    """A row that writes. `tokens` are those that the cache surely holds, `last` the one behind them."""

    def __init__(self, uid: int, job: Job, tokens: list[int], context: Any) -> None:
        self.uid = uid
        self.job = job
        self.tokens = tokens
        # mlx_lm's buffer of all tokens as an array, for the guard.
        self.context = context
        self.last = -1
        self.written = 0
        self.chance = Chance()

    @property
    def room(self) -> int:
        """How many tokens may be drafted: one more always comes of the step itself."""
        cap = MOST if self.job.drafting.most is None else self.job.drafting.most
        return max(0, min(cap, MOST, self.job.limit - self.written - 1))


class _Flight(NamedTuple):
    """A step on its way: `sampled` [cells], `starts[i]` the first cell of writer i, one a drafted token more.

    A writer with a guard has its first cell only; the others follow one by one from `logits` [B, W, V].
    These are None for the end of a prompt: the caches hold no more by it.
    """

    writers: list[_Writer]
    drafts: list[list[int]]
    starts: list[int]
    sampled: mx.array
    logits: mx.array | None

    @property
    def width(self) -> int:
        return 1 + max(map(len, self.drafts))


class Writers:
    """Rows that write together, in place of a `GenerationBatch`, whose names of things it keeps."""

    def __init__(
        self, model: Any, eos: Collection[int], drafter: Drafter, gauge: Gauge, job: Callable[[int], Job]
    ) -> None:
        self._model = model
        self._eos = frozenset(eos)
        self._drafter = drafter
        self._gauge = gauge
        self._job = job
        self._writers: list[_Writer] = []
        self._cache = Ragged(0)
        self._rows = Rows([])
        self._flights: list[_Flight] = []
        self._landed: float | None = None

    def __len__(self) -> int:
        return len(self._writers)

    @property
    def uids(self) -> list[int]:
        return [w.uid for w in self._writers]

    @property
    def tokens(self) -> list[list[int]]:
        return [w.tokens for w in self._writers]

    @property
    def prompt_cache(self) -> list[Any]:
        return [*self._cache.layers, self._rows]

    def extract_cache(self, index: int) -> list[Any]:
        length = len(self._writers[index].tokens)
        return [*self._cache.extract(index, length), self._rows.extract(index)]

    def extend(self, batch: GenerationBatch) -> None:
        """Take rows over whose prompts are read; their first tokens are sampled, lazily."""
        *layers, rows = batch.prompt_cache
        writers = []
        for uid, tokens, context in zip(batch.uids, batch.tokens, batch._token_context, strict=True):
            writers.append(_Writer(uid, self._job(uid), list(tokens), context))
            self._drafter.join(writers[-1].job)
        if not self._writers:
            self._cache = Ragged(len(layers))
        self._cache.extend(layers, [len(w.tokens) for w in writers])
        self._rows.extend(rows)
        self._writers += writers
        cells = list(range(len(writers)))
        self._flights.append(_Flight(writers, [[] for _ in cells], cells, batch._next_tokens, None))
        self.unsteady()

    def filter(self, keep: list[int]) -> None:
        for i in set(range(len(self._writers))) - set(keep):
            self._drafter.leave(self._writers[i].job.key)
        self._writers = [self._writers[i] for i in keep]
        self._cache.filter(keep)
        self._rows.filter(keep)
        if not keep:
            self._flights = []
        self.unsteady()

    def unsteady(self) -> None:
        """Something else ran between two steps: their distance says nothing of their cost."""
        self._landed = None

    def next(self) -> list[Any]:
        """All tokens that the steps on their way come to; the next one is on its way then."""
        if not self._writers:
            return []
        if self._ahead():
            flights, self._flights = self._flights, []
            self._launch(self._lazily(flights), [[] for _ in self._writers])
            return self._land(flights)
        flights, self._flights = self._flights, []
        responses = self._land(flights)
        if self._writers:
            self._launch(mx.array([w.last for w in self._writers]), self._drafts())
        return responses

    # ------------------------------------------------------------ a step out

    def _ahead(self) -> bool:
        """Whether to step once more before reading what the last step said."""
        if any(f.width > 1 for f in self._flights):
            return False
        return self._gauge.width(self._offers()) == 1

    def _offers(self) -> list[tuple[Chance, int]]:
        return [(w.chance, self._drafter.offer(w.job.key, w.room)) for w in self._writers]

    def _drafts(self) -> list[list[int]]:
        """What each row drafts: nothing where that does not pay."""
        offers = self._offers()
        width = self._gauge.width(offers)
        wants = {w.job.key: min(n, width - 1) for w, (_, n) in zip(self._writers, offers, strict=True) if n}
        if width == 1 or not wants:
            return [[] for _ in self._writers]
        drafts = self._drafter.draft(wants)
        if not self._drafter.steady:
            self.unsteady()
        return [drafts.get(w.job.key, []) for w in self._writers]

    def _lazily(self, flights: list[_Flight]) -> mx.array:
        """The last sampled token of every row [B], not read yet. Nothing was drafted."""
        where = {}
        for flight, base in zip(flights, _bases(flights), strict=True):
            where.update({id(w): base + i for i, w in enumerate(flight.writers)})
        sampled = mx.concatenate([f.sampled for f in flights])
        return sampled[mx.array([where[id(w)] for w in self._writers])]

    def _launch(self, first: mx.array, drafts: list[list[int]]) -> None:
        """Start a step: `first` [B] is each row's latest token, its draft what may follow."""
        writers = list(self._writers)
        width = 1 + max(map(len, drafts))
        inputs = first.astype(mx.int32)[:, None]
        if width > 1:
            padded = mx.array([[*d, *[0] * (width - 1 - len(d))] for d in drafts], dtype=mx.int32)
            inputs = mx.concatenate([inputs, padded], axis=1)
        self._cache.open(width)
        logits = self._model(inputs, cache=self._cache.layers)
        for i in range(len(writers)):
            self._cache.lengths[i] += 1
        starts: list[int] = []
        cells: list[int] = []
        rows: list[Row] = []
        for i, (writer, draft) in enumerate(zip(writers, drafts, strict=True)):
            starts.append(len(rows))
            last = 0 if writer.job.guard else len(draft)
            cells += range(i * width, i * width + last + 1)
            rows += [later(writer.job.row, j) for j in range(last + 1)] if width > 1 else [writer.job.row]
        flat = logits.reshape(-1, logits.shape[-1])
        if len(cells) < flat.shape[0]:
            flat = flat[mx.array(cells)]
        flat = self._guarded(flat, starts, first)
        logprobs = flat - mx.logsumexp(flat, axis=-1, keepdims=True)
        sampled = sample(logprobs, self._rows if width == 1 else Rows(rows))
        if width == 1:
            measure(logits[:, 0], sampled, self._rows)
        mx.async_eval(sampled)  # type: ignore[no-untyped-call]
        self._flights.append(_Flight(writers, drafts, starts, sampled, logits))

    def _guarded(self, flat: mx.array, starts: list[int], first: mx.array) -> mx.array:
        """`flat` [cells, V] with the guards' work done in their rows' only cells."""
        if not any(w.job.guard for w in self._writers):
            return flat
        parts = []
        done = 0
        for i, (writer, start) in enumerate(zip(self._writers, starts, strict=True)):
            if writer.job.guard is None:
                continue
            parts += [flat[done:start]] if start > done else []
            context = writer.context.update_and_fetch(first[i : i + 1])
            parts.append(writer.job.guard(context, flat[start : start + 1]))
            done = start + 1
        return mx.concatenate([*parts, flat[done:]])

    # ------------------------------------------------------------ and back

    def _land(self, flights: list[_Flight]) -> list[Any]:
        """Read what the steps said: each row's new tokens, and the rows that are done out of the batch."""
        mx.eval([f.sampled for f in flights])
        self._measure(flights)
        index = {id(w): i for i, w in enumerate(self._writers)}
        responses: list[Any] = []
        finished = []
        for flight in flights:
            sampled: list[int] = flight.sampled.tolist()  # type: ignore[assignment]
            for i, writer in enumerate(flight.writers):
                row = index.get(id(writer))
                if row is None:
                    continue
                fresh = self._accepted(flight, i, sampled)
                if flight.logits is not None:
                    right = len(fresh) - 1
                    writer.tokens += [writer.last, *flight.drafts[i][:right]]
                    self._cache.lengths[row] += right
                    writer.job.drafting.drafted += len(flight.drafts[i])
                    writer.job.drafting.accepted += right
                if self._write(writer, row, fresh, responses):
                    finished.append(row)
        if finished:
            self.filter([i for i in range(len(self._writers)) if i not in finished])
        return responses

    def _measure(self, flights: list[_Flight]) -> None:
        now = time.perf_counter()
        if self._landed is not None and len(flights) == 1 and flights[0].logits is not None:
            self._gauge.note(len(flights[0].writers), flights[0].width, now - self._landed)
        self._landed = now

    def _accepted(self, flight: _Flight, i: int, sampled: list[int]) -> list[int]:
        """The tokens that writer i chose: its draft as far as it is right, and the one behind that."""
        writer, draft, start = flight.writers[i], flight.drafts[i], flight.starts[i]
        guard, row = writer.job.guard, writer.job.row
        fresh = [sampled[start]]
        if flight.logits is None or flight.width == 1:
            return fresh
        for j, drafted in enumerate(draft, 1):
            if fresh[-1] != drafted or drafted in self._eos or (guard and guard.error):
                break
            fresh.append(
                self._choose(writer, drafted, flight.logits[i, j : j + 1], j) if guard else sampled[start + j]
            )
        if row.logprobs is not None:
            measure(flight.logits[i, : len(fresh)], mx.array(fresh), Rows([row] * len(fresh)))
        row.draws += len(fresh)
        return fresh

    def _choose(self, writer: _Writer, token: int, logits: mx.array, draws: int) -> int:
        """What a guarded row chooses behind `token`, from logits [1, V], `draws` draws on."""
        assert writer.job.guard is not None
        context = writer.context.update_and_fetch(mx.array([token], dtype=mx.int32))
        logits = writer.job.guard(context, logits)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        chosen: int = sample(logprobs, Rows([later(writer.job.row, draws)])).item()  # type: ignore[assignment]
        return chosen

    def _write(self, writer: _Writer, row: int, fresh: list[int], responses: list[Any]) -> bool:
        """Report the tokens: whether they end the row. What is accepted behind its end is dropped."""
        job = writer.job
        for token in fresh:
            writer.written += 1
            reason = "length" if writer.written >= job.limit else None
            reason = "stop" if token in self._eos else reason
            if reason is None:
                responses.append(_Response(writer.uid, token, None, None, None, None))
                continue
            cache = self.extract_cache(row) if job.sound else None
            responses.append(_Response(writer.uid, token, None, reason, cache, writer.tokens))
            return True
        writer.last = fresh[-1]
        trial = self._drafter.feed(job.key, fresh)
        writer.chance.note(*trial) if trial[1] else writer.chance.forget()
        return False


def _bases(flights: list[_Flight]) -> list[int]:
    """Where each flight's cells begin among those of all."""
    bases = [0]
    for flight in flights[:-1]:
        bases.append(bases[-1] + flight.sampled.shape[0])
    return bases


def later(row: Row, draws: int) -> Row:
    """A row as it will draw `draws` tokens on."""
    row = copy.copy(row)
    row.draws += draws
    return row


class Speculative(Batch):
    """The batch, with drafts: every lane has a drafter of its own, what steps cost all learn together."""

    shapes = False  # a guard sees every position, the drafted ones too

    def __init__(
        self,
        model: Any,
        eos: Collection[int],
        rows: int,
        chunk: int,
        budget: int,
        prefixes: Prefixes,
        drafter: Callable[[], Drafter],
        slack: int = SLACK,
    ) -> None:
        super().__init__(model, eos, rows, chunk, budget, prefixes, slack)
        self._drafter = drafter
        self._gauge = Gauge()
        self._eos = frozenset(eos)

    def _lane(self) -> Writers:
        return Writers(self._model, self._eos, self._drafter(), self._gauge, self._jobs.__getitem__)

    def step(self) -> list[Out]:
        undisturbed = not self._readers and len(self._lanes) <= 1
        outs = super().step()
        if not undisturbed:
            for lane in self._lanes:
                lane.unsteady()
        return outs
