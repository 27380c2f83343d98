"""The peer: a PD proxy built as the guide's example is, on FastAPI, httpx and uvicorn.

A minimal equivalent of our own: round robin, prefill with one token, then the decoder's
answer streamed through. No error handling, no accounting: it can only be faster for it.
"""

from __future__ import annotations

import argparse
import itertools
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse


def app_for(prefillers: list[int], decoders: list[int]) -> FastAPI:
    app = FastAPI()
    no_limit = httpx.Limits(max_connections=None, max_keepalive_connections=None)

    def turns(ports: list[int]) -> Iterator[httpx.AsyncClient]:
        return itertools.cycle(
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=None, limits=no_limit)
            for port in ports
        )

    prefill_turns, decode_turns = turns(prefillers), turns(decoders)

    @app.post("/v1/completions")
    async def completions(request: Request) -> StreamingResponse:
        body: dict[str, Any] = await request.json()
        headers = {"X-Request-Id": str(uuid.uuid4())}
        one = body | {
            "max_tokens": 1,
            "stream": False,
            "kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False},
        }
        answer = await next(prefill_turns).post("/v1/completions", json=one, headers=headers)
        answer.raise_for_status()
        full = body | {"kv_transfer_params": answer.json()["kv_transfer_params"]}
        decoder = next(decode_turns)

        async def relay() -> AsyncIterator[bytes]:
            async with decoder.stream(
                "POST", "/v1/completions", json=full, headers=headers
            ) as response:
                async for part in response.aiter_bytes():
                    yield part

        return StreamingResponse(relay(), media_type="application/json")

    return app


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--port", type=int, required=True)
    parse.add_argument("--prefillers", type=int, nargs="+", required=True)
    parse.add_argument("--decoders", type=int, nargs="+", required=True)
    args = parse.parse_args()
    app = app_for(args.prefillers, args.decoders)
    uvicorn.run(app, host="127.0.0.1", port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
