"""The ceiling: a bare mlx_lm BatchGenerator in this process, with mlxo's weights and mlxo's batch policy.

usage: inproc.py MODEL_DIR STREAMS[,STREAMS...] TOKENS WORDS ROUNDS   (one JSON line a round on stdout)
Started by compare.py with the environment that mlxo gives its runners.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from load import prompt
from mlx_lm.generate import BatchGenerator
from mlxo.engine.load import backend, load

from mlxo.core.types import ModelSpec


def main(folder: str, streams: str, tokens: str, words: str, rounds: str) -> None:
    loaded = load(ModelSpec(name="bench", digest="0", path=folder), backend())
    model, tokenizer = loaded.model, loaded.tokenizer

    def ids(i: int) -> list[int]:
        message = {"role": "user", "content": prompt(i, int(words))}
        return list(tokenizer.apply_chat_template([message], add_generation_prompt=True))

    for turn in range(int(rounds) + 1):
        for n in map(int, streams.split(",")):
            generator = BatchGenerator(
                model,
                stop_tokens=[[t] for t in tokenizer.eos_token_ids],
                completion_batch_size=16,
                prefill_batch_size=8,
                prefill_step_size=512,
            )
            start = time.perf_counter()
            prompts = [ids(turn * 1000 + n * 100 + i) for i in range(n)]
            generator.insert(prompts, [int(tokens)] * n)
            count, first = 0, 0.0
            while responses := generator.next_generated():
                first = first or time.perf_counter() - start
                count += len(responses)
            wall = time.perf_counter() - start
            generator.close()
            if turn:
                row = {"streams": n, "tokens": count, "wall": wall, "aggregate": count / wall, "ttft": first}
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
