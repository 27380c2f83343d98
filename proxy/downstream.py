"""Connections from clients: requests as aiohttp's parser reads them, answers as bytes.

aiohttp's own server makes two tasks, a stream writer and a response object for each
request, which is a fifth of all that a request costs here (docs/proxy.md). Here it
costs one task, and what is written goes to the client's transport as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import deque
from collections.abc import Awaitable, Callable

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser, HttpVersion, RawRequestMessage
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import StreamReader
from multidict import CIMultiDictProxy
from yarl import URL

from proxy.errors import ProxyError

KEEPALIVE_SECONDS = 75.0  # longer than clients' pools keep a connection that they do not use
SWEEP_SECONDS = 5.0
# How long the rest of a body is read after it was answered: closing before the client
# has sent it would reset the connection, and the client would not see the answer.
LINGER_SECONDS = 10.0
# Requests of one connection that wait behind one another before no more is read from it.
PIPELINED = 16
READ_AHEAD = 256 * 1024  # bytes of a body that wait for their reader

_LOG = logging.getLogger(__name__)


class BodyTooLarge(Exception):
    """The body is longer than the limit."""


class Request:
    """One request of a client: its head, and its body as it arrives."""

    __slots__ = ("_connection", "_message", "content", "headers", "keep_alive", "method", "version")

    def __init__(
        self, message: RawRequestMessage, content: StreamReader, connection: ClientConnection
    ) -> None:
        self._message = message
        self._connection = connection
        self.content = content
        self.headers: CIMultiDictProxy[str] = message.headers
        self.method = message.method
        self.version: HttpVersion = message.version
        self.keep_alive = not message.should_close

    @property
    def target(self) -> str:
        """Path and query as the client sent them."""
        return self._message.path

    @property
    def url(self) -> URL:
        return self._message.url

    @property
    def path(self) -> str:
        return self._message.url.path

    @property
    def transport(self) -> asyncio.Transport | None:
        """Where the answer is written; None: the client is gone."""
        return self._connection.transport

    async def drained(self) -> None:
        """Wait until the client has taken most of what was written, or is gone."""
        await self._connection.drained()

    async def body(self, limit: int) -> bytes:
        """All of it, at most `limit` bytes. Raises BodyTooLarge, HttpProcessingError."""
        content = self.content
        if not content.is_eof() and self.headers.get("expect", "").lower() == "100-continue":
            transport = self.transport
            if transport is not None:
                transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        parts = []
        size = 0
        while not content.at_eof():
            part = content.read_nowait() if content.is_eof() else await content.readany()
            size += len(part)
            if size > limit:
                raise BodyTooLarge
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


# Writes the answer; returns whether the connection may serve another request.
Handler = Callable[[Request], Awaitable[bool]]
# Writes the answer to what is no HTTP.
Refuse = Callable[[asyncio.Transport, ProxyError], None]


class ClientConnection(BaseProtocol):
    """One connection of a client: serves its requests one after another.

    When the client goes, the task that serves it is cancelled.
    """

    def __init__(self, server: ClientServer) -> None:
        super().__init__(server.loop)
        self._server = server
        # Nothing is decompressed: engines take no compressed bodies either.
        self._parser = HttpRequestParser(self, self._loop, READ_AHEAD, auto_decompress=False)
        self._requests: deque[tuple[RawRequestMessage, StreamReader]] = deque()
        self._body: StreamReader | None = None  # of the last request that has begun to arrive
        self._no_http: HttpProcessingError | None = None  # what follows the requests
        self._deaf = False  # nothing that may follow can be read
        self._closing = False  # after the request under way
        self.task: asyncio.Task[None] | None = None
        self.idle_since = self._loop.time()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # A client whose machine dies says nothing; a long answer would go on for nobody.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._server.joined(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._server.left(self)
        self._requests.clear()
        if self.task is not None:
            self.task.cancel()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        assert self._parser is not None
        try:
            requests, upgraded, _ = self._parser.feed_data(data)
        except HttpProcessingError as error:
            self._deaf = True
            if self._body is not None and not self._body.is_eof():
                self._body.set_exception(error)
            else:
                self._no_http = error
        else:
            if requests:
                self._body = requests[-1][1]
                if not self._closing:
                    self._requests.extend(requests)
            if upgraded:  # to a protocol that is not served here: the answer says so
                self._deaf = self._closing = True
        if self.task is None:
            self._serve_next()
        elif len(self._requests) >= PIPELINED and not self._buffer_paused:
            self._pause_reading_for_buffer()

    def resume_reading(self, resume_parser: bool = True) -> None:
        # Asked for after every read; the base class would run the parser each time.
        if self._reading_paused:
            super().resume_reading(resume_parser)

    async def drained(self) -> None:
        """Wait until less than the transport's high-water mark is unsent, or all is lost."""
        with contextlib.suppress(ConnectionError):
            await self._drain_helper()

    # -- requests

    def _serve_next(self) -> None:
        """Begin with the next request, if there is one and it may be served."""
        if self._requests:
            message, content = self._requests.popleft()
            if self._buffer_paused and len(self._requests) < PIPELINED:
                self._resume_reading_for_buffer()
            self.task = self._loop.create_task(self._serve(Request(message, content, self)))
        elif self._no_http is not None:
            if self.transport is not None:
                told = " ".join(self._no_http.message.split())
                self._server.refuse(self.transport, ProxyError(400, f"no HTTP request: {told}"))
                self.transport.close()
        elif self._closing:
            self.close()
        else:
            self.idle_since = self._loop.time()

    async def _serve(self, request: Request) -> None:
        keep_alive = False
        try:
            keep_alive = await self._server.handle(request)
            if not request.content.is_eof():
                keep_alive = await _skipped(request.content) and keep_alive
        except Exception:
            _LOG.exception("%s %s", request.method, request.target)
        finally:
            self.task = None
            if keep_alive:
                self._serve_next()
            else:
                self.close()

    def finish(self) -> None:
        """Serve no request after the one under way."""
        self._closing = True
        self._requests.clear()
        if self.task is None:
            self.close()

    def close(self) -> None:
        """Close as soon as what was written is sent."""
        self._closing = True
        self._requests.clear()
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """End it at once, whatever is under way."""
        if self.transport is not None:
            self.transport.abort()


