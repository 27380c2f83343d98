"""Counters and histograms in Prometheus' text format, cheap enough for every request.

Plain numbers in one event loop: no locks, no registry of the process.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Counter:
    """A number per set of label values; used for gauges too."""

    def __init__(self, name: str, help_text: str, labels: Sequence[str] = ()) -> None:
        self.name = name
        self._help = help_text
        self._labels = tuple(labels)
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0}

    def add(self, *labels: str, value: float = 1) -> None:
        self._values[labels] = self._values.get(labels, 0) + value

    def value(self, *labels: str) -> float:
        return self._values.get(labels, 0)

    def render(self) -> Iterable[str]:
        yield f"# HELP {self.name} {self._help}"
        yield f"# TYPE {self.name} counter"
        for labels, value in sorted(self._values.items()):
            yield f"{self.name}{_labels(self._labels, labels)} {value:g}"


class Histogram:
    """Observed values in buckets (upper bounds, inclusive)."""

    def __init__(self, name: str, help_text: str, bounds: Sequence[float] = SECONDS) -> None:
        self.name = name
        self._help = help_text
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def render(self) -> Iterable[str]:
        yield f"# HELP {self.name} {self._help}"
        yield f"# TYPE {self.name} histogram"
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{self.name}_bucket{{le="{bound}"}} {total}'
        yield f"{self.name}_sum {self._sum:.6f}"
        yield f"{self.name}_count {total}"


def gauge(
    name: str, help_text: str, labels: Sequence[str], rows: Iterable[tuple[Sequence[str], float]]
) -> Iterable[str]:
    """Lines of a gauge whose values are read when asked for."""
    yield f"# HELP {name} {help_text}"
    yield f"# TYPE {name} gauge"
    for values, value in rows:
        yield f"{name}{_labels(labels, values)} {value:g}"


def _labels(names: Sequence[str], values: Sequence[str]) -> str:
    if not names:
        return ""
    pairs = (f'{name}="{_escape(value)}"' for name, value in zip(names, values, strict=True))
    return "{" + ",".join(pairs) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class Metrics:
    """Everything the proxy counts. Names are interface: tests and dashboards use them."""

    def __init__(self) -> None:
        self.requests = Counter(
            "pd_proxy_requests_total",
            "Requests that ended, by how they were served and the status the client got.",
            ("endpoint", "path", "status"),
        )
        self.failures = Counter(
            "pd_proxy_failures_total",
            "Exchanges with an engine that failed, by leg and cause.",
            ("leg", "instance", "cause"),
        )
        self.retries = Counter(
            "pd_proxy_retries_total", "Legs tried again on another instance.", ("leg",)
        )
        self.aborts = Counter(
            "pd_proxy_client_aborts_total", "Requests given up by the client.", ("phase",)
        )
        self.broken_streams = Counter(
            "pd_proxy_broken_streams_total",
            "Answers that broke off after their first byte.",
            ("instance",),
        )
        self.rejected = Counter("pd_proxy_rejected_total", "Requests not admitted.", ("reason",))
        self.kv_taken = Counter(
            "pd_proxy_kv_taken_total", "Prefilled KV that a decoder took for its request."
        )
        self.kv_released = Counter(
            "pd_proxy_kv_released_total",
            "Prefilled KV freed without being needed, by handing it to a decoder.",
            ("how",),
        )
        self.kv_left = Counter(
            "pd_proxy_kv_left_total",
            "Prefilled KV left to the connector's own timeout.",
            ("why",),
        )
        self.prefill = Histogram("pd_proxy_prefill_seconds", "Duration of the prefill leg.")
        self.first_token = Histogram(
            "pd_proxy_first_token_seconds", "From a request's arrival to its first byte."
        )
        self.duration = Histogram("pd_proxy_request_seconds", "From arrival to the last byte.")

    def render(self) -> list[str]:
        lines: list[str] = []
        for metric in vars(self).values():
            lines.extend(metric.render())
        return lines
