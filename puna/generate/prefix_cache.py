"""Whose cache blocks are whose, and which hold the beginning of a text that may come again.

    free ──take──> owned by a sequence ──publish──> findable by what it holds and all before it
      ^                  │ release                     │ match: shared, counted
      └──────────────────┴──── oldest unused first <───┘

A block's name is a digest of its tokens and of the name of the block before it, so a name stands for a
whole beginning of a text. What no sequence uses any more stays findable until its memory is wanted.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from puna.generate.runners.cache import BLOCK

_ROOT = b""


def names(tokens: Sequence[int], count: int, before: bytes = _ROOT) -> list[bytes]:
    """The names of the first `count` blocks of tokens that follow the block named `before`."""
    found = []
    for start, end in pairwise(range(0, (count + 1) * BLOCK, BLOCK)):
        data = np.array(tokens[start:end], np.int64).tobytes()
        before = hashlib.blake2b(before + data, digest_size=16).digest()
        found.append(before)
    return found


class BlockPool:
    """The blocks 0..n-1 of a cache. A block that several sequences use is counted once for each."""

    def __init__(self, n_blocks: int) -> None:
        self.n_blocks = n_blocks
        self._free = list(range(n_blocks - 1, -1, -1))
        self._users = [0] * n_blocks
        self._names: dict[int, bytes] = {}
        self._found: dict[bytes, int] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()  # named, without users, the oldest first

    @property
    def available(self) -> int:
        """Blocks that can be taken: free, or kept only in case their text comes again."""
        return len(self._free) + len(self._unused)

    @property
    def used(self) -> int:
        """Blocks that sequences hold."""
        return self.n_blocks - self.available

    @property
    def kept(self) -> int:
        """Blocks that nobody uses, but whose text is still findable."""
        return len(self._unused)

    def match(self, chain: Sequence[bytes]) -> list[int]:
        """The blocks of the longest beginning of a chain of names that is held."""
        found = []
        for name in chain:
            if name not in self._found:
                break
            found.append(self._found[name])
        return found

    def acquire(self, shared: Sequence[int], count: int) -> list[int] | None:
        """Use matched blocks and take `count` more; the table, or None when there are too few."""
        resting = sum(block in self._unused for block in shared)
        if count > self.available - resting:
            return None
        for block in shared:
            self._users[block] += 1
            self._unused.pop(block, None)
        return [*shared, *(self._take() for _ in range(count))]

    def _take(self) -> int:
        if not self._free:
            block, _ = self._unused.popitem(last=False)
            del self._found[self._names.pop(block)]
            self._free.append(block)
        block = self._free.pop()
        assert self._users[block] == 0
        self._users[block] = 1
        return block

    def publish(self, block: int, name: bytes) -> None:
        """Make a full block findable. Of two that hold the same, the first stays the one that is found."""
        assert self._users[block] > 0
        if name not in self._found and block not in self._names:
            self._found[name] = block
            self._names[block] = name

    def release(self, table: Sequence[int]) -> None:
        """A sequence is done with its blocks. Its last ones count as older: a beginning serves more texts."""
        for block in reversed(table):
            self._users[block] -= 1
            assert self._users[block] >= 0
            if self._users[block] == 0:
                if block in self._names:
                    self._unused[block] = None
                else:
                    self._free.append(block)
