"""When an engine fails, in each phase: its own answer, another instance, or a clear error.

The rows of the table in docs/proxy.md. Never 200 with nothing, never a text twice, never
half a text with a clean end.
"""

from __future__ import annotations

import asyncio

import pytest
from backend import Fault, text_of
from openai import APIError, AsyncOpenAI
from proxy_stand import PD, asynchronous, pd, right_text, until

both_forms = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])

SAYS_NO = b'{"error": {"message": "engine says no", "code": 0}}'

# What breaks before an answer has begun, and is not the client's fault.
BROKEN_LEGS = {
    "500": Fault(status=500),
    "503": Fault(status=503),
    "reset before anything": Fault(reset="start"),
    "reset after the head": Fault(reset="head"),
    "200 with nothing": Fault(empty=True),
    "half of a JSON": Fault(bad_json=True),
    "half an answer": Fault(reset="middle"),
}
# Of a stream, these are broken before its first event.
BROKEN_STREAMS = {
    name: BROKEN_LEGS[name]
    for name in ("500", "503", "reset before anything", "reset after the head", "200 with nothing")
} | {"error event first": Fault(error_event=True)}

OVERLONG = b'{"error": {"message": "maximum context length", "code": 400}}'


def again(fault: Fault, **changes: object) -> Fault:
    """The same fault, unused."""
    return Fault(**{**vars(fault), "times": 1 << 30, **changes})


def broken_decodes() -> list[object]:
    whole = [pytest.param(f, False, id=f"whole-{n}") for n, f in BROKEN_LEGS.items()]
    return whole + [pytest.param(f, True, id=f"stream-{n}") for n, f in BROKEN_STREAMS.items()]


async def nothing_wrong(it: PD, *, kv_of_broken: int = 0) -> None:
    """All accounts at zero; KV of broken decodes may be left to the connector."""
    await until(lambda: it.proxy.cleaning_up == 0, "the proxy still cleans up")
    left = sum(len(p.kv) for p in it.prefillers)
    assert left <= kv_of_broken
    for prefiller in it.prefillers:
        prefiller.kv.clear()
    await it.at_rest()
    for engine in it.engines:
        assert [p for p in engine.problems if "pulled twice" in p or "another" in p] == []


# -- prefill


@both_forms
@pytest.mark.parametrize("fault", BROKEN_LEGS.values(), ids=BROKEN_LEGS)
@asynchronous
async def test_broken_prefill_is_tried_on_another_prefiller(fault: Fault, stream: bool) -> None:
    async with pd(prefillers=2) as it:
        it.prefillers[0].fault = again(fault)
        for _ in range(2):  # one of them meets the broken one
            reply = await it.ask(stream=stream)
            assert (reply.status, reply.text) == (200, right_text())
            assert reply.headers["x-pd-prefill"].endswith(f":{it.prefillers[1].port}")
        assert await it.metric("pd_proxy_retries_total", leg="prefill") == 1
        await nothing_wrong(it, kv_of_broken=1)


@both_forms
@pytest.mark.parametrize("status", [500, 503])
@asynchronous
async def test_prefillers_own_error_is_passed_on(status: int, stream: bool) -> None:
    async with pd() as it:
        it.prefillers[0].fault = Fault(status=status)
        reply = await it.ask(stream=stream)
        assert (reply.status, reply.body) == (status, SAYS_NO)
        assert all(d.seen == [] for d in it.decoders)
        await nothing_wrong(it)


@both_forms
@pytest.mark.parametrize("status", [400, 401, 404, 422, 429])
@asynchronous
async def test_prefillers_4xx_is_passed_on_and_never_tried_again(status: int, stream: bool) -> None:
    async with pd(prefillers=2) as it:
        for prefiller in it.prefillers:
            prefiller.fault = Fault(status=status, body=OVERLONG)
        for _ in range(8):
            reply = await it.ask(stream=stream)
            assert (reply.status, reply.body) == (status, OVERLONG)
        assert sum(len(p.seen) for p in it.prefillers) == 8
        assert (await it.get("/health")).status == 200  # and nobody is taken out
        await nothing_wrong(it)


@both_forms
@asynchronous
async def test_only_prefiller_resets(stream: bool) -> None:
    async with pd() as it:
        it.prefillers[0].fault = Fault(reset="start")
        reply = await it.ask(stream=stream)
        assert reply.status == 502
        assert str(it.prefillers[0].port) in reply.error["message"]


