"""What the proxy is told: addresses, limits, deadlines. Defaults suit long generations."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.balancer import Address


@dataclass(frozen=True, slots=True)
class Config:
    """Seconds, bytes and counts; see `python -m proxy --help`."""

    host: str = "127.0.0.1"
    port: int = 8000
    prefillers: tuple[Address, ...] = ()
    decoders: tuple[Address, ...] = ()
    policy: str = "least-load"

    connect_seconds: float = 3.0
    prefill_seconds: float = 600.0  # the whole prefill leg, queueing in the engine included
    first_token_seconds: float = 600.0  # decode leg up to the first event of a stream
    gap_seconds: float = 120.0  # between two events of a stream
    answer_seconds: float = 3600.0  # decode leg of an answer that is not streamed
    send_seconds: float = 120.0  # for a client to take what waits for it
    handover_seconds: float = 5.0  # an unwanted request stays with a decoder to be admitted
    release_seconds: float = 30.0  # to find a decoder that takes over unwanted KV
    drain_seconds: float = 60.0  # after SIGTERM, for requests under way

    attempts: int = 3  # decoders (each with its prefill if needed) tried for one request
    failures: int = 3  # in a row take an instance out
    probe_seconds: float = 2.0  # between two health probes
    probe_failures: int = 3  # in a row take an instance out

    max_body: int = 64 * 1024 * 1024
    max_concurrent: int = 2048
    max_queue: int = 8192
    queue_seconds: float = 120.0

    access_log: str = "-"  # "-": standard output, "off", or a file
    admin_key: str = ""  # empty: no admin interface
