"""A client that goes away: in each phase the engine that works stops, and no KV stays held."""

from __future__ import annotations

import asyncio
import random
import time

import pytest
from backend import Fault
from proxy_stand import PD, Reply, asynchronous, pd, right_text, until

from proxy.balancer import Address, Role

both_forms = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


async def leave(asked: asyncio.Task[Reply]) -> None:
    """The client closes its connection."""
    asked.cancel()
    await asyncio.wait([asked])


@both_forms
@asynchronous
async def test_gone_during_prefill_stops_the_prefiller(stream: bool) -> None:
    async with pd() as it:
        it.prefillers[0].fault = Fault(delay=60, times=1)
        asked = asyncio.create_task(it.ask(stream=stream))
        await until(lambda: it.prefillers[0].running == 1, "no prefill")
        await leave(asked)
        await it.at_rest()
        assert it.prefillers[0].aborted == 1
        assert all(d.seen == [] for d in it.decoders)
        assert await it.metric("pd_proxy_client_aborts_total", phase="prefill") == 1


@both_forms
@asynchronous
async def test_gone_just_after_the_prefill_ended(stream: bool) -> None:
    """No answer comes any more, and the prefiller holds KV that nobody knows of: it is named."""
    async with pd() as it:
        prefiller = it.prefillers[0]
        prefiller.finishes_first = True
        prefiller.fault = Fault(late=60, times=1)
        asked = asyncio.create_task(it.ask(stream=stream))
        await until(lambda: len(prefiller.kv) == 1, "no prefill")
        await leave(asked)
        await it.at_rest()
        assert prefiller.aborted == 1
        assert prefiller.kv == {}
        assert await it.metric("pd_proxy_kv_released_total", how="named") == 1


@both_forms
@asynchronous
async def test_gone_when_the_prefillers_answer_is_under_way(stream: bool) -> None:
    """Only our half of the connection is closed, so the answer is read, and its KV released."""
    async with pd() as it:
        gate = asyncio.Event()
        real = it.prefillers[0]

        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            """A prefiller whose answer takes its time on the wire."""
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            request = head + await reader.readexactly(length)
            real_reader, real_writer = await asyncio.open_connection("127.0.0.1", real.port)
            real_writer.write(request)
            answer = await real_reader.readuntil(b"\r\n\r\n")
            answer += await real_reader.read(65536)
            await gate.wait()
            writer.write(answer)
            for end in (writer, real_writer):
                end.close()

        wire = await asyncio.start_server(forward, "127.0.0.1", 0)
        it.proxy.prefillers.instances.clear()
        port = wire.sockets[0].getsockname()[1]
        it.proxy.add(Role.PREFILL, Address("127.0.0.1", port))
        asked = asyncio.create_task(it.ask(stream=stream))
        await until(lambda: len(real.kv) == 1, "no prefill")
        await leave(asked)
        await until(lambda: it.proxy.cleaning_up == 1, "the proxy has not noticed")
        gate.set()
        await it.at_rest()
        wire.close()
        assert await it.metric("pd_proxy_kv_released_total", how="handed-over") == 1


@both_forms
@asynchronous
async def test_gone_before_the_decoder_admitted_the_request(stream: bool) -> None:
    """Aborted at once, the decoder would forget the request together with its KV."""
    async with pd() as it:
        for decoder in it.decoders:
            decoder.admit_seconds = 0.1
            decoder.fault = Fault(token_delay=0.05)
        asked = asyncio.create_task(it.ask(stream=stream, max_tokens=1000))
        await until(lambda: any(d.running for d in it.decoders), "no decode")
        await leave(asked)
        await it.at_rest()
        assert sum(d.aborted for d in it.decoders) == 1
        assert await it.metric("pd_proxy_kv_released_total", how="admitted-then-aborted") == 1


@both_forms
@asynchronous
async def test_gone_during_decode_stops_the_decoder(stream: bool) -> None:
    async with pd() as it:
        for decoder in it.decoders:
            decoder.fault = Fault(token_delay=0.02)
        asked = asyncio.create_task(it.ask(stream=stream, max_tokens=10_000))
        await until(lambda: it.prefillers[0].kv == {} and any(d.running for d in it.decoders), "-")
        await asyncio.sleep(0.1)
        await leave(asked)
        await it.at_rest()
        assert sum(d.aborted for d in it.decoders) == 1


@asynchronous
async def test_gone_while_waiting_for_a_place() -> None:
    async with pd(max_concurrent=1) as it:
        it.prefillers[0].fault = Fault(delay=0.3)
        first = asyncio.create_task(it.ask())
        await until(lambda: it.prefillers[0].running == 1, "no prefill")
        second = asyncio.create_task(it.ask())
        await until(lambda: it.proxy.waiting == 1, "does not wait")
        await leave(second)
        assert (await first).status == 200
        assert (await it.ask()).status == 200
        await it.at_rest()
        assert len(it.prefillers[0].seen) == 2


