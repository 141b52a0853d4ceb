"""The engine: one model, many sequences, one thread. The only thing a runner talks to."""

from __future__ import annotations

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from mlxo.core.errors import Cancelled, InvalidRequest, MlxoError
from mlxo.core.options import DEFAULTS
from mlxo.core.types import Event, Failed, Finished, ModelSpec, Request, RunnerStats, Touch
from mlxo.engine.batch import Batch, Guard, Job, Processor
from mlxo.engine.detokenize import Detokenizer
from mlxo.engine.grammar import Grammars
from mlxo.engine.load import Loaded, backend, load
from mlxo.engine.prefix import Prefixes
from mlxo.engine.prompt import Prompter
from mlxo.engine.sampling import Row, penalties
from mlxo.engine.sequence import Sequence
from mlxo.engine.solo import Solo, mergeable
from mlxo.hardware.detect import total_memory

# Prompt tokens of one row a step, and of all rows: a GPU reads them some hundred times faster than a CPU.
CHUNK = {"cpu": (64, 512), "metal": (512, 2048), "cuda": (512, 4096)}
# Bytes of freed buffers that MLX may keep. On Metal its own default is all of the memory.
_CACHE = 2 << 30
# Bytes of the prefix cache, where they are no more than an eighth of the memory: the weights, the rows that
# run and all else on the machine go first.
_PREFIXES = 2 << 30

Emitted = tuple[str, Event]


class Engine:
    """`rows` sequences step at once, the rest wait in order. `context` caps num_ctx; 0 is the model's own.

    Every method belongs to the thread that constructed the engine. Raises LoadFailed.
    """

    def __init__(self, spec: ModelSpec, rows: int = 16, context: int = 0) -> None:
        self._device = backend()
        loaded = load(spec, self._device)
        if self._device != "cpu":
            mx.set_cache_limit(_CACHE)
        trained = _trained_context(spec, loaded)
        self.context = min(context or trained, trained)
        self._tokens = 0
        self._events: list[Emitted] = []
        self._sequences: dict[str, Sequence] = {}
        caches = make_prompt_cache(loaded.model)
        # Lazy and never evaluated: only the width of the logits is wanted.
        vocabulary = loaded.model(mx.zeros((1, 1), dtype=mx.int32), cache=caches).shape[-1]
        eos = set(loaded.tokenizer.eos_token_ids)
        self._detokenizer = Detokenizer(loaded.tokenizer._tokenizer)
        self._grammars = Grammars(loaded.tokenizer._tokenizer, vocabulary, eos, self._detokenizer)
        self._prompter = Prompter(spec, loaded.tokenizer, vocabulary, trained, self.context)
        chunk, budget = CHUNK[self._device]
        prefixes = Prefixes(min(_PREFIXES, total_memory() // 8))
        self._steps: Batch | Solo
        if mergeable(caches):
            self._steps = Batch(loaded.model, eos, rows, chunk, budget, prefixes)
        else:
            self._steps = Solo(loaded.model, eos, rows, chunk, prefixes)

    # ------------------------------------------------------------ requests

    def submit(self, request: Request) -> None:
        """Take a request in. What is wrong with it comes out of the next `step` as Failed."""
        try:
            self._submit(request)
        except MlxoError as e:
            self._events.append((request.id, Failed(message=e.message, code=e.code, hint=e.hint)))

    def _submit(self, request: Request) -> None:
        if request.id in self._sequences:
            raise InvalidRequest(f"a request {request.id} is already running")
        if isinstance(request.task, Touch):
            self._events.append((request.id, Finished(reason="load")))
            return
        options = request.options
        prompt = self._prompter.prepare(request)
        limit = prompt.room
        predict = DEFAULTS.num_predict if options.num_predict is None else options.num_predict
        if predict is not None and predict >= 0:
            limit = min(limit, predict)
        processors: list[Processor] = []
        penalty = penalties(options, prompt.num_ctx)
        if penalty is not None:
            processors.append(penalty)
        if request.format:
            processors.append(self._grammars.constraint(request.format, prompt.thinking))
        guard = Guard(processors) if processors else None
        sequence = Sequence(
            Job(request.id, prompt.ids, limit, Row(options), guard),
            self._detokenizer.stream(prompt.ids),
            prompt.splitter,
            prompt.truncated,
        )
        if limit == 0:
            self._events += [(request.id, sequence.start()), (request.id, sequence.finished("length"))]
            return
        self._sequences[request.id] = sequence
        self._steps.add(sequence.job)

    def cancel(self, request_id: str) -> None:
        """Take a request out, wherever it is; its last event is Failed. An unknown id is no error."""
        if self._sequences.pop(request_id, None) is not None:
            self._steps.remove(request_id)
            gone = Cancelled("the request was cancelled")
            self._events.append((request_id, Failed(message=gone.message, code=gone.code)))

    # ------------------------------------------------------------ the loop

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._sequences or self._events)

    def step(self) -> list[Emitted]:
        """One step of every row; all events since the last call. After a raise call `abort`."""
        for key, cached in self._steps.admit().items():
            self._events.append((key, self._sequences[key].start(cached)))
        if len(self._steps):
            for out in self._steps.step():
                self._tokens += 1
                sequence = self._sequences[out.key]
                failed = sequence.fault()
                events, done = ([failed], True) if failed else sequence.accept(out)
                self._events += [(out.key, e) for e in events]
                if done:
                    del self._sequences[out.key]
                    if out.reason is None:
                        self._steps.remove(out.key)
        events_now, self._events = self._events, []
        return events_now

    def abort(self, message: str) -> None:
        """After `step` raised: every row that was running fails with `message`; those that wait go on."""
        running = self._steps.reset()
        for key in running:
            del self._sequences[key]
            self._events.append((key, Failed(message=message, code="internal_error")))

    def stats(self) -> RunnerStats:
        return RunnerStats(
            active_bytes=mx.get_active_memory(),
            peak_bytes=mx.get_peak_memory(),
            rows=len(self._steps),
            waiting=self._steps.waiting,
            tokens=self._tokens,
            backend=self._device,
        )

    def close(self) -> None:
        self._steps.close()


def _trained_context(spec: ModelSpec, loaded: Loaded) -> int:
    """The longest context the model was trained for, in tokens; 4096 when nothing says."""
    if spec.context > 0:
        return spec.context
    for config in (loaded.config, loaded.config.get("text_config")):
        found = config.get("max_position_embeddings") if isinstance(config, dict) else None
        if isinstance(found, int) and found > 0:
            return found
    return 4096
