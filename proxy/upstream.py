"""Connections to one engine: pooled, raw HTTP/1.1, one exchange at a time on each.

A general client costs more per request than everything else the proxy does
(docs/proxy.md), and hides when exactly a connection broke, which decides whether a
request may be tried again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, cast

from proxy.http1 import MAX_HEAD, ChunkScanner, Head, ProtocolError, frame, parse_head, payload_of

# uvicorn closes idle connections after 5 s; ours are given up earlier, so that a request
# is rarely sent into a closing one.
IDLE_SECONDS = 4.0
# An engine's answer to a request on a connection that it had closed comes within a round trip.
STALE_SECONDS = 1.0
MAX_ANSWER = 256 * 1024 * 1024  # bytes of an answer held in memory


class Cause(StrEnum):
    """Why an exchange failed. The value stands in messages and metric labels."""

    CONNECT = "connect"  # no connection: the engine has seen nothing
    RESET = "reset"  # the connection ended before the answer did
    PROTOCOL = "protocol"  # not HTTP, or not the answer that was promised
    TIMEOUT = "timeout"  # a deadline: the engine may be well, only slow


class UpstreamError(Exception):
    """An exchange with an engine that gave no whole answer.

    Cause CONNECT means that the engine cannot have seen the request. `refused`: nobody
    listens there.
    """

    def __init__(self, cause: Cause, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.cause = cause
        self.refused = refused


@dataclass(slots=True)
class Answer:
    """A whole answer. `body` is empty when it went to a sink."""

    head: Head
    body: bytes


class Sink(Protocol):
    """Takes an event stream as whole chunk frames, as they arrive."""

    def feed(self, frames: bytes) -> None: ...


# Decides by the head of an answer whether it is streamed, and to where; None: held.
SinkFor = Callable[[Head, "Connection"], Sink | None]


class Connection(asyncio.Protocol):
    """One connection to an engine. `send()` starts an exchange, its future is the answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, watch: Watch) -> None:
        self._loop = loop
        self._watch = watch
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._first_data: asyncio.Future[None] | None = None
        self.used = 0  # exchanges begun on it
        self.idle_since = 0.0
        self.since = 0.0  # loop time of the last progress
        self.limit = 0.0  # seconds without progress that are allowed
        self._gap = 0.0  # the limit once a stream has begun
        self._reset()

    def _reset(self) -> None:
        self._buffer = b""
        self._head: Head | None = None
        self._body: list[bytes] = []
        self._held = 0
        self._missing = 0
        self._scanner: ChunkScanner | None = None
        self._sink: Sink | None = None
        self._sink_for: SinkFor | None = None
        self._answered = False  # any byte of an answer has arrived
        self._paused = False
        self._outcome: Answer | UpstreamError | None = None

    # -- an exchange

    def send(
        self, request: bytes, *, limit: float, gap: float = 0.0, sink_for: SinkFor | None = None
    ) -> asyncio.Future[Answer]:
        """Send a request (head and body). The future raises UpstreamError.

        `limit`: seconds for the whole answer, or up to the first event of a stream;
        `gap`: seconds between two events. Cancelling the future leaves the exchange
        running: then call `close()`, or `half_close()`.
        """
        assert self._transport is not None
        self._reset()
        self.used += 1
        self._sink_for = sink_for
        self.since = self._loop.time()
        self.limit = limit
        self._gap = gap
        self._answer = answer = self._loop.create_future()
        self._first_data = None
        self._watch.busy.add(self)
        self._transport.write(request)
        return answer

    async def wait_begun(self, seconds: float) -> None:
        """Wait until the answer has begun or the connection has ended, at most `seconds`."""
        if self._answer is None or self._held > 0 or self._transport is None:
            return
        self._first_data = self._loop.create_future()
        await asyncio.wait((self._first_data,), timeout=seconds)

    def rest(self) -> asyncio.Future[Answer]:
        """A new future for the exchange after `send()`'s was cancelled.

        The answer may have come between the cancellation and this call.
        """
        future = self._loop.create_future()
        if isinstance(self._outcome, Answer):
            future.set_result(self._outcome)
        elif self._outcome is not None:
            future.set_exception(self._outcome)
        else:
            self._answer = future
        return future

    def pause(self) -> None:
        """Read no more until `resume()`: the client is slower than the engine."""
        if self._transport is not None and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        self.since = self._loop.time()
        if self._transport is not None and self._paused:
            self._paused = False
            self._transport.resume_reading()

    def half_close(self) -> None:
        """Tell the engine that nobody waits (it aborts), but still read what it had sent."""
        if self._transport is not None and self._transport.can_write_eof():
            self._transport.write_eof()

    def close(self) -> None:
        """End the connection at once; an engine that works for it aborts."""
        self._watch.busy.discard(self)
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def expire(self) -> None:
        """A deadline has passed: give the exchange up (called by Watch)."""
        waited = f"nothing for {self.limit:g} s"
        self._fail(UpstreamError(Cause.TIMEOUT, waited))

    @property
    def overdue(self) -> float:
        """Loop time at which the exchange is given up; a stopped reader is not overdue."""
        return float("inf") if self._paused else self.since + self.limit

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do all that asyncio.Transport promises, but are no subclass of it.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._answer is None:
            self.close()  # bytes that belong to no exchange
            return
        self._answered = True
        try:
            if self._head is None:
                data = self._read_head(data)
                if self._head is None:
                    return
            self._read_body(data)
        except ProtocolError as error:
            self._fail(UpstreamError(Cause.PROTOCOL, str(error)))

    def eof_received(self) -> bool:
        return False  # closes; connection_lost follows

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._watch.busy.discard(self)
        if self._answer is None:
            return
        head = self._head
        if head is not None and not head.chunked and head.length is None and exc is None:
            self._complete()  # such a body ends with the connection
            return
        if not self._answered:
            what = "closed the connection without an answer"
        else:
            what = "closed the connection in the middle of its answer"
        self._fail(UpstreamError(Cause.RESET, what + (f" ({exc})" if exc else "")))

    # -- parsing

    def _read_head(self, data: bytes) -> bytes:
        data = self._buffer + data if self._buffer else data
        while True:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if len(data) > MAX_HEAD:
                    raise ProtocolError("head too long")
                self._buffer = data
                return b""
            head = parse_head(data[:end])
            data = data[end + 4 :]
            if head.status >= 200:
                break
        self._buffer = b""
        self._head = head
        self._missing = head.length or 0
        if head.chunked:
            self._scanner = ChunkScanner()
        if self._sink_for is not None:
            self._sink = self._sink_for(head, self)
        return data

    def _read_body(self, data: bytes) -> None:
        head = self._head
        assert head is not None
        scanner = self._scanner
        if scanner is not None:
            done = False
            if data:
                data = scanner.feed(data)
                done = scanner.done
        elif head.length is None:
            done = False
            if data and self._sink is not None:
                data = frame(data)
        else:
            self._missing -= len(data)
            if self._missing < 0:
                raise ProtocolError("more bytes than content-length says")
            done = self._missing == 0
            if data and self._sink is not None:
                data = frame(data)
        if data:
            self._take(data)
        if done:
            self._complete()

    def _take(self, data: bytes) -> None:
        self._held += len(data)
        if self._sink is None:
            if self._held > MAX_ANSWER:
                raise ProtocolError(f"answer of more than {MAX_ANSWER} bytes")
            self._body.append(data)
            return
        self.since = self._loop.time()
        self.limit = self._gap
        if self._first_data is not None and not self._first_data.done():
            self._first_data.set_result(None)
        self._sink.feed(data)

    def _complete(self) -> None:
        head, answer = self._head, self._answer
        assert head is not None
        if self._scanner is not None and self._sink is None:
            body = payload_of(b"".join(self._body))
        else:
            body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self.resume()  # the last read may have paused it; the next request must be heard
        self._watch.busy.discard(self)
        self._answer = None
        self._sink = self._sink_for = None
        if not head.keep_alive or (head.length is None and not head.chunked):
            self.close()
        if self._first_data is not None and not self._first_data.done():
            self._first_data.set_result(None)
        self._outcome = Answer(head, body)
        if answer is not None and not answer.done():
            answer.set_result(self._outcome)

    def _fail(self, error: UpstreamError) -> None:
        answer = self._answer
        self._answer = None
        self._sink = self._sink_for = None
        self.close()
        if self._first_data is not None and not self._first_data.done():
            self._first_data.set_result(None)
        self._outcome = error
        if answer is not None and not answer.done():
            answer.set_exception(error)

    @property
    def stale(self) -> bool:
        """A reused connection ended at once under its request: it had been closed before."""
        at_once = self._loop.time() - self.since < STALE_SECONDS
        return self.used > 1 and not self._answered and at_once