@asynchronous
async def test_slow_client_slows_the_decoder_and_loses_nothing() -> None:
    """Backpressure: what a client does not read is not piled up in the proxy."""
    async with pd(decoders=1) as it:
        host, port = it.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        count = 40_000
        body = b'{"prompt": "a", "stream": true, "max_tokens": %d}' % count
        head = b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % len(body) + body)
        await until(lambda: bool(it.decoders[0].seen), "no decode")
        await asyncio.sleep(0.3)
        assert it.decoders[0].finished == 0  # the engine waits: nobody buffers for the client
        answer = bytearray()
        while data := await reader.read(1 << 20):
            answer += data
        writer.close()
        assert answer.count(b'"text":') == count
        assert answer.endswith(b"data: [DONE]\n\n")
        await it.at_rest()


@asynchronous
async def test_storm() -> None:
    """Aborts at random times, engine errors, one decoder killed and restarted in the middle.

    Every request ends in the right answer, an error, or its client's own abort.
    """
    chance = random.Random(7)
    async with pd(prefillers=2, decoders=3, probe_seconds=0.05, failures=5) as it:
        outcomes = {"right": 0, "error": 0, "aborted": 0}

        async def one(number: int) -> None:
            stream = chance.random() < 0.5
            chat = chance.random() < 0.3
            prompt = f"question {number}"
            patience = chance.uniform(0.001, 0.06) if chance.random() < 0.4 else None
            try:
                reply = await asyncio.wait_for(
                    it.ask(stream=stream, chat=chat, prompt=prompt, max_tokens=20), patience
                )
            except (TimeoutError, ConnectionError):
                outcomes["aborted"] += 1
                return
            if reply.status == 200 and reply.complete and b'"error"' not in reply.body:
                assert reply.text == right_text(chat=chat, prompt=prompt, tokens=20)
                outcomes["right"] += 1
            else:
                assert reply.error["message"]
                outcomes["error"] += 1

        def shake() -> None:
            for engine in it.engines:
                engine.fault = chance.choice(
                    (
                        Fault(delay=0.01, token_delay=0.0005),
                        Fault(token_delay=0.001),
                        Fault(status=500, times=2),
                        Fault(status=503, times=2),
                        Fault(reset="start", times=2),
                        Fault(reset="middle", times=2),
                        Fault(error_event=True, times=1),
                    )
                )
                engine.admit_seconds = chance.choice((0.0, 0.005))

        await storm(it, one, shake, chance)
        assert sum(outcomes.values()) == STORM
        assert outcomes["right"] > STORM / 4
        assert outcomes["aborted"] > STORM / 20
        for engine in it.engines:
            engine.fault = None
        await until(lambda: it.proxy.cleaning_up == 0, "the proxy still cleans up")
        # What broke in a decoder may have been pulled or not: only the connector knows.
        left = sum(len(p.kv) for p in it.prefillers)
        assert left <= await it.metric("pd_proxy_kv_left_total")
        for prefiller in it.prefillers:
            prefiller.kv.clear()
        await it.at_rest()
        wrong = [p for e in it.engines for p in e.problems if "another" in p or "twice" in p]
        assert wrong == []


STORM = 1000


async def storm(it: PD, one, shake, chance: random.Random) -> None:  # type: ignore[no-untyped-def]
    """1,000 requests, 32 at once; a decoder dies after a third and is back after two."""
    numbers = iter(range(STORM))

    async def client() -> None:
        for number in numbers:
            if number % 50 == 0:
                shake()
            if number == STORM // 3:
                await it.decoders[2].kill()
            if number == 2 * STORM // 3:
                await it.decoders[2].start()
            await one(number)

    await asyncio.gather(*(client() for _ in range(32)))


@asynchronous
async def test_gentle_storm_leaves_no_kv_at_all() -> None:
    """Only aborts, no faults: not one prefill may be stranded, not even for a moment too long."""
    chance = random.Random(3)
    async with pd() as it:
        for decoder in it.decoders:
            decoder.fault = Fault(token_delay=0.001)
            decoder.admit_seconds = 0.004
        it.prefillers[0].fault = Fault(delay=0.005)

        async def one(number: int, patience: float | None = None) -> None:
            ask = it.ask(stream=number % 2 == 0, prompt=f"q{number}", max_tokens=20)
            try:
                await asyncio.wait_for(ask, patience and chance.uniform(0.0, patience))
            except (TimeoutError, ConnectionError):
                return

        for batch in range(0, 300, 30):
            started = time.monotonic()
            await asyncio.gather(*(one(batch + i) for i in range(10)))
            usual = time.monotonic() - started  # on this machine, now
            await asyncio.gather(*(one(batch + i, usual) for i in range(10, 30)))
        await it.at_rest()
        assert await it.metric("pd_proxy_kv_left_total") == 0
        for phase in ("prefill", "decode"):
            assert await it.metric("pd_proxy_client_aborts_total", phase=phase) > 10
