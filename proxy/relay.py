"""Answers to the client, written to its connection as bytes.

An event stream is passed on frame by frame as the decoder sent it. It starts with the
first event (until then another decoder can still be tried) and ends cleanly only if the
decoder's did, with `[DONE]`: otherwise an error event follows and the connection is
closed without the last chunk, so that no client takes the text for complete.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from time import perf_counter

from proxy.codec import loads
from proxy.downstream import Request
from proxy.errors import error_body
from proxy.http1 import LAST_CHUNK, Head, frame, payload_of
from proxy.rewrite import with_cached_tokens
from proxy.upstream import Connection

# A client that reads slower than the decoder writes holds at most this much here.
WRITE_BUFFER = 256 * 1024  # bytes
_TAIL = 256  # bytes of frames that are sure to hold a whole `data: [DONE]`
_DONE = b"data: [DONE]"

REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}


@dataclass(slots=True)
class Written:
    """An answer that is on the client's connection."""

    status: int
    keep_alive: bool  # the connection may serve another request


def head_bytes(status: int, content_type: bytes, lines: bytes, body_length: int | None) -> bytes:
    """Status line and headers; `lines` each end with CRLF. Length None: chunked."""
    reason = REASONS.get(status, b"Unknown")
    if body_length is None:
        framing = b"transfer-encoding: chunked"
    else:
        framing = b"content-length: %d" % body_length
    kind = b"content-type: %b\r\n" % content_type if content_type else b""
    return b"HTTP/1.1 %d %b\r\n%b%b%b\r\n\r\n" % (status, reason, kind, lines, framing)


class ClientStream:
    """The sink between a decoder's event stream and one client."""

    __slots__ = (
        "_cached_tokens",
        "_connection",
        "_current",
        "_draining",
        "_error_frames",
        "_extra",
        "_head",
        "_http11",
        "_loop",
        "_previous",
        "_request",
        "bytes_sent",
        "first_at",
        "started",
    )

    def __init__(
        self,
        request: Request,
        connection: Connection,
        head: Head,
        extra: bytes,
        loop: asyncio.AbstractEventLoop,
        cached_tokens: int | None,
    ) -> None:
        self._request = request
        self._connection = connection
        self._head = head
        self._extra = extra  # header lines of the proxy's own
        self._loop = loop
        self._cached_tokens = cached_tokens
        self._http11 = request.version >= (1, 1)
        self._previous = b""
        self._current = b""
        self._draining: asyncio.Task[None] | None = None
        self._error_frames = b""
        self.started = False  # the client has the first byte: no other decoder any more
        self.first_at = 0.0  # when it got it, by `perf_counter`
        self.bytes_sent = 0

    def feed(self, frames: bytes) -> None:
        """Pass whole frames on. Called by the decoder's connection."""
        transport = self._request.transport
        if transport is None:
            return  # the client is gone; the handler is being cancelled
        if self._cached_tokens is not None and b'"cached_tokens"' in frames:
            frames = frame(with_cached_tokens(payload_of(frames), self._cached_tokens))
        if len(self._current) < _TAIL:
            self._current += frames
        else:
            self._previous, self._current = self._current, frames
        if not self.started and (self._error_frames or _is_engine_failure(frames)):
            self._error_frames += frames  # nothing has been said yet: another may still serve
            return
        self._write(transport, frames)
        if transport.get_write_buffer_size() > WRITE_BUFFER and self._draining is None:
            self._connection.pause()
            self._draining = self._loop.create_task(self._resume_when_drained())

    def _write(self, transport: asyncio.Transport, frames: bytes) -> None:
        data = frames if self._http11 else payload_of(frames)
        if not self.started:
            self.started = True
            self.first_at = perf_counter()
            data = self._opening() + data
        self.bytes_sent += len(data)
        transport.write(data)

    def _opening(self) -> bytes:
        lines = self._head.passed + self._extra
        if self._http11:
            return head_bytes(200, self._head.content_type, lines, None)
        kind = self._head.content_type
        return b"HTTP/1.0 200 OK\r\ncontent-type: %b\r\n%bconnection: close\r\n\r\n" % (kind, lines)

    @property
    def failed_at_once(self) -> bool:
        """The stream's first event says that the engine failed; the client has nothing yet."""
        return bool(self._error_frames)

    def deliver_failure(self) -> Written:
        """No other engine can serve: give the client the stream with the engine's own error."""
        transport = self._request.transport
        if transport is not None:
            self._write(transport, self._error_frames)
        return self.finish()

    async def _resume_when_drained(self) -> None:
        try:
            await self._request.drained()
        finally:
            self._draining = None
        self._connection.resume()

    @property
    def ended_with_done(self) -> bool:
        """The last whole line of the stream is `data: [DONE]`."""
        text = payload_of(self._previous + self._current).rstrip()
        return text.endswith(b"\n" + _DONE) or text == _DONE

    def finish(self) -> Written:
        """The decoder's stream is complete: end the client's the same way."""
        self.stop()
        transport = self._request.transport
        if transport is not None and self._http11:
            transport.write(LAST_CHUNK)
        return Written(200, self._http11 and self._request.keep_alive)

    def break_off(self, status: int, message: str) -> Written:
        """Say in the stream that it is not complete, and close without its last chunk."""
        self.stop()
        transport = self._request.transport
        if transport is not None:
            # The empty line first: the event before may have been cut.
            event = b"\n\ndata: " + error_body(status, message) + b"\n\n"
            transport.write(frame(event) if self._http11 else event)
            transport.close()
        return Written(200, False)

    def stop(self) -> None:
        """No more is passed on."""
        if self._draining is not None:
            self._draining.cancel()
            self._draining = None


def _is_engine_failure(frames: bytes) -> bool:
    """Whether a stream begins with an error event that is not the client's fault."""
    if b'data: {"error"' not in frames[:64]:
        return False
    line = payload_of(frames).partition(b"\n")[0]
    try:
        code = loads(line.removeprefix(b"data: "))["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return True
    return not (isinstance(code, int) and 400 <= code < 500)


def write_answer(
    request: Request, status: int, content_type: bytes, lines: bytes, body: bytes
) -> Written:
    """Write a whole answer."""
    transport = request.transport
    keep_alive = request.keep_alive
    if not keep_alive:
        lines += b"connection: close\r\n"
    elif request.version < (1, 1):
        lines += b"connection: keep-alive\r\n"
    if transport is not None:
        head = head_bytes(status, content_type, lines, len(body))
        transport.write(head if request.method == "HEAD" else head + body)
    return Written(status, keep_alive)