# -- decode, before the first byte


@pytest.mark.parametrize(("fault", "stream"), broken_decodes())
@asynchronous
async def test_broken_decode_is_tried_on_another_decoder(fault: Fault, stream: bool) -> None:
    async with pd() as it:
        it.decoders[0].fault = again(fault)
        for _ in range(2):  # one of them meets the broken one
            reply = await it.ask(stream=stream)
            assert (reply.status, reply.complete, reply.text) == (200, True, right_text())
            assert reply.headers["x-pd-decode"].endswith(str(it.decoders[1].port))
        assert len(it.decoders[0].seen) == 1
        await nothing_wrong(it, kv_of_broken=1)


@pytest.mark.parametrize(("fault", "stream"), broken_decodes())
@asynchronous
async def test_broken_decode_without_another_decoder_is_an_error(
    fault: Fault, stream: bool
) -> None:
    async with pd(decoders=1) as it:
        it.decoders[0].fault = again(fault)
        reply = await it.ask(stream=stream)
        if fault.status:
            assert (reply.status, reply.body) == (fault.status, SAYS_NO)
        elif fault.error_event:
            assert [e if e == "[DONE]" else e["error"]["code"] for e in reply.events] == [
                500,
                "[DONE]",
            ]
        else:
            assert reply.status == 502
            assert str(it.decoders[0].port) in reply.error["message"]
        it.decoders[0].fault = None  # KV that was never pulled can now be released
        if fault.status != 503:
            await nothing_wrong(it, kv_of_broken=1)


@asynchronous
async def test_new_prefill_after_a_broken_decode_has_a_new_id() -> None:
    """The prefiller may still hold KV under the old one."""
    async with pd() as it:
        it.decoders[0].fault = Fault(status=500)
        for _ in range(2):
            assert (await it.ask(headers={"X-Request-Id": "a"})).status == 200
        assert it.prefillers[0].problems == []
        assert len(it.prefillers[0].seen) == 3


@both_forms
@asynchronous
async def test_refusing_decoder_costs_no_second_prefill(stream: bool) -> None:
    """503 and a refused connection leave the KV where it is: another decoder takes it."""
    async with pd(probe_seconds=60.0) as it:
        it.decoders[0].fault = Fault(status=503)
        for _ in range(2):
            assert (await it.ask(stream=stream)).text == right_text()
        await it.decoders[0].kill()
        for _ in range(4):
            assert (await it.ask(stream=stream)).text == right_text()
        assert len(it.prefillers[0].seen) == 6
        await nothing_wrong(it)


@both_forms
@pytest.mark.parametrize("status", [400, 404, 422])
@asynchronous
async def test_decoders_4xx_is_passed_on_and_the_kv_released(status: int, stream: bool) -> None:
    async with pd() as it:
        for decoder in it.decoders:
            decoder.fault = Fault(status=status, body=OVERLONG, above_tokens=1)
        for _ in range(2):
            reply = await it.ask(stream=stream)
            assert (reply.status, reply.body) == (status, OVERLONG)
        await nothing_wrong(it)
        assert await it.metric("pd_proxy_kv_released_total", how="handed-over") == 2


@asynchronous
async def test_a_request_that_breaks_two_decoders_is_not_sent_to_a_third() -> None:
    async with pd(decoders=4) as it:
        for decoder in it.decoders:
            decoder.fault = Fault(reset="start")
        assert (await it.ask()).status == 502
        assert sum(len(d.seen) for d in it.decoders) == 2


@asynchronous
async def test_kv_of_a_decoder_that_died_after_the_pull_is_not_offered_again() -> None:
    """Its reused connection broke without a byte and nobody listens: still, it had pulled."""
    async with pd(probe_seconds=60.0) as it:
        await it.ask()
        await it.ask()  # both decoders have an idle connection
        for decoder in it.decoders:
            decoder.fault = Fault(token_delay=0.05)
        asked = asyncio.create_task(it.ask(headers={"X-Request-Id": "a"}))
        await until(lambda: any(d.running for d in it.decoders), "no decode")
        await until(lambda: it.prefillers[0].kv == {}, "not pulled")
        await next(d for d in it.decoders if d.running).kill()
        assert (await asked).text == right_text()
        assert it.prefillers[0].ids[-2:] == ["a", "a-2"]
        await nothing_wrong(it)


