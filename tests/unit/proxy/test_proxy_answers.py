"""What a client gets when all is well: the answer of one plain engine, and who served it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from backend import Fault
from openai import AsyncOpenAI
from proxy_stand import asynchronous, pd, right_text

both_forms = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
both_endpoints = pytest.mark.parametrize("chat", [False, True], ids=["completions", "chat"])


@both_forms
@both_endpoints
@asynchronous
async def test_answer_is_the_plain_engines(stream: bool, chat: bool) -> None:
    async with pd() as it:
        reply = await it.ask(stream=stream, chat=chat)
        assert (reply.status, reply.complete) == (200, True)
        assert reply.text == right_text(chat=chat)
        if stream:
            assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert reply.events[-1] == "[DONE]"
        await it.at_rest()
        assert [e.problems for e in it.engines] == [[], [], []]


@both_forms
@asynchronous
async def test_headers_say_who_served(stream: bool) -> None:
    async with pd(decoders=1) as it:
        reply = await it.ask(stream=stream, headers={"X-Request-Id": "mine"})
        assert reply.headers["x-pd-path"] == "prefill-decode"
        assert reply.headers["x-pd-prefill"] == f"127.0.0.1:{it.prefillers[0].port}"
        assert reply.headers["x-pd-decode"] == f"127.0.0.1:{it.decoders[0].port}"
        assert reply.headers["x-request-id"] == "mine"


@asynchronous
async def test_both_legs_carry_the_clients_id_and_headers() -> None:
    sent = {
        "X-Request-Id": "mine",
        "Authorization": "Bearer secret",
        "traceparent": "00-aa-bb-01",
        "Cookie": "private",
    }
    async with pd(decoders=1) as it:
        await it.ask(headers=sent)
        for engine in it.engines:
            got = engine.seen[0].headers
            assert got["x-request-id"] == "mine"
            assert got["authorization"] == "Bearer secret"
            assert got["traceparent"] == "00-aa-bb-01"
            assert "cookie" not in got


@asynchronous
async def test_an_id_is_made_when_the_client_has_none() -> None:
    async with pd(decoders=1) as it:
        reply = await it.ask()
        assert len(reply.headers["x-request-id"]) == 32
        assert it.prefillers[0].ids == it.decoders[0].ids == [reply.headers["x-request-id"]]


@asynchronous
async def test_the_id_of_a_request_under_way_is_not_used_twice() -> None:
    """Two requests of one id would overwrite each other's KV in the engine."""
    async with pd(decoders=1) as it:
        it.prefillers[0].fault = Fault(delay=0.05)
        replies = await asyncio.gather(
            *(it.ask(headers={"X-Request-Id": "same"}, prompt=p) for p in ("a", "b"))
        )
        assert [r.text for r in replies] == [right_text(prompt="a"), right_text(prompt="b")]
        assert [r.headers["x-request-id"] for r in replies] == ["same", "same"]
        assert sorted(it.prefillers[0].ids) == ["same", "same-2"]
        assert it.prefillers[0].problems == []


CLIENT_LIMITS: dict[str, Any] = {
    "max_tokens": 7,
    "max_completion_tokens": 7,
    "min_tokens": 5,
    "n": 1,
    "stream": True,
    "stream_options": {"include_usage": True},
    "stop": ["x"],
    "stop_token_ids": [3],
    "logprobs": True,
    "top_logprobs": 2,
    "temperature": 0.5,
    "seed": 2**63 - 1,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    "tool_choice": "auto",
}


@asynchronous
async def test_prefiller_is_asked_for_one_token_of_the_same_prompt() -> None:
    async with pd(decoders=1) as it:
        await it.ask(chat=True, **CLIENT_LIMITS)
        body = it.prefillers[0].seen[0].body
        params = body.pop("kv_transfer_params")
        assert params["do_remote_decode"] is True
        assert params["do_remote_prefill"] is False
        assert body == {
            "model": "tiny",
            "messages": [{"role": "user", "content": "Who are you?"}],
            "max_tokens": 1,
            "max_completion_tokens": 1,
            "n": 1,
            "stream": False,
            "ignore_eos": True,
            "temperature": 0.5,
            "seed": 2**63 - 1,
            "tools": CLIENT_LIMITS["tools"],
            "tool_choice": "auto",
        }


