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
        self._head: asyncio.TimerHandle | None = None
        self._write: asyncio.TimerHandle | None = None
        self._linger: asyncio.TimerHandle | None = None

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
        self._wait_for_head()

    def connection_lost(self, error: Exception | None) -> None:
        """Cancel all timers."""
        for timer in (self._head, self._write, self._linger):
            if timer is not None:
                timer.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(error)

    def handle_events(self) -> None:
        """Read what has arrived, then set the timeout for the head; middleware.py has that for the body."""
        super().handle_events()
        self.since = self.loop.time()
        is_between = self.conn.their_state is h11.IDLE
        if self._head is not None and not is_between:
            self._head.cancel()
            self._head = None
        if self._linger is not None and self.conn.their_state is not h11.SEND_BODY:
            self._linger.cancel()
            self._linger = None
        # A head has begun: its first byte cancelled uvicorn's own keep-alive timer.
        if is_between and self._head is None and self.conn.trailing_data[0]:
            self._wait_for_head()

    def on_response_complete(self) -> None:
        """After a response sent before the whole body arrived, drain the body for some seconds."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY and self._linger is None:
            self._linger = self.loop.call_later(LINGER_SECONDS, self.abort)

    def timeout_keep_alive_handler(self) -> None:
        """Close after too long between two requests."""
        self.abort()

    def pause_writing(self) -> None:
        """The client reads too slowly: start the write timeout."""
        super().pause_writing()
        if self._write is None:
            self._write = self.loop.call_later(WRITE_SECONDS, self.abort)

    def resume_writing(self) -> None:
        """The client reads again: cancel the write timeout."""
        super().resume_writing()
        if self._write is not None:
            self._write.cancel()
            self._write = None

    # ---- ends

    def abort(self) -> None:
        """Close at once."""
        self.transport.abort()

    def _wait_for_head(self) -> None:
        self._head = self.loop.call_later(HEAD_SECONDS, self.abort)
