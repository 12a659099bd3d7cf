"""Run the server until it receives a signal.

In:  an application, a listening socket.
Out: nothing. SIGTERM and Ctrl-C stop accepting; in-flight requests have some seconds, then are cancelled.
"""

import asyncio
import gc
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from puna.serve.connection import Connection, connection_limit
from puna.serve.middleware import is_loopback

__all__ = ["Server", "is_loopback", "listen", "run"]

BACKLOG = 64  # pending connections of the socket; up to as many are accepted in a turn of the event loop


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket; port 0 picks a free port.

    Raises:
        ValueError: naming the address, when it is not available.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot listen on {host} port {port}: {reason}; choose another --port") from error


class Server(uvicorn.Server):
    """uvicorn with a two-phase shutdown: wait for in-flight requests, then cancel them with an error."""

    def __init__(self, app: FastAPI, grace: float, ready: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app,
            log_level="error",  # a warning per malformed request would let clients fill the log
            access_log=False,
            server_header=False,
            ws="none",
            timeout_keep_alive=30,
            http=Connection,
            backlog=BACKLOG,
            # Cancelled requests have five more seconds to read the error.
            timeout_graceful_shutdown=int(grace) + 5,
        )
        super().__init__(config)
        Connection.limit = connection_limit()
        self._app, self._grace, self._ready = app, grace, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then call `ready`."""
        await super().startup(sockets)
        if not self.should_exit:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting and wait for in-flight requests; cancel those unfinished after the grace period."""
        deadline = asyncio.get_running_loop().call_later(self._grace, self._app.state.worker.cancel_all)
        await super().shutdown(sockets)
        deadline.cancel()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at a signal and return; uvicorn would raise the signal again and end the process."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run(app: FastAPI, listening: socket.socket, grace: float, ready: Callable[[], None]) -> None:
    """Serve until a signal; a second Ctrl-C stops at once."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # The engine's thread asks for the interpreter many times per step, and waits this long for a busy thread.
    sys.setswitchinterval(0.0005)
    # A full collection would visit every object of the packages and the vocabulary while all else waits.
    gc.collect()
    gc.freeze()
    Server(app, grace, ready).run([listening])
