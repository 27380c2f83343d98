"""The side channel: short questions from decoder workers to prefiller workers over zmq.

Every question has a deadline; a bad message gets an error as its answer and never ends
the listener.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import msgspec
import zmq

from connector.errors import ConnectorConfigError, TransferError
from connector.protocol import FINISHED_REPLY, Failed, Message, decode, encode

logger = logging.getLogger(f"vllm.{__name__}")  # vLLM configures loggers below its own
Reply = TypeVar("Reply", bound=msgspec.Struct)
_ATTEMPTS = 2

Handler = Callable[[Message], msgspec.Struct | None]
"""Answers a message; None stands for the plain acknowledgement of Finished and Release."""


class Listener:
    """The prefiller's end: one thread that answers every message at once.

    Raises ConnectorConfigError when the port cannot be bound.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], ip: str, port: int) -> None:
        self._socket = context.socket(zmq.ROUTER)
        self._socket.linger = 0
        url = f"tcp://{ip}:{port}"
        try:
            self._socket.bind(url)
        except zmq.ZMQError as error:
            self._socket.close()
            raise ConnectorConfigError(
                f"the KV side channel cannot listen on {url}: {error.strerror}. Is another "
                "instance on this host using the same VLLM_ASCEND_LLMDD_RPC_PORT?"
            ) from error
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, handler: Handler) -> None:
        self._thread = threading.Thread(
            target=self._run, args=(handler,), name="kv-side-channel", daemon=True
        )
        self._thread.start()

    def _run(self, handler: Handler) -> None:
        while not self._stop.is_set():
            if not self._socket.poll(100):
                continue
            frames = self._socket.recv_multipart()
            if len(frames) != 3:  # not from a REQ socket: there is nobody to answer
                continue
            identity, _, body = frames
            self._socket.send_multipart((identity, b"", _answer(handler, body)))
        self._socket.close()

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)


def _answer(handler: Handler, body: bytes) -> bytes:
    try:
        reply = handler(decode(body))
    except (ValueError, TransferError) as error:
        return msgspec.msgpack.encode(Failed(str(error)))
    except Exception as error:  # the listener must outlive a defect in a handler
        logger.exception("KV side channel: a message could not be served")
        return msgspec.msgpack.encode(Failed(f"{type(error).__name__}: {error}"))
    return FINISHED_REPLY if reply is None else msgspec.msgpack.encode(reply)


class Caller:
    """The decoder's end for one peer. Used by one thread only."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], host: str, port: int) -> None:
        self.address = f"{host}:{port}"
        self._context = context
        self._host = host
        self._port = port
        self._socket: zmq.Socket[bytes] | None = None

    def ask(self, message: Message, reply: type[Reply], timeout: float) -> Reply:
        """Send and wait for an answer of type `reply`; raises TransferError."""
        body = self._exchange(message, timeout)
        try:
            return msgspec.msgpack.decode(body, type=reply)
        except msgspec.MsgspecError as error:
            raise self._explain(body, error) from error

    def tell(self, message: Message, timeout: float) -> None:
        """Send and wait for the plain acknowledgement; raises TransferError."""
        body = self._exchange(message, timeout)
        if body != FINISHED_REPLY:
            raise self._explain(body, None)

    def _explain(self, body: bytes, error: Exception | None) -> TransferError:
        try:
            detail = msgspec.msgpack.decode(body, type=Failed).error
        except msgspec.MsgspecError:
            detail = f"an answer of another protocol ({error or body[:80]!r})"
        return TransferError("refused", f"prefiller {self.address} answered: {detail}")

    def _exchange(self, message: Message, timeout: float) -> bytes:
        """Ask twice within `timeout`, the second time on a fresh connection.

        A question may get lost with its connection; every message may come twice.
        """
        encoded = encode(message)
        for _ in range(_ATTEMPTS):
            answer = self._ask_once(encoded, timeout / _ATTEMPTS)
            if answer is not None:
                return answer
        raise TransferError(
            "unreachable", f"prefiller {self.address} gave no answer within {timeout:g} s"
        )

    def _ask_once(self, message: bytes, timeout: float) -> bytes | None:
        """The answer, or None if there was none in time."""
        deadline = time.monotonic() + timeout
        try:
            channel = self._connected(timeout)
            channel.send(message)
            left = max(0, int((deadline - time.monotonic()) * 1000))
            if channel.poll(left):
                return channel.recv()
        except (OSError, ValueError, OverflowError, zmq.ZMQError) as error:
            # A host or port that cannot be one is a ValueError or OverflowError.
            self.close()
            raise TransferError(
                "unreachable", f"prefiller {self.address} does not answer: {error}"
            ) from error
        self.close()  # a REQ socket is unusable after a question without answer
        return None

    def _connected(self, timeout: float) -> zmq.Socket[bytes]:
        if self._socket is None:
            # zmq hides a refused connection behind retries; a plain connect tells at once.
            socket.create_connection((self._host, self._port), timeout).close()
            self._socket = self._context.socket(zmq.REQ)
            self._socket.linger = 0
            self._socket.connect(f"tcp://{self.address}")
        return self._socket

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
