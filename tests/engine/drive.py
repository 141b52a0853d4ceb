"""Running a back end to its end, for tests: what each job answered."""

from __future__ import annotations

from collections.abc import Sequence

from mlxo.core.options import Options
from mlxo.engine.batch import Batch, Drafting, Guard, Job, Out
from mlxo.engine.sampling import Row
from mlxo.engine.solo import Solo

GREEDY = Options(temperature=0.0)


def job(
    key: str, ids: Sequence[int], limit: int, options: Options = GREEDY, guard: Guard | None = None
) -> Job:
    return Job(key, list(ids), limit, Row(options), guard, Drafting(options.draft_num_predict))


def turn(steps: Batch | Solo) -> list[Out]:
    steps.admit()
    return steps.step() if len(steps) else []


def drain(steps: Batch | Solo, *jobs: Job) -> dict[str, list[int]]:
    """Every job's tokens, once all have ended."""
    for each in jobs:
        steps.add(each)
    said: dict[str, list[int]] = {}
    while steps.waiting or len(steps):
        for out in turn(steps):
            said.setdefault(out.key, []).append(out.token)
    return said
