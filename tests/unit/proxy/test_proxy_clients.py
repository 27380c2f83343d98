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
from proxy.upstream import Connection, Watch

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
    async with pd() as it, client_of(it) as client:
        count = PIPELINED
        asked = [json.dumps({"prompt": f"{i}", "max_tokens": 2}).encode() for i in range(count)]
        client.writer.write(b"".join(request(body) for body in asked[: count // 2]))
        await client.writer.drain()
        await until(lambda: bool(it.prefillers[0].seen), "nothing arrives")
        client.writer.write(b"".join(request(body) for body in asked[count // 2 :]))
        for i in range(count):
            assert await client.text() == right_text(prompt=f"{i}", tokens=2)


@asynchronous
async def test_a_client_that_sends_thousands_at_once_is_let_go() -> None:
    async with pd() as it, client_of(it) as client:
        it.prefillers[0].fault = Fault(delay=5)
        client.writer.write(request() * (PIPELINED + 2))
        assert await client.ended()
        await it.at_rest()


@asynchronous
async def test_a_client_that_waits_for_100_continue_gets_it() -> None:
    async with pd() as it, client_of(it) as client:
        head = request(BODY, "/v1/completions", "Expect: 100-continue").removesuffix(BODY)
        client.writer.write(head)
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.writer.write(BODY)
        assert await client.text() == RIGHT


@asynchronous
async def test_a_body_announced_as_too_long_is_not_asked_for() -> None:
    async with pd(max_body=100) as it, client_of(it) as client:
        client.writer.write(
            request(b"", "/v1/completions", "Expect: 100-continue").replace(
                b"Content-Length: 0", b"Content-Length: 101"
            )
        )
        assert (await client.answer())[0] == 413


@asynchronous
async def test_a_body_that_stops_coming_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downstream, "BODY_SECONDS", 0.1)
    monkeypatch.setattr(downstream, "LINGER_SECONDS", 0.1)
    async with pd() as it, client_of(it) as client:
        client.writer.write(request()[:-1])
        assert (await client.answer())[0] == 408
        assert await client.ended()


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
async def test_what_is_no_http_is_told_while_the_client_still_sends() -> None:
    """Closed at once, the connection would be reset and the answer lost."""
    async with pd() as it, client_of(it) as client:
        client.writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 10_000)
        for _ in range(20):
            client.writer.write(b"x" * 50_000)
            await client.writer.drain()
            await asyncio.sleep(0.005)
        assert (await client.answer())[0] == 400


@asynchronous
async def test_garbage_that_comes_after_a_request_is_told_after_its_answer() -> None:
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


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@asynchronous
async def test_a_client_that_takes_nothing_is_given_up(stream: bool) -> None:
    async with pd(decoders=1, send_seconds=0.2) as it, client_of(it) as client:
        client.writer.transport.pause_reading()
        count = 60_000 if stream else 2_000_000  # more than all sockets on the way hold
        asked = {"prompt": "a", "stream": stream, "max_tokens": count}
        client.writer.write(request(json.dumps(asked).encode()))
        await until(lambda: bool(it.decoders[0].seen), "no decode")
        await it.at_rest()
        assert (it.decoders[0].finished, it.decoders[0].aborted) == ((0, 1) if stream else (1, 0))
        await asyncio.sleep(0.4)  # send_seconds, and a margin
        client.writer.transport.resume_reading()
        got = await client.reader.read()
        assert not got.endswith(b"0\r\n\r\n" if stream else b"}")


@asynchronous
async def test_an_engines_connection_held_for_a_slow_client_serves_the_next_request() -> None:
    """One read brings more than the client takes, and the end of the answer."""
    heard = [True]

    class Transport(asyncio.Transport):
        def write(self, data: object) -> None: ...

        def pause_reading(self) -> None:
            heard.append(False)

        def resume_reading(self) -> None:
            heard.append(True)

    class SlowClient:
        def feed(self, frames: bytes) -> None:
            connection.pause()

    loop = asyncio.get_running_loop()
    connection = Connection(loop, Watch(loop))
    connection.connection_made(Transport())
    answer = connection.send(b"", limit=1, gap=1, sink_for=lambda *_: SlowClient())
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    connection.data_received(head + b"1\r\nx\r\n0\r\n\r\n")
    assert (await answer).head.status == 200
    assert heard == [True, False, True]


@asynchronous
async def test_the_last_answer_of_a_drain_says_that_it_is() -> None:
    async with pd(decoders=1) as it, client_of(it) as client:
        it.decoders[0].fault = Fault(token_delay=0.05)
        client.writer.write(request())
        await until(lambda: it.decoders[0].running == 1, "no decode")
        stopped = asyncio.create_task(it.proxy.stop())
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert b"connection: close" in head
        await stopped


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
