"""Engines that speak the PD protocol over real sockets and break on demand.

What they answer is computed from the prompt alone, so a test knows the right text. A
prefiller holds KV until a decoder pulls it; a decoder that is given no KV, someone
else's, or KV that was pulled before answers with other text or an error. `Fault` says
what goes wrong, in which phase.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from aiohttp import web

WORDS = ("Ich", " bin", " ein", " großes", " 语言", "模型", " 🙂", " und", " data: [DONE]", "\n\n")


def text_of(prompt: object, tokens: int) -> list[str]:
    """The right continuation of a prompt."""
    seed = blake2b(json.dumps(prompt).encode(), digest_size=64).digest()
    return [WORDS[seed[i % 64] % len(WORDS)] for i in range(tokens)]


@dataclass
class Fault:
    """What goes wrong with requests to one engine. Delays in seconds."""

    delay: float = 0.0  # before anything else happens (a prompt being computed)
    status: int = 0  # answer this at once, with `body`
    above_tokens: int = 0  # `status` only for requests of more tokens than this
    body: bytes = b'{"error": {"message": "engine says no", "code": 0}}'
    reset: str = ""  # "start": before anything, "head": after the head, "middle": in the text
    bad_json: bool = False
    empty: bool = False  # 200 and nothing
    no_done: bool = False  # a stream that ends cleanly without [DONE]
    error_event: bool = False  # a stream that starts with an error event
    late: float = 0.0  # between the end of a prefill and its answer, for `finishes_first`
    token_delay: float = 0.0
    stall_after: int = -1  # tokens, then nothing more
    no_handover: bool = False  # a prefiller that answers kv_transfer_params null
    times: int = 1 << 30  # for how many requests


@dataclass
class Seen:
    """A request as an engine got it."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def id(self) -> str:
        return self.headers["x-request-id"]


