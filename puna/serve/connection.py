"""Timeouts of a client's connection, and the limit on their number.

In:  uvicorn's HTTP/1.1 protocol.
Out: the same, with timeouts that close idle connections.

    request head incomplete after        HEAD_SECONDS       closed
    request body incomplete after        BODY_SECONDS       408 (middleware.py)
    body still arriving after a response LINGER_SECONDS     closed; until then it is read and dropped
    between two requests                 uvicorn's timeout_keep_alive
    response not read by the client      WRITE_SECONDS      closed
    more connections than file descriptors                  the one that has been idle longest is closed

Closed means aborted: data for a client that does not read would stay buffered without end.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
WRITE_SECONDS = 30.0
LINGER_SECONDS = 30.0  # closed too soon, a client that still sends does not see the response
READ_BYTES = 1 << 14  # at a time: a body in chunks of a byte takes 20 µs for each
MAX_CONNECTIONS = 1024
# File descriptors for other uses: files, pipes, and connections accepted in one turn of the event loop.
RESERVED = 112


def connection_limit() -> int:
    """Maximum number of concurrent connections, from this process's limit of file descriptors."""
    import resource

    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if descriptors == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(8, min(MAX_CONNECTIONS, descriptors - RESERVED))


class Connection(H11Protocol):
    """One connection. `limit` is a class attribute because uvicorn constructs its protocols itself."""

    limit = MAX_CONNECTIONS

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._timers: dict[str, asyncio.TimerHandle] = {}

    @property
    def is_idle(self) -> bool:
        """Whether no request is being read or answered."""
        return self.cycle is None or (self.cycle.response_complete and self.conn.their_state is h11.IDLE)

    # ---- what uvicorn calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the timeouts; with too many connections, close the one that has been idle longest."""
        super().connection_made(transport)  # type: ignore[arg-type]
        transport.max_size = READ_BYTES  # type: ignore[attr-defined]
        self.since = self.loop.time()
        if len(self.connections) > self.limit:
            idle = [one for one in self.connections if isinstance(one, Connection) and one.is_idle]
            min(idle, key=lambda one: one.since, default=self).abort()
        self._start("head", HEAD_SECONDS)

    def connection_lost(self, error: Exception | None) -> None:
        """Cancel all timers."""
        self._stop(*self._timers)
        self._unset_keepalive_if_required()
        super().connection_lost(error)

    def handle_events(self) -> None:
        """Read what has arrived, then set the timeout for the head; middleware.py has that for the body."""
        super().handle_events()
        self.since = self.loop.time()
        is_between = self.conn.their_state is h11.IDLE
        if not is_between:
            self._stop("head")
        if self.conn.their_state is not h11.SEND_BODY:
            self._stop("linger")
        # A head has begun: its first byte cancelled uvicorn's own keep-alive timer.
        if is_between and self.conn.trailing_data[0]:
            self._start("head", HEAD_SECONDS)

    def on_response_complete(self) -> None:
        """After a response sent before the whole body arrived, drain the body for some seconds."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._start("linger", LINGER_SECONDS)

    def timeout_keep_alive_handler(self) -> None:
        """Close after too long between two requests."""
        self.abort()

    def pause_writing(self) -> None:
        """The client reads too slowly: start the write timeout."""
        super().pause_writing()
        self._start("write", WRITE_SECONDS)

    def resume_writing(self) -> None:
        """The client reads again: cancel the write timeout."""
        super().resume_writing()
        self._stop("write")

    # ---- ends

    def abort(self) -> None:
        """Close at once."""
        self.transport.abort()

    def _start(self, name: str, seconds: float) -> None:
        """Close the connection after so long, unless the timer is stopped."""
        if name not in self._timers:
            self._timers[name] = self.loop.call_later(seconds, self.abort)

    def _stop(self, *names: str) -> None:
        for name in names:
            if name in self._timers:
                self._timers.pop(name).cancel()
