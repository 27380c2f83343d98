"""The client against a real HTTP server that answers well, badly, late, and not at all."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from aiohttp import web

from pd_validate.traffic.client import Answer, Client, RequestFailed

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

WHOLE: dict[str, Any] = {
    "choices": [
        {
            "text": " I am 青龙",
            "token_ids": [7, 8, 9],
            "logprobs": {
                "token_logprobs": [-0.1, -0.2, -0.3],
                "top_logprobs": [{" I": -0.1, " A": -2.0}, {" am": -0.2}, {"青": -0.3}],
            },
            "finish_reason": "length",
        }
    ],
    "usage": {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 4},
    },
    "kv_transfer_params": {"remote_block_ids": [1, 2]},
}


class Server:
    """aiohttp in a thread of its own; `answer` says what the next requests get."""

    def __init__(self) -> None:
        self.answer: Handler = self.refuse
        self.bodies: list[dict[str, Any]] = []
        self.ids: list[str | None] = []
        self.url = ""
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def refuse(self, _: web.Request) -> web.StreamResponse:
        return web.Response(status=404)

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(30)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(30)
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        await self._end.wait()
        await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.method == "POST":
            self.bodies.append(await request.json())
        self.ids.append(request.headers.get("X-Request-Id"))
        return await self.answer(request)


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    server = Server()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def server(running: Server) -> Server:
    running.bodies.clear()
    running.ids.clear()
    return running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    client = Client(server.url, "tiny", timeout=20)
    yield client
    client.close()


def replies(data: object, status: int = 200) -> Handler:
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=text)

    return answer


def streams(*pieces: bytes, pause: float = 0.0, cut: bool = False) -> Handler:
    """The pieces as they are, each in a chunk of its own; `cut` ends without the last chunk."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
            await asyncio.sleep(pause)
        if cut:
            assert request.transport is not None
            request.transport.close()
        return response

    return answer


def event(text: str, *tokens: int, **more: Any) -> bytes:
    choice = {"text": text, "token_ids": list(tokens), "finish_reason": None} | more
    return b"data: " + json.dumps({"choices": [choice]}, ensure_ascii=False).encode() + b"\n\n"


USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}\n\n'
DONE = b"data: [DONE]\n\n"


def test_a_whole_answer(server: Server, client: Client) -> None:
    server.answer = replies(WHOLE)
    answer = client.complete("Who", max_tokens=3, request_id="r1", seed=1)
    assert answer.ok
    assert answer.done
    assert answer.text == " I am 青龙"
    assert answer.token_ids == (7, 8, 9)
    assert answer.logprobs == (-0.1, -0.2, -0.3)
    assert answer.top_logprobs[0] == {" I": -0.1, " A": -2.0}
    assert (answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens) == (5, 3, 4)
    assert answer.kv_transfer_params == {"remote_block_ids": [1, 2]}
    assert server.ids == ["r1"]
    (body,) = server.bodies
    assert body["return_token_ids"] is True
    assert (body["prompt"], body["max_tokens"], body["temperature"], body["seed"]) == (
        "Who", 3, 0.0, 1,
    )  # fmt: skip


def test_a_chat_answer(server: Server, client: Client) -> None:
    entry = {"token": "Hi", "logprob": -0.5, "top_logprobs": [{"token": "Hi", "logprob": -0.5}]}
    choice = {"message": {"content": "Hi"}, "token_ids": [3], "logprobs": {"content": [entry]}}
    server.answer = replies({"choices": [choice]})
    answer = client.chat([{"role": "user", "content": "Hello"}])
    assert (answer.text, answer.token_ids, answer.logprobs) == ("Hi", (3,), (-0.5,))
    assert answer.top_logprobs == ({"Hi": -0.5},)


def test_an_error_is_a_result(server: Server, client: Client) -> None:
    server.answer = replies({"error": {"message": "too long"}}, status=400)
    for stream in (False, True):
        answer = client.complete("Who", stream=stream)
        assert not answer.ok
        assert answer.status == 400
        assert "too long" in answer.error


@pytest.mark.parametrize(
    "body", ["<html>", "[]", '{"choices": []}', '{"choices": [null]}', '{"choices": ["x"]}']
)
def test_what_is_no_answer_says_so(server: Server, client: Client, body: str) -> None:
    server.answer = replies(body)
    answer = client.complete("Who")
    assert not answer.done
    assert answer.error.startswith("not an answer: ")


def test_an_answer_of_nothing_is_not_a_cut_one(server: Server, client: Client) -> None:
    server.answer = replies("")
    answer = client.complete("Who")
    assert (answer.ok, answer.done, answer.text) == (True, True, "")


