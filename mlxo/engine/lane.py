"""Rows that write together: mlx_lm's GenerationBatch, without what nobody here reads.

That normalises the logits of every row each step, into log-probabilities that it waits for and hands out one
by one. Here the sampler does as well with logits, and scores for those who ask are measured apart.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx_lm.generate import GenerationBatch


class Lane(GenerationBatch):  # type: ignore[misc]
    """Responses have no `logprobs`. All rows share one sampler."""

    _next_tokens: Any

    def _step(self) -> tuple[list[int], list[None]]:
        """The tokens of the step before, while this one is on its way."""
        inputs = self._current_tokens = self._next_tokens
        logits = self.model(inputs[:, None], cache=self.prompt_cache)[:, -1, :]
        contexts = []
        if any(self.logits_processors):
            parts: list[Any] = []
            for i, processors in enumerate(self.logits_processors):
                part = logits[i : i + 1]
                if processors:
                    contexts.append(self._token_context[i].update_and_fetch(inputs[i : i + 1]))
                for processor in processors or ():
                    part = processor(contexts[-1], part)
                parts.append(part)
            logits = mx.concatenate(parts, axis=0)
        self._next_tokens = self.fallback_sampler(logits)
        self._current_logprobs = self._next_logprobs = [None] * len(self.uids)
        mx.async_eval(self._next_tokens, contexts)  # type: ignore[no-untyped-call]
        tokens: list[int] = inputs.tolist()
        for known, token in zip(self.tokens, tokens, strict=True):
            known.append(token)
        return tokens, self._current_logprobs
