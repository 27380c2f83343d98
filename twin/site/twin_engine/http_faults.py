"""A scenario's faults of an engine's HTTP answers, as a middleware of vLLM's API server.

`vllm serve --middleware twin_engine.http_faults.HttpFaults` (added by twin/engine.py where a
scenario asks for it) answers completion requests with another status, or cuts the stream
after some chunks: the connection closes without the answer's end, as when a process dies.
"""

from __future__ import annotations

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
    """The `http` parts of the faults of one instance: status, after_chunks, request."""
    told = json.loads((state / FILE).read_text(encoding="utf-8"))["http"]
    return [fault["http"] for fault in told if fault["instance"] == instance]


class StreamCut(Exception):
    """Ends an answer in its middle. The server closes the connection and logs this."""


class HttpFaults:
    """ASGI middleware; see the module's docstring."""

    def __init__(self, app: App, faults: Sequence[Mapping[str, Any]] | None = None) -> None:
        """`faults` None: those that the scenario has for this process's instance."""
        self._app = app
        if faults is None:
            faults = faults_of(os.environ["PD_INSTANCE"], Path(os.environ["TWIN_STATE"]))
        self._faults = faults
        self._requests = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in _PATHS:
            await self._app(scope, receive, send)
            return
        self._requests += 1
        number = self._requests
        fault = next((f for f in self._faults if f["request"] in (None, number)), None)
        if fault is None:
            await self._app(scope, receive, send)
        elif fault["after_chunks"] is None:
            await _refuse(send, int(fault["status"]))
        else:
            await self._app(scope, receive, _cut(send, int(fault["after_chunks"])))


async def _refuse(send: Send, status: int) -> None:
    body = json.dumps(
        {"error": {"message": "fault of the scenario", "type": "twin", "code": status}}
    ).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _cut(send: Send, chunks: int) -> Send:
    """`send` for `chunks` chunks with content; the next one ends the connection."""
    passed = 0

    async def until_cut(message: Message) -> None:
        nonlocal passed
        if message["type"] == "http.response.body" and message.get("body"):
            if passed >= chunks:
                raise StreamCut(f"the scenario cuts this answer after {chunks} chunks")
            passed += 1
        await send(message)

    return until_cut
