"""Engines for the benchmark: as fast as Python goes, no work behind them.

One process with one port per engine. The first is the prefiller and answers every POST with
`kv_transfer_params`; the others with one JSON, or with `--stream` with 256 events (at once,
or one every `--pace` seconds). What to answer is not looked up in the request: in a long one
that cost more than everything else here, and more for one proxy's way to write JSON than for
another's. Prints its ports and serves until it is ended.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from functools import partial
from typing import cast

import uvloop

EVENTS = 256
_PARAMS = (
    '"kv_transfer_params":{"do_remote_prefill":true,"do_remote_decode":false,'
    '"remote_block_ids":[1,2,3,4,5,6,7,8],"remote_engine_id":"p","remote_host":"127.0.0.1",'
    '"remote_port":20001,"remote_tp_size":"2"}'
)
_JSON = (
    '{"id":"cmpl-1","object":"text_completion","created":1,"model":"m","choices":[{"index":0,'
    '"text":" a short answer of sixteen tokens or so, as in most benchmarks","logprobs":null,'
    '"finish_reason":"length"}],"usage":{"prompt_tokens":50,"completion_tokens":16,'
    '"total_tokens":66}%s}'
)
_EVENT = (
    b'data: {"id":"cmpl-1","object":"text_completion","created":1,"model":"m","choices":'
    b'[{"index":0,"text":" word","logprobs":null,"finish_reason":null}]}\n\n'
)
_CHUNK = b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT)
_DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: x\r\nserver: uvicorn\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)


def _whole(text: str) -> bytes:
    head = "HTTP/1.1 200 OK\r\ndate: x\r\nserver: uvicorn\r\ncontent-length: %d\r\n"
    return (head % len(text) + "content-type: application/json\r\n\r\n" + text).encode()


PREFILLED = _whole(_JSON % ("," + _PARAMS))
DECODED = _whole(_JSON % "")
MODELS = _whole(json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]}))
BURST = _STREAM_HEAD + _CHUNK * EVENTS + _DONE


class Engine(asyncio.Protocol):
    """One connection. `answer`: the bytes for each POST; None: an event every `pace` seconds."""

    def __init__(self, answer: bytes | None, pace: float) -> None:
        self._answer_bytes = answer
        self._pace = pace
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._buffer = data
            return
        lowered = data[:end].lower()
        at = lowered.find(b"content-length:")
        length = int(lowered[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(data) < end + 4 + length:
            self._buffer = data
            return
        self._buffer = b""
        self._answer(data)

    def _answer(self, request: bytes) -> None:
        if request.startswith(b"GET"):
            self._transport.write(MODELS)
        elif self._answer_bytes is not None:
            self._transport.write(self._answer_bytes)
        else:
            self._transport.write(_STREAM_HEAD)
            self._send_event(EVENTS)

    def _send_event(self, left: int) -> None:
        if self._transport.is_closing():
            return
        if left == 0:
            self._transport.write(_DONE)
            return
        self._transport.write(_CHUNK)
        asyncio.get_running_loop().call_later(self._pace, self._send_event, left - 1)


async def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--engines", type=int, default=3)
    parse.add_argument("--stream", action="store_true", help="decoders answer with events")
    parse.add_argument("--pace", type=float, default=0.0, help="seconds between two events")
    args = parse.parse_args()
    loop = asyncio.get_running_loop()
    decoded = DECODED if not args.stream else None if args.pace else BURST
    servers = [
        await loop.create_server(partial(Engine, answer, args.pace), "127.0.0.1", 0, backlog=1024)
        for answer in (PREFILLED, *[decoded] * (args.engines - 1))
    ]
    ports = [server.sockets[0].getsockname()[1] for server in servers]
    print(json.dumps(ports), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
