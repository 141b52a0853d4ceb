"""Sequences whose KV caches cannot be merged into a batch, side by side: each takes its own step a turn.

Used for a whole model or not at all (whether caches merge is a property of the model). Same interface as
`Batch`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Generator
from typing import Any, NamedTuple

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import QuantizedKVCache, make_prompt_cache

from mlxo.engine.batch import Job, Out
from mlxo.engine.memory import Memory
from mlxo.engine.prefix import Prefixes
from mlxo.engine.sampling import Rows, WithRows


def mergeable(caches: list[Any]) -> bool:
    """Whether sequences with these layer caches can share a batch. A CacheList is as good as its children."""
    return all(
        type(c) is QuantizedKVCache or (hasattr(c, "merge") and mergeable(list(getattr(c, "caches", ()))))
        for c in caches
    )


class _Running(NamedTuple):
    """`tokens` are those that `cache` holds."""

    job: Job
    tokens: list[int]
    cache: list[Any]
    steps: Generator[Out | None, None, None]


class Solo:
    memory: Memory | None = None
    shapes = True

    def __init__(self, model: Any, eos: Collection[int], rows: int, chunk: int, prefixes: Prefixes) -> None:
        self._model = model
        self._eos = frozenset(eos)
        self._rows = rows
        self._chunk = chunk
        self._prefixes = prefixes
        self._running: dict[str, _Running] = {}
        self._waiting: deque[Job] = deque()

    def __len__(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def add(self, job: Job) -> None:
        self._waiting.append(job)

    def remove(self, key: str) -> None:
        running = self._running.pop(key, None)
        if self.memory:
            self.memory.leave(key)
        if running is None:
            self._waiting = deque(j for j in self._waiting if j.key != key)
            return
        running.steps.close()
        if running.job.sound:
            self._prefixes.keep(running.tokens, running.cache)

    def admit(self) -> dict[str, int]:
        joined = {}
        while self._waiting and len(self._running) < self._rows:
            job = self._waiting[0]
            if self.memory:
                if not self.memory.admits(len(job.ids), job.limit):
                    break
                self.memory.join(job.key, len(job.ids), job.limit)
            self._waiting.popleft()
            found, cached = self._prefixes.take(job.ids)
            cache, tokens = found or make_prompt_cache(self._model), job.ids[:cached]
            self._running[job.key] = _Running(job, tokens, cache, self._run(job, tokens, cache))
            joined[job.key] = cached
        return joined

    def narrow(self) -> bool:
        """Read in smaller pieces from now on; False: they are as small as they get."""
        before, self._chunk = self._chunk, max(1, self._chunk // 2)
        return self._chunk < before

    def step(self) -> list[Out]:
        """One token, or one chunk of its prompt, for every sequence."""
        outs = []
        for key, running in list(self._running.items()):
            out = next(running.steps)
            if out is None:
                continue
            outs.append(out)
            if out.reason is not None:
                self.remove(key)
        return outs

    def _run(self, job: Job, fed: list[int], cache: list[Any]) -> Generator[Out | None, None, None]:
        """None after each chunk of the prompt but the last, then the tokens. `cache` holds `fed`, always."""
        done, last = len(fed), len(job.ids) - 1
        marks = self._prefixes.marks(job.ids, done)
        while marks or last - done > self._chunk:
            end = min([done + self._chunk, *marks[:1]])
            self._model(mx.array(job.ids[done:end])[None], cache=cache)
            mx.eval([c.state for c in cache])
            mx.clear_cache()
            done = end
            fed[:] = job.ids[:done]
            if marks[:1] == [done]:
                del marks[0]
                self._prefixes.keep(fed, cache)
            yield None
        before = mx.array(job.ids[:done], dtype=mx.int32)
        guard = job.guard
        model = WithRows(self._model)

        def with_prompt(tokens: mx.array, logits: mx.array) -> mx.array:
            assert guard is not None
            return guard(mx.concatenate([before, tokens.astype(mx.int32)]), logits)

        tokens = generate_step(
            mx.array(job.ids[done:]),
            model,
            max_tokens=job.limit,
            sampler=model.sample,
            logits_processors=[with_prompt] if guard else None,
            prompt_cache=[*cache, Rows([job.row])],
        )
        for count, (token, _) in enumerate(tokens, 1):
            # generate_step feeds a token before it yields it.
            fed += [token] if count > 1 else [*job.ids[done:], token]
            reason = "stop" if token in self._eos else "length" if count == job.limit else None
            yield Out(job.key, token, reason, job.row.scores())

    def reset(self) -> list[str]:
        gone = list(self._running)
        for key, running in self._running.items():
            running.steps.close()
            if self.memory:
                self.memory.leave(key)
        self._running.clear()
        self._prefixes.clear()
        mx.clear_cache()
        return gone

    def close(self) -> None:
        self.reset()
