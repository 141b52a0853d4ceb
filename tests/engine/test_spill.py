"""Kept prompts on disk: another process finds them, and whatever is wrong with a file is a miss."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
import pytest
from mlx_lm.models.cache import make_prompt_cache

from mlxo.core import cachedir
from mlxo.engine.batch import Batch
from mlxo.engine.engine import Engine
from mlxo.engine.layout import Layout
from mlxo.engine.prefix import Prefixes
from mlxo.engine.quantised import quantise
from mlxo.engine.solo import Solo
from mlxo.engine.spill import Store
from tests import models
from tests.engine import families
from tests.engine.ask import chat, say
from tests.engine.conftest import spec
from tests.engine.damages import DAMAGES
from tests.engine.test_resume import alone, ask, build, exact, random_ids, steps

BLOCK = 16
CAP = 1 << 30
MODEL = "a" * 64
ROOMY = 1 << 30
# llama4's chunked caches stay in memory.
FAMILIES = list(families.FAMILIES)


class Runner:
    """What a process has of its own: a back end and a prefix cache over a shared folder."""

    def __init__(
        self,
        model: Any,
        folder: Path,
        cap: int = CAP,
        digest: str = MODEL,
        dtype: str = "f",
        budget: int = ROOMY,
    ) -> None:
        layers = make_prompt_cache(model)
        model(mx.zeros((1, 1), dtype=mx.int32), cache=layers)
        self.prefixes = Prefixes(budget, block=BLOCK, layout=Layout(layers))
        self.prefixes.spill_to(Store(folder, cap), digest, dtype)
        self.back_end: Batch | Solo = steps(model, 2, self.prefixes)

    def ask(self, ids: list[int], limit: int = 20) -> tuple[list[int], int]:
        """The answer and how much of the prompt was cached; what is new is handed to the disk."""
        answer = ask(self.back_end, ids, limit)
        exact(self.prefixes)
        self.prefixes.save()
        return answer

    def leave(self) -> None:
        self.prefixes.close(60)


def records(folder: Path) -> list[Path]:
    return sorted(f.path for f in cachedir.scan(folder) if f.model and not f.part)


@pytest.fixture(scope="module")
def llama() -> Any:
    return build("full attention")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_next_process_goes_on_where_this_one_was(family: str, tmp_path: Path) -> None:
    model = build(family)
    rng = random.Random(1)
    ids = random_ids(rng, 70)
    first = Runner(model, tmp_path)
    answer, cached = first.ask(ids)
    assert cached == 0
    asked = [
        ids,
        [*ids, *answer, *random_ids(rng, 9)],
        [*ids[:-2], 3, 4, 5],
        [*ids[:40], *random_ids(rng, 20)],
    ]
    expected = [alone(model, each) for each in asked]
    # In memory, in a process that has them all in memory: what can be hit at all.
    hits = [first.ask(each) for each in asked]
    assert [a for a, _ in hits] == expected
    first.leave()
    assert records(tmp_path)
    second = Runner(model, tmp_path)
    assert len(second.prefixes) == 0
    for each, text, (_, most) in zip(asked, expected, hits, strict=True):
        said, cached = second.ask(each)
        assert said == text
        assert cached >= most
    assert hits[1][1] == len(ids) + len(answer)
    second.leave()


def test_nothing_is_written_twice(llama: Any, tmp_path: Path) -> None:
    ids = random_ids(random.Random(2), 70)

    def written() -> set[tuple[str, int]]:
        return {(p.name, p.stat().st_ino) for p in records(tmp_path)}

    first = Runner(llama, tmp_path)
    answer, _ = first.ask(ids)
    first.leave()
    before = written()
    second = Runner(llama, tmp_path)
    for each in (ids, ids[:50], ids):
        second.ask(each, limit=1)
    second.leave()
    assert before <= written()
    third = Runner(llama, tmp_path)
    third.ask([*ids, *answer, *[7] * 40], limit=1)
    third.leave()
    # A block that was not full is superseded: its file goes when the longer one is there.
    full = {name for name, _ in before} - {p.name for p in records(tmp_path)}
    assert len(full) == 1
    assert len(before & written()) == len(before) - 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_a_miss_and_goes(llama: Any, tmp_path: Path, damage: str) -> None:
    ids = random_ids(random.Random(3), 70)
    first = Runner(llama, tmp_path)
    answer, _ = first.ask(ids)
    first.leave()
    damaged = records(tmp_path)
    for path in damaged:
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    second = Runner(llama, tmp_path)
    assert second.ask(ids) == (answer, 0)
    second.leave()
    # Written anew, and sound: what nobody could read is not in the way.
    third = Runner(llama, tmp_path)
    assert third.ask(ids) == (answer, len(ids) - 1)
    third.leave()


def test_a_folder_in_the_place_of_a_record(llama: Any, tmp_path: Path) -> None:
    ids = random_ids(random.Random(3), 70)
    first = Runner(llama, tmp_path)
    answer, _ = first.ask(ids)
    first.leave()
    for path in records(tmp_path):
        path.unlink()
        path.mkdir()
    second = Runner(llama, tmp_path)
    assert second.ask(ids) == (answer, 0)
    second.leave()


def test_other_models_types_and_salts_see_nothing(llama: Any, tmp_path: Path) -> None:
    ids = random_ids(random.Random(4), 70)
    first = Runner(llama, tmp_path)
    first.ask(ids)
    first.leave()
    for fields in ({"digest": "b" * 64}, {"dtype": "half"}):
        other = Runner(llama, tmp_path, **fields)  # type: ignore[arg-type]
        assert other.ask(ids, limit=1)[1] == 0
        other.leave()
    same = Runner(llama, tmp_path)
    assert same.prefixes.take(ids, salt=b"adapter") == (None, 0)
    assert same.prefixes.take(ids)[1] == len(ids) - 1
    same.leave()


def test_another_architecture_of_the_same_name_sees_nothing(llama: Any, tmp_path: Path) -> None:
    ids = random_ids(random.Random(4), 70)
    first = Runner(llama, tmp_path)
    first.ask(ids)
    first.leave()
    wide = families.build("llama", {"head_dim": 16})
    second = Runner(wide, tmp_path)
    assert second.ask(ids) == (alone(wide, ids), 0)
    second.leave()


def test_the_cap_counts_every_byte_and_strangers_go_first(llama: Any, tmp_path: Path) -> None:
    rng = random.Random(5)
    probe = Runner(llama, tmp_path / "probe")
    probe.ask(random_ids(rng, 64), limit=1)
    probe.leave()
    each = sum(f.size for f in cachedir.scan(tmp_path / "probe"))
    folder = tmp_path / "cache"
    strange = folder / "0-old" / "x.safetensors"
    foreign = folder / "note.txt"
    for path in (strange, foreign):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(each))
    cap = int(4.5 * each)
    prompts = [random_ids(rng, 64) for _ in range(5)]

    def keep(*some: list[int]) -> None:
        runner = Runner(llama, folder, cap=cap)
        for ids in some:
            runner.ask(ids, limit=1)
        runner.leave()
        assert sum(f.size for f in cachedir.scan(folder)) <= cap

    def found() -> list[int]:
        runner = Runner(llama, folder, cap=cap)
        hits = [runner.prefixes.take(ids)[1] for ids in prompts]
        runner.prefixes.clear()
        runner.leave()
        return hits

    for i in range(2):
        keep(prompts[i])
        for path in records(folder):
            os.utime(path, (1000 + i, 1000 + i))
    assert strange.exists()
    assert foreign.exists()
    keep(prompts[2])
    assert not (strange.exists() and foreign.exists())
    keep(prompts[3])
    assert not strange.exists()
    assert not foreign.exists()
    assert found() == [63, 63, 63, 63, 0]
    # That used them all, the last one the latest; then the first is used again.
    keep(prompts[0])
    keep(prompts[4])
    left = found()
    assert left[0] == left[2] == left[3] == left[4] == 63
    # Of the second its end went, as far as that was needed; no beginning went before what follows it.
    assert left[1] == 48
    Runner(llama, folder, cap=int(1.5 * each)).leave()
    assert sum(f.size for f in cachedir.scan(folder)) <= 1.5 * each


def test_writing_is_bounded_in_an_hour(llama: Any, tmp_path: Path) -> None:
    """Half of the cap at once: a stream of prompts that nobody asks again does not wear the disk out."""
    rng = random.Random(6)
    probe = Runner(llama, tmp_path / "probe")
    probe.ask(random_ids(rng, 64), limit=1)
    probe.leave()
    each = sum(f.size for f in cachedir.scan(tmp_path / "probe"))
    runner = Runner(llama, tmp_path / "cache", cap=8 * each)
    for _ in range(12):
        runner.ask(random_ids(rng, 64), limit=1)
    runner.leave()
    assert 3 * each < sum(f.size for f in cachedir.scan(tmp_path / "cache")) <= 5 * each


def test_what_left_the_memory_is_on_disk(llama: Any, tmp_path: Path) -> None:
    rng = random.Random(7)
    one = Runner(llama, tmp_path / "one")
    one.ask(random_ids(rng, 64), limit=1)
    prompts = [random_ids(rng, 64) for _ in range(4)]
    runner = Runner(llama, tmp_path / "two", budget=one.prefixes.nbytes * 2)
    one.leave()
    expected = [runner.ask(ids)[0] for ids in prompts]
    assert runner.prefixes.nbytes <= one.prefixes.nbytes * 2 or len(runner.prefixes) < 10
    for ids, answer in zip(prompts, expected, strict=True):
        assert runner.ask(ids) == (answer, len(ids) - 1)
    runner.leave()


def test_two_processes_and_a_clear_in_between(llama: Any, tmp_path: Path) -> None:
    rng = random.Random(8)
    ids = random_ids(rng, 70)
    answer = alone(llama, ids)
    here, there = Runner(llama, tmp_path), Runner(llama, tmp_path)
    assert here.ask(ids) == (answer, 0)
    assert there.ask(ids) == (answer, 0)
    here.leave()
    there.leave()
    late, later = Runner(llama, tmp_path), Runner(llama, tmp_path)
    assert late.ask(ids) == (answer, len(ids) - 1)
    cachedir.delete(cachedir.scan(tmp_path))
    assert late.ask(ids) == (answer, len(ids) - 1)  # in its memory by now
    assert later.ask(ids) == (answer, 0)
    late.leave()
    later.leave()
    assert records(tmp_path)


def test_a_folder_that_cannot_be_written_costs_nothing_else(llama: Any, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    runner = Runner(llama, blocked)
    ids = random_ids(random.Random(9), 70)
    assert runner.ask(ids) == (alone(llama, ids), 0)
    assert runner.ask(ids)[1] == len(ids) - 1
    runner.leave()
    assert blocked.read_text() == "not a folder"


def test_half_precision_survives(tmp_path: Path) -> None:
    model = build("full attention")
    model.set_dtype(mx.bfloat16)
    ids = random_ids(random.Random(10), 40)
    first = Runner(model, tmp_path)
    answer, _ = first.ask(ids)
    first.leave()
    second = Runner(model, tmp_path)
    assert second.ask(ids) == (answer, len(ids) - 1)
    second.leave()


def test_quantised_layers_survive(tmp_path: Path) -> None:
    model = families.build("llama", {"head_dim": 32})
    quantise(model, 8, "m")
    ids = random_ids(random.Random(11), 70)
    first = Runner(model, tmp_path)
    answer, _ = first.ask(ids)
    assert first.ask([*ids[:50], 3]) == (alone(model, [*ids[:50], 3]), 50)
    first.leave()
    second = Runner(model, tmp_path)
    assert second.ask(ids) == (answer, len(ids) - 1)
    second.leave()


def test_a_whole_engine_remembers_after_its_end(tmp_path: Path) -> None:
    """Through Engine's own door, and nothing is kept where the model has no digest or the cap is 0."""
    question = "What is the capital of France? " * 30
    for digest, cap, kept in (("", CAP, False), (MODEL, 0, False), (MODEL, CAP, True)):
        model = msgspec.structs.replace(spec(models.QWEN3), digest=digest)
        engine = Engine(model, rows=2, cache=str(tmp_path), cache_size=cap)
        cold = say(engine, chat(question))
        assert cold.started.cached_tokens == 0
        engine.close()
        assert bool(records(tmp_path)) is kept
    again = Engine(model, rows=2, cache=str(tmp_path), cache_size=CAP)
    warm = say(again, chat(question))
    assert warm.finished.context == cold.finished.context
    assert warm.started.cached_tokens == warm.started.prompt_tokens - 1
    again.close()
