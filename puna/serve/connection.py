"""A client's connection: how long it may take, and how many there may be.

In:  uvicorn's HTTP/1.1 protocol.
Out: the same, which ends connections that do nothing.

    head of a request not whole after    HEAD_SECONDS       closed
    its body not whole after             BODY_SECONDS       408 (middleware.py); read on for LINGER_SECONDS
    between two requests                 uvicorn's timeout_keep_alive
    an answer that nobody reads after    WRITE_SECONDS      closed
    more connections than the process has descriptors for   the one that has been silent longest is closed

Closed means aborted: what is still to be sent to a client that does not read would wait forever.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
WRITE_SECONDS = 30.0
LINGER_SECONDS = 5.0
MAX_CONNECTIONS = 1024
# Descriptors that are not connections: files, pipes, and those accepted in one turn of the event loop.
RESERVED = 112


def connection_limit() -> int:
    """How many connections there may be at once, by the descriptors that this process may have."""
    import resource

    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if descriptors == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(8, min(MAX_CONNECTIONS, descriptors - RESERVED))


class Connection(H11Protocol):
    """One connection. `limit` is of the class: uvicorn makes its protocols itself."""

    limit = MAX_CONNECTIONS

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head: asyncio.TimerHandle | None = None
        self._write: asyncio.TimerHandle | None = None
        self._linger: asyncio.TimerHandle | None = None

    @property
    def is_silent(self) -> bool:
        """Whether no request is being read or answered."""
        return self.cycle is None or (self.cycle.response_complete and self.conn.their_state is h11.IDLE)

    # ---- what uvicorn calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; close the one that has been silent longest if there are too many."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self.since = self.loop.time()
        if len(self.connections) > self.limit:
            silent = [one for one in self.connections if isinstance(one, Connection) and one.is_silent]
            min(silent, key=lambda one: one.since, default=self).abort()
        self._wait_for_head()

    def connection_lost(self, error: Exception | None) -> None:
        """End: no timer is left."""
        for timer in (self._head, self._write, self._linger):
            if timer is not None:
                timer.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(error)

    def handle_events(self) -> None:
        """Read what there is; then wait for a head, but not forever, or for a body (see middleware.py)."""
        super().handle_events()
        self.since = self.loop.time()
        is_between = self.conn.their_state is h11.IDLE
        if self._head is not None and not is_between:
            self._head.cancel()
            self._head = None
        if self._linger is not None and self.conn.their_state is not h11.SEND_BODY:
            self._linger.cancel()
            self._linger = None
        # A head that has begun: uvicorn's own timer for silence between requests was ended by its first byte.
        if is_between and self._head is None and self.conn.trailing_data[0]:
            self._wait_for_head()

    def on_response_complete(self) -> None:
        """After an answer that did not wait for the whole body the rest is read for some seconds."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY and self._linger is None:
            self._linger = self.loop.call_later(LINGER_SECONDS, self.abort)

    def timeout_keep_alive_handler(self) -> None:
        """Between requests for too long."""
        self.abort()

    def pause_writing(self) -> None:
        """The client does not read as fast as it is answered."""
        super().pause_writing()
        if self._write is None:
            self._write = self.loop.call_later(WRITE_SECONDS, self.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
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
