"""A closed loop of clients, and what they saw. Every answer is checked."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import cast

import uvloop
from engine import EVENTS

PROMPT = "The quick brown fox jumps over the lazy dog. " * 5


class Client(asyncio.Protocol):
    """One connection that sends the same request again and again."""

    def __init__(self, request: bytes, streams: bool, run: Run) -> None:
        self._request = request
        self._streams = streams
        self._run = run
        self._parts: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._begin()

    def _begin(self) -> None:
        self._parts.clear()
        self._first = 0.0
        self._started = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self._parts:
            self._first = time.perf_counter()
        self._parts.append(data)
        if self._streams:
            if not data.endswith(b"0\r\n\r\n"):
                return
            answer = b"".join(self._parts)
            right = answer.count(b'"text":" word"') == EVENTS and b"data: [DONE]" in answer
        else:
            answer = b"".join(self._parts)
            chunked = b"chunked" in answer[:1024]
            if not answer.endswith(b"0\r\n\r\n" if chunked else b"}}"):
                return
            right = b"sixteen tokens" in answer
        now = time.perf_counter()
        right = right and answer.startswith(b"HTTP/1.1 200")
        self._run.took(now - self._started, self._first - self._started, right, now)
        if self._run.over:
            self._transport.close()
        else:
            self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        self._run.left(early=not self._run.over)


class Run:
    """One measurement: `seconds` after `warm` seconds, with `clients` clients."""

    def __init__(self, clients: int, seconds: float, warm: float) -> None:
        self.over = False
        self.latencies: list[float] = []
        self.first_bytes: list[float] = []
        self.wrong = 0
        self._from = time.perf_counter() + warm
        self._until = self._from + seconds
        self._open = clients
        self.ended = asyncio.Event()

    def took(self, seconds: float, first: float, right: bool, now: float) -> None:
        if not right:
            self.wrong += 1
        if now >= self._until:
            self.over = True
        elif now >= self._from:
            self.latencies.append(seconds)
            self.first_bytes.append(first)

    def left(self, *, early: bool) -> None:
        self.wrong += early
        self._open -= 1
        if self._open == 0:
            self.ended.set()


async def measure(
    port: int, clients: int, seconds: float, *, stream: bool, prompt: int, warm: float = 0.5
) -> dict[str, float]:
    """Load `port`; latencies in milliseconds."""
    text = (PROMPT * (prompt // len(PROMPT) + 1))[: prompt or 200]
    body = json.dumps({"model": "m", "prompt": text, "max_tokens": 16, "stream": stream}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    run = Run(clients, seconds, warm)
    loop = asyncio.get_running_loop()
    request = head.encode() + body
    for _ in range(clients):
        await loop.create_connection(lambda: Client(request, stream, run), "127.0.0.1", port)
    await asyncio.wait_for(run.ended.wait(), warm + seconds + 60)
    taken = sorted(run.latencies)
    first = sorted(run.first_bytes)

    def at(values: list[float], share: float) -> float:
        return values[min(len(values) - 1, int(share * len(values)))] * 1000 if values else 0.0

    return {
        "requests": len(taken),
        "rate": len(taken) / seconds,
        "p50": at(taken, 0.5),
        "p99": at(taken, 0.99),
        "first_p50": at(first, 0.5),
        "wrong": run.wrong,
    }


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("port", type=int)
    parse.add_argument("--clients", type=int, default=16)
    parse.add_argument("--seconds", type=float, default=3.0)
    parse.add_argument("--prompt", type=int, default=200, help="characters")
    parse.add_argument("--stream", action="store_true")
    args = parse.parse_args()
    print(
        json.dumps(
            uvloop.run(
                measure(
                    args.port, args.clients, args.seconds, stream=args.stream, prompt=args.prompt
                )
            )
        )
    )


if __name__ == "__main__":
    main()
