"""The connector's figures, one Prometheus text file per worker.

Workers are processes of their own and vLLM's registry is the API server's, so each rank
writes `<directory>/<instance>-rank<r>.prom`, atomically, at most once a second.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, write_to_textfile

logger = logging.getLogger(f"vllm.{__name__}")  # vLLM configures loggers below its own
WRITE_INTERVAL = 1.0  # seconds
SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)


class Metrics:
    """Counters of one rank; safe to use from any thread. Without a directory nothing is written."""

    def __init__(self, directory: str | None, instance: str, rank: int, role: str) -> None:
        self.registry = CollectorRegistry()
        labels = {"instance": instance, "rank": str(rank), "role": role}
        self._labels = labels
        names = list(labels)
        reg = self.registry
        self._pulls = Counter("pd_kv_pulls", "Loads by outcome", [*names, "outcome"], registry=reg)
        self._failures = Counter(
            "pd_kv_failures", "Failed loads by cause", [*names, "cause"], registry=reg
        )
        self._bytes = Counter("pd_kv_pulled_bytes", "Bytes pulled", names, registry=reg)
        self._seconds = Histogram(
            "pd_kv_pull_seconds", "Seconds in pull_blocks", names, registry=reg, buckets=SECONDS
        )
        self._link = Gauge(
            "pd_kv_link_up",
            "1 when the KV link to this peer is established, 0 when not",
            [*names, "cluster", "device_ip", "server"],
            registry=reg,
        )
        self._link_failures = Counter(
            "pd_kv_link_failures", "Links that failed, by cause", [*names, "cause"], registry=reg
        )
        self._requests = Gauge("pd_kv_held_requests", "Requests held", names, registry=reg)
        self._blocks = Gauge("pd_kv_held_blocks", "Blocks held for decoders", names, registry=reg)
        self._ends = Counter(
            "pd_kv_holds_ended",
            "Holds by how they ended; expired means released late",
            [*names, "end"],
            registry=reg,
        )
        for metric in (self._bytes, self._seconds, self._requests, self._blocks):
            metric.labels(**labels)  # so that a file of an idle rank shows zeros, not gaps
        self._path = Path(directory) / f"{instance}-rank{rank}.prom" if directory else None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def pulled(self, size: int, seconds: float) -> None:
        self._pulls.labels(**self._labels, outcome="ok").inc()
        self._bytes.labels(**self._labels).inc(size)
        self._seconds.labels(**self._labels).observe(seconds)

    def failed(self, cause: str) -> None:
        self._pulls.labels(**self._labels, outcome="failed").inc()
        self._failures.labels(**self._labels, cause=cause).inc()

    def link(self, cluster: int, device_ip: str, server: str, *, up: bool) -> None:
        self._link.labels(
            **self._labels, cluster=str(cluster), device_ip=device_ip, server=server
        ).set(up)

    def link_failed(self, cause: str) -> None:
        self._link_failures.labels(**self._labels, cause=cause).inc()

    def held(self, requests: int, blocks: int) -> None:
        self._requests.labels(**self._labels).set(requests)
        self._blocks.labels(**self._labels).set(blocks)

    def ended(self, ends: Mapping[str, str]) -> None:
        for end in ends.values():
            self._ends.labels(**self._labels, end=end).inc()

    def start(self) -> None:
        """Write the file now and then once a second."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._write(self._path)
        self._thread = threading.Thread(
            target=self._run, args=(self._path,), name="kv-metrics", daemon=True
        )
        self._thread.start()

    def _run(self, path: Path) -> None:
        while not self._stop.wait(WRITE_INTERVAL):
            self._write(path)
        self._write(path)

    def _write(self, path: Path) -> None:
        try:
            write_to_textfile(os.fspath(path), self.registry)
        except OSError as error:  # a full disk must not end the engine
            logger.warning("KV metrics: %s: %s", path, error)

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
