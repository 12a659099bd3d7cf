"""A script in a process of its own that answers each line with a line, within a time.

    Child(command) ──line──> the script's standard input
                   <──line── its standard output           None: it ended, or did not answer in time

What may hang, exhaust memory or crash runs there, under limits that the script sets for itself. The process
is started when it is first asked, and again after it has ended.
"""

import os
import select
import subprocess
import threading
import time
import weakref


class Child:
    """The process. Safe from any thread, and after a fork."""

    def __init__(self, *command: str) -> None:
        self._command = command
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    @property
    def is_running(self) -> bool:
        """Whether it need not be started for the next line."""
        # After a fork the pipes belong to the parent as well.
        return self._process is not None and self._owner == os.getpid() and self._process.poll() is None

    def ask(self, line: bytes, seconds: float) -> bytes | None:
        """The answer to a line, without its end; None when it ended or gave none in time, which ends it."""
        with self._lock:
            process = self._process if self._process and self.is_running else self._start()
            answer = _exchange(process, line + b"\n", time.monotonic() + seconds)
            if answer is None:
                _end(process)
            return answer

    def _start(self) -> subprocess.Popen[bytes]:
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        self._process = subprocess.Popen(
            self._command, stdin=pipe, stdout=pipe, stderr=nothing, start_new_session=True
        )
        self._owner = os.getpid()
        weakref.finalize(self, _end, self._process)
        return self._process


def _exchange(process: subprocess.Popen[bytes], line: bytes, deadline: float) -> bytes | None:
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(line)
        process.stdin.flush()
    except BrokenPipeError:
        return None
    answer = bytearray()
    while not answer.endswith(b"\n"):
        wait = deadline - time.monotonic()
        if wait <= 0 or not select.select([process.stdout], [], [], wait)[0]:
            return None
        block = os.read(process.stdout.fileno(), 1 << 20)
        if not block:
            return None
        answer += block
    return bytes(answer[:-1])


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
