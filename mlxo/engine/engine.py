"""The engine: one model, many sequences, one thread. The only thing a runner talks to."""

from __future__ import annotations

import logging
from pathlib import Path

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from mlxo.core.errors import Busy, Cancelled, InvalidRequest, MlxoError
from mlxo.core.options import DEFAULTS
from mlxo.core.types import (
    Chat,
    Detokenize,
    Event,
    Failed,
    Finished,
    ModelSpec,
    Request,
    RunnerStats,
    Tokenize,
    Touch,
)
from mlxo.engine.batch import SLACK, Batch, Drafting, Guard, Job, Processor
from mlxo.engine.calling import call_rules
from mlxo.engine.detokenize import Detokenizer
from mlxo.engine.drafter import find as find_drafts
from mlxo.engine.grammar import Constraint, Grammars
from mlxo.engine.layout import Layout
from mlxo.engine.load import Loaded, backend, load
from mlxo.engine.memory import Memory, limit, measure, weights
from mlxo.engine.prefix import Prefixes
from mlxo.engine.prompt import Prompt, Prompter
from mlxo.engine.quantised import quantise
from mlxo.engine.sampling import Row
from mlxo.engine.sequence import Sequence
from mlxo.engine.shaping import Shape, shape
from mlxo.engine.solo import Solo, mergeable
from mlxo.engine.speculate import Speculative
from mlxo.engine.spill import Store
from mlxo.engine.thinking import Budget, Thought
from mlxo.hardware.detect import total_memory

# Prompt tokens of one row a step, and of all rows: a GPU reads them some hundred times faster than a CPU.
CHUNK = {"cpu": (64, 512), "metal": (512, 2048), "cuda": (512, 4096)}
# Bytes of freed buffers that MLX may keep. On Metal its own default is all of the memory.
_CACHE = 2 << 30
# Bytes of the prefix cache, where they are no more than an eighth of the memory: the weights, the rows that
# run and all else on the machine go first.
_PREFIXES = 2 << 30
_SAVES = 8  # steps between two sequences that are handed to the disk while others run
# Seconds that an engine may take to leave while prompts are written to disk.
_FLUSH = 2.0

log = logging.getLogger(__name__)

Emitted = tuple[str, Event]


