"""A proxy between controllable engines, in one event loop, and a client that sees every byte."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import aiohttp
import pytest
import uvloop
from backend import Engine, engines, text_of

from proxy.balancer import Address
from proxy.config import Config
from proxy.server import Proxy

PATIENCE = 20.0  # seconds; nothing here takes longer unless it hangs


def asynchronous(
    test: Callable[..., Coroutine[Any, Any, None]],
) -> Callable[..., None]:
    """Run an async test with a deadline, in a loop of its own as the proxy's process has it."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(asyncio.wait_for(test(*args, **kwargs), PATIENCE * 3))

    return run


@dataclass
class Reply:
    """What a client got. `complete`: the HTTP message ended as it should."""

    status: int
    headers: dict[str, str]
    body: bytes
    complete: bool

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """Data of the events of a stream; `[DONE]` as that string."""
        lines = [line for line in self.body.decode().split("\n\n") if line.strip()]
        data = [line.strip().removeprefix("data: ") for line in lines]
        return [item if item == "[DONE]" else json.loads(item) for item in data]

    @property
    def text(self) -> str:
        """The generated text of the first choice, streamed or not."""
        if self.headers["content-type"].startswith("text/event-stream"):
            choices = [c for e in self.events if "choices" in e for c in e["choices"]]
            return "".join(c.get("text") or c["delta"]["content"] for c in choices)
        choice = self.json["choices"][0]
        return str(choice["text"] if "text" in choice else choice["message"]["content"])

    @property
    def error(self) -> dict[str, Any]:
        """The error: of the body, or of the stream's last event before `[DONE]`."""
        if self.headers["content-type"] == "application/json":
            return dict(self.json["error"])
        return dict([event for event in self.events if event != "[DONE]"][-1]["error"])


@dataclass
class PD:
    """The whole set-up; `ask` is the client."""

    proxy: Proxy
    url: str
    prefillers: list[Engine]
    decoders: list[Engine]
    session: aiohttp.ClientSession

    async def ask(
        self,
        *,
        stream: bool = False,
        chat: bool = False,
        headers: dict[str, str] | None = None,
        **body: Any,
    ) -> Reply:
        path = "/v1/chat/completions" if chat else "/v1/completions"
        return await self.post(path, request_body(stream=stream, chat=chat, **body), headers)

    async def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Reply:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        all_headers = {"Content-Type": "application/json", **(headers or {})}
        async with self.session.post(self.url + path, data=data, headers=all_headers) as response:
            return await _read(response)

    async def get(self, path: str) -> Reply:
        async with self.session.get(self.url + path) as response:
            return await _read(response)

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples of a metric that have these labels."""
        total = 0.0
        for line in (await self.get("/metrics")).body.decode().splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.split("{")[0] == name and all(
                f'{key}="{label}"' in sample for key, label in labels.items()
            ):
                total += float(value)
        return total

    @property
    def engines(self) -> list[Engine]:
        return self.prefillers + self.decoders

    async def at_rest(self) -> None:
        """Wait until nothing runs and nothing is held anywhere; fails by saying what is."""
        await until(lambda: not self.held(), lambda: f"still held: {self.held()}")

    def held(self) -> dict[str, object]:
        """Whatever is not at zero though no client waits."""
        instances = (*self.proxy.prefillers.instances, *self.proxy.decoders.instances)
        held = {
            **{f"in flight on {i.name}": i.in_flight for i in instances},
            **{f"tokens on {i.name}": i.tokens for i in instances},
            **{f"running at {e.port}": e.running for e in self.engines},
            **{f"kv at {e.port}": dict(e.kv) for e in self.engines},
            "cleaning up": self.proxy.cleaning_up,
        }
        return {what: value for what, value in held.items() if value}


def request_body(*, stream: bool, chat: bool, **body: Any) -> dict[str, Any]:
    """A request for six tokens after `prompt`."""
    prompt = body.pop("prompt", "Who are you?")
    question = {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
    return {"model": "tiny", "max_tokens": 6, "stream": stream, **question, **body}


def right_text(*, chat: bool = False, prompt: Any = "Who are you?", tokens: int = 6) -> str:
    """What a plain engine answers to `request_body`."""
    return "".join(text_of([{"role": "user", "content": prompt}] if chat else prompt, tokens))


async def _read(response: aiohttp.ClientResponse) -> Reply:
    body = bytearray()
    complete = True
    try:
        async for data in response.content.iter_any():
            body += data
    except aiohttp.ClientPayloadError:
        complete = False
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Reply(response.status, headers, bytes(body), complete)


async def until(
    holds: Callable[[], bool], message: Callable[[], str] | str, seconds: float = PATIENCE
) -> None:
    """The one polling loop: wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(message if isinstance(message, str) else message())
        await asyncio.sleep(0.005)


@asynccontextmanager
async def pd(prefillers: int = 1, decoders: int = 2, **config: Any) -> AsyncIterator[PD]:
    """That many engines and a proxy; nothing of it is left at the end."""
    peers: dict[int, Engine] = {}
    async with engines(prefillers, peers) as p, engines(decoders, peers) as d:
        settings: dict[str, Any] = {
            "prefillers": tuple(Address("127.0.0.1", e.port) for e in p),
            "decoders": tuple(Address("127.0.0.1", e.port) for e in d),
            "access_log": "off",
            "probe_seconds": 0.1,
            "probe_failures": 50,  # a busy machine must not look like a dead engine
            "handover_seconds": 0.5,
            "drain_seconds": 3.0,
        }
        proxy = Proxy(Config(port=0, **(settings | config)))
        port = await proxy.start()
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            try:
                yield PD(proxy, f"http://127.0.0.1:{port}", p, d, session)
            finally:
                await proxy.stop()
