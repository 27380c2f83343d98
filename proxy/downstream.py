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
# How long what the client still sends is read after it was answered: closing before would
# reset the connection, and the client would not see the answer.
LINGER_SECONDS = 10.0
BODY_SECONDS = 60.0  # without a byte of a body that has begun
PIPELINED = 100  # requests that may wait in one connection; honest clients send one
READ_AHEAD = 256 * 1024  # bytes of a body that wait for their reader
# A peer whose machine is dead is found after 60 s; the system's default is two hours.
PROBES = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}

_LOG = logging.getLogger(__name__)


class BodyTooLarge(Exception):
    """The body is longer than the limit."""


class Request:
    """One request of a client: its head, and its body as it arrives."""

    __slots__ = ("_connection", "_message", "content", "headers", "method", "version")

    def __init__(
        self, message: RawRequestMessage, content: StreamReader, connection: ClientConnection
    ) -> None:
        self._message = message
        self._connection = connection
        self.content = content
        self.headers: CIMultiDictProxy[str] = message.headers
        self.method = message.method
        self.version: HttpVersion = message.version

    @property
    def keep_alive(self) -> bool:
        """Whether another request may follow its answer."""
        return not (self._message.should_close or self._connection.closing)

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
        """Wait until the client has taken what was written, or is gone or given up."""
        await self._connection.drained()

    async def body(self, limit: int) -> bytes:
        """All of it, at most `limit` bytes.

        Raises BodyTooLarge, HttpProcessingError, and TimeoutError when no more comes.
        """
        content = self.content
        if content.is_eof():  # it came with the head, as short ones do: no need to wait
            whole: bytes = content.read_nowait()
            if len(whole) > limit:
                raise BodyTooLarge
            return whole
        if int(self.headers.get("content-length", 0)) > limit:
            raise BodyTooLarge
        transport = self.transport
        if transport is not None and self.headers.get("expect", "").lower() == "100-continue":
            transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        parts = []
        size = 0
        while not content.at_eof():
            async with asyncio.timeout(BODY_SECONDS):
                parts.append(await content.readany())
            size += len(parts[-1])
            if size > limit:
                raise BodyTooLarge
        return b"".join(parts)


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
        self._writable = asyncio.Event()
        self._writable.set()
        self.closing = False  # no request is taken after the one under way
        self.task: asyncio.Task[None] | None = None
        self.idle_since = self._loop.time()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peer = transport.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in PROBES.items():
            if hasattr(socket, option):  # not on every system
                peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._server.joined(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._requests.clear()
        self._writable.set()
        if self.task is not None:
            self.task.cancel()
        else:
            self._server.left(self)

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
                if not self.closing:
                    self._requests.extend(requests)
            if upgraded:  # to a protocol that is not served here: the answer says so
                self._deaf = self.closing = True
        if len(self._requests) > PIPELINED:
            self.abort()
        elif self.task is None:
            self._serve_next()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def drained(self) -> None:
        """Wait until what was written is nearly all sent; a client that takes none is given up."""
        try:
            async with asyncio.timeout(self._server.send_seconds):
                await self._writable.wait()
        except TimeoutError:
            self.abort()

    # -- for the stream of a body

    def pause_reading(self) -> None:
        self._reading_paused = True
        if self.transport is not None:
            self.transport.pause_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:
        # Asked for after every read. The base class would run the parser each time, which
        # only a body that is decompressed needs.
        if self._reading_paused and self.transport is not None:
            self._reading_paused = False
            self.transport.resume_reading()

    # -- requests

    def _serve_next(self) -> None:
        """Begin with the next request, if there is one and it may be served."""
        if self._requests:
            message, content = self._requests.popleft()
            self.task = self._loop.create_task(self._serve(Request(message, content, self)))
        elif self._no_http is not None:
            if self.transport is not None:
                told = " ".join(self._no_http.message.split())
                self._server.refuse(self.transport, ProxyError(400, f"no HTTP request: {told}"))
            self.close()
        elif self.closing:
            self.close()
        else:
            self.idle_since = self._loop.time()

    async def _serve(self, request: Request) -> None:
        keep_alive = False
        try:
            keep_alive = await self._server.handle(request)
            if not self._writable.is_set():
                await self.drained()
            if not request.content.is_eof():
                keep_alive = await _skipped(request.content) and keep_alive
        except Exception:
            _LOG.exception("%s %s", request.method, request.target)
        finally:
            self.task = None
            if self.transport is None:
                self._server.left(self)
            elif keep_alive:
                self._serve_next()
            else:
                self.close()

    def finish(self) -> None:
        """Serve no request after the one under way."""
        self.closing = True
        self._requests.clear()
        if self.task is None:
            self.close()

    def close(self) -> None:
        """Close as soon as what was written is sent, and what still comes was let pass."""
        if not self.closing:
            self.closing = True
            self.idle_since = self._loop.time()
        self._requests.clear()
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if self._deaf and transport.can_write_eof():
            transport.write_eof()
            self._loop.call_later(LINGER_SECONDS, transport.close)
        else:
            transport.close()

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

    def __init__(self, handle: Handler, refuse: Refuse, *, send_seconds: float) -> None:
        self.handle = handle
        self.refuse = refuse
        self.send_seconds = send_seconds
        self.loop = asyncio.get_running_loop()
        self._connections: set[ClientConnection] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._stopping = False
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
        if self._stopping:
            connection.finish()

    def left(self, connection: ClientConnection) -> None:
        """A connection has ended, and whatever served it."""
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    async def stop(self, seconds: float) -> None:
        """Take no connection and no request any more; those under way have `seconds` to end."""
        assert self._listener is not None
        self._stopping = True
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
            if connection.task is not None or connection.idle_since > oldest:
                continue
            if connection.closing:
                connection.abort()  # what was written is not taken
            else:
                connection.close()
        self._sweep = self.loop.call_later(SWEEP_SECONDS, self._close_idle)
