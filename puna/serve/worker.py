"""The thread that owns the engine, and how requests of the event loop reach it.

In:  requests of generation.Engine, in groups: the answers to one HTTP request.
Out: their chunks, awaited one after the other.

    event loop                                   thread
    submit(requests) ──> jobs ── commands ─────> engine.submit
    async for … in work <─ queue <─ one call a step <─ engine.step
    work.cancel() ────────────── commands ─────> engine.cancel, and the slot is free

The engine is touched by the thread alone. Where a step raises, the state of the engine is not known any
more: the requests in flight fail, the server says that it is unwell, and nothing more is accepted.
"""

import asyncio
import logging
import math
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from puna.generate.engine import Engine
from puna.generate.request import Chunk, Request
from puna.serve.errors import ServeError
from puna.serve.metrics import Metrics

log = logging.getLogger("puna.serve")
BROKEN = "the engine has failed, and the server must be started again; its log says why"


class Job:
    """One request of the engine. `id` is the engine's, and belongs to the thread."""

    def __init__(self, work: "Work", index: int, request: Request) -> None:
        self.work, self.index, self.request = work, index, request
        self.id: int | None = None
        self.is_open = True
        self.began = self.last = time.monotonic()
        self.tokens = 0


class Work:
    """The answers to one HTTP request, as they come. Belongs to the event loop."""

    def __init__(self, worker: "Worker", requests: Sequence[Request]) -> None:
        self._worker = worker
        self.jobs = [Job(self, index, request) for index, request in enumerate(requests)]
        self.events: asyncio.Queue[tuple[int, Chunk] | ServeError] = asyncio.Queue()

    async def chunks(self) -> AsyncIterator[tuple[int, Chunk]]:
        """Which request, and its next chunk, until the last one of all.

        Raises:
            ServeError: when the engine fails, or the server stops first.
        """
        unfinished = len(self.jobs)
        while unfinished:
            event = await self.events.get()
            if isinstance(event, ServeError):
                raise event
            unfinished -= event[1].finish is not None
            yield event

    def cancel(self) -> None:
        """Free what is still held; nothing happens when all is finished."""
        self._worker.cancel(self)


class Worker:
    """The engine's thread. Its methods are called on the event loop."""

    def __init__(self, engine: Engine, queue_limit: int, metrics: Metrics) -> None:
        self._engine, self._metrics = engine, metrics
        self.limit = engine.max_batch + queue_limit  # requests that run or wait
        self.open: set[Job] = set()
        self.broken = False
        self.stats: dict[str, Any] = engine.stats()
        self._seconds = 1.0  # a request's usual time, for Retry-After
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._by_id: dict[int, Job] = {}  # the thread's
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    # ---- on the event loop

    def start(self) -> None:
        """Start the thread, from within the event loop that will be told."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """End the thread, when it has made its step; what is in flight is not finished."""
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join)

    def submit(self, requests: Sequence[Request]) -> Work:
        """Accept requests, all or none.

        Raises:
            ServeError: 400 when they could never run together, 429 when the queue is full, 503 when broken.
        """
        self.require_room(len(requests))
        work = Work(self, requests)
        self.open.update(work.jobs)
        for job in work.jobs:
            self._commands.put(lambda job=job: self._submit(job))  # type: ignore[misc]
        return work

    def require_room(self, count: int) -> None:
        """Refuse so many requests when they could not be accepted now; asked before they are worked out.

        Raises:
            ServeError: as `submit`.
        """
        if self.broken or not self._thread.is_alive():
            raise ServeError(503, BROKEN, "engine_failed")
        if count > self.limit:
            raise ServeError(
                400,
                f"{count} answers (prompts times n) are asked for at once, and this server holds "
                f"{self.limit}; send fewer in a request",
                "too_many_answers",
            )
        if len(self.open) + count > self.limit:
            wait = math.ceil(self._seconds * len(self.open) / self._engine.max_batch)
            raise ServeError(
                429,
                f"{len(self.open)} of {self.limit} places are taken, running or waiting; try again later",
                "queue_full",
                headers={"Retry-After": str(min(60, max(1, wait)))},
            )

    def cancel(self, work: Work) -> None:
        """Ask the thread to drop what of this work is unfinished; its places are free when it has."""
        for job in work.jobs:
            if job.is_open:
                job.is_open = False
                self._commands.put(lambda job=job: self._cancel(job))  # type: ignore[misc]

    def abandon(self) -> None:
        """Cancel all that is in flight, and say why: the server stops."""
        for work in {job.work for job in self.open if job.is_open}:
            work.events.put_nowait(ServeError(503, "the server is stopping; try again later", "stopping"))
            self.cancel(work)

    def _deliver(self, events: list[tuple[Job, Chunk | ServeError | None]]) -> None:
        """Hand a step's events on; None is the thread's word that a job is cancelled."""
        now = time.monotonic()
        for job, event in events:
            if isinstance(event, Chunk):
                self._measure(job, event, now)
            if event is None or isinstance(event, ServeError) or event.finish is not None:
                self.open.discard(job)
            if job.is_open and event is not None:
                if isinstance(event, ServeError) or event.finish is not None:
                    job.is_open = False
                job.work.events.put_nowait(event if isinstance(event, ServeError) else (job.index, event))

    def _measure(self, job: Job, chunk: Chunk, now: float) -> None:
        count = len(chunk.tokens)
        if count and not job.tokens:
            self._metrics.first_token.observe(now - job.began)
        elif count:
            for _ in range(count):
                self._metrics.next_token.observe((now - job.last) / count)
        if count:
            job.tokens, job.last = job.tokens + count, now
            self._metrics.tokens_out.inc(count)
        if chunk.finish is not None:
            self._metrics.tokens_in.inc(len(job.request.prompt))
            self._seconds += 0.1 * (now - job.began - self._seconds)

    def _break(self) -> None:
        self.broken = True
        self._deliver([(job, ServeError(500, BROKEN, "engine_failed")) for job in list(self.open)])

    # ---- in the thread

    def _run(self) -> None:
        try:
            while self._obey():
                events: list[tuple[Job, Chunk | ServeError | None]] = []
                for id, chunk in self._engine.step():
                    job = self._by_id[id] if chunk.finish is None else self._by_id.pop(id)
                    events.append((job, chunk))
                self._tell(events)
        except Exception:
            log.exception("the engine's step failed")
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._break)

    def _obey(self) -> bool:
        """Do what was commanded meanwhile, and sleep while the engine is idle. False: stop."""
        while True:
            self.stats = self._engine.stats()
            try:
                command = self._commands.get(block=self._engine.idle)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()

    def _tell(self, events: list[tuple[Job, Chunk | ServeError | None]]) -> None:
        if events and self._loop is not None:
            self._loop.call_soon_threadsafe(self._deliver, events)

    def _submit(self, job: Job) -> None:
        try:
            job.id = self._engine.submit(job.request)
        except ValueError as error:  # check() has seen it already; what is left is the engine's own state
            self._tell([(job, ServeError(400, str(error), "invalid_value"))])
        else:
            self._by_id[job.id] = job

    def _cancel(self, job: Job) -> None:
        if job.id is not None and self._by_id.pop(job.id, None) is not None:
            self._engine.cancel(job.id)
        self._tell([(job, None)])
