"""`mlxo bench`: how fast a model answers, here or on any server that speaks OpenAI's API."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import click

from mlxo.cli import output
from mlxo.cli.bench_answer import Answer
from mlxo.cli.bench_load import Target, ask, measure_words, prompt
from mlxo.cli.bench_row import Cache, Row, cache, row
from mlxo.core.errors import InvalidRequest, NotFound

MAX_STREAMS = 1024
WARM_TOKENS = 8  # of each answer in the rounds that are not measured: kernels compile, pages are read


def _counts(_: click.Context, __: click.Parameter, value: str) -> list[int]:
    words = value.split(",")
    if all(w.strip().isdecimal() and 0 < int(w) <= MAX_STREAMS for w in words):
        return [int(w) for w in words]
    raise click.BadParameter(f"{value!r} is not a list of numbers from 1 to {MAX_STREAMS}, such as 1,4,16")


@click.command()
@click.argument("model", required=False)
@click.option("--streams", callback=_counts, default="1,4,16", show_default=True, help="Requests at once.")
@click.option(
    "--prompt-tokens", type=click.IntRange(1), default=100, show_default=True, help="About so long."
)
@click.option("--tokens", type=click.IntRange(2), default=64, show_default=True, help="Asked of each answer.")
@click.option(
    "--rounds", type=click.IntRange(1), default=3, show_default=True, help="Of each number of streams."
)
@click.option("--url", help="Another server with OpenAI's /v1/chat/completions.")
@click.option("--model", "name", metavar="NAME", help="What the server of --url calls the model.")
@click.option(
    "--api-key", metavar="KEY", help="For the server of --url; else OPENAI_API_KEY, if there is one."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; times in seconds.")
def bench(
    model: str | None,
    streams: list[int],
    prompt_tokens: int,
    tokens: int,
    rounds: int,
    url: str | None,
    name: str | None,
    api_key: str | None,
    as_json: bool,
) -> None:
    """Measure how fast MODEL answers: one stream, then several at once.

    Each prompt is unlike the others, so that no cache helps; what the cache saves is measured by itself. With
    --url the same load goes to another server, so that both can be compared in the same minute.
    """
    target = _own(model, name, api_key) if url is None else _other(url, name or model, api_key)
    plan = _Plan(target, streams, prompt_tokens, tokens, rounds)
    with _Progress() as progress:
        rows, saved = asyncio.run(_measure(plan, progress))
    if as_json:
        output.print_json(_json(plan, rows, saved))
    else:
        sys.stdout.write(_table(plan, rows, saved))


@dataclass(frozen=True)
class _Plan:
    target: Target
    streams: list[int]
    prompt_tokens: int
    tokens: int
    rounds: int


def _own(model: str | None, name: str | None, key: str | None) -> Target:
    """This machine's server, with the model fetched if need be, and loaded."""
    if model is None:
        raise InvalidRequest("which model?", "mlxo list says what is here; another server goes with --url")
    if name is not None or key is not None:
        raise InvalidRequest("--model and --api-key are for another server, which --url names")
    from mlxo.cli.connect import connect
    from mlxo.cli.models import pull_model
    from mlxo.cli.progress import Spinner

    client = connect()
    try:
        client.post("/api/show", {"model": model})
    except NotFound:
        pull_model(client, model)
    with Spinner(f"loading {output.clean(model)}"):
        client.post("/api/generate", {"model": model, "stream": False}, timeout=None)
    # A Modelfile's penalty would be work that the server of a --url is not asked to do.
    return Target(f"http://{client.address}", model, fields=(("options", {"repeat_penalty": 1.0}),))


def _other(url: str, model: str | None, key: str | None) -> Target:
    """Raises InvalidRequest for what is no address, no name or no key."""
    if not model:
        raise InvalidRequest(f"which model of {output.clean(url)}?", "say it with --model")
    url = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or not (url.isascii() and url.isprintable()) or " " in url:
        raise InvalidRequest(f'invalid --url: "{output.clean(url)[:80]}"', "such as http://127.0.0.1:8000")
    key = os.environ.get("OPENAI_API_KEY", "") if key is None else key
    if not (key.isascii() and key.isprintable()):
        raise InvalidRequest("the API key has characters that no key has", "is it cut off or quoted?")
    return Target(url, model, key)


# ---------------------------------------------------------------- measuring


