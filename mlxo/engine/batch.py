"""The continuous batch: rows that step together through mlx_lm's BatchGenerator. Engine thread only."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import mlx.core as mx
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import make_prompt_cache

from mlxo.core.errors import MlxoError
from mlxo.engine.detokenize import one_line
from mlxo.engine.prefix import Prefixes
from mlxo.engine.sampling import Row, Rows, WithRows

Processor = Callable[[mx.array, mx.array], mx.array]


# What library code that runs inside a step may raise; a bug of ours in there counts too.
_FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    MlxoError,
    RuntimeError,
    TypeError,
    ValueError,
)


class Guard:
    """A row's logits processors as one that never raises.

    A raise inside BatchGenerator's step leaves the KV caches of all the other rows one token too long. So the
    error is kept here, the logits pass unchanged, and the engine takes the row out after the step.
    """

    def __init__(self, processors: list[Processor]) -> None:
        self.error: MlxoError | None = None
        self._processors = processors

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        if self.error is not None:
            return logits
        try:
            processed = logits
            for processor in self._processors:
                processed = processor(tokens, processed)
        except _FAULTS as e:
            failed = f"the answer could not be shaped: {one_line(e) or type(e).__name__}"
            self.error = e if isinstance(e, MlxoError) else MlxoError(failed)
            return logits
        return processed


class Job(NamedTuple):
    """What a back end must know of a sequence. `ids` is the whole prompt; neither it nor `limit` is empty."""

    key: str
    ids: list[int]
    limit: int
    row: Row
    guard: Guard | None

    @property
    def sound(self) -> bool:
        """Whether what it read and wrote may be resumed from."""
        return self.guard is None or self.guard.error is None


class Out(NamedTuple):
    """One token of job `key`. `reason` is "stop" (then `token` is an end token, to be ignored), "length" or
    None.
    """

    key: str
    token: int
    reason: str | None


class Batch:
    """Rows join first come, first served, and leave between two steps.

    `chunk` bounds the prompt tokens of one row a step, and `budget` those of all rows, padding included: so
    they bound how long prompts may hold up the rows that write. While none writes both are doubled.
    """

    def __init__(
        self, model: Any, eos: Collection[int], rows: int, chunk: int, budget: int, prefixes: Prefixes
    ) -> None:
        self._model = model
        self._eos = [[t] for t in sorted(eos)]
        self._rows = rows
        self._chunk = chunk
        self._budget = budget
        self._prefixes = prefixes
        self._jobs: dict[int, Job] = {}
        self._uids: dict[str, int] = {}
        self._prefilling: dict[int, int] = {}
        self._waiting: deque[Job] = deque()
        self._with_rows = WithRows(model)
        self._generator = self._fresh()

    def _fresh(self) -> BatchGenerator:
        return BatchGenerator(
            self._with_rows,
            stop_tokens=self._eos,
            sampler=self._with_rows.sample,
            completion_batch_size=self._rows,
            prefill_batch_size=self._rows,
            prefill_step_size=2 * self._chunk,
        )

    def __len__(self) -> int:
        return len(self._uids)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def add(self, job: Job) -> None:
        self._waiting.append(job)

    def remove(self, key: str) -> None:
        """Take a job out, wherever it is. An unknown key is no error: it may just have finished."""
        uid = self._uids.get(key)
        if uid is None:
            self._waiting = deque(j for j in self._waiting if j.key != key)
            return
        job = self._forget(uid)
        with mx.stream(self._generator.stream):
            kept = self._generator.remove([uid], return_prompt_caches=job.sound)
            for cache, tokens in kept.values():
                self._prefixes.keep(tokens, cache[:-1])

    def _forget(self, uid: int) -> Job:
        job = self._jobs.pop(uid)
        del self._uids[job.key]
        self._prefilling.pop(uid, None)
        return job

    @property
    def _wide(self) -> int:
        """2 while every row still reads its prompt, else 1."""
        return 1 if len(self._prefilling) < len(self._uids) else 2

    def admit(self) -> dict[str, int]:
        """Let waiting jobs join while there are rows and prompt budget. One always may, if none prefills.

        Their keys in order, and how many tokens of each prompt were in the prefix cache.
        """
        joined = {}
        while self._waiting and len(self._uids) < self._rows:
            job = self._waiting[0]
            wide = self._wide
            width = max(min(len(job.ids), wide * self._chunk), *self._prefilling.values(), 0)
            if self._prefilling and width * (len(self._prefilling) + 1) > wide * self._budget:
                break
            self._waiting.popleft()
            cache, cached = self._prefixes.take(job.ids)
            (uid,) = self._generator.insert(
                [job.ids[cached:]],
                max_tokens=[job.limit],
                caches=[[*(cache or make_prompt_cache(self._model)), Rows([job.row])]],
                all_tokens=[job.ids[:cached]],
                logits_processors=[[job.guard] if job.guard else None],
            )
            self._jobs[uid] = job
            self._uids[job.key] = uid
            self._prefilling[uid] = min(len(job.ids) - cached, wide * self._chunk)
            joined[job.key] = cached
        return joined

    def step(self) -> list[Out]:
        """One token for every row that writes, and one chunk for those that still read their prompt.

        Raises whatever the model raises; then the batch is of no use until `reset`.
        """
        self._generator.prefill_step_size = self._wide * self._chunk
        prompts, tokens = self._generator.next()
        for p in prompts:
            if p.end_of_prompt:
                self._prefilling.pop(p.uid, None)
        outs = []
        for t in tokens:
            outs.append(Out(self._jobs[t.uid].key, t.token, t.finish_reason))
            if t.finish_reason is not None and self._forget(t.uid).sound:
                with mx.stream(self._generator.stream):
                    self._prefixes.keep(t.all_tokens, t.prompt_cache[:-1])
        return outs

    def reset(self) -> list[str]:
        """Drop every row and all prefixes, start a new generator; the keys of the rows.

        Jobs that wait go on waiting.
        """
        running = list(self._uids)
        self.close()
        self._jobs.clear()
        self._uids.clear()
        self._prefilling.clear()
        # The latest entries may hang on the very step that failed.
        self._prefixes.clear()
        mx.clear_cache()
        self._generator = self._fresh()
        return running

    def close(self) -> None:
        self._generator.close()
