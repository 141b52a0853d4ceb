"""Long operations of the store (create, pull, verify) in worker threads; several clients may watch one.

Clients that ask for the very same thing while it runs share a job; jobs on one name follow one another. The
last client that leaves cancels. All belongs to the event loop but `_report`, which the worker thread calls.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Hashable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any
from weakref import WeakValueDictionary

from mlxo.core.errors import MlxoError
from mlxo.store.progress import Progress, Report

THREADS = 8  # jobs that run at once; more wait. Not asyncio's own threads, which short calls need
PATIENCE = 5.0  # seconds that a cancelled job has to notice, at shutdown

Work = Callable[[Report, threading.Event], Any]
Key = tuple[str, str | None]  # status and digest: newer progress of the same thing replaces older


class _Watcher:
    """What one client has not been sent yet, so that a slow one costs no more than a line a blob."""

    def __init__(self, pending: dict[Key, Progress]) -> None:
        self.pending = pending
        self.wake = asyncio.Event()


class Job:
    """One operation; `follow` it, then ask for its `result`."""

    def __init__(self, work: Work, turn: asyncio.Lock, pool: Executor) -> None:
        self._work = work
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._latest: dict[Key, Progress] = {}
        self._watchers: set[_Watcher] = set()
        self._closed: MlxoError | None = None
        self.cancelled = threading.Event()
        self.task = asyncio.create_task(self._run(turn))
        self.task.add_done_callback(self._done)

    async def follow(self) -> AsyncGenerator[list[Progress], None]:
        """Batches of progress until the job has ended. Close the iterator to leave early."""
        watcher = _Watcher(dict(self._latest))
        self._watchers.add(watcher)
        try:
            while self._closed is None:
                batch, watcher.pending = list(watcher.pending.values()), {}
                if batch:
                    yield batch
                elif self.task.done():
                    return
                else:
                    watcher.wake.clear()
                    await watcher.wake.wait()
            raise self._closed
        finally:
            self._watchers.remove(watcher)
            if not self._watchers:
                self.cancelled.set()

    def result(self) -> Any:
        """What the work returned. Raises what it raised."""
        return self.task.result()

    def close(self, reason: MlxoError) -> None:
        """Stop it; everybody who follows gets `reason`."""
        self._closed = reason
        self.cancelled.set()
        self._wake()

    async def _run(self, turn: asyncio.Lock) -> Any:
        async with turn:
            return await self._loop.run_in_executor(self._pool, self._work, self._report, self.cancelled)

    def _report(self, progress: Progress) -> None:
        self._loop.call_soon_threadsafe(self._publish, progress)

    def _publish(self, progress: Progress) -> None:
        key = (progress.status, progress.digest)
        self._latest[key] = progress
        for watcher in self._watchers:
            watcher.pending[key] = progress
        self._wake()

    def _done(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled():
            task.exception()  # seen, even when nobody is left to hear of it
        self._wake()

    def _wake(self) -> None:
        for watcher in self._watchers:
            watcher.wake.set()


class Jobs:
    def __init__(self) -> None:
        self._running: dict[Hashable, Job] = {}
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="job")

    def join(self, key: Hashable, turn: str, work: Work) -> Job:
        """The job of this key that is under way, else a new one. Jobs with the same `turn` run one by one."""
        job = self._running.get(key)
        if job is None or job.cancelled.is_set():
            lock = self._turns.get(turn)
            if lock is None:
                lock = self._turns[turn] = asyncio.Lock()
            job = self._running[key] = Job(work, lock, self._pool)
            job.task.add_done_callback(lambda task: self._forget(key, task))
        return job

    def running(self) -> list[Job]:
        return list(self._running.values())

    def _forget(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        if self._running[key].task is task:
            del self._running[key]

    async def close(self, reason: MlxoError) -> None:
        """Cancel all jobs and wait, though not for ever: what they leave behind is temporary files."""
        jobs = self.running()
        for job in jobs:
            job.close(reason)
        if jobs:
            await asyncio.wait([job.task for job in jobs], timeout=PATIENCE)
        self._pool.shutdown(wait=False, cancel_futures=True)
