"""The ceiling: generation in this process, with mlxo's weights and mlxo's batch policy, without any HTTP.

usage: inproc.py MODEL_DIR TOKENS ROWS generator|engine
`generator` is a bare mlx_lm BatchGenerator, `engine` is mlxo's engine as its runner holds it: what lies
between the two is the engine's own cost, what lies between the engine and HTTP is that of the pipe and the
server. Answers every line on stdin, a JSON list of prompts, with a JSON line on stdout. Started by compare.py
with the environment that mlxo gives its runners.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

from mlx_lm.generate import BatchGenerator

from mlxo.core.options import Options
from mlxo.core.types import Chat, Finished, Message, ModelSpec, Request, TextDelta, ThinkDelta
from mlxo.engine.engine import CHUNK, Engine
from mlxo.engine.load import backend, load

Counted = tuple[int, float]  # tokens, and perf_counter at the first of them


def main(folder: str, tokens: str, rows: str, what: str) -> None:
    spec = ModelSpec(name="bench", digest="0", path=folder)
    one = {"generator": generator, "engine": engine}[what](spec, int(tokens), int(rows))
    for line in sys.stdin:
        texts = json.loads(line)
        start = time.perf_counter()
        count, first = one(texts)
        wall = time.perf_counter() - start
        row = {"streams": len(texts), "tokens": count, "wall": wall, "aggregate": count / wall}
        row["decode"] = (count / len(texts) - 1) / (start + wall - first)
        print(json.dumps({**row, "ttft": first - start}), flush=True)


def generator(spec: ModelSpec, tokens: int, rows: int) -> Callable[[list[str]], Counted]:
    """Tokenising and the chat template count, as they do behind HTTP."""
    device = backend()
    loaded = load(spec, device)
    chunk, _ = CHUNK[device]

    def one(texts: list[str]) -> Counted:
        batch = BatchGenerator(
            loaded.model,
            stop_tokens=[[t] for t in loaded.tokenizer.eos_token_ids],
            completion_batch_size=rows,
            prefill_batch_size=rows,
            prefill_step_size=chunk,
        )
        chats = ([{"role": "user", "content": text}] for text in texts)
        prompts = [list(loaded.tokenizer.apply_chat_template(c, add_generation_prompt=True)) for c in chats]
        batch.insert(prompts, [tokens] * len(prompts))
        count, first = 0, 0.0
        while responses := batch.next_generated():
            first = first or time.perf_counter()
            count += len(responses)
        batch.close()
        return count, first

    return one


def engine(spec: ModelSpec, tokens: int, rows: int) -> Callable[[list[str]], Counted]:
    whole = Engine(spec, rows)
    options = Options(temperature=0.0, repeat_penalty=1.0, num_predict=tokens, stop=())

    def one(texts: list[str]) -> Counted:
        for i, text in enumerate(texts):
            task = Chat(messages=(Message(role="user", content=text),))
            whole.submit(Request(id=str(i), model=spec.name, task=task, options=options))
        count, first = 0, 0.0
        while whole.busy:
            events = whole.step()
            ended = [e for _, e in events if isinstance(e, Finished)]
            count += sum(e.tokens for e in ended)
            if not first and any(isinstance(e, TextDelta | ThinkDelta) for _, e in events):
                first = time.perf_counter()
        return count, first

    return one


if __name__ == "__main__":
    main(*sys.argv[1:])
