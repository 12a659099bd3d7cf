"""Where shards are worked on: in this process, in processes of this machine, or as tasks of a Ray cluster.

Each takes a function and shards and yields the shards as they are done, in any order. Nothing else differs
between them: what a shard's work writes does not depend on where it is done.
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
RETRIES = 3  # of a Ray task whose worker or machine was lost


def run_here(work: Callable[[T], T], shards: Sequence[T], workers: int) -> Iterator[T]:
    """Give the shards to processes of this machine.

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
                "run the same command again to go on, with fewer --workers if memory is short"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _die_with_parent() -> None:
    """End this worker when the process that started it is killed; else it would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_on_ray(
    work: Callable[[T], T], shards: Sequence[T], workers: int | None, address: str | None
) -> Iterator[T]:
    """Give the shards to a Ray cluster as tasks of one core; a task whose machine is lost is run again.

    `address` is the cluster's (`auto`, `HOST:6379`), None for one on this machine alone. At most `workers`
    tasks run at once; as many as the cluster has cores when it is None. Inputs and outputs must lie where
    every machine sees them: a shared disk, or object storage.

    Raises:
        MissingExtra: when Ray is not installed.
        ValueError: when the cluster does not answer.
        ChildProcessError: when a task's worker died time and again.
    """
    require("ray")
    import ray

    begun = not ray.is_initialized()
    if begun:
        _connect(ray, address)
    try:
        task: Any = ray.remote(max_retries=RETRIES, num_cpus=1)(_call)
        limit = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        waiting = list(shards)
        running: list[Any] = []
        while waiting or running:
            while waiting and len(running) < limit:
                running.append(task.remote(work, waiting.pop(0)))
            done, running = ray.wait(running)
            try:
                yield from ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error  # the work's own error, as it is without Ray
            except ray.exceptions.RayError as error:
                raise ChildProcessError(
                    f"a Ray task was lost {RETRIES + 1} times ({str(error).strip().splitlines()[0]}); "
                    "run the same command again to go on"
                ) from error
    finally:
        if begun:
            ray.shutdown()


def _call(work: Callable[[T], T], shard: T) -> T:
    # A module's own function: what is defined in __main__ cannot be found by another machine.
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
            "start one with: ray start --head; where Ray asks for a token, the same RAY_AUTH_TOKEN "
            "must be set here and there"
        ) from error


def _require_open(address: str) -> None:
    """Raise OSError when nobody listens at HOST:PORT: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
