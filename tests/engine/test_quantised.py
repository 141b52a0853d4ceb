"""Quantised keys and values: rows say the same alone and in company, and take less memory."""

from __future__ import annotations

import random
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import QuantizedKVCache, make_prompt_cache

from mlxo.core.errors import LoadFailed
from mlxo.core.options import Options
from mlxo.engine.batch import Batch
from mlxo.engine.engine import Engine
from mlxo.engine.memory import measure
from mlxo.engine.prefix import Prefixes
from mlxo.engine.quantised import Batched, quantise
from mlxo.engine.solo import mergeable
from tests import models
from tests.engine import families
from tests.engine.ask import chat, run, say
from tests.engine.conftest import spec
from tests.engine.drive import drain, job, turn

CHUNK = 8


def built(bits: int) -> Any:
    model = families.build("llama", {"hidden_size": 64, "head_dim": 32, "num_attention_heads": 2})
    quantise(model, bits, "m")
    return model


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_say_what_they_say_alone(bits: int) -> None:
    model = built(bits)
    rng = random.Random(bits)
    asked = [[rng.randrange(2, families.VOCABULARY) for _ in range(rng.randint(1, 40))] for _ in range(7)]

    def back_end(rows: int, prefixes: Prefixes) -> Batch:
        return Batch(model, [families.EOS], rows, CHUNK, 4 * CHUNK, prefixes, slack=60)

    alone: dict[str, list[int]] = {}
    for i, ids in enumerate(asked):
        alone |= drain(back_end(1, Prefixes(0)), job(str(i), ids, 20))
    assert len({tuple(a) for a in alone.values()}) > 4
    prefixes = Prefixes(1 << 24)
    together = back_end(3, prefixes)
    for _ in range(2):  # the second time from the prefix cache
        assert drain(together, *(job(str(i), ids, 20) for i, ids in enumerate(asked))) == alone
    together.add(job("long", asked[0] * 3, 20))
    together.admit()
    assert sum(together.admit().values()) == 0
    turn(together)
    together.remove("long")


def test_a_batch_of_caches_is_its_rows() -> None:
    """Whatever happened to the batch, a row taken out holds its own tokens."""
    rng = random.Random(1)
    held: list[list[mx.array]] = []
    layers = []
    for length in (5, 0, 300):
        layer = QuantizedKVCache(32, 8)
        held.append([])
        if length:
            keys = mx.random.normal((1, 2, length, 32))
            layer.update_and_fetch(keys, -keys)
            held[-1].append(keys)
        layers.append(layer)
    batch = Batched.merge(layers[:2])
    batch.extend(Batched.merge(layers[2:]))
    rows = [0, 1, 2]
    for round_ in range(6):
        sizes = [rng.randint(1, 4) for _ in rows]
        fresh = mx.random.normal((len(rows), 2, max(sizes), 32))
        batch.prepare(lengths=sizes, right_padding=[max(sizes) - n for n in sizes])
        batch.update_and_fetch(fresh, -fresh)
        batch.finalize()
        for place, (row, n) in enumerate(zip(rows, sizes, strict=True)):
            held[row].append(fresh[place : place + 1, :, :n])
        if round_ == 3:
            batch.filter([0, 1])
            rows = rows[:2]
    for place, row in enumerate(rows):
        layer = batch.extract(place)
        want = mx.quantize(mx.concatenate(held[row], axis=2), group_size=32, bits=8)
        keys, values = layer.keys_and_values()
        assert layer.offset == sum(h.shape[2] for h in held[row])
        assert all(mx.array_equal(a, b) for a, b in zip(keys, want, strict=True))
        packed, scales, biases = values
        back = mx.dequantize(packed, scales, biases, group_size=32, bits=8)
        assert mx.allclose(back, -mx.concatenate(held[row], axis=2), atol=0.05)
    assert batch.size() == max(sum(h.shape[2] for h in held[row]) for row in rows)


def test_a_modelfile_asks_for_it() -> None:
    plain = Engine(spec(models.QWEN3))
    engine = Engine(spec(models.QWEN3, options=Options(kv_bits=8)), rows=4)
    questions = list(models.ANSWERS)[:4]
    answers = run(engine, *(chat(q, options={"kv_bits": 8}) for q in questions))
    # What is lost at 8 bits does not change what a model is sure of.
    assert [a.text for a in answers] == [models.ANSWERS[q] for q in questions]
    assert engine._memory._rate < plain._memory._rate / 2
    assert say(engine, chat("Say hello.")).failed.code == "invalid_request"
    assert say(plain, chat("Say hello.", options={"kv_bits": 8})).failed.code == "invalid_request"


def test_what_cannot_be_quantised_is_said() -> None:
    for family in ("sliding window", "state space"):
        with pytest.raises(LoadFailed, match="not all of its layers keep every token"):
            quantise(families.build(*families.FAMILIES[family]), 8, "m")
    with pytest.raises(LoadFailed, match="heads of 8 numbers"):
        quantise(families.build("llama", {}), 8, "m")
    with pytest.raises(LoadFailed, match="kv_bits 5"):
        quantise(families.build("llama", {}), 5, "m")
    assert mergeable(make_prompt_cache(built(4)))


def test_the_rate_is_what_a_token_takes() -> None:
    plain = families.build("llama", {})
    fixed, rate = measure(plain)
    assert (fixed, rate) == (0, 2 * 2 * 2 * 8 * 4)  # layers, sides, heads, width, float32
    fixed, rate = measure(families.build(*families.FAMILIES["state space"]))
    assert rate == 0
    assert fixed > 0
