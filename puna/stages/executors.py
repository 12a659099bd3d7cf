"""Where shards are processed: in this process, in processes of this machine, or as tasks of a Ray cluster.

Each takes a function and shards and yields the shards as they finish, in any order. The output of a shard
does not depend on where it is processed.
"""

import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from puna.extras import require

T = TypeVar("T")
RETRIES = 3  # for a Ray task whose worker or machine was lost


def run_here(work: Callable[[T], T], shards: Sequence[T], workers: int) -> Iterator[T]:
    """Process the shards in processes of this machine.

    Raises:
        ChildProcessError: when a worker process died.
    """
    if workers <= 1 or len(shards) <= 1:
        yield from map(work, shards)
        return
    # spawn: a forked child of a process that has started threads (torch, Arrow) can deadlock.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(shards)), context, initializer=_die_with_parent) as pool:
        futures = [pool.submit(work, shard) for shard in shards]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a worker process died (killed, or out of memory); "
                "run the same command again to resume, with fewer --workers if memory is short"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _die_with_parent() -> None:
    """Exit when the process that started this worker is killed; it would wait for work forever otherwise."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_on_ray(
    work: Callable[[T], T], shards: Sequence[T], workers: int | None, address: str | None
) -> Iterator[T]:
    """Process the shards as one-core tasks of a Ray cluster; a task whose machine is lost is retried.

    `address` is the cluster's (`auto`, `HOST:6379`); None starts a local one. At most `workers` tasks run in
    parallel, by default one per core of the cluster. Inputs and outputs must be accessible from every
    machine: a shared disk, or object storage.

    Raises:
        MissingExtra: when Ray is not installed.
        ValueError: when the cluster does not answer.
        ChildProcessError: when a task's worker died on every attempt.
    """
    require("ray")
    import ray

    begun = not ray.is_initialized()
    if begun:
        _connect(ray, address)
    try:
        task: Any = ray.remote(max_retries=RETRIES, num_cpus=1)(_call)
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        limit = workers or max(1, int(resources.get("CPU", 1)))
        waiting = list(shards)
        running: list[Any] = []
        while waiting or running:
            while waiting and len(running) < limit:
                running.append(task.remote(work, waiting.pop(0)))
            done, running = ray.wait(running)
            try:
                yield from ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error  # the exception of the work itself, as without Ray
            except ray.exceptions.RayError as error:
                raise ChildProcessError(
                    f"a Ray task was lost {RETRIES + 1} times ({str(error).strip().splitlines()[0]}); "
                    "run the same command again to resume"
                ) from error
    finally:
        if begun:
            ray.shutdown()


def _call(work: Callable[[T], T], shard: T) -> T:
    # A function of this module: another machine cannot import what __main__ defines.
    return work(shard)


def _connect(ray: Any, address: str | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": "error"}
    try:
        if address is None:
            ray.init(include_dashboard=False, **quiet)
        else:
            _require_open(address)
            ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        said = str(error).strip().splitlines()
        raise ValueError(
            f"the Ray cluster at {address or 'this machine'} does not answer ({said[0] if said else error}); "
            "start one with: ray start --head; where Ray requires a token, set the same RAY_AUTH_TOKEN "
            "on both sides"
        ) from error


def _require_open(address: str) -> None:
    """Raises OSError when nothing listens at HOST:PORT; Ray itself would retry for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
