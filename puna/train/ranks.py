"""The processes that share a run, and what they tell each other beside tensors of the model.

A process on its own is `ALONE`: nothing is sent, and no process group is needed.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")

GRACE_SECONDS = 3.0
"""How long the ranks that notice a failure wait for each other, to name those that are missing."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of a run."""

    mesh: DeviceMesh | None = None
    """dp_replicate × dp_shard × tp; None for a process on its own."""
    rank: int = 0
    dp_rank: int = 0
    """Which rows of a batch are this process's; the ranks of a tp group share them."""
    dp_world: int = 1
    """Number of ranks with different rows."""
    writers: tuple[int, ...] = (0,)
    """The first rank of each machine: they share the writing of checkpoints."""
    writing: dist.ProcessGroup | None = None
    """The group of the writers; None if there is one alone, and in other ranks."""
    side: dist.ProcessGroup | None = None
    """A group of all ranks for finding out who is missing, when the others' collectives have failed."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum(self, figures: Tensor) -> Tensor:
        """Figures of different rows, summed over the data-parallel ranks, in place."""
        for axis in ("dp_replicate", "dp_shard"):
            if self.mesh is not None and self.mesh[axis].size() > 1:
                dist.all_reduce(figures, group=self.mesh.get_group(axis))
        return figures

    def any(self, claim: bool) -> bool:
        """Whether any process makes the claim; every process gets the same answer."""
        if self.mesh is None:
            return claim
        claims = torch.tensor(int(claim))
        dist.all_reduce(claims, dist.ReduceOp.MAX)
        return bool(claims)

    def first(self, work: Callable[[], T]) -> T:
        """Do the work in the first process alone; its result, or its error, is that of every process.

        Raises:
            ValueError: the work raised it.
            OSError: the work raised it.
        """
        if self.mesh is None:
            return work()
        outcome: list[object] = [None, None]
        if self.is_first:
            try:
                outcome[0] = work()
            except (ValueError, OSError) as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome)
        if isinstance(outcome[1], Exception):
            raise outcome[1]
        return outcome[0]  # type: ignore[return-value]

    @contextmanager
    def named_failures(self, step: Callable[[], int]) -> Iterator[None]:
        """Turn a broken or late collective into one line that names this rank, its step and those missing.

        Raises:
            ConnectionError: another process ended, or did not answer within the timeout.
        """
        try:
            yield
        except RuntimeError as error:
            if self.mesh is None:
                raise
            cause = str(error).splitlines()[0]
            raise ConnectionError(
                f"rank {self.rank} at step {step()}: a collective failed ({self._missing() or cause}); "
                "the same command resumes from the newest checkpoint"
            ) from error

    def _missing(self) -> str | None:
        """The ranks that do not answer any more; only the first process can tell."""
        try:
            dist.monitored_barrier(self.side, timedelta(seconds=GRACE_SECONDS), wait_all_ranks=True)
        except RuntimeError as error:
            found = re.search(r"Ranks ([\d, ]+) failed to pass", str(error))
            return found and f"no answer from rank {found[1]}"
        return None

    def share(self, items: Iterable[T], filler: Callable[[T], T]) -> Iterator[T]:
        """Every dp_world-th item. Each rank gets as many, because each takes part in every collective.

        Ranks for which none is left get `filler` of another rank's item.
        """
        rest = iter(items)
        while block := list(islice(rest, self.dp_world)):
            yield block[self.dp_rank] if self.dp_rank < len(block) else filler(block[0])


ALONE = Ranks()