@asynchronous
async def test_decoder_is_asked_what_the_client_asked() -> None:
    async with pd(decoders=1) as it:
        await it.ask(chat=True, **CLIENT_LIMITS)
        body = it.decoders[0].seen[0].body
        params = body.pop("kv_transfer_params")
        assert params["remote_port"] == it.prefillers[0].port
        assert body == {
            "model": "tiny",
            "messages": [{"role": "user", "content": "Who are you?"}],
            **CLIENT_LIMITS,
        }


@asynchronous
async def test_client_cannot_choose_whose_kv_is_pulled() -> None:
    async with pd(decoders=1) as it:
        stolen = {"do_remote_prefill": True, "remote_port": 1, "remote_block_ids": [9]}
        reply = await it.ask(kv_transfer_params=stolen)
        assert reply.text == right_text()
        assert it.decoders[0].seen[0].body["kv_transfer_params"]["remote_block_ids"] == [1, 2, 3]
        await it.ask(kv_transfer_params=stolen, n=2)
        assert "kv_transfer_params" not in it.decoders[0].seen[1].body


ALONE = {
    "n": {"n": 2},
    "best-of": {"best_of": 2},
    "beam-search": {"use_beam_search": True},
    "prompt-logprobs": {"prompt_logprobs": 1},
    "several-prompts": {"prompt": ["a", "b"]},
    "echo-logprobs": {"echo": True, "logprobs": 1},
    "no-output": {"echo": True, "max_tokens": 0},
    "prompt-embeds": {"prompt_embeds": "AAAA"},
}


@pytest.mark.parametrize("reason", ALONE)
@asynchronous
async def test_what_pd_cannot_serve_goes_to_a_decoder_alone_and_says_so(reason: str) -> None:
    async with pd() as it:
        reply = await it.ask(**ALONE[reason])
        assert reply.status == 200
        assert reply.headers["x-pd-path"] == "decode-only"
        assert reply.headers["x-pd-reason"] == reason
        assert "x-pd-prefill" not in reply.headers
        assert it.prefillers[0].seen == []


@asynchronous
async def test_required_tool_choice_goes_to_a_decoder_alone() -> None:
    async with pd() as it:
        reply = await it.ask(chat=True, tool_choice="required", tools=CLIENT_LIMITS["tools"])
        assert reply.headers["x-pd-reason"] == "tool-choice-required"


@pytest.mark.parametrize("prompt", ["a", ["a"], [1, 2, 3], [[1, 2, 3]]], ids=str)
@asynchronous
async def test_one_prompt_in_any_form_is_prefilled(prompt: Any) -> None:
    async with pd() as it:
        reply = await it.ask(prompt=prompt)
        assert reply.headers["x-pd-path"] == "prefill-decode"
        assert reply.text == right_text(prompt=prompt)


@asynchronous
async def test_prefiller_that_hands_nothing_over() -> None:
    async with pd() as it:
        it.prefillers[0].fault = Fault(no_handover=True)
        reply = await it.ask()
        assert reply.text == right_text()
        assert reply.headers["x-pd-reason"] == "no-handover"


@asynchronous
async def test_both_decoders_get_their_turn_in_sequential_traffic() -> None:
    async with pd() as it:
        for _ in range(10):
            await it.ask()
        assert [len(d.seen) for d in it.decoders] == [5, 5]


@asynchronous
async def test_a_long_prompt_passes_and_a_too_long_one_is_413() -> None:
    async with pd(max_body=3_000_000) as it:
        assert (await it.ask(prompt="x" * 2_000_000)).status == 200
        reply = await it.ask(prompt="x" * 3_000_000)
        assert reply.status == 413
        assert "3000000 bytes" in reply.error["message"]


@pytest.mark.parametrize("body", [b"{", b"[]", b'"text"', b"", b"\xff{}"], ids=repr)
@asynchronous
async def test_body_that_is_no_json_object_is_400(body: bytes) -> None:
    async with pd() as it:
        reply = await it.post("/v1/completions", body)
        assert reply.status == 400
        assert reply.error["type"] == "BadRequestError"
        assert it.prefillers[0].seen == []