# -- decode, after the first byte


@pytest.mark.parametrize("chat", [False, True], ids=["completions", "chat"])
@pytest.mark.parametrize(
    "fault", [Fault(reset="middle"), Fault(no_done=True)], ids=["reset", "no [DONE]"]
)
@asynchronous
async def test_stream_that_breaks_says_so_and_does_not_end_cleanly(
    fault: Fault, chat: bool
) -> None:
    async with pd() as it:
        for decoder in it.decoders:
            decoder.fault = again(fault)
        reply = await it.ask(stream=True, chat=chat)
        assert reply.status == 200
        assert not reply.complete
        assert reply.events[-1] != "[DONE]"
        assert "not complete" in reply.error["message"]
        right = right_text(chat=chat)
        assert right.startswith(reply.text)
        assert sum(len(d.seen) for d in it.decoders) == 1  # nothing was sent again
        await nothing_wrong(it)


@asynchronous
async def test_official_client_sees_the_broken_stream() -> None:
    async with pd() as it, AsyncOpenAI(base_url=it.url + "/v1", api_key="k", max_retries=0) as ai:
        for decoder in it.decoders:
            decoder.fault = Fault(reset="middle")
        stream = await ai.completions.create(model="tiny", prompt="a", max_tokens=6, stream=True)
        for token in text_of("a", 3):
            assert (await anext(stream)).choices[0].text == token
        with pytest.raises(APIError, match="not complete"):
            await anext(stream)


@asynchronous
async def test_official_client_gets_the_engines_400() -> None:
    async with pd() as it, AsyncOpenAI(base_url=it.url + "/v1", api_key="k", max_retries=0) as ai:
        it.prefillers[0].fault = Fault(status=400, body=OVERLONG)
        with pytest.raises(APIError, match="maximum context length") as caught:
            await ai.completions.create(model="tiny", prompt="a")
        assert getattr(caught.value, "status_code") == 400  # noqa: B009  APIError has no such type


@asynchronous
async def test_a_stream_that_is_the_engines_error_alone_is_accounted_as_one() -> None:
    async with pd(decoders=1) as it:
        it.decoders[0].fault = Fault(error_event=True)
        reply = await it.ask(stream=True)
        assert "error" in reply.events[0]
        seconds = await it.metric("pd_proxy_first_token_seconds_sum")
        assert 0 < seconds < 20


# -- deadlines


@both_forms
@asynchronous
async def test_slow_prefill_is_504_and_stops(stream: bool) -> None:
    async with pd(prefill_seconds=0.2) as it:
        it.prefillers[0].fault = Fault(delay=60)
        reply = await it.ask(stream=stream)
        it.prefillers[0].fault = None
        assert reply.status == 504
        assert "0.2 s" in reply.error["message"]
        await it.at_rest()
        assert it.prefillers[0].aborted == 1
        # It may have finished just then: the request is named, so that its KV can go.
        given_up, forget = it.prefillers[0].seen
        assert forget.body["kv_transfer_params"] == {"aborted_request": [given_up.id]}
        assert (await it.get("/health")).status == 200  # slow is not dead


@asynchronous
async def test_slow_answer_is_504() -> None:
    async with pd(answer_seconds=0.2) as it:
        for decoder in it.decoders:
            decoder.fault = Fault(token_delay=60)
        assert (await it.ask()).status == 504
        await it.at_rest()


@asynchronous
async def test_slow_first_token_is_504() -> None:
    async with pd(first_token_seconds=0.2) as it:
        for decoder in it.decoders:
            decoder.fault = Fault(token_delay=60)
        reply = await it.ask(stream=True)
        assert reply.status == 504
        await it.at_rest()


@asynchronous
async def test_stream_that_stalls_is_broken_off() -> None:
    async with pd(gap_seconds=0.5) as it:
        for decoder in it.decoders:
            decoder.fault = Fault(stall_after=3)
        reply = await it.ask(stream=True)
        assert not reply.complete
        assert reply.text == right_text(tokens=3)
        assert "0.5 s" in reply.error["message"]
        await it.at_rest()


