"""HTTP/1.1 answers as bytes: heads, and chunk frames that can be relayed verbatim.

Only the side that an engine sends. Pure functions and small parsers, no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_HEAD = 64 * 1024  # bytes; engines send a few hundred
MAX_CHUNK = 16 * 1024 * 1024  # bytes in one chunk; an engine sends one event per chunk
MAX_CHUNK_LINE = 256  # bytes of a chunk's size line, extensions included

LAST_CHUNK = b"0\r\n\r\n"

# Meant for one connection only (RFC 9110, section 7.6.1), or said anew by the proxy.
_HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"content-length",
        b"content-type",
        b"x-request-id",
    )
)


class ProtocolError(Exception):
    """The peer does not speak HTTP/1.1 as it must."""


@dataclass(slots=True)
class Head:
    """Status line and headers of an answer."""

    status: int
    content_type: bytes
    length: int | None  # of the body, bytes; None: chunked or until the connection closes
    chunked: bool
    keep_alive: bool
    raw: bytes  # all of it, without the closing empty line

    @property
    def is_event_stream(self) -> bool:
        return self.content_type.startswith(b"text/event-stream")

    @property
    def passed(self) -> bytes:
        """End-to-end header lines, each with its CRLF; without type and length."""
        lines = self.raw.split(b"\r\n")[1:]
        passed = [x for x in lines if x.partition(b":")[0].lower() not in _HOP_BY_HOP]
        return b"\r\n".join((*passed, b"")) if passed else b""


def parse_head(data: bytes) -> Head:
    """Parse a head without its closing empty line. Raises ProtocolError.

    Looks only for the headers that matter here; one pass over all of them costs more
    than the rest of a prefill leg.
    """
    if not data.startswith(b"HTTP/1.") or not data[9:12].isdigit():
        raise ProtocolError(f"not an HTTP/1 answer: {data[:60]!r}")
    status = int(data[9:12])
    lowered = data.lower()
    chunked = False
    length: int | None = None
    coding = _value(lowered, b"\r\ntransfer-encoding:")
    if coding:
        chunked = coding == b"chunked"
        if not chunked:
            raise ProtocolError(f"transfer-encoding {coding[:30]!r} is not supported")
    elif status in (204, 304):
        length = 0
    else:
        digits = _value(lowered, b"\r\ncontent-length:")
        if digits:
            if not digits.isdigit():
                raise ProtocolError(f"content-length is {digits[:30]!r}")
            length = int(digits)
    connection = _value(lowered, b"\r\nconnection:")
    keep_alive = connection != b"close" and (data[7:8] != b"0" or connection == b"keep-alive")
    content_type = _value(lowered, b"\r\ncontent-type:")
    return Head(status, content_type, length, chunked, keep_alive, data)


def _value(lowered: bytes, name: bytes) -> bytes:
    """A header's value in a head in lower case; empty when it is not there."""
    start = lowered.find(name)
    if start < 0:
        return b""
    start += len(name)
    end = lowered.find(b"\r\n", start)
    return (lowered[start:] if end < 0 else lowered[start:end]).strip()


def frame(payload: bytes) -> bytes:
    """One chunk; `payload` must not be empty."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


class ChunkScanner:
    """Finds whole chunks in what arrives, so that they can be passed on as they are.

    Whole frames only: if the sender dies inside one, nothing of it has been passed on,
    and an event of our own can still follow.
    """

    __slots__ = ("_held", "_missing", "done")

    def __init__(self) -> None:
        self._held = b""
        self._missing = 0  # the held bytes are worth scanning again at this length
        self.done = False  # the last chunk and its trailers have been seen

    def feed(self, data: bytes) -> bytes:
        """Whole frames so far, without the last (empty) chunk. Raises ProtocolError."""
        if self._held:
            data = self._held + data
            if len(data) < self._missing:
                self._held = data
                return b""
        position = 0
        size = len(data)
        self._missing = 0
        while position < size:
            line_end = data.find(b"\r\n", position, position + MAX_CHUNK_LINE)
            if line_end < 0:
                if size - position >= MAX_CHUNK_LINE:
                    raise ProtocolError("chunk size line too long")
                break
            length = _chunk_size(data[position:line_end])
            if length == 0:
                if data.startswith(b"\r\n", line_end + 2):
                    end = line_end + 4
                else:
                    trailer_end = data.find(b"\r\n\r\n", line_end + 2)
                    if trailer_end < 0:
                        if size - line_end > MAX_HEAD:
                            raise ProtocolError("trailers too long")
                        break
                    end = trailer_end + 4
                if end != size:
                    raise ProtocolError("bytes after the end of an answer")
                self.done = True
                self._held = b""
                return data[:position]
            end = line_end + 4 + length
            if end > size:
                self._missing = end - position
                break
            position = end
        self._held = data[position:]
        return data[:position]


def _chunk_size(line: bytes) -> int:
    digits = line.partition(b";")[0].strip()
    try:
        size = int(digits, 16)
    except ValueError:
        raise ProtocolError(f"chunk size is {digits[:30]!r}") from None
    if not digits.isalnum() or not 0 <= size <= MAX_CHUNK:
        raise ProtocolError(f"chunk size is {digits[:30]!r}")
    return size


def payload_of(frames: bytes) -> bytes:
    """The content of whole frames, as ChunkScanner gives them."""
    parts: list[bytes] = []
    position = 0
    while position < len(frames):
        line_end = frames.index(b"\r\n", position)
        length = _chunk_size(frames[position:line_end])
        parts.append(frames[line_end + 2 : line_end + 2 + length])
        position = line_end + 4 + length
    return b"".join(parts)