@asynchronous
async def test_lookups() -> None:
    async with pd() as it:
        assert (await it.get("/health")).json == {"status": "ok", "prefillers": 1, "decoders": 2}
        assert (await it.get("/healthcheck")).json["decode_instances"] == 2
        assert (await it.get("/v1/models")).json["data"][0]["id"] == "tiny"
        assert (await it.get("/nothing")).status == 404
        assert (await it.get("/v1/completions")).status == 405
        assert (await it.post("/v1/models", {})).status == 405
        async with it.session.head(it.url + "/v1/models") as head:
            assert (head.status, int(head.headers["Content-Length"]) > 0) == (200, True)


@asynchronous
async def test_metrics_count_requests_and_taken_kv() -> None:
    async with pd() as it:
        await it.ask()
        await it.ask(n=2)
        name = "pd_proxy_requests_total"
        assert await it.metric(name, path="prefill-decode", status="200") == 1
        assert await it.metric(name, path="decode-only", status="200") == 1
        assert await it.metric("pd_proxy_kv_taken_total") == 1
        assert await it.metric("pd_proxy_prefill_seconds_count") == 1
        assert await it.metric("pd_proxy_instance_requests", role="decode") == 2


@both_forms
@pytest.mark.parametrize(("prefillers", "reported"), [(3, 3), (None, 0)])
@asynchronous
async def test_cached_tokens_are_the_prefillers(
    prefillers: int | None, reported: int, stream: bool
) -> None:
    """A decoder reports as cached all that it pulled."""
    async with pd(decoders=1) as it:
        it.prefillers[0].cached_tokens = prefillers
        it.decoders[0].cached_tokens = 5
        options = {"stream_options": {"include_usage": True}} if stream else {}
        reply = await it.ask(stream=stream, **options)
        usage = reply.events[-2]["usage"] if stream else reply.json["usage"]
        assert usage["prompt_tokens_details"] == {"cached_tokens": reported}
        assert reply.text == right_text()
        alone = await it.ask(n=2)
        assert alone.json["usage"]["prompt_tokens_details"] == {"cached_tokens": 5}


@both_forms
@asynchronous
async def test_http_1_0_client_gets_no_chunks(stream: bool) -> None:
    async with pd() as it:
        host, port = it.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        body = json.dumps({"prompt": "a", "max_tokens": 3, "stream": stream}).encode()
        head = f"POST /v1/completions HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answer = await reader.read()  # up to the end of the connection
        writer.close()
        assert b"chunked" not in answer
        end = b"data: [DONE]\n\n" if stream else b"}"
        assert answer.endswith(end)


@asynchronous
async def test_connection_is_kept_after_answers_streams_and_errors() -> None:
    async with pd() as it:
        host, port = it.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        for body, end in (
            (b'{"prompt": "a"}', b"}"),
            (b'{"prompt": "a", "stream": true}', b"0\r\n\r\n"),
            (b"{}", b"}"),
            (b"no json", b"}}"),
            (b'{"prompt": "b"}', b"}"),
        ):
            head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
            writer.write(head % len(body) + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert b"connection: close" not in answer
            while not answer.endswith(end):
                answer += await reader.read(65536)
        writer.close()


@asynchronous
async def test_official_client() -> None:
    async with pd() as it, AsyncOpenAI(base_url=it.url + "/v1", api_key="k", max_retries=0) as ai:
        whole = await ai.completions.create(model="tiny", prompt="a", max_tokens=6)
        assert whole.choices[0].text == right_text(prompt="a")
        chat = await ai.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "b"}],
            max_tokens=6,
            stream=True,
            stream_options={"include_usage": True},
        )
        text, usage = "", None
        async for event in chat:
            text += "".join(c.delta.content or "" for c in event.choices)
            usage = event.usage or usage
        assert text == right_text(chat=True, prompt="b")
        assert usage is not None
        assert usage.completion_tokens == 6
        assert [m.id async for m in ai.models.list()] == ["tiny"]
