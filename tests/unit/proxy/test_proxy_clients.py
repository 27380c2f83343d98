"""A client's connection, byte by byte: what comes in pieces, at once, too long, or is no HTTP."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from backend import Fault
from proxy_stand import PD, asynchronous, pd, right_text, until

from proxy import downstream
from proxy.downstream import PIPELINED

BODY = b'{"model": "tiny", "prompt": "a", "max_tokens": 6}'
RIGHT = right_text(prompt="a")


def request(body: bytes = BODY, path: str = "/v1/completions", *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@dataclass
class Client:
    """A client that writes bytes and reads whole answers."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def answer(self) -> tuple[int, Any]:
        """Status and JSON of the next answer."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return int(head[9:12]), json.loads(await self.reader.readexactly(length))

    async def text(self) -> str:
        status, told = await self.answer()
        assert status == 200, told
        return str(told["choices"][0]["text"])

    async def ended(self) -> bool:
        """The proxy has closed the connection; nothing else came."""
        return await self.reader.read() == b""


@asynccontextmanager
async def client_of(it: PD) -> AsyncIterator[Client]:
    host, port = it.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


@asynchronous
async def test_a_request_may_come_in_any_pieces() -> None:
    async with pd() as it, client_of(it) as client:
        for byte in request():
            client.writer.write(bytes((byte,)))
            await client.writer.drain()
            await asyncio.sleep(0)
        assert await client.text() == RIGHT


@asynchronous
async def test_a_body_in_chunks() -> None:
    async with pd() as it, client_of(it) as client:
        chunks = (
            b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (BODY[:7], BODY[7:])) + b"0\r\n\r\n"
        )
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.writer.write(head + chunks)
        assert await client.text() == RIGHT


@asynchronous
async def test_many_requests_at_once_are_answered_in_their_order() -> None:
    """Four times as many as are read ahead: the client is held, and then read on."""
    async with pd() as it, client_of(it) as client:
        count = 4 * PIPELINED
        asked = [json.dumps({"prompt": f"{i}", "max_tokens": 2}).encode() for i in range(count)]
        client.writer.write(b"".join(request(body) for body in asked[: count // 2]))
        await client.writer.drain()
        await until(lambda: bool(it.prefillers[0].seen), "nothing arrives")
        client.writer.write(b"".join(request(body) for body in asked[count // 2 :]))
        for i in range(count):
            assert await client.text() == right_text(prompt=f"{i}", tokens=2)


@asynchronous
async def test_a_client_that_waits_for_100_continue_gets_it() -> None:
    async with pd() as it, client_of(it) as client:
        head = request(BODY, "/v1/completions", "Expect: 100-continue").removesuffix(BODY)
        client.writer.write(head)
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.writer.write(BODY)
        assert await client.text() == RIGHT


@pytest.mark.parametrize("path", ["/v1/completions", "/nowhere"])
@asynchronous
async def test_an_answer_to_a_body_not_yet_sent_arrives_and_the_connection_serves_on(
    path: str,
) -> None:
    """Too long, or to nowhere: closing with the body unread would reset the answer away."""
    async with pd(max_body=1000) as it, client_of(it) as client:
        body = b"x" * 2_000_000
        sending = asyncio.create_task(_write(client, request(body, path) + request()))
        status, told = await client.answer()
        assert (status, told["error"]["code"]) == ((413, 413) if "v1" in path else (404, 404))
        await sending
        assert await client.text() == RIGHT


async def _write(client: Client, data: bytes) -> None:
    client.writer.write(data)
    await client.writer.drain()


@asynchronous
async def test_a_body_that_never_ends_is_not_read_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(downstream, "LINGER_SECONDS", 0.2)
    async with pd() as it, client_of(it) as client:
        client.writer.write(request(b"x" * 100, "/nowhere")[:-1])
        assert (await client.answer())[0] == 404
        assert await client.ended()


@asynchronous
async def test_what_is_no_http_is_400_in_one_line_and_closes() -> None:
    async with pd() as it, client_of(it) as client:
        client.writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")  # TLS
        status, told = await client.answer()
        assert status == 400
        assert told["error"]["message"].startswith("no HTTP request: ")
        assert "\n" not in told["error"]["message"]
        assert await client.ended()


@asynchronous
async def test_garbage_behind_a_request_is_told_after_its_answer() -> None:
    async with pd() as it, client_of(it) as client:
        client.writer.write(request())
        await until(lambda: bool(it.prefillers[0].seen), "nothing arrives")
        client.writer.write(b"no http\r\n\r\n")
        assert await client.text() == RIGHT
        assert (await client.answer())[0] == 400
        assert await client.ended()


@asynchronous
async def test_a_broken_chunk_is_400_and_not_waited_for() -> None:
    async with pd() as it, client_of(it) as client:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.writer.write(head + b"5\r\n{'pro\r\n")
        await asyncio.sleep(0.05)  # the body has begun to be read
        client.writer.write(b"no size\r\n")
        status, told = await client.answer()
        assert status == 400
        assert "body" in told["error"]["message"]
        assert await client.ended()


@asynchronous
async def test_a_compressed_body_is_400_as_from_an_engine() -> None:
    async with pd() as it, client_of(it) as client:
        client.writer.write(
            request(gzip.compress(BODY), "/v1/completions", "Content-Encoding: gzip")
        )
        assert (await client.answer())[0] == 400
        assert it.prefillers[0].seen == []


@asynchronous
async def test_an_upgrade_is_answered_as_plain_http_and_the_last() -> None:
    async with pd() as it, client_of(it) as client:
        client.writer.write(
            b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
            b"\x81\x85frame"
        )
        assert (await client.answer())[0] == 200
        assert await client.ended()


@asynchronous
async def test_a_connection_nobody_uses_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that never asked, and one with half a head: neither is kept for ever."""
    monkeypatch.setattr(downstream, "KEEPALIVE_SECONDS", 0.2)
    monkeypatch.setattr(downstream, "SWEEP_SECONDS", 0.05)
    async with pd() as it, client_of(it) as silent, client_of(it) as half, client_of(it) as busy:
        for decoder in it.decoders:
            decoder.fault = Fault(token_delay=0.1)
        half.writer.write(b"POST /v1/completions HTTP/1.1\r\nHos")
        busy.writer.write(request())
        assert await silent.ended()
        assert await half.ended()
        assert await busy.text() == RIGHT  # 0.6 s: a request under way is not idleness
        assert await busy.ended()


@asynchronous
async def test_a_body_under_way_when_the_drain_begins_is_still_taken() -> None:
    async with pd() as it, client_of(it) as client, client_of(it) as idle:
        client.writer.write(request()[:-5])
        await asyncio.sleep(0.05)
        stopped = asyncio.create_task(it.proxy.stop())
        assert await idle.ended()
        client.writer.write(request()[-5:])
        assert await client.text() == RIGHT
        assert await client.ended()
        await stopped


@asynchronous
async def test_a_fault_of_the_proxys_own_is_500_and_breaks_a_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with pd() as it:

        def broken(*_: object) -> None:
            raise RuntimeError("a defect")

        monkeypatch.setattr(it.proxy.metrics.kv_taken, "add", broken)
        reply = await it.ask()
        assert reply.status == 500
        assert "the proxy itself failed" in reply.error["message"]
        stream = await it.ask(stream=True)
        assert (stream.status, stream.complete) == (200, False)
        assert "the proxy itself failed" in stream.error["message"]
