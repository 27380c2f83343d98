"""The owner's side: background threads that answer peers, without the caller's threads.

A peer may read and write only memory that is registered, and only over a link that is up: it
shows the link's token first. Taking the token back closes its connections.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
from collections.abc import Callable
from typing import Any

from llm_datadist.native import wire
from llm_datadist.native.caches import CacheTable
from llm_datadist.native.wire import Operation, Spans
from llm_datadist.status import LLMStatusCode, log

# Answers a JOIN, CONNECT or DISCONNECT; runs in the connection's own thread.
Handler = Callable[[dict[str, Any]], dict[str, Any]]


class Server:
    """Serves the memory of `caches` to linked peers. Runs from `listen` to `close`."""

    def __init__(self, caches: CacheTable, handlers: dict[Operation, Handler]) -> None:
        self._caches = caches
        self._handlers = handlers
        self._lock = threading.Lock()
        self._tokens: dict[str, set[socket.socket]] = {}  # with the connections that use them
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._listeners: dict[socket.socket, threading.Thread] = {}

    def listen(self, address: str, port: int = 0) -> socket.socket:
        """Listen there as well (0: any port); OSError if that cannot be had."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            wire.tune(listener)
            listener.bind((address, port))
            listener.listen(128)
        except BaseException:
            listener.close()
            raise
        name = f"llm_datadist-accept-{listener.getsockname()[1]}"
        thread = threading.Thread(target=self._accept, args=(listener,), name=name, daemon=True)
        with self._lock:
            self._listeners[listener] = thread
        thread.start()
        return listener

    def stop_listening(self, listener: socket.socket) -> None:
        with self._lock:
            thread = self._listeners.pop(listener)
        _shut(listener)
        thread.join()
        listener.close()

    def close(self) -> None:
        """End all connections and threads."""
        for listener in list(self._listeners):
            self.stop_listening(listener)
        with self._lock:
            self._tokens.clear()
            connections = dict(self._connections)
        for connection in connections:
            _shut(connection)
        for thread in connections.values():
            thread.join()

    def grant(self) -> str:
        """A token with which a peer may use our memory, until it is revoked."""
        token = secrets.token_hex(8)
        with self._lock:
            self._tokens[token] = set()
        return token

    def revoke(self, token: str) -> None:
        with self._lock:
            connections = self._tokens.pop(token, set())
        for connection in connections:
            _shut(connection)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # we stop listening
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            name = f"llm_datadist-serve-{connection.fileno()}"
            thread = threading.Thread(
                target=self._serve, args=(connection,), name=name, daemon=True
            )
            with self._lock:
                known = listener in self._listeners
                if known:
                    self._connections[connection] = thread
            if known:
                thread.start()
            else:
                connection.close()

    def _serve(self, connection: socket.socket) -> None:
        token: str | None = None
        try:
            while True:
                operation, body = wire.receive_frame(connection)
                if operation == Operation.OPEN:
                    token = body.decode()
                    if not self._admit(token, connection):
                        return
                    wire.send_frame(connection, LLMStatusCode.LLM_SUCCESS)
                elif operation in self._handlers:
                    answer = self._handlers[Operation(operation)](wire.from_json(body))
                    wire.send_frame(connection, LLMStatusCode.LLM_SUCCESS, wire.to_json(answer))
                elif token is not None:
                    self._transfer(operation, body, connection)
                else:
                    return
        except (OSError, ValueError, KeyError, TypeError) as error:
            # A peer that went away is normal; one that speaks nonsense loses its connection.
            log.debug("connection of a peer ended: %r", error)
        finally:
            with self._lock:
                self._connections.pop(connection, None)
                if token in self._tokens:
                    self._tokens[token].discard(connection)
            connection.close()

    def _admit(self, token: str, connection: socket.socket) -> bool:
        with self._lock:
            known = token in self._tokens
            if known:
                self._tokens[token].add(connection)
            return known

    def _transfer(self, operation: int, body: bytes, connection: socket.socket) -> None:
        if operation == Operation.TABLE:
            wire.send_frame(connection, LLMStatusCode.LLM_SUCCESS, self._caches.serialised())
            return
        spans = Spans.unpack(body)
        regions = [self._caches.region(address) for address in spans.tensors]
        known = [region for region in regions if region is not None and len(region) >= spans.end]
        if len(known) < len(regions):
            raise ValueError("a peer asked for memory that is not registered")  # as RDMA refuses
        batches = wire.batches(known, spans.offsets, spans.lengths)
        if operation == Operation.READ:  # the answer is the bytes and nothing else
            for batch in batches:
                wire.send_pieces(connection, batch)
        elif operation == Operation.WRITE:
            for batch in batches:
                wire.receive_pieces(connection, batch)
            wire.send_frame(connection, LLMStatusCode.LLM_SUCCESS)


def _shut(sock: socket.socket) -> None:
    """Wake whoever waits on `sock`."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