class Engine:
    """`rows` sequences step at once, the rest wait in order. `context` caps num_ctx; 0 is the model's own.
    Prompts are kept under the folder `cache`, whose files take at most `cache_size` bytes. `memory` is
    what the process should stay below, in bytes; 0 is what the device has.

    Every method belongs to the thread that constructed the engine. Raises LoadFailed.
    """

    def __init__(
        self,
        spec: ModelSpec,
        rows: int = 16,
        context: int = 0,
        cache: str = "",
        cache_size: int = 0,
        memory: int = 0,
    ) -> None:
        self._device = backend()
        loaded = load(spec, self._device)
        self._kv_bits = spec.options.kv_bits or 16
        if self._kv_bits != 16:
            quantise(loaded.model, self._kv_bits, spec.name)
        if self._device != "cpu":
            mx.set_cache_limit(_CACHE)
        if self._device == "metal":
            mx.set_wired_limit(limit("metal"))  # or macOS pages weights out between two answers
        trained = _trained_context(spec, loaded)
        self.context = min(context or trained, trained)
        self._tokens = self._turns = 0
        self._drafted = self._accepted = 0
        self._events: list[Emitted] = []
        self._sequences: dict[str, Sequence] = {}
        caches = make_prompt_cache(loaded.model)
        # Lazy and never evaluated: only the width of the logits is wanted.
        vocabulary = loaded.model(mx.zeros((1, 1), dtype=mx.int32), cache=caches).shape[-1]
        self._vocabulary: int = vocabulary
        eos = set(loaded.tokenizer.eos_token_ids)
        self._detokenizer = Detokenizer(loaded.tokenizer._tokenizer)
        self._grammars = Grammars(loaded.tokenizer._tokenizer, vocabulary, eos, self._detokenizer)
        self._prompter = Prompter(spec, loaded.tokenizer, vocabulary, trained, self.context)
        chunk, budget = CHUNK[self._device]
        special = [i for i, t in loaded.tokenizer._tokenizer.added_tokens_decoder.items() if t.special]
        prefixes = Prefixes(min(_PREFIXES, total_memory() // 8), layout=Layout(caches), turns=special)
        self._prefixes = prefixes
        if cache and cache_size > 0:
            prefixes.spill_to(Store(Path(cache), cache_size), spec.digest, str(loaded.dtype))
        self._steps: Batch | Solo
        fixed, rate = measure(loaded.model)
        held = weights(loaded.model)
        drafts = find_drafts(spec, loaded, self._device, chunk)
        if drafts is not None and drafts.model is not None:
            fixed, rate = map(sum, zip((fixed, rate), measure(drafts.model), strict=True))
            held += weights(drafts.model)
        self._memory = Memory(memory or limit(self._device), held, fixed, rate)
        # Padding costs time where it is read with every token: as much as half the weights, at most.
        slack = min(SLACK, held // (2 * max(1, rate)))
        if drafts is not None:
            self._steps = Speculative(loaded.model, eos, rows, chunk, budget, prefixes, drafts.drafter, slack)
        elif mergeable(caches):
            self._steps = Batch(loaded.model, eos, rows, chunk, budget, prefixes, slack)
        else:
            self._steps = Solo(loaded.model, eos, rows, chunk, prefixes)
        self._steps.memory = self._memory
        if isinstance(self._steps, Batch):
            self._steps.even = self._device == "cuda"

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
        if isinstance(request.task, Tokenize | Detokenize):
            self._events += [(request.id, e) for e in self._prompter.tell(request.task, request.template)]
            return
        options = request.options
        if (options.kv_bits or 16) != self._kv_bits:
            raise InvalidRequest(
                "kv_bits cannot change while the model is loaded", "set it as a PARAMETER in its Modelfile"
            )
        prompt = self._prompter.prepare(request)
        limit = prompt.room
        predict = DEFAULTS.num_predict if options.num_predict is None else options.num_predict
        if predict is not None and predict >= 0:
            limit = min(limit, predict)
        processors: list[Processor] = []
        shaped = shape(options, request.logit_bias, len(prompt.ids) + limit, self._vocabulary)
        if not self._steps.shapes:
            processors += shaped.steps
            shaped = Shape()
        processors += self._constraints(request, prompt, limit)
        guard = Guard(processors) if processors else None
        drafting = Drafting(options.draft_num_predict)
        row = Row(options, request.logprobs, shaped, prompt.ids)
        sequence = Sequence(
            Job(request.id, prompt.ids, limit, row, guard, drafting),
            self._detokenizer.stream(prompt.ids),
            prompt.splitter,
            prompt.truncated,
            prompt.cut,
            self._detokenizer.spell,
        )
        self._memory.check(len(prompt.ids), limit)
        if limit == 0:
            self._events += [(request.id, sequence.start()), (request.id, sequence.finished("length"))]
            return
        self._sequences[request.id] = sequence
        self._steps.add(sequence.job)

    def _constraints(self, request: Request, prompt: Prompt, limit: int) -> list[Processor]:
        """What holds the answer to its form, and its thinking to its budget."""
        task, thinking = request.task, prompt.thinking
        chat = task if isinstance(task, Chat) else None
        constraint: Constraint | None = None
        if chat and chat.force:
            if prompt.family is None:
                raise InvalidRequest("this model's chat template has no tool calls that could be forced")
            wanted = call_rules(prompt.family, chat.tools, chat.force, chat.single, self._grammars.special)
            constraint = self._grammars.constraint(wanted, thinking, limit)
        elif request.format:
            constraint = self._grammars.constraint(request.format, thinking, limit)
        budget = chat.think_budget if chat and chat.think_budget is not None else limit
        if constraint is not None and thinking is not None:
            budget = min(budget, limit - constraint.needs)
        found: list[Processor] = [constraint] if constraint is not None else []
        if thinking is not None and budget < limit:
            closing = self._prompter.encode(thinking.close, opening=False)
            thought = Thought(thinking, self._detokenizer)
            found.append(Budget(thought, max(0, budget - len(closing)), closing))
        return found

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
        return bool(self._sequences or self._events or self._prefixes.unsaved)

    def step(self) -> list[Emitted]:
        """One step of every row; all events since the last call. After a raise call `abort`."""
        if excess := self._memory.over():
            self._relieve(excess)
        self._turns += 1
        if not self._sequences or self._turns % _SAVES == 0:
            self._prefixes.save(1)  # one, so that a request which comes now does not wait for all
        for key, cached in self._steps.admit().items():
            self._events.append((key, self._sequences[key].start(cached)))
        if len(self._steps):
            for out in self._steps.step():
                sequence = self._sequences.get(out.key)
                if sequence is None:
                    continue  # one of several tokens of a step has ended it
                self._tokens += 1
                failed = sequence.fault()
                events, done = ([failed], True) if failed else sequence.accept(out)
                self._events += [(out.key, e) for e in events]
                if done:
                    del self._sequences[out.key]
                    self._drafted += sequence.job.drafting.drafted
                    self._accepted += sequence.job.drafting.accepted
                    if out.reason is None:
                        self._steps.remove(out.key)
        events_now, self._events = self._events, []
        return events_now

    def _relieve(self, excess: int) -> None:
        """Too much is held: what is kept for later goes first, then the latest request; never the process."""
        self._prefixes.shrink(max(0, self._prefixes.nbytes - excess))
        mx.clear_cache()
        if not self._memory.over() or self._steps.narrow():
            return
        running = [key for key, sequence in self._sequences.items() if sequence.running]
        if not running:
            return
        newest = running[-1]
        del self._sequences[newest]
        self._steps.remove(newest)
        self._prefixes.shrink(0)
        mx.clear_cache()
        full = Busy(
            "the memory is full, and this request was the latest", "try again later, or with less num_ctx"
        )
        self._events.append((newest, Failed(message=full.message, code=full.code, hint=full.hint)))
        log.warning("a request was given up: the memory is full")

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
            prefix_bytes=self._prefixes.nbytes,
            rows=len(self._steps),
            waiting=self._steps.waiting,
            tokens=self._tokens,
            drafted=self._drafted,
            accepted=self._accepted,
            backend=self._device,
        )

    def close(self) -> None:
        self._prefixes.close(_FLUSH)
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
