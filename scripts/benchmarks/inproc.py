"""The ceiling: a bare mlx_lm BatchGenerator in this process, with mlxo's weights and mlxo's batch policy.

usage: inproc.py MODEL_DIR TOKENS WORDS
Answers every line "STREAMS SEED" on stdin with a JSON line on stdout. Started by compare.py with the
environment that mlxo gives its runners.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from load import prompt
from mlx_lm.generate import BatchGenerator

from mlxo.core.types import ModelSpec
from mlxo.engine.engine import CHUNK
from mlxo.engine.load import Loaded, backend, load


def main(folder: str, tokens: str, words: str) -> None:
    device = backend()
    loaded = load(ModelSpec(name="bench", digest="0", path=folder), device)
    chunk, _ = CHUNK[device]
    for line in sys.stdin:
        streams, seed = map(int, line.split())
        texts = [prompt(seed + i, int(words)) for i in range(streams)]
        print(json.dumps(generate(loaded, texts, int(tokens), chunk)), flush=True)


def generate(loaded: Loaded, texts: list[str], tokens: int, chunk: int) -> dict[str, float]:
    """One round. Tokenising and the chat template count, as they do behind HTTP."""
    start = time.perf_counter()
    generator = BatchGenerator(
        loaded.model,
        stop_tokens=[[t] for t in loaded.tokenizer.eos_token_ids],
        completion_batch_size=16,
        prefill_batch_size=16,
        prefill_step_size=chunk,
    )
    chats = ([{"role": "user", "content": text}] for text in texts)
    prompts = [list(loaded.tokenizer.apply_chat_template(c, add_generation_prompt=True)) for c in chats]
    generator.insert(prompts, [tokens] * len(prompts))
    count, first = 0, 0.0
    while responses := generator.next_generated():
        first = first or time.perf_counter() - start
        count += len(responses)
    wall = time.perf_counter() - start
    generator.close()
    return {"streams": len(texts), "tokens": count, "wall": wall, "aggregate": count / wall, "ttft": first}


if __name__ == "__main__":
    main(*sys.argv[1:])
