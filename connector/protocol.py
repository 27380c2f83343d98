"""Messages of the side channel between a decoder's and a prefiller's workers.

A message is msgpack `[event, payload]` over a zmq REQ socket to a ROUTER; events 0 and 1
are vllm-ascend v0.10.1rc1's, extended. docs/connector.md shows who sends what when.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum

import msgspec

from connector.ranktable import Agent

PROTOCOL = 1


class Event(IntEnum):
    """What a message asks for."""

    HELLO = 0
    FINISHED = 1
    BEGIN = 2
    RELEASE = 3


class Layout(msgspec.Struct, frozen=True):
    """What two KV caches must have in common for whole blocks to be copied between them."""

    model: str
    block_size: int
    dtype: str
    layers: list[str]
    blocks: list[tuple[int, int]]
    """Per registered cache: number of tensors, bytes of one block."""
    memory: str
    """Kind of memory and, on a CPU, what decides how it is packed."""


class Hello(msgspec.Struct):
    """D to P: who I am, and either the link I want (`fresh`) or the one I believe to have."""

    agent: Agent
    session: str
    fresh: bool
    tp_rank: int
    tp_size: int
    layout: Layout
    protocol: int = PROTOCOL


class HelloReply(msgspec.Struct):
    """P to D. `refused` says in words why the two cannot work together."""

    agent: Agent
    incarnation: str
    tp_size: int
    layout: Layout
    linked: bool
    """The session's link is up here or on its way."""
    refused: str | None = None
    protocol: int = PROTOCOL


class Begin(msgspec.Struct):
    """D to P: I am about to pull this request's blocks; keep them for `lease` seconds."""

    request_id: str
    cluster_id: int
    session: str
    run: str | None
    lease: float
    tp_rank: int
    tp_size: int


class BeginStatus(StrEnum):
    """P's answer to Begin."""

    OK = "ok"
    """The blocks are held for `lease` seconds from now."""
    UNKNOWN = "unknown"
    """Not (yet) known: the scheduler may not have told the workers; ask again."""
    GONE = "gone"
    """Released already; the blocks may belong to another request."""
    RELINK = "relink"
    """This session's link does not exist here: say hello again with a new session."""


class BeginReply(msgspec.Struct):
    status: BeginStatus
    detail: str = ""


class Finished(msgspec.Struct, array_like=True):
    """D to P: this rank is done with the request, successfully or not."""

    request_id: str
    tp_rank: int
    tp_size: int


class Release(msgspec.Struct):
    """Anyone to P: no decoder will take this request. Repeating it does no harm."""

    request_id: str


class Failed(msgspec.Struct):
    """Answer to a message that could not be understood or served."""

    error: str


FINISHED_REPLY = b"receiving decode finished"

Message = Hello | Begin | Finished | Release

_PAYLOADS: dict[Event, type[Message]] = {
    Event.HELLO: Hello,
    Event.FINISHED: Finished,
    Event.BEGIN: Begin,
    Event.RELEASE: Release,
}
_EVENTS = {payload: event for event, payload in _PAYLOADS.items()}


def encode(message: Message) -> bytes:
    return msgspec.msgpack.encode([int(_EVENTS[type(message)]), message])


def decode(frame: bytes) -> Message:
    """Raises ValueError for anything that is not one of our messages."""
    try:
        event, payload = msgspec.msgpack.decode(frame, type=tuple[int, msgspec.Raw])
        return msgspec.msgpack.decode(payload, type=_PAYLOADS[Event(event)])
    except (msgspec.MsgspecError, ValueError) as error:
        raise ValueError(f"not a side-channel message: {error}") from error
