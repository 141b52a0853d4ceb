"""The engine of an embedding model: texts to vectors, many at once. It is stepped like `Engine`.

Texts of all requests share the steps, each request in its turn. They are padded to the longest beside them,
so those of one request go by their length.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.utils
import numpy as np

from mlxo.core.errors import Cancelled, InvalidRequest, LoadFailed, MlxoError
from mlxo.core.types import (
    Complete,
    Detokenize,
    Embed,
    Event,
    Failed,
    Finished,
    ModelSpec,
    Request,
    RunnerStats,
    Tokenize,
    Touch,
    Vectors,
)
from mlxo.engine import bert, pooling
from mlxo.engine.load import Loaded, backend, load
from mlxo.engine.tokens import detokenized, tokenized

_STEP = {"cpu": 1024, "metal": 16384, "cuda": 65536}  # tokens, padding counted
_CACHE = 2 << 30  # bytes of freed buffers that MLX may keep
_MOST = 16384  # texts of one request

Emitted = tuple[str, Event]


@dataclass
class _Job:
    """One request. `left` are the texts that wait, the longest last: (place in the request, token ids)."""

    task: Embed
    left: list[tuple[int, list[int]]]
    tokens: int
    started: int = field(default_factory=time.perf_counter_ns)


class Embedder:
    """`context` caps the tokens of a text; 0 is the model's own limit.

    Every method belongs to the thread that constructed it. Raises LoadFailed.
    """

    def __init__(self, spec: ModelSpec, context: int = 0) -> None:
        self._device = backend()
        loaded = load(spec, self._device, _classes)
        encoder = isinstance(loaded.model, bert.Model)
        if not encoder and not hasattr(loaded.model, "model"):
            raise LoadFailed(f"the model {spec.name} cannot be loaded: its hidden states cannot be had")
        if self._device != "cpu":
            mx.set_cache_limit(_CACHE)
        self._model = loaded.model
        self._encoder = encoder
        self._hf: Any = loaded.tokenizer._tokenizer
        self._pool = pooling.read(Path(spec.path), "mean" if encoder else "last")
        trained = min(_positions(loaded), self._pool.longest)
        self.context = min(context or trained, trained)
        self._vocabulary: int = loaded.config.get("vocab_size") or len(self._hf)
        self._pad: int = self._hf.pad_token_id or 0
        self._jobs: dict[str, _Job] = {}
        self._turns: deque[str] = deque()
        self._events: list[Emitted] = []
        self._tokens = 0

    # ------------------------------------------------------------ requests

    def submit(self, request: Request) -> None:
        """Take a request in. What is wrong with it comes out of the next `step` as Failed."""
        try:
            self._submit(request)
        except MlxoError as e:
            self._events.append((request.id, Failed(message=e.message, code=e.code, hint=e.hint)))

    def _submit(self, request: Request) -> None:
        task = request.task
        if request.id in self._jobs:
            raise InvalidRequest(f"a request {request.id} is already running")
        if isinstance(task, Touch):
            self._events.append((request.id, Finished(reason="load")))
        elif isinstance(task, Detokenize):
            self._tell(request.id, detokenized(self._hf, self._vocabulary, task))
        elif isinstance(task, Tokenize) and isinstance(task.of, Complete):
            ids = self._hf.encode(task.of.prompt, add_special_tokens=task.special)
            self._tell(request.id, tokenized(self._hf, ids, task, self.context))
        elif isinstance(task, Embed):
            self._add(request.id, task, min(request.options.num_ctx or self.context, self.context))
        else:
            raise InvalidRequest("this model makes embeddings, it does not answer")

    def _tell(self, id_: str, events: list[Event]) -> None:
        self._events += [(id_, event) for event in events]

    def _add(self, id_: str, task: Embed, longest: int) -> None:
        if len(task.inputs) > _MOST:
            raise InvalidRequest(f"a request may have {_MOST} inputs at most")
        texts = [self._ids(text, longest, task.truncate) for text in task.inputs]
        tokens = sum(map(len, texts))
        if not texts:
            self._events.append((id_, Finished(reason="stop")))
            return
        self._jobs[id_] = _Job(task, sorted(enumerate(texts), key=lambda t: len(t[1])), tokens)
        self._turns.append(id_)

    def _ids(self, text: str | tuple[int, ...], longest: int, truncate: bool) -> list[int]:
        """At least one token, at most `longest`: the head, with what the tokenizer puts around a text."""
        if isinstance(text, str):
            ids: list[int] = self._hf.encode(text)
            if len(ids) > longest and truncate:
                ids = self._hf.encode(text, truncation=True, max_length=longest)[:longest]
        else:
            ids = list(text)
            wrong = [i for i in ids if not 0 <= i < self._vocabulary]
            if wrong:
                raise InvalidRequest(f"{wrong[0]} is no token of this model")
            if truncate:
                ids = ids[:longest]
        if len(ids) > longest:
            raise InvalidRequest("the input length exceeds the context length")
        return ids or [self._pad]

    def cancel(self, request_id: str) -> None:
        """Take a request out; its last event is Failed. An unknown id is no error."""
        if self._jobs.pop(request_id, None) is not None:
            self._turns.remove(request_id)
            gone = Cancelled("the request was cancelled")
            self._events.append((request_id, Failed(message=gone.message, code=gone.code)))

    # ------------------------------------------------------------ the loop

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._jobs or self._events)

    def step(self) -> list[Emitted]:
        """One batch of texts; all events since the last call. After a raise call `abort`."""
        chosen = self._choose()
        if chosen:
            vectors = self._forward([ids for _, _, ids in chosen])
            self._share([(id_, place) for id_, place, _ in chosen], vectors)
        events, self._events = self._events, []
        return events

    def _choose(self) -> list[tuple[str, int, list[int]]]:
        """The texts of one step: (request, place, token ids). Requests take turns at being the first."""
        chosen: list[tuple[str, int, list[int]]] = []
        longest = 0
        for _ in range(len(self._turns)):
            id_ = self._turns[0]
            left = self._jobs[id_].left
            while left:
                longest = max(longest, len(left[-1][1]))
                padded = longest > 2 * len(left[-1][1])
                if chosen and (padded or longest * (len(chosen) + 1) > _STEP[self._device]):
                    self._turns.rotate(-1)
                    return chosen
                chosen.append((id_, *left.pop()))
            self._turns.popleft()
        return chosen

    def _forward(self, texts: list[list[int]]) -> mx.array:
        """(texts, width), pooled."""
        longest = max(map(len, texts))
        ids = mx.array([text + [self._pad] * (longest - len(text)) for text in texts])
        there = mx.arange(longest)[None] < mx.array([len(text) for text in texts])[:, None]
        # A decoder looks back only: what is padded behind a text does not reach it.
        hidden = self._model(ids, there) if self._encoder else self._model.model(ids)
        vectors = self._pool(hidden, there)
        mx.eval(vectors)
        return vectors

    def _share(self, places: list[tuple[str, int]], vectors: mx.array) -> None:
        """The vectors to their requests, whose last ones end them."""
        rows: dict[str, list[int]] = {}
        for row, (id_, _) in enumerate(places):
            rows.setdefault(id_, []).append(row)
        for id_, own in rows.items():
            job = self._jobs[id_]
            found = _shaped(vectors[mx.array(own)], job.task)
            data = np.asarray(found).tobytes()
            told = Vectors(places=tuple(places[row][1] for row in own), width=found.shape[1], data=data)
            self._events.append((id_, told))
            if not job.left:
                del self._jobs[id_]
                self._tokens += job.tokens
                spent = time.perf_counter_ns() - job.started
                self._events.append((id_, Finished(reason="stop", prompt_tokens=job.tokens, prompt_ns=spent)))

    def abort(self, message: str) -> None:
        """After `step` raised: every request that was running fails with `message`."""
        for id_ in self._jobs:
            self._events.append((id_, Failed(message=message, code="internal_error")))
        self._jobs.clear()
        self._turns.clear()

    def stats(self) -> RunnerStats:
        return RunnerStats(
            active_bytes=mx.get_active_memory(),
            peak_bytes=mx.get_peak_memory(),
            rows=len(self._jobs),
            tokens=self._tokens,
            backend=self._device,
        )

    def close(self) -> None:
        """There is nothing to keep."""


def _shaped(vectors: mx.array, task: Embed) -> mx.array:
    """The first `dimensions` numbers of each, at length one when that is wanted."""
    if task.dimensions:
        vectors = vectors[:, : task.dimensions]
    if task.normalise:
        vectors = vectors / mx.maximum(mx.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    vectors = mx.contiguous(vectors.astype(mx.float32))
    mx.eval(vectors)
    return vectors


def _positions(loaded: Loaded) -> int:
    """The most tokens that the model has positions for."""
    args = loaded.model.args
    if isinstance(args, bert.ModelArgs):
        return args.context
    found = loaded.config.get("max_position_embeddings")
    return found if isinstance(found, int) and found > 0 else 4096


def _classes(config: dict[str, Any]) -> tuple[type[Any], type[Any]]:
    """An encoder, or mlx_lm's decoder, whose weights may be those of its body alone, without `model.`"""
    if config["model_type"] in bert.FAMILIES:
        return bert.Model, bert.ModelArgs
    kind, args = mlx_lm.utils._get_classes(config)

    class Body(kind):  # type: ignore[misc, valid-type]
        def sanitize(self, weights: dict[str, Any]) -> dict[str, Any]:
            if not any(name.startswith("model.") for name in weights):
                weights = {f"model.{name}": array for name, array in weights.items()}
            found: dict[str, Any] = super().sanitize(weights) if hasattr(kind, "sanitize") else weights
            return found

    return Body, args
