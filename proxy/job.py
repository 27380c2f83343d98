"""One request on its way through the proxy: what is known of it, and its headers."""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
from dataclasses import dataclass
from typing import Any

from proxy.balancer import Instance
from proxy.downstream import Request
from proxy.http1 import Head
from proxy.relay import ClientStream
from proxy.rewrite import Ask
from proxy.upstream import Connection, Sink

PD_PATH = "prefill-decode"
ALONE_PATH = "decode-only"

# Of the client's headers the engines read these; all others end here.
_PASSED = ("authorization", "traceparent", "tracestate", "baggage")
_MAX_ID = 200
# Ids of our own: as unique as random ones, without a call to the kernel for each.
_PROCESS = secrets.token_hex(10)
_NUMBERS = itertools.count()
_PD_HEADER = f"x-pd-path: {PD_PATH}\r\n".encode()


@dataclass(slots=True)
class Handoff:
    """A prefiller's KV for one request, waiting for a decoder."""

    prefiller: Instance
    request_id: str  # under which the prefiller knows it
    params: dict[str, Any]  # kv_transfer_params for the decoder
    cached_tokens: int  # of the prompt, found in the prefiller's own cache


class Job:
    """State of one client request."""

    __slots__ = (
        "_loop",
        "alone",
        "arrived",
        "ask",
        "attempts",
        "bytes_sent",
        "cached_tokens",
        "content_type",
        "decoder",
        "endpoint",
        "engine_id",
        "first_at",
        "outcome",
        "owns_id",
        "passed",
        "phase",
        "prefill_seconds",
        "prefiller",
        "request",
        "request_id",
        "status",
        "stream",
    )

    def __init__(
        self,
        request: Request,
        endpoint: str,
        ask: Ask,
        request_id: str,
        loop: asyncio.AbstractEventLoop,
        arrived: float,
    ) -> None:
        self._loop = loop
        self.request = request
        self.endpoint = endpoint
        self.ask = ask
        self.request_id = request_id  # the client's, echoed to it
        self.engine_id = request_id  # what the engines are told
        self.owns_id = True  # False: the cleaning up gives the engines' id free
        self.alone = ask.alone
        self.arrived = (
            arrived  # by `perf_counter`: uvloop's own clock knows no parts of a millisecond
        )
        self.phase = "queue"
        self.prefiller: Instance | None = None
        self.decoder: Instance | None = None
        self.stream: ClientStream | None = None
        self.status = 0
        self.attempts = 0
        self.prefill_seconds = 0.0
        self.first_at = 0.0
        self.bytes_sent = 0
        self.cached_tokens: int | None = None  # the prefiller's; None: served by a decoder alone
        self.outcome = ""
        headers = request.headers
        self.content_type = headers.get("content-type", "application/json")
        passed = ""
        for name in _PASSED:
            value = headers.get(name)
            if value is not None:
                passed += f"{name}: {value}\r\n"
        self.passed = passed

    def engine_request(self, instance: Instance, request_id: str, body: bytes) -> bytes:
        """The request for an engine, head and body."""
        head = (
            f"POST {self.endpoint} HTTP/1.1\r\ncontent-type: {self.content_type}\r\n"
            f"content-length: {len(body)}\r\nx-request-id: {request_id}\r\n{self.passed}host: "
        )
        return b"%b%b\r\n\r\n%b" % (
            head.encode("utf-8", "surrogateescape"),
            instance.host_header,
            body,
        )

    def own_headers(self) -> bytes:
        """The proxy's lines in the answer: who served it, and how."""
        request_id = self.request_id.encode("utf-8", "surrogateescape")
        decoder = self.decoder.name_header if self.decoder is not None else b""
        if self.alone:
            path = f"x-pd-path: {ALONE_PATH}\r\nx-pd-reason: {self.alone}\r\n".encode()
            return b"x-request-id: %b\r\n%b%b" % (request_id, decoder, path)
        prefiller = self.prefiller.name_header if self.prefiller is not None else b""
        return b"x-request-id: %b\r\n%b%b%b" % (request_id, prefiller, decoder, _PD_HEADER)

    def sink_for(self, head: Head, connection: Connection) -> Sink | None:
        """Stream an event stream, hold anything else (it may have to be tried again)."""
        if head.status != 200 or not head.is_event_stream:
            return None
        self.stream = ClientStream(
            self.request, connection, head, self.own_headers(), self._loop, self.cached_tokens
        )
        return self.stream

    @property
    def path(self) -> str:
        """How it was served, as `x-pd-path` says it."""
        return ALONE_PATH if self.alone else PD_PATH

    def access_line(self, now: float) -> str:
        """The access line, JSON. Written by hand: a third of the cost of a general encoder."""
        arrived = self.arrived
        prefiller, decoder, stream = self.prefiller, self.decoder, self.stream
        first = f"{(self.first_at - arrived) * 1000:.2f}" if self.first_at else "null"
        return (
            f'{{"id":{_quoted(self.request_id)},"endpoint":"{self.endpoint}",'
            f'"status":{self.status},"outcome":"{self.outcome}","path":"{self.path}",'
            f'"reason":"{self.alone}",'
            f'"prefill":{"null" if prefiller is None else _quoted(prefiller.name)},'
            f'"decode":{"null" if decoder is None else _quoted(decoder.name)},'
            f'"attempts":{self.attempts},"stream":{"false" if stream is None else "true"},'
            f'"prefill_ms":{self.prefill_seconds * 1000:.2f},"first_ms":{first},'
            f'"total_ms":{(now - arrived) * 1000:.2f},"bytes":{self.bytes_sent}}}\n'
        )


def _quoted(text: str) -> str:
    """A JSON string."""
    if '"' in text or "\\" in text or not text.isprintable():
        return json.dumps(text, ensure_ascii=False)
    return f'"{text}"'


def request_id_of(request: Request, body: dict[str, Any]) -> str:
    """The client's id (header, else the body's field, as vLLM reads them), or a new one."""
    given = request.headers.get("x-request-id") or body.get("request_id")
    if isinstance(given, str) and 0 < len(given) <= _MAX_ID and given.isprintable():
        return given
    return f"{_PROCESS}{next(_NUMBERS):012x}"
