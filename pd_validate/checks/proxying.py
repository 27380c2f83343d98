"""Does the proxy pass on what the engine says? Pure verdicts on pairs of answers.

Sources: failures.md of this project's research, i.e. vllm-ascend issues 13140 (200 with an
empty body), 12097 (a prefiller's 400 becomes 500) and 6985 (a stream sent as JSON).
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from pd_validate.findings import Finding, Where
from pd_validate.traffic.benchmark import Benchmark, Workload
from pd_validate.traffic.client import Answer


def check_same_status(engine: Answer, proxy: Answer, where: Where) -> list[Finding]:
    """A request that an engine refuses must be refused alike, with a body that says why."""
    if proxy.status != engine.status:
        return [
            Finding(
                id="proxy.wrong-status",
                where=where,
                expected=f"{engine.status}, as the engine alone answers",
                got=f"{proxy.status}: {(proxy.error or proxy.text)[:200]}",
            )
        ]
    if not proxy.ok and not proxy.error.strip():
        return [
            Finding(
                id="proxy.empty",
                where=where,
                expected=f"a body with the {engine.status}: {engine.error[:200]}",
                got="nothing",
            )
        ]
    return []


def check_event_stream(answer: Answer, where: Where) -> list[Finding]:
    """A streamed answer must say that it is one, and end with [DONE]."""
    kind = answer.headers.get("content-type", "")
    if not kind.startswith("text/event-stream"):
        return [
            Finding(
                id="proxy.wrong-status",
                where=where,
                expected="content-type text/event-stream for a streamed answer",
                got=kind or "none",
            )
        ]
    if not answer.done:
        return [
            Finding(
                id="proxy.cut",
                where=where,
                expected="[DONE] at the end of the stream",
                got=f"an end after {len(answer.text)} characters",
            )
        ]
    return []


def check_same_texts(
    alone: Mapping[str, str], through: Mapping[str, str], where: Where
) -> list[Finding]:
    """What a client read from an engine alone and through the proxy, by kind of request."""
    return [
        Finding(
            id=_what_happened_to(text, through[kind]),
            where=where,
            expected=f"{kind}: {text!r}, as from the engine alone",
            got=repr(through[kind]),
        )
        for kind, text in alone.items()
        if through[kind] != text
    ]


def _what_happened_to(text: str, got: str) -> str:
    if not got:
        return "proxy.empty"
    if got == text * 2:
        return "proxy.duplicate"
    return "proxy.cut" if text.startswith(got) else "parity.diverged"


def check_benchmark(result: Benchmark, workload: Workload, where: Where) -> list[Finding]:
    """Every request of a benchmark must be answered, with as many tokens as it asked for."""
    errors = [error.strip().splitlines()[-1].strip() for error in result.errors if error.strip()]
    expected = workload.requests * workload.output_tokens
    if result.completed == workload.requests and result.total_output_tokens == expected:
        return []
    return [
        Finding(
            id="service.error",
            where=where,
            expected=f"{workload.requests} answers with {expected} tokens in all",
            got=f"{result.completed} answers, {result.total_output_tokens} tokens"
            + (f"; the first error: {errors[0][:200]}" if errors else ""),
        )
    ]


# What our proxy says of itself on /metrics; another proxy that says nothing is not judged.
_LOAD = (
    "pd_proxy_in_flight",
    "pd_proxy_queued",
    "pd_proxy_cleaning_up",
    "pd_proxy_instance_in_flight",
    "pd_proxy_instance_load_tokens",
)


def held_load(text: str) -> dict[str, float]:
    """Load figures of the proxy's Prometheus text that are not zero, by name and labels."""
    held = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in _LOAD and sample.value != 0:
                told = ",".join(f"{key}={value}" for key, value in sample.labels.items())
                held[f"{sample.name}{{{told}}}" if told else sample.name] = sample.value
    return held


def check_load_released(text: str, where: Where, *, waited: float) -> list[Finding]:
    """After all requests ended the proxy counts none; `waited`: seconds since (A36).

    Load that stays after clients left sends all later requests to the other instances.
    """
    held = held_load(text)
    if not held:
        return []
    return [
        Finding(
            id="proxy.stuck",
            where=where,
            expected="no load in the proxy's own figures",
            got=", ".join(f"{name} {value:g}" for name, value in held.items())
            + f" after {waited:.0f} s",
        )
    ]