def test_a_stream(server: Server, client: Client) -> None:
    last = event(" am", 8, finish_reason="length")
    server.answer = streams(event(" I", 7), b": ping\n\n", last, USAGE, DONE)
    answer = client.complete("Who", stream=True)
    assert answer.done
    assert (answer.text, answer.token_ids, answer.finish_reason) == (" I am", (7, 8), "length")
    assert (answer.prompt_tokens, answer.completion_tokens) == (5, 2)
    assert answer.ttft is not None
    assert 0 < answer.ttft <= answer.seconds
    assert server.bodies[0]["stream_options"] == {"include_usage": True}


def test_whoever_watches_is_told_of_streams_alone(server: Server) -> None:
    seen: list[Answer] = []
    client = Client(server.url, "qwen3-moe", timeout=10, observe=seen.append)
    try:
        server.answer = replies({"choices": [{"text": "whole"}]})
        client.complete("Who")
        server.answer = streams(event("pieces", 1), USAGE, DONE)
        answer = client.complete("Who", stream=True, request_id="r7")
    finally:
        client.close()
    assert seen == [answer]
    assert seen[0].request_id == "r7"


def test_a_character_may_be_cut_anywhere(server: Server, client: Client) -> None:
    """Chunks of one byte: within a character, a word of JSON, a line end."""
    data = event("青龙 \U0001f409", 1) + DONE
    server.answer = streams(*(data[i : i + 1] for i in range(len(data))))
    answer = client.complete("Who", stream=True)
    assert answer.text == "青龙 \U0001f409"
    assert answer.done


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x1c"])
def test_line_separators_of_unicode_end_no_event(
    server: Server, client: Client, separator: str
) -> None:
    """vLLM leaves them as they are in its JSON (it escapes those below U+0020)."""
    text = f"a{separator}b"
    server.answer = streams(event(text, 1), DONE)
    assert client.complete("Who", stream=True).text == text


def test_windows_line_ends(server: Server, client: Client) -> None:
    server.answer = streams((event("a", 1) + DONE).replace(b"\n", b"\r\n"))
    answer = client.complete("Who", stream=True)
    assert (answer.text, answer.done) == ("a", True)


def test_a_stream_without_its_end_is_not_done(server: Server, client: Client) -> None:
    server.answer = streams(event("half", 1))
    answer = client.complete("Who", stream=True)
    assert answer.text == "half"
    assert not answer.done


def test_a_stream_that_is_cut(server: Server, client: Client) -> None:
    server.answer = streams(event("half", 1), cut=True)
    with pytest.raises(RequestFailed) as failed:
        client.complete("Who", stream=True)
    assert failed.value.partial == "half"
    assert not failed.value.timeout


@pytest.mark.parametrize("wrong", [b"data: {oops\n\n", b'data: {"error": {"message": "dead"}}\n\n'])
def test_an_error_within_a_stream(server: Server, client: Client, wrong: bytes) -> None:
    """Also when [DONE] follows: it does not end well."""
    server.answer = streams(event("half", 1), wrong, DONE)
    answer = client.complete("Who", stream=True)
    assert answer.text == "half"
    assert "oops" in answer.error or "dead" in answer.error
    assert not answer.done


def test_no_answer_in_time(server: Server, client: Client) -> None:
    async def sleeps(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()

    server.answer = sleeps
    with pytest.raises(RequestFailed, match=r"no answer within 0\.3 s") as failed:
        client.complete("Who", timeout=0.3)
    assert failed.value.timeout
    assert server.url in str(failed.value)


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_trickles_has_a_deadline_too(
    server: Server, client: Client, stream: bool
) -> None:
    """Each byte comes in time, the whole never."""
    server.answer = streams(*[event("x", 1)] * 600, pause=0.05)
    with pytest.raises(RequestFailed) as failed:
        client.complete("Who", stream=stream, timeout=0.5)
    assert failed.value.timeout
    if stream:
        assert set(failed.value.partial) == {"x"}


def test_nobody_listens() -> None:
    client = Client("http://127.0.0.1:9", "tiny", timeout=5)
    with pytest.raises(RequestFailed, match="refused"):
        client.complete("Who")
    assert not client.healthy()
    client.close()


def test_health_models_and_metrics(server: Server, client: Client) -> None:
    server.answer = replies({"data": [{"id": "tiny"}]})
    assert client.healthy()
    assert client.models() == ["tiny"]
    server.answer = replies("no engine", status=503)
    assert not client.healthy()
    for ask in (client.models, client.metrics):
        with pytest.raises(RequestFailed, match="answered 503"):
            ask()


@pytest.mark.parametrize("body", ["<html>", "[]", '{"data": [1]}'])
def test_a_port_with_another_service_behind(server: Server, client: Client, body: str) -> None:
    server.answer = replies(body)
    with pytest.raises(RequestFailed, match="/v1/models answered 200"):
        client.models()


def test_a_proxy_of_the_environment_is_not_used(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server.answer = replies(WHOLE)
    client = Client(server.url, "tiny", timeout=20)
    assert client.complete("Who").ok
    client.close()