@dataclass
class Engine:
    """One engine on a port of its own; it can die and come back on the same port."""

    peers: dict[int, Engine]
    port: int = 0
    fault: Fault | None = None
    healthy: bool = True
    cached_tokens: int | None = None  # reported in the usage
    finishes_first: bool = False  # an abort comes just after the end of the prefill
    admit_seconds: float = 0.0  # between the arrival of a request and its admission
    seen: list[Seen] = field(default_factory=list)
    kv: dict[str, object] = field(default_factory=dict)  # request id: prompt
    running: int = 0
    aborted: int = 0  # requests that ended before their answer did
    finished: int = 0
    problems: list[str] = field(default_factory=list)  # broken rules of the protocol
    _server: asyncio.Server | None = None
    _http: web.Server | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._http = web.Server(
            self._handle,
            handler_cancellation=True,
            access_log=None,
            request_factory=lambda *parts: web.BaseRequest(
                *parts, loop, client_max_size=64 * 1024 * 1024
            ),
        )
        self._server = await loop.create_server(self._http, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        self.peers[self.port] = self

    async def kill(self) -> None:
        """As SIGKILL: every connection is reset, nobody listens, all KV is gone."""
        assert self._server is not None
        assert self._http is not None
        self._server.close()
        for connection in self._http.connections:
            if connection.transport is not None:
                connection.transport.abort()
        await self._http.shutdown(0.1)
        self.kv.clear()
        self._server = self._http = None

    async def stop(self) -> None:
        if self._server is not None:
            await self.kill()

    @property
    def ids(self) -> list[str]:
        return [seen.id for seen in self.seen]

    # -- serving

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/health":
            return web.Response(status=200 if self.healthy else 503)
        if request.path == "/v1/models":
            return web.json_response({"object": "list", "data": [{"id": "tiny"}]})
        body = await request.json()
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.seen.append(Seen(request.path, headers, body))
        fault = Fault()
        if self.fault is not None and self.fault.times > 0:
            fault = self.fault
            fault.times -= 1
        self.running += 1
        try:
            response = await self._serve(request, headers["x-request-id"], body, fault)
        except asyncio.CancelledError:
            self._abort(headers["x-request-id"])
            raise
        except ConnectionError:  # the same, noticed by writing
            self._abort(headers["x-request-id"])
            return web.Response()
        finally:
            self.running -= 1
        self.finished += 1
        return response

    def _abort(self, request_id: str) -> None:
        """As an engine does: what it holds for a request goes when the request is aborted.

        With `finishes_first` it had just ended the prefill, and its KV is held for a decoder.
        """
        self.aborted += 1
        if not self.finishes_first:
            self.kv.pop(request_id, None)

    async def _serve(
        self, request: web.BaseRequest, request_id: str, body: dict[str, Any], fault: Fault
    ) -> web.StreamResponse:
        if fault.reset == "start":
            return _reset(request)
        await asyncio.sleep(fault.delay)
        if fault.status and (body.get("max_tokens") or 16) > fault.above_tokens:
            return web.Response(
                status=fault.status, body=fault.body, content_type="application/json"
            )
        params = body.get("kv_transfer_params") or {}
        for given_up in params.get("aborted_request", ()):
            self.kv.pop(given_up, None)
        prompt = body.get("prompt", body.get("messages"))
        if prompt is None:
            return web.json_response({"error": {"message": "no prompt", "code": 400}}, status=400)
        if params.get("do_remote_decode"):
            return await self._prefill(request, request_id, prompt, body, fault)
        if params.get("do_remote_prefill"):
            await asyncio.sleep(self.admit_seconds)
            if not self._pull(request_id, params, prompt):
                return web.json_response(
                    {"error": {"message": "KV load failed", "code": 500}}, status=500
                )
        return await self._decode(request, prompt, body, fault)

    async def _prefill(
        self,
        request: web.BaseRequest,
        request_id: str,
        prompt: object,
        body: dict[str, Any],
        fault: Fault,
    ) -> web.StreamResponse:
        self._check_prefill(body)
        if request_id in self.kv:
            self.problems.append(f"id {request_id} given to the prefiller twice")
        params: dict[str, Any] | None = None
        if not fault.no_handover and fault.reset != "head":
            self.kv[request_id] = prompt
            if self.finishes_first:
                await asyncio.sleep(fault.late)
            params = {
                "do_remote_prefill": True,
                "do_remote_decode": False,
                "remote_block_ids": [1, 2, 3],
                "remote_engine_id": str(self.port),
                "remote_host": "127.0.0.1",
                "remote_port": self.port,
                "remote_tp_size": "2",
            }
        answer = _answer(body, text_of(prompt, 1), self.cached_tokens) | {
            "kv_transfer_params": params
        }
        return await self._send_json(request, answer, fault)

    def _check_prefill(self, body: dict[str, Any]) -> None:
        """vLLM's rules, as far as breaking them fails, leaks, or works for nothing."""
        limits = {body.get("max_tokens"), body.get("max_completion_tokens", 1)}
        if limits != {1}:
            self.problems.append(f"prefill of {limits} tokens")
        if body.get("n", 1) != 1 or body.get("best_of", 1) != 1:
            self.problems.append("prefill with n > 1 leaks KV")
        if body.get("stream") or "stream_options" in body:
            self.problems.append("prefill streams")
        if (body.get("min_tokens") or 0) > 1:
            self.problems.append("prefill with min_tokens is refused with 400")
        if body.get("stop") or body.get("stop_token_ids") or not body.get("ignore_eos"):
            self.problems.append("prefill may end by a stop and hand nothing over")

    def _pull(self, request_id: str, params: dict[str, Any], prompt: object) -> bool:
        peer = self.peers[params["remote_port"]]
        held = peer.kv.pop(request_id, None)
        if held is None:
            self.problems.append(f"KV of {request_id} is not there (pulled twice?)")
            return False
        if held != prompt:
            self.problems.append(f"KV of {request_id} is another prompt's")
        return True

    async def _decode(
        self, request: web.BaseRequest, prompt: object, body: dict[str, Any], fault: Fault
    ) -> web.StreamResponse:
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or 16
        tokens = text_of(prompt, limit)
        if not body.get("stream"):
            await asyncio.sleep(fault.token_delay * limit)
            return await self._send_json(request, _answer(body, tokens, self.cached_tokens), fault)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        if fault.reset == "head":
            return _reset(request)
        if fault.error_event:
            event = {"error": {"message": "KV load failed", "code": 500}}
            await response.write(_event(event) + b"data: [DONE]\n\n")
            return response
        if fault.empty:
            return response
        for count, token in enumerate(tokens):
            if count == fault.stall_after:
                await asyncio.sleep(3600)
            await asyncio.sleep(fault.token_delay)
            if fault.reset == "middle" and count == limit // 2:
                return _reset(request)
            await response.write(_event(_chunk(body, token)))
        if (body.get("stream_options") or {}).get("include_usage"):
            usage = _usage(limit, self.cached_tokens)
            await response.write(_event({"choices": [], "usage": usage}))
        if not fault.no_done:
            await response.write(b"data: [DONE]\n\n")
        return response

    async def _send_json(
        self, request: web.BaseRequest, answer: dict[str, Any], fault: Fault
    ) -> web.StreamResponse:
        data = json.dumps(answer, ensure_ascii=False).encode()
        if fault.bad_json:
            data = data[: len(data) // 2]
        if fault.empty:
            data = b""
        if fault.reset:
            response = web.StreamResponse(
                headers={"Content-Length": str(len(data)), "Content-Type": "application/json"}
            )
            await response.prepare(request)
            await response.write(data[: len(data) // 2] if fault.reset == "middle" else b"")
            assert request.transport is not None
            request.transport.close()
            raise ConnectionResetError  # the engine aborts its own request
        response = web.StreamResponse(
            headers={"Content-Length": str(len(data)), "Content-Type": "application/json"}
        )
        await response.prepare(request)
        await response.write(data)  # raises if the client is gone
        return response


def _reset(request: web.BaseRequest) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


def _answer(body: dict[str, Any], tokens: list[str], cached: int | None) -> dict[str, Any]:
    text = "".join(tokens)
    choice: dict[str, Any] = {"index": 0, "finish_reason": "length", "logprobs": None}
    choice |= (
        {"message": {"role": "assistant", "content": text}}
        if "messages" in body
        else {"text": text}
    )
    kind = "chat.completion" if "messages" in body else "text_completion"
    return {
        "id": "cmpl-1",
        "object": kind,
        "created": 1,
        "model": "tiny",
        "choices": [choice] * (body.get("n") or 1),
        "usage": _usage(len(tokens), cached),
    }


def _usage(tokens: int, cached: int | None) -> dict[str, Any]:
    usage = {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens}
    return usage if cached is None else usage | {"prompt_tokens_details": {"cached_tokens": cached}}


def _chunk(body: dict[str, Any], token: str) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "finish_reason": None, "logprobs": None}
    choice |= {"delta": {"content": token}} if "messages" in body else {"text": token}
    kind = "chat.completion.chunk" if "messages" in body else "text_completion"
    return {"id": "cmpl-1", "object": kind, "created": 1, "model": "tiny", "choices": [choice]}


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


@asynccontextmanager
async def engines(count: int, peers: dict[int, Engine]) -> AsyncIterator[list[Engine]]:
    """That many engines, stopped at the end."""
    running = [Engine(peers) for _ in range(count)]
    try:
        for engine in running:
            await engine.start()
        yield running
    finally:
        for engine in running:
            with suppress(ConnectionError):
                await engine.stop()