class Watch:
    """Looks at all exchanges a few times a second instead of arming a timer for each."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, seconds: float = 0.1) -> None:
        self.busy: set[Connection] = set()
        self._loop = loop
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._timer = self._loop.call_later(self._seconds, self._look)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        now = self._loop.time()
        for connection in [c for c in self.busy if c.overdue <= now]:
            connection.expire()
        self.start()


class Pool:
    """Idle connections to one engine, the last used first. Knows no limit: engines queue."""

    def __init__(self, host: str, port: int, watch: Watch, *, connect_seconds: float) -> None:
        self.host = host
        self.port = port
        self._watch = watch
        self._connect_seconds = connect_seconds
        self._loop = asyncio.get_running_loop()
        self._idle: list[Connection] = []

    def idle(self) -> Connection | None:
        """An open connection that waits for its next request, if there is one."""
        idle = self._idle
        oldest = self._loop.time() - IDLE_SECONDS
        while idle:
            connection = idle.pop()
            if connection.open and connection.idle_since > oldest:
                return connection
            connection.close()
        return None

    async def connect(self) -> Connection:
        """A new connection. Raises UpstreamError (CONNECT)."""
        try:
            async with asyncio.timeout(self._connect_seconds):
                _, connection = await self._loop.create_connection(
                    lambda: Connection(self._loop, self._watch), self.host, self.port
                )
        except TimeoutError:
            message = f"no connection within {self._connect_seconds:g} s"
            raise UpstreamError(Cause.CONNECT, message) from None
        except OSError as error:
            refused = isinstance(error, ConnectionRefusedError)
            reason = "connection refused" if refused else error.strerror or str(error)
            raise UpstreamError(Cause.CONNECT, reason, refused=refused) from None
        return connection

    def give_back(self, connection: Connection) -> None:
        """Keep a connection whose exchange is complete."""
        if connection.open:
            connection.idle_since = self._loop.time()
            self._idle.append(connection)

    def prune(self) -> None:
        """Let go of connections that are closed or have been idle too long."""
        oldest = self._loop.time() - IDLE_SECONDS
        keep = []
        for connection in self._idle:
            if connection.open and connection.idle_since > oldest:
                keep.append(connection)
            else:
                connection.close()
        self._idle = keep

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()
