"""Answers to those who want tokens and no answer: text to ids and back, by the model's own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlxo.core.errors import InvalidRequest
from mlxo.core.types import Detokenize, Event, Finished, TextDelta, Tokenize, Tokens


def tokenized(tokenizer: Any, ids: Sequence[int], task: Tokenize, context: int) -> list[Event]:
    """`tokenizer` is a Hugging Face one, `context` in tokens."""
    names = tokenizer.convert_ids_to_tokens(list(ids)) if task.names else ()
    told = Tokens(ids=tuple(ids), context=context, names=tuple(name or "" for name in names))
    return [told, Finished(reason="stop", prompt_tokens=len(ids))]


def detokenized(tokenizer: Any, vocabulary: int, task: Detokenize) -> list[Event]:
    """`vocabulary` is the number of token ids. Raises InvalidRequest for one that is none of them."""
    for id_ in task.ids:
        if not 0 <= id_ < vocabulary:
            raise InvalidRequest(f"{id_} is no token of this model", f"its tokens are 0 to {vocabulary - 1}")
    text = tokenizer.decode(list(task.ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return [TextDelta(text=text), Finished(reason="stop", prompt_tokens=len(task.ids))]
