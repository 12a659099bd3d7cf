"""A child process answers a line with a line; when it dies or hangs, another answers the next line."""

import multiprocessing
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from puna.child import Child

SCRIPT = """
import os, sys, time
for line in sys.stdin:
    word = line.strip()
    if word == "die":
        raise SystemExit(1)
    if word == "hang":
        time.sleep(60)
    print(os.getpid() if word == "pid" else word.upper(), flush=True)
"""


@pytest.fixture
def child():
    return Child(sys.executable, "-c", SCRIPT)


def test_a_line_is_answered_by_one_process_that_is_started_when_it_is_needed(child):
    assert not child.is_running
    assert child.ask(b"llama", 20) == b"LLAMA"
    assert child.is_running
    assert child.ask(b"pid", 20) == child.ask(b"pid", 20)


def test_a_process_that_dies_or_hangs_gives_none_and_another_takes_its_place(child):
    first = child.ask(b"pid", 20)
    assert child.ask(b"die", 20) is None
    second = child.ask(b"pid", 20)
    began = time.monotonic()
    assert child.ask(b"hang", 0.2) is None
    assert time.monotonic() - began < 5 and not child.is_running
    third = child.ask(b"pid", 20)
    assert None not in (first, second, third) and len({first, second, third}) == 3


def test_threads_get_the_answers_to_their_own_lines(child):
    words = [f"w{number}".encode() for number in range(40)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda word: child.ask(word, 20), words)) == [word.upper() for word in words]


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
def test_after_a_fork_both_processes_have_one_of_their_own(child):
    own = child.ask(b"pid", 20)
    receive, send = multiprocessing.Pipe(duplex=False)
    forked = multiprocessing.get_context("fork").Process(target=lambda: send.send(child.ask(b"pid", 20)))
    forked.start()
    assert receive.poll(20) and receive.recv() not in (None, own)
    forked.join(20)
    assert child.ask(b"pid", 20) == own