async def _skipped(content: StreamReader) -> bool:
    """Read the rest of a body that nobody wants. False: it did not end in time."""
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while not content.at_eof():
                await content.readany()
    except (TimeoutError, HttpProcessingError):
        return False
    return True


class ClientServer:
    """Listens, and knows all connections of clients."""

    def __init__(self, handle: Handler, refuse: Refuse) -> None:
        self.handle = handle
        self.refuse = refuse
        self.loop = asyncio.get_running_loop()
        self._connections: set[ClientConnection] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._listener: asyncio.Server | None = None
        self._sweep: asyncio.TimerHandle | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises OSError."""
        self._listener = await self.loop.create_server(
            lambda: ClientConnection(self), host, port, backlog=1024
        )
        self._close_idle()
        bound: int = self._listener.sockets[0].getsockname()[1]
        return bound

    def joined(self, connection: ClientConnection) -> None:
        """A client has connected."""
        self._connections.add(connection)
        self._empty.clear()

    def left(self, connection: ClientConnection) -> None:
        """A connection has ended."""
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    async def stop(self, seconds: float) -> None:
        """Take no connection and no request any more; those under way have `seconds` to end."""
        assert self._listener is not None
        self._listener.close()
        for connection in tuple(self._connections):
            connection.finish()
        if self._sweep is not None:
            self._sweep.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        tasks = [c.task for c in self._connections if c.task is not None]
        for connection in tuple(self._connections):
            connection.abort()
        if tasks:
            await asyncio.wait(tasks)

    def _close_idle(self) -> None:
        oldest = self.loop.time() - KEEPALIVE_SECONDS
        for connection in tuple(self._connections):
            if connection.task is None and connection.idle_since < oldest:
                connection.close()
        self._sweep = self.loop.call_later(SWEEP_SECONDS, self._close_idle)
