"""A PD proxy of somebody else's: prefill, then decode, and the answer passed on.

For scenarios (a cluster file's `proxy.command`); the flags are those of vllm-ascend's example.
Standard library only, one thread per client. A scenario's `proxy` (engine_faults.json in
TWIN_STATE, read at each request) gives it one fault of those that real proxies had:

no-kv      the prefiller's kv_transfer_params are lost on the way (vllm-ascend #2939)
empty      every fourth answer is 200 and nothing (vllm-ascend #13140)
cut        streams end after three events as if they were complete
twice      the decoder is asked again after its answer began (vllm-ascend #14142)
status     what an engine refuses with 4xx becomes 500 (vllm-ascend #12097)
json       streams are sent as application/json (vllm-ascend #6985)
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FILE = "engine_faults.json"
PREFILL = {"do_remote_decode": True, "do_remote_prefill": False}
SECONDS = 60.0  # for an engine's answer


class Server(ThreadingHTTPServer):
    """Knows its engines, and takes them in turn."""

    daemon_threads = True

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__((options.host, options.port), Handler)
        self.prefillers = list(zip(options.prefiller_hosts, options.prefiller_ports, strict=True))
        self.decoders = list(zip(options.decoder_hosts, options.decoder_ports, strict=True))
        self.numbers = itertools.count(1)

    @property
    def fault(self) -> str | None:
        """The one that the scenario has now."""
        told: dict[str, Any] = json.loads((Path(os.environ["TWIN_STATE"]) / FILE).read_text())
        return told["proxy"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        if self.path in ("/health", "/healthcheck"):
            self.give(200, b'{"status": "ok"}')
            return
        with_body = ask(self.server.decoders[0], "GET", self.path, b"", {})
        self.give(with_body.status, with_body.read())

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        number = next(self.server.numbers)
        body = json.loads(raw)
        request_id = self.headers.get("X-Request-Id") or f"twin-{number}"
        headers = {"Content-Type": "application/json", "X-Request-Id": request_id}
        # With n > 1 each of the n would pull what the first one frees: a decoder alone does it.
        if body.get("n", 1) == 1:
            prefiller = self.server.prefillers[number % len(self.server.prefillers)]
            first = prefill_body(body)
            prefilled = ask(prefiller, "POST", self.path, json.dumps(first).encode(), headers)
            answer = prefilled.read()
            if prefilled.status != 200:
                self.refuse(prefilled.status, answer)
                return
            if self.server.fault != "no-kv":
                body["kv_transfer_params"] = json.loads(answer).get("kv_transfer_params")
        decoder = self.server.decoders[number % len(self.server.decoders)]
        response = ask(decoder, "POST", self.path, json.dumps(body).encode(), headers)
        if response.status != 200:
            self.refuse(response.status, response.read())
        elif body.get("stream"):
            self.stream(response)
        else:
            self.whole(response.read(), number)

    def refuse(self, status: int, content: bytes) -> None:
        if self.server.fault == "status":
            self.give(500, b"Internal Server Error", "text/plain")
        else:
            self.give(status, content)

    def whole(self, content: bytes, number: int) -> None:
        if self.server.fault == "empty" and number % 4 == 0:
            content = b""
        if self.server.fault == "twice":
            content = doubled(content)
        self.give(200, content)

    def stream(self, response: HTTPResponse) -> None:
        plain = self.server.fault == "json"
        self.send_response(200)
        self.send_header("Content-Type", "application/json" if plain else "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        events = 0
        for line in response:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))
            events += line.startswith(b"data:")
            if self.server.fault == "cut" and events == 3:
                break
        self.wfile.write(b"0\r\n\r\n")

    def give(self, status: int, content: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Not one line per request."""


def prefill_body(body: dict[str, Any]) -> dict[str, Any]:
    """The client's request, for one token and the hand-over."""
    dropped = ("stream_options", "min_tokens", "stop", "stop_token_ids", "logprobs", "echo")
    first = {key: value for key, value in body.items() if key not in dropped}
    first |= {"max_tokens": 1, "stream": False, "n": 1, "kv_transfer_params": PREFILL}
    if "max_completion_tokens" in first:
        first["max_completion_tokens"] = 1
    first.pop("top_logprobs", None)
    return first | {"ignore_eos": True}


def doubled(content: bytes) -> bytes:
    """An answer whose first choice says everything twice."""
    data = json.loads(content)
    choice = data["choices"][0]
    if "text" in choice:
        choice["text"] *= 2
    if choice.get("token_ids"):
        choice["token_ids"] *= 2
    return json.dumps(data).encode()


def ask(
    engine: tuple[str, int], method: str, path: str, body: bytes, headers: dict[str, str]
) -> HTTPResponse:
    connection = HTTPConnection(*engine, timeout=SECONDS)
    connection.request(method, path, body or None, headers)
    return connection.getresponse()


def main() -> None:
    parser = argparse.ArgumentParser(prog="twin_proxy")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    for role in ("prefiller", "decoder"):
        parser.add_argument(f"--{role}-hosts", nargs="+", required=True)
        parser.add_argument(f"--{role}-ports", nargs="+", type=int, required=True)
    server = Server(parser.parse_args())
    print("a proxy of somebody else's serves", file=sys.stderr, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
