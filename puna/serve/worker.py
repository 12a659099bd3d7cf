"""The thread that owns the engine, and the queues between it and the event loop.

In:  requests of generate.Engine, in groups: the answers to one HTTP request.
Out: their chunks, awaited in order.

    event loop                                   thread
    submit(requests) ──> jobs ── commands ─────> engine.submit
    async for … in work <─ queue <─ one call a step <─ engine.step
    work.cancel() ────────────── commands ─────> engine.cancel, and the slot is free

Only the thread uses the engine. If a step raises, the engine's state is undefined: requests in flight fail,
/health returns 503, and no more requests are accepted.
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
COMMAND_SECONDS = 0.01  # a request of long prompts takes a millisecond each
BROKEN = "the engine has failed; see the server's log, and restart it"


class Job:
    """One request of the engine. `id` is the engine's and is used by the thread alone."""

    def __init__(self, work: "Work", index: int, request: Request) -> None:
        self.work, self.index, self.request = work, index, request
        self.id: int | None = None
        self.is_open = True
        self.began = self.last = time.monotonic()
        self.tokens = 0


class Work:
    """The answers to one HTTP request, as they are generated. Used on the event loop alone."""

    def __init__(self, worker: "Worker", requests: Sequence[Request]) -> None:
        self._worker = worker
        self.jobs = [Job(self, index, request) for index, request in enumerate(requests)]
        self.events: asyncio.Queue[tuple[int, Chunk] | ServeError] = asyncio.Queue()

    async def chunks(self) -> AsyncIterator[tuple[int, Chunk]]:
        """The index of a request and its next chunk, until all requests are finished.

        Raises:
            ServeError: when the engine fails or the server stops.
        """
        unfinished = len(self.jobs)
        while unfinished:
            event = await self.events.get()
            if isinstance(event, ServeError):
                raise event
            unfinished -= event[1].finish is not None
            yield event

    def cancel(self) -> None:
        """Cancel unfinished requests."""
        self._worker.cancel(self)


class Worker:
    """The engine's thread. Its methods are called on the event loop."""

    def __init__(self, engine: Engine, queue_limit: int, metrics: Metrics) -> None:
        self._engine, self._metrics = engine, metrics
        self.limit = engine.max_batch + queue_limit  # running and queued requests
        self.open: set[Job] = set()
        self.broken = False
        self.stats: dict[str, Any] = engine.stats()
        self._seconds = 1.0  # moving average of a request's time, for Retry-After
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._by_id: dict[int, Job] = {}  # used by the thread alone
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    # ---- on the event loop

    def start(self) -> None:
        """Start the thread; called on the event loop that receives its events."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Stop the thread after its current step; requests in flight stay unfinished."""
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join)

    def submit(self, requests: Sequence[Request]) -> Work:
        """Accept requests, all or none.

        Raises:
            ServeError: 400 when they exceed the queue's size, 429 when the queue is full, 503 when broken.
        """
        self.require_room(len(requests))
        work = Work(self, requests)
        self.open.update(work.jobs)
        for job in work.jobs:
            self._commands.put(lambda job=job: self._submit(job))  # type: ignore[misc]
        return work

    def require_room(self, count: int) -> None:
        """Check that this many requests could be accepted now, before they are tokenized.

        Raises:
            ServeError: as `submit`.
        """
        if self.broken or not self._thread.is_alive():
            raise ServeError(503, BROKEN, "engine_failed")
        if count > self.limit:
            raise ServeError(
                400,
                f"{count} answers (prompts times n) were requested, but this server holds at most "
                f"{self.limit}; split the request",
                "too_many_answers",
            )
        if len(self.open) + count > self.limit:
            wait = math.ceil(self._seconds * len(self.open) / self._engine.max_batch)
            raise ServeError(
                429,
                f"{len(self.open)} of {self.limit} slots are in use, running or queued; try again later",
                "queue_full",
                headers={"Retry-After": str(min(60, max(1, wait)))},
            )

    def cancel(self, work: Work) -> None:
        """Ask the thread to cancel unfinished requests; their slots are freed once it has."""
        for job in work.jobs:
            if job.is_open:
                job.is_open = False
                self._commands.put(lambda job=job: self._cancel(job))  # type: ignore[misc]

    def cancel_all(self) -> None:
        """Cancel all requests in flight, with an error: the server is stopping."""
        for work in {job.work for job in self.open if job.is_open}:
            work.events.put_nowait(ServeError(503, "the server is stopping; try again later", "stopping"))
            self.cancel(work)

    def _deliver(self, events: list[tuple[Job, Chunk | ServeError | None]]) -> None:
        """Deliver a step's events; None confirms that a job is cancelled."""
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
            while self._run_commands():
                events: list[tuple[Job, Chunk | ServeError | None]] = []
                for id, chunk in self._engine.step():
                    job = self._by_id[id] if chunk.finish is None else self._by_id.pop(id)
                    failed = chunk.error and ServeError(400, chunk.error, "invalid_value", "response_format")
                    events.append((job, failed or chunk))
                self._post(events)
        except Exception:
            log.exception("the engine's step failed")
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._break)

    def _run_commands(self) -> bool:
        """Run queued commands, not many between two steps; block while the engine is idle. False: stop."""
        until = time.monotonic() + COMMAND_SECONDS
        while self._engine.idle or time.monotonic() < until:
            self.stats = self._engine.stats()
            try:
                command = self._commands.get(block=self._engine.idle)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
        return True

    def _post(self, events: list[tuple[Job, Chunk | ServeError | None]]) -> None:
        if events and self._loop is not None:
            self._loop.call_soon_threadsafe(self._deliver, events)

    def _submit(self, job: Job) -> None:
        try:
            job.id = self._engine.submit(job.request)
        except ValueError as error:  # check() has passed; this depends on the engine's state
            self._post([(job, ServeError(400, str(error), "invalid_value"))])
        else:
            self._by_id[job.id] = job

    def _cancel(self, job: Job) -> None:
        if job.id is not None and self._by_id.pop(job.id, None) is not None:
            self._engine.cancel(job.id)
        self._post([(job, None)])
