"""Drafting by a second, smaller model of the same vocabulary: what DRAFT names, made ready to draft."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import msgspec
from mlx_lm.models.cache import KVCache, make_prompt_cache

from mlxo.core.errors import LoadFailed
from mlxo.core.types import NGRAM, ModelSpec
from mlxo.engine.batch import Job
from mlxo.engine.load import Loaded, load
from mlxo.engine.ngram import Ngram
from mlxo.engine.ragged import Ragged, fits
from mlxo.engine.sampling import Row, Rows, sample
from mlxo.engine.speculate import Drafter, later
from mlxo.hardware.detect import Backend

log = logging.getLogger(__name__)

# Tokens that a row may be behind and still read them in step with the others; the rest it reads alone.
_BEHIND = 4


class Drafts(NamedTuple):
    """`drafter` makes one for every lane of a batch, `model` is what they share; None where there is none."""

    drafter: Callable[[], Drafter]
    model: Any


def find(spec: ModelSpec, target: Loaded, device: Backend, chunk: int) -> Drafts | None:
    """What `spec.draft` means for the loaded model; None, and a line in the log, where it cannot be used."""
    if spec.draft is None:
        return None
    if not fits(target.model):
        log.warning("%s answers without its DRAFT: its caches cannot take tokens back", spec.name)
        return None
    if spec.draft == NGRAM:
        return Drafts(Ngram, None)
    try:
        loaded = load(msgspec.structs.replace(spec, name=f"DRAFT of {spec.name}", path=spec.draft), device)
    except LoadFailed as e:
        log.warning("%s answers without its DRAFT: %s", spec.name, e.message)
        return None
    if loaded.tokenizer.get_vocab() != target.tokenizer.get_vocab():
        log.warning(
            "%s answers without its DRAFT: the two have different vocabularies; "
            "DRAFT takes a smaller model of the same family, or ngram",
            spec.name,
        )
        return None
    if not fits(loaded.model):
        log.warning("%s answers without its DRAFT: the draft's caches cannot take tokens back", spec.name)
        return None
    return Drafts(lambda: DraftModel(loaded.model, chunk), loaded.model)


class _Reader:
    """A row in the draft model: `tokens` are all it has, `read` those in its cache.

    `alone` is that cache while the row is far behind; afterwards it has a place in the common one. `drafted`
    is what was said of the tokens behind the last one.
    """

    def __init__(self, job: Job, cache: list[KVCache]) -> None:
        self.row = job.row
        self.tokens = list(job.ids)
        self.read = 0
        self.alone: list[KVCache] | None = cache
        self.drafted: list[int] = []


class DraftModel:
    """A drafter. `chunk` bounds the tokens that it reads in one step to catch up with a row.

    A drafted token is drawn as the row itself would draw it, with the same number of its seed: where the two
    models agree about the chances, they mostly agree about the token.
    """

    def __init__(self, model: Any, chunk: int) -> None:
        self._model = model
        self._chunk = chunk
        self._readers: dict[str, _Reader] = {}
        self._keys: list[str] = []  # the rows of the common cache
        self._cache = Ragged(0)
        self.steady = True

    def join(self, job: Job) -> None:
        self._readers[job.key] = _Reader(job, make_prompt_cache(self._model))

    def feed(self, key: str, tokens: Sequence[int]) -> tuple[int, int]:
        reader = self._readers[key]
        drafted, reader.drafted = reader.drafted, []
        right = 0
        while right < min(len(drafted), len(tokens)) and drafted[right] == tokens[right]:
            right += 1
        # The last one drafted was never read.
        reader.read += min(right, max(len(drafted) - 1, 0))
        reader.tokens += tokens
        return right, min(right + 1, len(drafted))

    def leave(self, key: str) -> None:
        if self._readers.pop(key, None) is not None and key in self._keys:
            self._keep([k for k in self._keys if k != key])

    def offer(self, key: str, most: int) -> int:
        return most

    def draft(self, wants: dict[str, int]) -> dict[str, list[int]]:
        self.steady = self._caught_up(wants)
        ready = {key: n for key, n in wants.items() if key in self._keys}
        if not ready:
            return {}
        drafts = self._write(max(ready.values()))
        for key, n in ready.items():
            self._readers[key].drafted = drafts[key][:n]
        return {key: drafts[key][:n] for key, n in ready.items()}

    # ------------------------------------------------------------ reading

    def _caught_up(self, keys: Collection[str]) -> bool:
        """Bring the rows nearer to the ends of their texts, one of them by a chunk; whether none had to."""
        late = [k for k in self._keys if len(self._readers[k].tokens) - self._readers[k].read > _BEHIND]
        for key in late:
            reader = self._readers[key]
            reader.alone = self._cache.extract(self._keys.index(key), reader.read)
        if late:
            self._keep([k for k in self._keys if k not in late])
        alone = [k for k in keys if self._readers[k].alone is not None]
        if alone:
            self._catch_up(alone[0])
        return not alone

    def _catch_up(self, key: str) -> None:
        reader = self._readers[key]
        assert reader.alone is not None
        last = len(reader.tokens) - 1
        piece = reader.tokens[reader.read : min(last, reader.read + self._chunk)]
        if piece:
            self._model(mx.array([piece]), cache=reader.alone)
            mx.eval([c.state for c in reader.alone])
            reader.read += len(piece)
        if reader.read == last and last:
            if not self._keys:
                self._cache = Ragged(len(reader.alone))
            self._cache.extend(reader.alone, [reader.read])
            self._keys.append(key)
            reader.alone = None

    def _keep(self, keys: list[str]) -> None:
        self._cache.filter([self._keys.index(k) for k in keys])
        self._keys = keys

    # ------------------------------------------------------------ writing

    def _write(self, most: int) -> dict[str, list[int]]:
        """`most` tokens for every row of the common cache. What is read of them counts when it was right."""
        readers = [self._readers[k] for k in self._keys]
        # The last token at least: what follows it is what is asked for.
        starts = [min(r.read, len(r.tokens) - 1) for r in readers]
        behind = [r.tokens[start:] for r, start in zip(readers, starts, strict=True)]
        width = max(map(len, behind))
        inputs = mx.array([[*b, *[0] * (width - len(b))] for b in behind], dtype=mx.int32)
        self._cache.lengths = starts
        self._cache.open(width)
        logits = self._model(inputs, cache=self._cache.layers)
        ends = mx.array([len(b) - 1 for b in behind])[:, None, None]
        logits = mx.take_along_axis(logits, ends, axis=1)
        for reader in readers:
            reader.read = len(reader.tokens)
        self._cache.lengths = [r.read for r in readers]
        written: list[mx.array] = []
        rows: list[Row] = [r.row for r in readers]
        for i in range(most):
            if i:
                self._cache.open(1)
                logits = self._model(written[-1].astype(mx.int32)[:, None], cache=self._cache.layers)
                self._cache.lengths = [n + 1 for n in self._cache.lengths]
            flat = logits[:, 0]
            written.append(
                sample(flat - mx.logsumexp(flat, axis=-1, keepdims=True), Rows([later(r, i) for r in rows]))
            )
        said: list[list[int]] = mx.stack(written, axis=1).tolist()  # type: ignore[assignment]
        return dict(zip(self._keys, said, strict=True))
