"""Sequences whose KV caches cannot be merged into a batch, side by side: each takes its own step a turn.

Used for a whole model or not at all (whether caches merge is a property of the model). Same interface as
`Batch`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Generator
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache

from mlxo.engine.batch import Job, Out
from mlxo.engine.sampling import Rows, sample


def mergeable(caches: list[Any]) -> bool:
    """Whether sequences with these layer caches can share a batch. A CacheList is as good as its children."""
    return all(hasattr(c, "merge") and mergeable(list(getattr(c, "caches", ()))) for c in caches)


class Solo:
    def __init__(self, model: Any, eos: Collection[int], rows: int, chunk: int) -> None:
        self._model = model
        self._eos = frozenset(eos)
        self._rows = rows
        self._chunk = chunk
        self._running: dict[str, Generator[Out | None, None, None]] = {}
        self._waiting: deque[Job] = deque()

    def __len__(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def add(self, job: Job) -> None:
        self._waiting.append(job)

    def remove(self, key: str) -> None:
        generator = self._running.pop(key, None)
        if generator is None:
            self._waiting = deque(j for j in self._waiting if j.key != key)
        else:
            generator.close()

    def admit(self) -> list[str]:
        joined = []
        while self._waiting and len(self._running) < self._rows:
            job = self._waiting.popleft()
            self._running[job.key] = self._run(job)
            joined.append(job.key)
        return joined

    def step(self) -> list[Out]:
        """One token, or one chunk of its prompt, for every sequence."""
        outs = []
        for key, generator in list(self._running.items()):
            out = next(generator)
            if out is None:
                continue
            outs.append(out)
            if out.reason is not None:
                del self._running[key]
                generator.close()
        return outs

    def _run(self, job: Job) -> Generator[Out | None, None, None]:
        """None after each chunk of the prompt but the last, then the tokens."""
        cache = make_prompt_cache(self._model)
        done, last = 0, len(job.ids) - 1
        while last - done > self._chunk:
            self._model(mx.array(job.ids[done : done + self._chunk])[None], cache=cache)
            mx.eval([c.state for c in cache])
            mx.clear_cache()
            done += self._chunk
            yield None
        before = mx.array(job.ids[:done], dtype=mx.int32)
        guard = job.guard
        rows = Rows([job.row])

        def with_prompt(tokens: mx.array, logits: mx.array) -> mx.array:
            assert guard is not None
            return guard(mx.concatenate([before, tokens.astype(mx.int32)]), logits)

        tokens = generate_step(
            mx.array(job.ids[done:]),
            self._model,
            max_tokens=job.limit,
            sampler=lambda logprobs: sample(logprobs, rows),
            logits_processors=[with_prompt] if guard else None,
            prompt_cache=cache,
        )
        for count, (token, _) in enumerate(tokens, 1):
            reason = "stop" if token in self._eos else "length" if count == job.limit else None
            yield Out(job.key, token, reason)

    def reset(self) -> list[str]:
        running = list(self._running)
        for generator in self._running.values():
            generator.close()
        self._running.clear()
        mx.clear_cache()
        return running

    def close(self) -> None:
        self.reset()
