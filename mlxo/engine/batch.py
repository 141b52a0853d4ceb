"""The continuous batch: rows join and leave between steps, read their prompts in pieces and write together.

A step writes one token of every row that writes and then reads one piece of one prompt, or of a few short
ones. Rows write together as long as they are about equally long, else in lanes: a cache of several rows is as
long as its longest, and all others pay for that in memory and time. Engine thread only.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import mlx.core as mx
from mlx_lm.generate import StopSequences
from mlx_lm.models.cache import make_prompt_cache

from mlxo.core.errors import MlxoError
from mlxo.engine.detokenize import one_line
from mlxo.engine.lane import Lane
from mlxo.engine.logprobs import Scores
from mlxo.engine.memory import Memory
from mlxo.engine.pace import Pace
from mlxo.engine.prefix import Prefixes
from mlxo.engine.reader import Reader
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


class Drafting:
    """How many tokens of a sequence were drafted, and how many of those it took. `most` caps one draft."""

    __slots__ = ("accepted", "drafted", "most")

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self.drafted = 0
        self.accepted = 0


class Job(NamedTuple):
    """What a back end must know of a sequence. `ids` is the whole prompt; neither it nor `limit` is empty."""

    key: str
    ids: list[int]
    limit: int
    row: Row
    guard: Guard | None
    drafting: Drafting

    @property
    def sound(self) -> bool:
        """Whether what it read and wrote may be resumed from."""
        return self.guard is None or self.guard.error is None


class Out(NamedTuple):
    """One token of job `key`. `reason` is "stop" (then `token` is an end token, to be ignored), "length" or
    None. `scores` tells how likely it was, when the job's row wants to know.
    """

    key: str
    token: int
    reason: str | None
    scores: Scores | None = None


# Tokens of padding that a lane may hold in all, where nobody knows what they cost.
SLACK = 4096
_FAIR = 4  # every so many pieces are of the prompt that came first, not of the one that is soonest done
_CLEAR = 512  # steps between two times that MLX's freed buffers go back to the system


class Batch:
    """Rows join first come, first served.

    A prompt of up to two chunks is short: such prompts are read together, at most 2 `budget` tokens of them,
    padding included. Others are read by themselves, at a pace that keeps up that of the rows that write.
    `slack` bounds the padding of a lane, in tokens.
    """

    memory: Memory | None = None
    # Whether pieces of unlike widths cost more than padding: on CUDA MLX plans anew for every shape, which
    # takes as long as reading some thousand tokens.
    even = False
    shapes = True  # the rows' penalties and biases are its own affair, and no processors

    def __init__(
        self,
        model: Any,
        eos: Collection[int],
        rows: int,
        chunk: int,
        budget: int,
        prefixes: Prefixes,
        slack: int = SLACK,
    ) -> None:
        self._model = model
        self._endings = StopSequences([[t] for t in sorted(eos)] or None)
        self._rows = rows
        self._chunk = chunk
        self._budget = budget
        self._prefixes = prefixes
        self._slack = slack
        self._jobs: dict[int, Job] = {}
        self._uids: dict[str, int] = {}
        self._marks: dict[int, list[int]] = {}  # where the reading of a prompt pauses for the prefix cache
        self._begun: dict[int, int] = {}  # how much of it was cached
        self._next = 0
        self._turns = 0
        self._waiting: deque[Job] = deque()
        self._with_rows = WithRows(model)
        # One object: a GenerationBatch whose rows share it calls it once for all.
        self._sample = self._with_rows.sample
        self._pace = Pace(chunk)
        self._readers: list[Reader] = []  # the eldest first
        self._lanes: list[Any] = []
        # When the last step ended that only wrote, and how many rows it wrote.
        self._ended = (0.0, 0)

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
        for reader in self._readers:
            if uid in reader.uids:
                i = reader.uids.index(uid)
                # What has read nothing may be in caches that hold nothing, which cannot be taken apart.
                if job.sound and reader.tokens[i]:
                    self._prefixes.keep(reader.tokens[i], reader.extract(i))
                reader.drop(i)
        for lane in self._lanes:
            if uid in lane.uids:
                i = lane.uids.index(uid)
                if job.sound:
                    self._prefixes.keep(lane.tokens[i], lane.extract_cache(i)[:-1])
                lane.filter([j for j in range(len(lane)) if j != i])
        self._tidy()

    def _forget(self, uid: int) -> Job:
        job = self._jobs.pop(uid)
        del self._uids[job.key]
        del self._marks[uid], self._begun[uid]
        if self.memory:
            self.memory.leave(job.key)
        return job

    def narrow(self) -> bool:
        """Read in smaller pieces from now on; False: they are as small as they get."""
        return self._pace.narrow()

    def _tidy(self) -> None:
        self._readers = [r for r in self._readers if len(r)]
        self._lanes = [lane for lane in self._lanes if len(lane)]

    # ------------------------------------------------------------ joining

    def admit(self) -> dict[str, int]:
        """Let waiting jobs join while there are rows, and room among the short prompts for a short one.

        Their keys in order, and how many tokens of each prompt were in the prefix cache.
        """
        joined: dict[str, int] = {}
        held: list[Job] = []
        while self._waiting and len(self._uids) < self._rows and self._room(self._waiting[0]):
            job = self._waiting.popleft()
            if self._follows(job):
                held.append(job)
                continue
            if self.memory:
                self.memory.join(job.key, len(job.ids), job.limit)
            cache, cached = self._prefixes.take(job.ids)
            uid, self._next = self._next, self._next + 1
            self._jobs[uid] = job
            self._uids[job.key] = uid
            self._begun[uid] = cached
            self._marks[uid] = self._prefixes.marks(job.ids, cached)
            self._seat(Reader(uid, job.ids, cached, cache or make_prompt_cache(self._model), Rows([job.row])))
            joined[job.key] = cached
        self._waiting.extendleft(reversed(held))
        return joined

    def _follows(self, job: Job) -> bool:
        """Whether to wait for a row that is reading much of the same; it will pause where they part."""
        for reader in self._readers:
            for uid, tokens in zip(reader.uids, reader.tokens, strict=True):
                n = self._prefixes.shared(job.ids, self._jobs[uid].ids)
                if len(tokens) < n and n - self._begun[uid] >= 2 * self._chunk:
                    self._marks[uid] = sorted({*self._marks[uid], n})
                    return True
        return False

    def _room(self, job: Job) -> bool:
        if self.memory and not self.memory.admits(len(job.ids), job.limit):
            return False
        size = len(job.ids) - 1
        if size > 2 * self._chunk:
            return True
        short = [r for r in self._readers if self._short(r)]
        rows = sum(map(len, short)) + 1
        return rows == 1 or rows * max(size, *(r.longest for r in short)) <= 2 * self._budget

    def _short(self, reader: Reader) -> bool:
        return reader.longest <= 2 * self._chunk

    def _seat(self, newcomer: Reader) -> None:
        """Into the readers: beside others that are as short, and have about as much behind them."""
        if self._short(newcomer):
            for reader in self._readers:
                apart = abs(reader.depth - newcomer.depth) * (len(reader) + 1)
                if self._short(reader) and apart <= self._slack:
                    reader.join(newcomer)
                    return
        self._readers.append(newcomer)

    # ------------------------------------------------------------ the loop

    def step(self) -> list[Out]:
        """One token for every row that writes, and one piece of a prompt.

        Raises whatever the model raises; then the batch is of no use until `reset`.
        """
        begun = time.perf_counter()
        writers = sum(map(len, self._lanes))
        outs = self._write()
        self._turns += 1
        if self._readers:
            self._read(begun, writers)
            self._ended = (0.0, 0)
        else:
            now = time.perf_counter()
            if self._ended[1] == writers:
                self._pace.wrote(now - self._ended[0])
            self._ended = (now, writers)
        if self._turns % _CLEAR == 0:
            mx.clear_cache()
        self._tidy()
        return outs

    def _write(self) -> list[Out]:
        outs = []
        for lane in self._lanes:
            for r in lane.next():
                job = self._jobs[r.uid]
                outs.append(Out(job.key, r.token, r.finish_reason, job.row.scores()))
                if r.finish_reason is not None and self._forget(r.uid).sound:
                    self._prefixes.keep(r.all_tokens, r.prompt_cache[:-1])
        return outs

    def _read(self, begun: float, writers: int) -> None:
        """A piece of one reader; the rows that are at their prompt's end go on to write."""
        fair = self._turns % _FAIR == 0
        reader = self._readers[0] if fair else min(self._readers, key=lambda r: r.longest)
        width = self._pace.width(writers)
        if self._short(reader):
            width = max(width, self._chunk // 2) if writers else 2 * self._chunk
        before = reader.longest
        # A row that has nothing left to read goes first: a piece of one token cannot be padded.
        if before and all(reader.rest):
            if self.even:
                width = 1 << (width.bit_length() - 1)
            pending = reader.read(self._with_rows, min(width, self._pause(reader)), self.even)
            if writers:
                mx.synchronize()
                written = time.perf_counter()
                self._pace.wrote(written - begun)
                begun = written
            mx.eval(pending)
            if len(reader) == 1:
                readers = sum(map(len, self._readers))
                self._pace.read(before - reader.longest, time.perf_counter() - begun, writers, readers)
            self._mark(reader)
        done = [i for i, rest in enumerate(reader.rest) if not rest]
        if done:
            self._place(self._begin(reader.split(done)))
            mx.clear_cache()

    def _pause(self, reader: Reader) -> int:
        """How many tokens may be read until one of the rows is at a mark."""
        ahead = [
            self._marks[uid][0] - len(t)
            for uid, t in zip(reader.uids, reader.tokens, strict=True)
            if self._marks[uid]
        ]
        return min(ahead, default=reader.longest)

    def _mark(self, reader: Reader) -> None:
        """Let the prefix cache take in the rows that are at a mark."""
        for i, uid in enumerate(reader.uids):
            if self._marks[uid] and self._marks[uid][0] == len(reader.tokens[i]):
                del self._marks[uid][0]
                self._prefixes.keep(reader.tokens[i], reader.extract(i))

    def _begin(self, reader: Reader) -> Lane:
        """The reader's rows, about to write: their prompts' last tokens are on their way."""
        jobs = [self._jobs[uid] for uid in reader.uids]
        return Lane(
            self._with_rows,
            reader.uids,
            mx.array([job.ids[-1] for job in jobs]),
            reader.merged(),
            reader.tokens,
            [self._sample] * len(jobs),
            self._sample,
            [[job.guard] if job.guard else [] for job in jobs],
            [self._endings] * len(jobs),
            [job.limit for job in jobs],
        )

    def _place(self, batch: Lane) -> None:
        """Into the first lane that stays within the slack, or one of its own."""
        for lane in self._lanes:
            sizes = [len(t) for t in (*lane.tokens, *batch.tokens)]
            if max(sizes) * len(sizes) - sum(sizes) <= self._slack:
                lane.extend(batch)
                return
        lane = self._lane()
        lane.extend(batch)
        self._lanes.append(lane)

    def _lane(self) -> Any:
        """An empty one: a Lane or what does as one."""
        return Lane.empty(self._with_rows, self._sample)

    def reset(self) -> list[str]:
        """Drop every row and all prefixes; the keys of the rows. Jobs that wait go on waiting."""
        running = list(self._uids)
        for uid in self._uids.copy().values():
            self._forget(uid)
        self._readers.clear()
        self._lanes.clear()
        # The latest entries may hang on the very step that failed.
        self._prefixes.clear()
        mx.clear_cache()
        return running

    def close(self) -> None:
        self.reset()
