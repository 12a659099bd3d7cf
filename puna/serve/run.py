"""Run an application until it is told to stop.

In:  an application, a socket.
Out: nothing; SIGTERM or Ctrl-C stop accepting, let what is in flight finish for some seconds, then cancel it.
"""

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from puna.serve.connection import Connection, connection_limit
from puna.serve.middleware import is_loopback

__all__ = ["Server", "is_loopback", "listen", "run"]

BACKLOG = 64  # connections that the system holds ready; as many are accepted in a turn of the event loop


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        ValueError: naming the address, when it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot listen on {host} port {port}: {reason}; choose another --port") from error


class Server(uvicorn.Server):
    """uvicorn, with an end in two parts: first patience, then a word to those who still wait."""

    def __init__(self, app: FastAPI, grace: float, ready: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            timeout_keep_alive=30,
            http=Connection,
            backlog=BACKLOG,
            # Cut off only those that do not even take the word.
            timeout_graceful_shutdown=int(grace) + 5,
        )
        super().__init__(config)
        Connection.limit = connection_limit()
        self._app, self._grace, self._ready = app, grace, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        if not self.should_exit:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, finish what is in flight; what is not finished after the grace is cancelled."""
        deadline = asyncio.get_running_loop().call_later(self._grace, self._app.state.worker.abandon)
        await super().shutdown(sockets)
        deadline.cancel()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at a signal and return; uvicorn would then die of it."""
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
    """Serve until a signal; a second Ctrl-C does not wait."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    Server(app, grace, ready).run([listening])
