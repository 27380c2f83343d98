"""An OpenAI-style client that keeps what a verdict needs: token ids, logprobs, headers, times.

Works against an engine alone and through any PD proxy. Plain HTTP errors are
results, not exceptions; only a broken or late connection raises.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

# Request ids begin with these, so that the KV trace tells whose request it was, and which
# ones were given up on purpose.
PREFIX = "pd-"
LEFT_PREFIX = "pd-left-"


class RequestFailed(Exception):
    """No complete answer came: the connection was refused, cut, or too late.

    `server` is the name of the client that was used (an instance, or the proxy), `partial`
    the text received until then, `headers` those of the answer that broke off.
    """

    def __init__(
        self,
        message: str,
        *,
        server: str = "",
        request_id: str = "",
        timeout: bool = False,
        partial: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.server = server
        self.request_id = request_id
        self.timeout = timeout
        self.partial = partial
        self.headers = headers or {}


@dataclass(frozen=True)
class Answer:
    """One answer of /v1/completions or /v1/chat/completions (its first choice).

    `server` is the name of the client that got it: an instance, or the proxy. `texts` are
    those of all choices, with n > 1 more than one. `token_ids` and `logprobs` are empty
    where the engine did not give them; `ttft` and `seconds` are counted from sending the
    request. With a status other than 200 `error` holds the body.
    """

    request_id: str
    status: int
    text: str
    texts: tuple[str, ...] = ()
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[Mapping[str, float], ...] = ()
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    kv_transfer_params: Mapping[str, Any] | None = None  # a prefiller's hand-over
    ttft: float | None = None
    seconds: float = 0.0
    error: str = ""
    done: bool = True  # streaming only: the stream ended with [DONE]
    server: str = ""

    @property
    def ok(self) -> bool:
        return self.status == 200


class Client:
    """Requests to one base URL, e.g. ``http://192.0.0.1:8080``. Thread-safe."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        timeout: float,
        name: str = "",
        observe: Callable[[Answer], None] | None = None,
    ) -> None:
        """`observe` is told of every answer that came as a stream, in the asking thread."""
        self.base_url = base_url.rstrip("/")
        self.model = model
        self.timeout = timeout
        self.name = name or base_url
        self._observe = observe
        # Hosts of a cluster are never reached through an HTTP proxy of the controller.
        self._http = httpx.Client(timeout=timeout, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def complete(
        self,
        prompt: str | list[int],
        *,
        max_tokens: int = 16,
        temperature: float = 0.0,
        stream: bool = False,
        request_id: str | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> Answer:
        """POST /v1/completions with logprobs and token ids asked for.

        Raises RequestFailed when no complete answer comes within `timeout` seconds.
        """
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "logprobs": 2,
            "return_token_ids": True,
            **options,
        }
        return self._post("/v1/completions", body, stream, request_id, timeout)

    def chat(
        self,
        messages: list[dict[str, str]],
        *,
        max_tokens: int = 16,
        temperature: float = 0.0,
        stream: bool = False,
        request_id: str | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> Answer:
        """POST /v1/chat/completions; otherwise as `complete`."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "logprobs": True,
            "top_logprobs": 2,
            "return_token_ids": True,
            **options,
        }
        return self._post("/v1/chat/completions", body, stream, request_id, timeout)

    def abandon(self, prompt: list[int], *, max_tokens: int, after_events: int) -> None:
        """Begin a streamed completion and hang up after some events, as impatient users do.

        With `after_events=0` as soon as the answer's head has come.
        """
        body = {"model": self.model, "prompt": prompt, "max_tokens": max_tokens, "stream": True}
        url = self.base_url + "/v1/completions"
        request_id = f"{LEFT_PREFIX}{uuid.uuid4().hex[:12]}"
        headers = {"X-Request-Id": request_id}
        try:
            with self._http.stream(
                "POST",
                url,
                json=body | {"ignore_eos": True},
                headers=headers,
                timeout=self.timeout,
            ) as response:
                if after_events == 0:
                    return
                for number, _ in enumerate(_events(response.iter_bytes()), start=1):
                    if number >= after_events:
                        return
        except httpx.HTTPError as error:
            raise self._failed(url, error, self.timeout, request_id=request_id) from error

    def hang_up_after(self, prompt: list[int], *, max_tokens: int, seconds: float) -> None:
        """Begin a whole completion and hang up after `seconds`, whatever phase it is in."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": max_tokens}
        url = self.base_url + "/v1/completions"
        request_id = f"{LEFT_PREFIX}{uuid.uuid4().hex[:12]}"
        headers = {"X-Request-Id": request_id}
        try:
            self._http.post(url, json=body | {"ignore_eos": True}, headers=headers, timeout=seconds)
        except httpx.TimeoutException:
            return
        except httpx.HTTPError as error:
            raise self._failed(url, error, self.timeout, request_id=request_id) from error

    def get(self, path: str, *, timeout: float = 5.0) -> tuple[int, str]:
        """GET a path; (status, body). Raises RequestFailed."""
        try:
            response = self._http.get(self.base_url + path, timeout=timeout)
        except httpx.HTTPError as error:
            raise self._failed(self.base_url + path, error, timeout) from error
        return response.status_code, response.text

    def healthy(self) -> bool:
        try:
            return self.get("/health")[0] == 200
        except RequestFailed:
            return False

    def models(self) -> list[str]:
        """Names of the models served."""
        status, body = self.get("/v1/models")
        try:
            if status == 200:
                return [model["id"] for model in json.loads(body)["data"]]
        except (ValueError, KeyError, TypeError):
            pass  # another service on this port: told below
        raise RequestFailed(f"{self.base_url}/v1/models answered {status}: {body[:200]}")

    def metrics(self) -> str:
        """The Prometheus text of /metrics."""
        status, body = self.get("/metrics", timeout=10)
        if status != 200:
            raise RequestFailed(f"{self.base_url}/metrics answered {status}")
        return body

    def _post(
        self,
        path: str,
        body: dict[str, Any],
        stream: bool,
        request_id: str | None,
        timeout: float | None,
    ) -> Answer:
        request_id = request_id or f"{PREFIX}{uuid.uuid4().hex[:12]}"
        url = self.base_url + path
        if stream:
            body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        started = time.monotonic()
        deadline = timeout or self.timeout
        headers = {"X-Request-Id": request_id}
        reader = _StreamReader(request_id, started)
        try:
            with self._http.stream(
                "POST", url, json=body, headers=headers, timeout=deadline
            ) as response:
                pieces = _until(started + deadline, response.iter_bytes())
                if not stream or response.status_code != 200:
                    content = b"".join(pieces)
                    seconds = time.monotonic() - started
                    answer = _whole_answer(request_id, response, content, seconds)
                    return replace(answer, server=self.name)
                reader.headers = dict(response.headers)
                for event in _events(pieces):
                    reader.take(event)
        except httpx.HTTPError as error:
            raise self._failed(
                url,
                error,
                deadline,
                request_id=request_id,
                partial=reader.text,
                headers=reader.headers,
            ) from error
        answer = replace(reader.answer(), server=self.name)
        if self._observe is not None:
            self._observe(answer)
        return answer

    def _failed(
        self,
        url: str,
        error: httpx.HTTPError,
        deadline: float,
        *,
        request_id: str = "",
        partial: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> RequestFailed:
        timeout = isinstance(error, httpx.TimeoutException)
        what = str(error) or type(error).__name__
        return RequestFailed(
            f"{url}: " + (f"no answer within {deadline:g} s" if timeout else what),
            server=self.name,
            request_id=request_id,
            timeout=timeout,
            partial=partial,
            headers=headers,
        )


def _until(deadline: float, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """httpx limits the wait for each piece; an answer that trickles must end too."""
    for piece in pieces:
        if time.monotonic() > deadline:
            raise httpx.ReadTimeout("the answer goes on")
        yield piece


def _events(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The data of server-sent events. A character may be cut anywhere, a line ends at \\n alone:

    JSON may hold U+2028 or U+0085 as they are, at which str.splitlines would cut.
    """
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


def _whole_answer(
    request_id: str, response: httpx.Response, content: bytes, seconds: float
) -> Answer:
    headers = dict(response.headers)
    shown = content.decode("utf-8", "replace")
    if response.status_code != 200:
        return Answer(
            request_id, response.status_code, "", headers=headers, seconds=seconds, error=shown
        )
    try:
        data = json.loads(content)
        text, tokens, logprobs, top = _content(data["choices"][0])
        texts = tuple(_content(each)[0] for each in data["choices"])
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return Answer(
            request_id, response.status_code, "", headers=headers, seconds=seconds,
            error=f"not an answer: {shown[:200]!r}", done=not content.strip(),
        )  # fmt: skip
    choice = data["choices"][0]
    usage = data.get("usage") or {}
    return Answer(
        request_id=request_id,
        status=200,
        text=text,
        texts=texts,
        token_ids=tuple(tokens),
        logprobs=tuple(logprobs),
        top_logprobs=tuple(top),
        finish_reason=choice.get("finish_reason"),
        prompt_tokens=usage.get("prompt_tokens"),
        completion_tokens=usage.get("completion_tokens"),
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
        headers=headers,
        kv_transfer_params=data.get("kv_transfer_params"),
        seconds=seconds,
    )


def _content(
    choice: Mapping[str, Any],
) -> tuple[str, list[int], list[float], list[Mapping[str, float]]]:
    """Text, token ids, logprobs and top logprobs of a choice, in either endpoint's form."""
    message = choice.get("message") or choice.get("delta")
    text = (message.get("content") if message else choice.get("text")) or ""
    tokens = choice.get("token_ids") or []
    given = choice.get("logprobs") or {}
    if "content" in given:  # chat
        entries = given["content"] or []
        return (
            text,
            tokens,
            [entry["logprob"] for entry in entries],
            [
                {other["token"]: other["logprob"] for other in entry.get("top_logprobs") or []}
                for entry in entries
            ],
        )
    return text, tokens, given.get("token_logprobs") or [], given.get("top_logprobs") or []


class _StreamReader:
    """Puts the events of one stream together."""

    def __init__(self, request_id: str, started: float) -> None:
        self.headers: dict[str, str] = {}
        self.text = ""
        self._request_id = request_id
        self._started = started
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self._top: list[Mapping[str, float]] = []
        self._finish: str | None = None
        self._usage: Mapping[str, Any] = {}
        self._ttft: float | None = None
        self._done = False
        self._error = ""

    def take(self, event: bytes) -> None:
        if event == b"[DONE]":
            self._done = not self._error
            return
        try:
            data = json.loads(event)
        except ValueError:
            self._error = f"not JSON: {event[:200]!r}"
            return
        if "error" in data:
            self._error = json.dumps(data["error"])
            return
        self._usage = data.get("usage") or self._usage
        for choice in data.get("choices", [])[:1]:
            text, tokens, logprobs, top = _content(choice)
            if self._ttft is None and (text or tokens):
                self._ttft = time.monotonic() - self._started
            self.text += text
            self._tokens += tokens
            self._logprobs += logprobs
            self._top += top
            self._finish = choice.get("finish_reason") or self._finish

    def answer(self) -> Answer:
        return Answer(
            request_id=self._request_id,
            status=200,
            text=self.text,
            token_ids=tuple(self._tokens),
            logprobs=tuple(self._logprobs),
            top_logprobs=tuple(self._top),
            finish_reason=self._finish,
            prompt_tokens=self._usage.get("prompt_tokens"),
            completion_tokens=self._usage.get("completion_tokens"),
            cached_tokens=(self._usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
            headers=self.headers,
            ttft=self._ttft,
            seconds=time.monotonic() - self._started,
            error=self._error,
            done=self._done,
        )