async def _measure(plan: _Plan, progress: _Progress) -> tuple[list[Row], Cache | None]:
    """Prompts begin with words of this run, since a server may remember those of an earlier one."""
    run = os.urandom(8).hex()
    with progress.stage("warm-up", None):
        words = await measure_words(plan.target, run, plan.prompt_tokens)
        for n in plan.streams:
            texts = [prompt(f"{run} warm {n} {i}", words) for i in range(n)]
            await ask(plan.target, texts, min(plan.tokens, WARM_TOKENS))
    rows = []
    for n in plan.streams:
        rounds: list[list[Answer]] = []
        with progress.stage(_streams(n), n * plan.tokens * plan.rounds) as report:
            for r in range(plan.rounds):
                texts = [prompt(f"{run} {n} {r} {i}", words) for i in range(n)]
                done = sum(a.tokens for answers in rounds for a in answers)
                rounds.append(await ask(plan.target, texts, plan.tokens, partial(report, done)))
        rows.append(row(rounds))
    pairs = []
    with progress.stage("the same prompt again", None):
        for r in range(plan.rounds):
            texts = [prompt(f"{run} cache {r}", words)]
            (cold,) = await ask(plan.target, texts, WARM_TOKENS)
            (warm,) = await ask(plan.target, texts, WARM_TOKENS)
            pairs.append((cold, warm))
    return rows, cache(pairs)


class _Progress:
    """On standard error: a bar for each stage on a terminal, otherwise a line."""

    def __init__(self) -> None:
        self._bars = _bars() if sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    @contextmanager
    def stage(self, text: str, tokens: int | None) -> Iterator[Callable[[int, int], None]]:
        """Gives what is to be told (tokens of the rounds before, pieces of this one)."""
        if self._bars is None:
            print(text, file=sys.stderr, flush=True)
            yield lambda done, pieces: None
            return
        bars, task = self._bars, self._bars.add_task(text, total=tokens)
        yield lambda done, pieces: bars.update(task, completed=min(done + pieces, tokens or 0))
        bars.update(task, total=tokens or 1, completed=tokens or 1)


def _bars() -> Any:
    """A spinner, a bar and a rate a stage; the bar only where it is known how much there is to come."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
    from rich.text import Text

    class Bar(BarColumn):
        def render(self, task: Task) -> Any:
            return super().render(task) if (task.total or 0) > 1 else Text("")

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            if (task.total or 0) <= 1 or not task.elapsed:
                return Text("")
            return Text(f"{_rate(task.completed / task.elapsed)} tok/s")

    columns = (
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description}", markup=False),
        Bar(bar_width=30),
    )
    return Progress(*columns, Rate(), console=Console(stderr=True), refresh_per_second=5)


# ---------------------------------------------------------------- showing


def _streams(n: int) -> str:
    return "1 stream" if n == 1 else f"{n} streams"


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _rate(tokens: float | None) -> str:
    return "-" if tokens is None else f"{tokens:.1f}" if tokens < 100 else f"{tokens:.0f}"


HEADERS = ("STREAMS", "TTFT P50", "P99", "GAP P50", "P99", "TOK/S EACH", "TOK/S ALL", "PREFILL TOK/S")


def _cells(r: Row) -> tuple[str, ...]:
    times = (_time(t) for t in (r.ttft_p50, r.ttft_p99, r.gap_p50, r.gap_p99))
    return (str(r.streams), *times, _rate(r.each), _rate(r.aggregate), _rate(r.prefill))


def _table(plan: _Plan, rows: list[Row], saved: Cache | None) -> str:
    lengths = [r.prompt_tokens for r in rows if r.prompt_tokens is not None]
    prompts = f"prompts of {round(fmean(lengths))} tokens" if lengths else "prompts of unknown length"
    lines = [f"{output.clean(plan.target.model)} on {plan.target.host}: {prompts}, {plan.tokens} tokens out"]
    if any(r.length < 0.9 * plan.tokens for r in rows):
        lines.append("answers ended early, after " + ", ".join(f"{r.length:.0f}" for r in rows) + " tokens")
    if not all(r.counted for r in rows):
        lines.append("the server counts no tokens: TOK/S is of pieces of text, one or more tokens each")
    if saved is not None:
        lines.append(_saving(saved))
    return output.table(HEADERS, map(_cells, rows)) + "\n" + "".join(f"{line}\n" for line in lines)


def _saving(c: Cache) -> str:
    known = c.cached_tokens is not None and c.prompt_tokens is not None
    what = f"{c.cached_tokens} of {c.prompt_tokens} tokens remembered, " if known else ""
    return (
        f"the same prompt again: {what}first token after {_time(c.warm_ttft)} instead of {_time(c.cold_ttft)}"
    )


def _json(plan: _Plan, rows: list[Row], saved: Cache | None) -> dict[str, Any]:
    asked = {"prompt_tokens": plan.prompt_tokens, "tokens": plan.tokens, "rounds": plan.rounds}
    return {
        "url": plan.target.url,
        "model": plan.target.model,
        "asked": asked,
        "rows": [asdict(r) for r in rows],
        "cache": None if saved is None else {**asdict(saved), "ratio": saved.ratio},
    }
