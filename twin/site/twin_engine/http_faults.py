"""A scenario's faults of an engine's HTTP answers, as a middleware of vLLM's API server.

`vllm serve --middleware twin_engine.http_faults.HttpFaults` (added by twin/engine.py where a
scenario asks for it). Each fault of completion requests does one of these, after `delay`
seconds if it has some:

answer  another answer: `status` and `body`
cut     the engine's own answer, whose connection closes after `after_chunks` chunks
        without its end, as when a process dies; of the n-th request: of the first one from
        there on that is longer (a whole answer is one chunk)
reset   the connection breaks without an answer
delay   the engine's own answer, late
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .faults import FILE

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_PATHS = ("/v1/completions", "/v1/chat/completions")


def faults_of(instance: str, state: Path) -> list[Mapping[str, Any]]:
    """The `http` parts of the faults of one instance."""
    told = json.loads((state / FILE).read_text(encoding="utf-8"))["http"]
    return [fault["http"] for fault in told if fault["instance"] == instance]


class FaultsOfThisInstance:
    """They may change while the engine runs; then requests are counted anew."""

    def __init__(self, instance: str, state: Path) -> None:
        self._instance = instance
        self._state = state
        self._read: tuple[int, int] | None = None  # what tells one version of the file
        self._faults: Sequence[Mapping[str, Any]] = ()
        self._requests = 0
        self._cut: set[int] = set()  # requests of cuts that have struck

    def of_next_request(self) -> Mapping[str, Any] | None:
        """The fault of the request that has just come."""
        status = (self._state / FILE).stat()
        if (status.st_mtime_ns, status.st_ino) != self._read:
            self._read = (status.st_mtime_ns, status.st_ino)
            self._faults, self._requests = faults_of(self._instance, self._state), 0
            self._cut.clear()
        self._requests += 1
        return next(filter(self._is_due, self._faults), None)

    def may_cut(self, fault: Mapping[str, Any]) -> bool:
        """Whether an answer that goes on may be cut now: for the n-th request that is once."""
        request = fault["request"]
        if request is None:
            return True
        first = request not in self._cut
        self._cut.add(request)
        return first

    def _is_due(self, fault: Mapping[str, Any]) -> bool:
        request = fault["request"]
        if fault["do"] == "cut" and request is not None:
            return request <= self._requests and request not in self._cut
        return request in (None, self._requests)


class StreamCut(Exception):
    """Ends an answer in its middle. The server closes the connection and logs this."""


class HttpFaults:
    """ASGI middleware; see the module's docstring."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._faults = FaultsOfThisInstance(
            os.environ["PD_INSTANCE"], Path(os.environ["TWIN_STATE"])
        )

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in _PATHS:
            await self._app(scope, receive, send)
            return
        fault = self._faults.of_next_request()
        if fault is None:
            await self._app(scope, receive, send)
            return
        if fault["delay"] is not None:
            await asyncio.sleep(float(fault["delay"]))
        if fault["do"] == "answer":
            await _answer(send, int(fault["status"]), fault["body"])
        elif fault["do"] == "reset":
            _reset(receive)
        elif fault["do"] == "cut":
            await self._app(scope, receive, self._cut(send, fault))
        else:
            await self._app(scope, receive, send)

    def _cut(self, send: Send, fault: Mapping[str, Any]) -> Send:
        """`send` for so many chunks with content; the next one ends the connection."""
        chunks, passed = int(fault["after_chunks"]), 0

        async def until_cut(message: Message) -> None:
            nonlocal passed
            if message["type"] == "http.response.body" and message.get("body"):
                if passed == chunks and self._faults.may_cut(fault):
                    raise StreamCut(f"the scenario cuts this answer after {chunks} chunks")
                passed += 1
            await send(message)

        return until_cut


async def _answer(send: Send, status: int, body: str | None) -> None:
    if body is None:
        error = {"message": "fault of the scenario", "type": "twin", "code": status}
        body = json.dumps({"error": error})
    content = body.encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def _reset(receive: Receive) -> None:
    """`receive` is a method of uvicorn's cycle of this request, which has its connection."""
    receive.__self__.transport.abort()  # type: ignore[attr-defined]  # a bound method has it
