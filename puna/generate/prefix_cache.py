"""KV-cache block allocator with prefix caching.

    free ──allocate──> used by a sequence ──register──> cached: found by the hash of its prefix
      ^                  │ release                        │ match: shared, reference-counted
      └──────────────────┴── least recently used first <──┘

A block's hash covers its tokens and the hash of the block before it, so it stands for a whole prefix. Blocks
that no sequence uses stay cached until their memory is needed.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from puna.generate.runners.cache import BLOCK

_ROOT = b""


def block_hashes(tokens: Sequence[int], count: int, parent: bytes = _ROOT) -> list[bytes]:
    """The hashes of the first `count` full blocks of tokens; `parent` is the hash of the block before."""
    hashes = []
    for start, end in pairwise(range(0, (count + 1) * BLOCK, BLOCK)):
        data = np.array(tokens[start:end], np.int64).tobytes()
        parent = hashlib.blake2b(parent + data, digest_size=16).digest()
        hashes.append(parent)
    return hashes


class BlockPool:
    """The blocks 0..n-1 of a KV cache, reference-counted."""

    def __init__(self, n_blocks: int) -> None:
        self.n_blocks = n_blocks
        self._free = list(range(n_blocks - 1, -1, -1))
        self._references = [0] * n_blocks
        self._hashes: dict[int, bytes] = {}
        self._cached: dict[bytes, int] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()  # cached, without references, the oldest first

    @property
    def available(self) -> int:
        """Blocks that can be allocated: free, or cached and unused."""
        return len(self._free) + len(self._unused)

    @property
    def used(self) -> int:
        """Blocks that sequences use."""
        return self.n_blocks - self.available

    @property
    def unused(self) -> int:
        """Cached blocks that no sequence uses."""
        return len(self._unused)

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        """The cached blocks of the longest prefix of a sequence with these block hashes."""
        found = []
        for block_hash in hashes:
            if block_hash not in self._cached:
                break
            found.append(self._cached[block_hash])
        return found

    def acquire(self, shared: Sequence[int], count: int) -> list[int] | None:
        """Share matched blocks and allocate `count` more; the block table, or None if there are too few."""
        n_unused = sum(block in self._unused for block in shared)
        if count > self.available - n_unused:
            return None
        for block in shared:
            self._references[block] += 1
            self._unused.pop(block, None)
        return [*shared, *(self._allocate() for _ in range(count))]

    def _allocate(self) -> int:
        if not self._free:
            block, _ = self._unused.popitem(last=False)
            del self._cached[self._hashes.pop(block)]
            self._free.append(block)
        block = self._free.pop()
        assert self._references[block] == 0
        self._references[block] = 1
        return block

    def register(self, block: int, block_hash: bytes) -> None:
        """Cache a full block. Of two with the same hash, the first stays the cached one."""
        assert self._references[block] > 0
        if block_hash not in self._cached and block not in self._hashes:
            self._cached[block_hash] = block
            self._hashes[block] = block_hash

    def release(self, table: Sequence[int]) -> None:
        """Drop a sequence's references. Its last blocks are evicted first: a prefix serves more sequences."""
        for block in reversed(table):
            self._references[block] -= 1
            assert self._references[block] >= 0
            if self._references[block] == 0:
                if block in self._hashes:
                    self._unused[block] = None
                else:
                    self._free.append(block)
