"""Cache blocks: nobody gets one that another uses, none is lost, what is found holds what it is said to."""

from hypothesis import given
from hypothesis import strategies as st

from puna.generate.prefix_cache import BlockPool, block_hashes
from puna.generate.runners.cache import BLOCK

texts = st.lists(st.integers(0, 2), min_size=1, max_size=4)  # a letter stands for a block of tokens
schedules = st.lists(st.one_of(texts, st.integers(0, 5)), max_size=40)


@given(schedule=schedules)
def test_blocks_hold_what_they_are_found_for_and_are_never_lent_twice(schedule):
    pool = BlockPool(6)
    written: dict[int, tuple[int, ...]] = {}  # block -> the text up to and with it
    open_: list[list[int]] = []
    for action in schedule:
        if isinstance(action, int):
            if open_:
                pool.release(open_.pop(action % len(open_)))
        else:
            chain = block_hashes([letter for letter in action for _ in range(BLOCK)], len(action))
            shared = pool.match(chain)
            for place, block in enumerate(shared):
                assert written[block] == tuple(action[: place + 1])
            table = pool.acquire(shared, len(action) - len(shared))
            if table is None:
                continue
            assert table[: len(shared)] == shared
            fresh = table[len(shared) :]
            assert not {block for other in open_ for block in other} & set(fresh)
            for place in range(len(shared), len(action)):
                written[table[place]] = tuple(action[: place + 1])
                pool.register(table[place], chain[place])
            open_.append(table)
        in_use = {block for table in open_ for block in table}
        assert (pool.used, pool.available) == (len(in_use), 6 - len(in_use))
    for table in open_:
        pool.release(table)
    assert pool.available == 6
    assert pool.acquire([], 6) is not None


def test_the_longest_unused_goes_first_and_beginnings_last():
    pool = BlockPool(3)
    chain = block_hashes(list(range(2 * BLOCK)), 2)
    table = pool.acquire([], 2)
    for block, name in zip(table, chain, strict=True):
        pool.register(block, name)
    pool.release(table)
    pool.release(pool.acquire([], 2))  # one was free, one is evicted
    assert pool.match(chain) == table[:1]
