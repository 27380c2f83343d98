"""Frames between processes, and bytes between sockets and raw memory.

A frame is a header (operation or status, length of the body) and its body. Bulk data follows a
frame directly, gathered from and scattered into memory by the kernel: we copy nothing.

Sockets are blocking, so that every transfer runs without the GIL until it is done; deadlines are
the kernel's own (SO_RCVTIMEO, SO_SNDTIMEO).
"""

from __future__ import annotations

import json
import socket
import struct
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from operator import add
from typing import Any

# Small buffers are faster here than the kernel's growing ones: they stay in a core's cache.
SOCKET_BUFFER = 256 * 1024  # bytes
# Buffers in one system call: few at first, so that the other side has soon something to do, and
# never so many that a socket's buffer runs empty while the next list is made.
FIRST_PIECES, PIECES = 64, 512
BATCH = 64 * 1024 * 1024  # bytes after which one looks whether the path still stands
BODY_LIMIT = 16 * 1024 * 1024  # bytes of a frame's body

_HEADER = struct.Struct("<IQ")
_TIMEVAL = struct.Struct("ll")


class Operation(IntEnum):
    """What a frame asks for."""

    JOIN = 1  # take part in a collective link
    CONNECT = 2  # one-sided link
    DISCONNECT = 3  # one-sided unlink
    OPEN = 4  # use this connection for the transfers of a link
    TABLE = 5  # the table of caches
    READ = 6  # memory, from the owner
    WRITE = 7  # memory, to the owner


@dataclass(frozen=True)
class Spans:
    """The same spans (offset, length in bytes) of several tensors, each given by its address."""

    tensors: Sequence[int]
    offsets: Sequence[int]
    lengths: Sequence[int]

    @property
    def end(self) -> int:
        """One past the last byte used in each tensor."""
        return max(map(add, self.offsets, self.lengths))

    def pack(self) -> bytes:
        numbers = array("Q", (len(self.tensors), *self.tensors, *self.offsets, *self.lengths))
        return numbers.tobytes()

    @classmethod
    def unpack(cls, body: bytes) -> Spans:
        numbers = array("Q")
        numbers.frombytes(body)
        first = 1 + numbers[0]
        middle = first + (len(numbers) - first) // 2
        return cls(tuple(numbers[1:first]), tuple(numbers[first:middle]), tuple(numbers[middle:]))


def connect(address: tuple[str, int], deadline: float) -> socket.socket:
    """A connection made before `deadline` (time.monotonic); OSError otherwise."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        tune(sock)
        sock.settimeout(max(deadline - time.monotonic(), 0.001))
        sock.connect(address)
        sock.settimeout(None)
        set_deadline(sock, deadline)
    except BaseException:
        sock.close()
        raise
    return sock


def tune(sock: socket.socket) -> None:
    """Buffers and latency; before connecting or listening, for the window follows from it."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def set_deadline(sock: socket.socket, deadline: float) -> None:
    """Calls on `sock` end in TimeoutError of ours, or partially, when `deadline` passes.

    TimeoutError if it has passed.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline passed")
    value = _TIMEVAL.pack(int(left), max(int(left % 1 * 1e6), 1))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)


def send_frame(sock: socket.socket, head: int, body: bytes = b"") -> None:
    """Send a frame; OSError, TimeoutError."""
    try:
        sock.sendall(_HEADER.pack(head, len(body)) + body)
    except BlockingIOError as error:
        raise TimeoutError("the peer takes no data") from error


def receive_frame(sock: socket.socket) -> tuple[int, bytes]:
    """A frame's head and body; ConnectionError if the peer closed, TimeoutError, OSError."""
    head, length = _HEADER.unpack(_receive(sock, _HEADER.size))
    if length > BODY_LIMIT:
        raise ConnectionError(f"a frame of {length} bytes: no peer of ours sends that")
    return head, _receive(sock, length)


def ask(sock: socket.socket, operation: Operation, body: bytes = b"") -> tuple[int, bytes]:
    """Send a frame, receive the answer."""
    send_frame(sock, operation, body)
    return receive_frame(sock)


def to_json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode()


def from_json(body: bytes) -> dict[str, Any]:
    """The object in `body`; ConnectionError if there is none."""
    try:
        value = json.loads(body)
    except ValueError as error:
        raise ConnectionError("a frame that is not JSON: no peer of ours sends that") from error
    if not isinstance(value, dict):
        raise ConnectionError("a frame that is no object: no peer of ours sends that")
    return value


def batches(
    regions: Sequence[memoryview], offsets: Sequence[int], lengths: Sequence[int]
) -> Iterator[list[memoryview]]:
    """The same spans of each region, in lists for one system call each.

    A list has at most PIECES pieces, and not much more than BATCH bytes. It is made when it is
    asked for: the kernel moves one list while the other side makes its next. Both sides of a
    transfer go through their memory in this order.
    """
    pieces = max(min(PIECES, BATCH // max(lengths)), 1)
    done, limit = 0, min(FIRST_PIECES, pieces)
    while done < len(offsets):
        part = slice(done, done + max(limit // len(regions), 1))
        spans = zip(offsets[part], lengths[part], strict=True)
        cuts = [slice(start, start + size) for start, size in spans]
        for first in range(0, len(regions), pieces):
            yield [region[cut] for region in regions[first : first + pieces] for cut in cuts]
        done, limit = part.stop, pieces


def send_pieces(sock: socket.socket, pieces: Sequence[memoryview]) -> None:
    """Send at most PIECES pieces of memory; OSError, TimeoutError."""
    rest = pieces
    while rest:
        try:
            sent = sock.sendmsg(rest)
        except BlockingIOError as error:
            raise TimeoutError("the peer takes no data") from error
        rest = _after(rest, sent)


def receive_pieces(sock: socket.socket, pieces: Sequence[memoryview]) -> None:
    """Fill at most PIECES pieces of memory; ConnectionError, OSError, TimeoutError."""
    rest = pieces
    while rest:
        try:
            received = sock.recvmsg_into(rest, 0, socket.MSG_WAITALL)[0]
        except BlockingIOError as error:
            raise TimeoutError("the peer sends no data") from error
        if received == 0:
            raise ConnectionError("the peer closed the connection")
        rest = _after(rest, received)


def _after(pieces: Sequence[memoryview], count: int) -> list[memoryview]:
    """What remains of `pieces` when their first `count` bytes are done."""
    if count == sum(map(len, pieces)):
        return []
    for index, piece in enumerate(pieces):
        if count < len(piece):
            return [piece[count:], *pieces[index + 1 :]]
        count -= len(piece)
    return []


def _receive(sock: socket.socket, size: int) -> bytes:
    buffer = bytearray(size)
    if size:
        receive_pieces(sock, [memoryview(buffer)])
    return bytes(buffer)