@asynchronous
async def test_slow_requests_take_nobody_out() -> None:
    async with pd(decoders=1, answer_seconds=0.4) as it:
        it.decoders[0].fault = Fault(token_delay=60, times=6)
        replies = await asyncio.gather(*(it.ask() for _ in range(6)))
        assert [r.status for r in replies] == [504] * 6
        assert (await it.ask()).status == 200


# -- dead instances


@both_forms
@asynchronous
async def test_dead_decoder_costs_no_request_and_comes_back(stream: bool) -> None:
    async with pd() as it:
        await it.decoders[0].kill()
        replies = await asyncio.gather(*(it.ask(stream=stream) for _ in range(20)))
        assert [r.text for r in replies] == [right_text()] * 20
        assert {r.headers["x-pd-decode"] for r in replies} == {f"127.0.0.1:{it.decoders[1].port}"}
        await it.decoders[0].start()
        await until(lambda: it.proxy.decoders.available == 2, "the decoder is not taken back")
        for _ in range(4):
            await it.ask(stream=stream)
        assert len(it.decoders[0].seen) == 2
        await nothing_wrong(it)


@asynchronous
async def test_all_decoders_dead_is_503_at_once_without_prefill() -> None:
    async with pd() as it:
        for decoder in it.decoders:
            await decoder.kill()
        await until(lambda: it.proxy.decoders.available == 0, "dead decoders stay in")
        reply = await it.ask()
        assert reply.status == 503
        assert reply.headers["retry-after"] == "2"
        assert "connection refused" in reply.error["message"]
        assert it.prefillers[0].seen == []
        assert (await it.get("/health")).json["status"] == "no decoder"


@asynchronous
async def test_kv_is_released_when_a_decoder_comes_back() -> None:
    async with pd(decoders=1, probe_seconds=0.1) as it:
        it.prefillers[0].fault = Fault(delay=0.2)
        asked = asyncio.create_task(it.ask())
        await until(lambda: it.prefillers[0].running == 1, "no prefill")
        await it.decoders[0].kill()
        assert (await asked).status in (502, 503)
        assert len(it.prefillers[0].kv) == 1
        await it.decoders[0].start()
        await nothing_wrong_after_release(it)


async def nothing_wrong_after_release(it: PD) -> None:
    await it.at_rest()
    assert await it.metric("pd_proxy_kv_released_total", how="handed-over") == 1
    assert await it.metric("pd_proxy_kv_left_total") == 0


@asynchronous
async def test_dead_prefiller_is_503_and_comes_back() -> None:
    async with pd() as it:
        await it.prefillers[0].kill()
        assert (await it.ask()).status in (502, 503)
        reply = await it.ask()
        assert reply.status == 503
        assert "no prefiller takes requests" in reply.error["message"]
        await it.prefillers[0].start()
        await until(lambda: it.proxy.prefillers.available == 1, "not taken back")
        assert (await it.ask()).text == right_text()


@asynchronous
async def test_decoder_that_answers_500_is_taken_out_and_tried_again_later() -> None:
    async with pd(failures=3) as it:
        it.decoders[0].fault = Fault(status=500)
        for _ in range(12):
            assert (await it.ask()).status == 200
        assert len(it.decoders[0].seen) == 3
        it.decoders[0].fault = None
        await until(lambda: it.proxy.decoders.available == 2, "no trial")
        for _ in range(4):
            assert (await it.ask()).status == 200
        assert len(it.decoders[0].seen) == 5


@asynchronous
async def test_hung_engine_is_found_by_its_health_probe() -> None:
    async with pd(probe_failures=2) as it:
        it.decoders[0].healthy = False
        await until(lambda: it.proxy.decoders.available == 1, "still in")
        for _ in range(4):
            await it.ask()
        assert it.decoders[0].seen == []
        it.decoders[0].healthy = True
        await until(lambda: it.proxy.decoders.available == 2, "not taken back")


@asynchronous
async def test_idle_connection_that_the_engine_closed_costs_nothing() -> None:
    async with pd(decoders=1, probe_seconds=60.0) as it:
        assert (await it.ask()).status == 200
        for engine in it.engines:  # a restart between two requests
            await engine.kill()
            await engine.start()
        assert (await it.ask()).status == 200
        assert await it.metric("pd_proxy_failures_total") == 0
