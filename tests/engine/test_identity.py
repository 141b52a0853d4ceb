"""Random schedules of joins, cancels and repeats: in any company a sequence says what it says alone.

A way of making a back end is a function of the model, the rows, a seed and a folder that is the same all the
while; another one is tested by adding it to `MAKERS`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from mlxo.core.options import Options
from mlxo.engine.batch import Batch
from mlxo.engine.layout import Layout
from mlxo.engine.ngram import Ngram
from mlxo.engine.prefix import Prefixes
from mlxo.engine.quantised import quantise
from mlxo.engine.solo import Solo
from mlxo.engine.spill import Store
from tests.engine import drafts, families
from tests.engine.drive import GREEDY, drain, job

CHUNK = 8
LIMIT = 8

# None asks for one sequence alone, without a prefix cache.
Maker = Callable[[Any, int, int | None, Path], Batch | Solo]


def batched(model: Any, rows: int, seed: int | None, folder: Path) -> Batch:
    slack = 1 << 20 if seed is None else (40, 200, 1 << 20)[seed % 3]
    return Batch(model, [families.EOS], rows, CHUNK, 4 * CHUNK, Prefixes(0), slack)


def cached(model: Any, rows: int, seed: int | None, folder: Path) -> Batch:
    back_end = batched(model, rows, seed, folder)
    if seed is not None:
        back_end._prefixes = Prefixes(1 << 24, arrays=4 * (2 + seed % 14), block=(8, 16, 256)[seed % 3])
    return back_end


def even(model: Any, rows: int, seed: int | None, folder: Path) -> Batch:
    """As on CUDA, where pieces are padded to few widths."""
    back_end = cached(model, rows, seed, folder)
    back_end.even = seed is not None
    return back_end


def restored(model: Any, rows: int, seed: int | None, folder: Path) -> Batch:
    """Each schedule finds in files what the ones before it kept, and nothing in memory."""
    back_end = batched(model, rows, seed, folder)
    if seed is not None:
        caches = make_prompt_cache(model)
        model(mx.zeros((1, 1), dtype=mx.int32), cache=caches)
        back_end._prefixes = Prefixes(1 << 24, block=16, layout=Layout(caches))
        back_end._prefixes.spill_to(Store(folder, 1 << 24), "0" * 64, "float32")
        assert back_end._prefixes._spill is not None
    return back_end


def drafted(model: Any, rows: int, seed: int | None, folder: Path) -> Batch:
    if seed is None:
        return batched(model, rows, seed, folder)
    prefixes = Prefixes(1 << 24 if seed % 2 else 0)
    return drafts.speculative(model, rows, Ngram(), prefixes, rest=(seed % 5) / 5)


def solo(model: Any, rows: int, seed: int | None, folder: Path) -> Solo:
    return Solo(model, [families.EOS], rows, CHUNK, Prefixes(0 if seed is None else 1 << 24))


LLAMA = families.FAMILIES["full attention"]
# Name -> (maker, family, kv_bits or 0, schedules): 200 schedules in all.
MAKERS: dict[str, tuple[Maker, tuple[str, dict[str, Any]], int, int]] = {
    "batched": (batched, LLAMA, 0, 25),
    "cached": (cached, LLAMA, 0, 30),
    "even": (even, LLAMA, 0, 21),
    "even, quantised": (even, ("llama", {"head_dim": 32}), 8, 4),
    "restored from disk": (restored, LLAMA, 0, 30),
    "speculative": (drafted, LLAMA, 0, 45),
    "solo": (solo, LLAMA, 0, 10),
    "quantised": (cached, ("llama", {"head_dim": 32}), 8, 15),
    "sliding window": (cached, families.FAMILIES["sliding window"], 0, 10),
    "convolution": (cached, families.FAMILIES["convolution and attention"], 0, 10),
}

_WAYS = (
    GREEDY,
    GREEDY,
    Options(temperature=1.5, seed=7, top_k=0, top_p=1.0),
    Options(temperature=2.0, seed=8, top_k=20, top_p=0.8),
    Options(temperature=1.2, seed=9, top_k=30, min_p=0.05, repeat_penalty=1.2),
)


class World:
    """Some conversations, over two system prompts and with edits, and what is said to each way of asking."""

    def __init__(self, make: Maker, model: Any, folder: Path) -> None:
        rng = random.Random(12)

        def ids(n: int) -> list[int]:
            return [rng.randrange(2, families.VOCABULARY) for _ in range(n)]

        systems = [ids(24), ids(45)]
        first = [[*rng.choice(systems), *ids(rng.randint(1, 12))] for _ in range(4)]
        first += [ids(n) for n in (1, 2, 70)]
        asked = [(prompt, _WAYS[i % len(_WAYS)]) for i, prompt in enumerate(first)]
        asked += [(prompt, _WAYS[(i + 2) % len(_WAYS)]) for i, prompt in enumerate(first)]

        def alone(prompt: list[int], way: Options) -> list[int]:
            return drain(make(model, 1, None, folder), job("x", prompt, LIMIT, way))["x"]

        asked += [([*p, *alone(p, w), *ids(4)], w) for p, w in asked[:5]]
        asked += [([*p[:-2], *ids(3)], w) for p, w in asked[-4:]]
        self.asked = asked
        self.plain = [alone(p, w) for p, w in asked]
        assert len({tuple(a) for a in self.plain}) > len(asked) // 2, "nothing is tested"


def play(back_end: Batch | Solo, world: World, rng: random.Random) -> None:
    """One schedule; asserts that every sequence said what it says alone, up to where it was cancelled."""
    todo = rng.choices(range(len(world.asked)), k=rng.randint(4, 10))
    ask_of: dict[str, int] = {}
    said: dict[str, list[int]] = {}
    cancelled = set()
    while todo or back_end.waiting or len(back_end):
        while todo and rng.random() < 0.6:
            key, i = f"{len(ask_of)}", todo.pop()
            ask_of[key] = i
            back_end.add(job(key, world.asked[i][0], LIMIT, world.asked[i][1]))
        if rng.random() < 0.5:
            back_end.admit()
        if ask_of and rng.random() < 0.08:
            victim = rng.choice(list(ask_of))
            back_end.remove(victim)
            cancelled.add(victim)
        back_end.admit()
        for out in back_end.step() if len(back_end) else ():
            said.setdefault(out.key, []).append(out.token)
    for key, i in ask_of.items():
        got = said.get(key, [])
        assert got == world.plain[i][: len(got) if key in cancelled else None], key


@pytest.mark.parametrize("name", MAKERS)
def test_company_changes_nothing(name: str, tmp_path: Path) -> None:
    make, family, bits, schedules = MAKERS[name]
    model = families.build(*family)
    if bits:
        quantise(model, bits, name)
    world = World(make, model, tmp_path)
    for seed in range(schedules):
        rng = random.Random(seed)
        back_end = make(model, rng.choice([2, 3, 5, 16]), seed, tmp_path)
        play(back_end, world, rng)
        prefixes = back_end._prefixes
        prefixes.close(5.0)
