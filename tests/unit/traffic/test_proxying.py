"""What a proxy must pass on: each verdict fires, and a faithful proxy has none."""

from __future__ import annotations

import pytest

from pd_validate.checks.proxying import (
    check_benchmark,
    check_event_stream,
    check_load_released,
    check_same_status,
    check_same_texts,
)
from pd_validate.findings import Finding, Where
from pd_validate.traffic.benchmark import Benchmark, Workload
from pd_validate.traffic.client import Answer

PROXY = Where(instance="proxy")
REFUSED = Answer("r", 400, "", error='{"error": "prompt too long"}')


def ids(findings: list[Finding]) -> list[str]:
    return [finding.id for finding in findings]


def streamed(content_type: str, *, done: bool = True) -> Answer:
    return Answer("r", 200, "hi", headers={"content-type": content_type}, done=done)


def test_the_engines_refusal_reaches_the_client() -> None:
    assert check_same_status(REFUSED, REFUSED, PROXY) == []


def test_another_status_than_the_engines() -> None:
    bare = Answer("r", 500, "", error="Internal Server Error")
    assert ids(check_same_status(REFUSED, bare, PROXY)) == ["proxy.wrong-status"]


def test_a_refusal_without_a_reason() -> None:
    assert ids(check_same_status(REFUSED, Answer("r", 400, "", error=" "), PROXY)) == [
        "proxy.empty"
    ]


def test_a_stream_that_says_so_and_ends() -> None:
    assert check_event_stream(streamed("text/event-stream; charset=utf-8"), PROXY) == []


def test_a_stream_sent_as_json() -> None:
    found = check_event_stream(streamed("application/json"), PROXY)
    assert ids(found) == ["proxy.wrong-status"]


def test_a_stream_without_its_end() -> None:
    found = check_event_stream(streamed("text/event-stream", done=False), PROXY)
    assert ids(found) == ["proxy.cut"]


def test_the_same_texts_through_the_proxy() -> None:
    assert check_same_texts({"chat": "hi"}, {"chat": "hi"}, PROXY) == []


@pytest.mark.parametrize(
    ("got", "id_"),
    [
        ("ho", "parity.diverged"),
        ("", "proxy.empty"),
        ("hihi", "proxy.duplicate"),
        ("h", "proxy.cut"),
    ],
)
def test_another_text_through_the_proxy(got: str, id_: str) -> None:
    through = {"chat": got, "completion": "a"}
    (found,) = check_same_texts({"chat": "hi", "completion": "a"}, through, PROXY)
    assert (found.id, found.got) == (id_, repr(got))


WORKLOAD = Workload(requests=4, concurrency=2, prompt_tokens=10, output_tokens=8)


def benchmark(completed: int, tokens: int, *errors: str) -> Benchmark:
    return Benchmark(
        completed=completed,
        total_output_tokens=tokens,
        request_throughput=1.0,
        median_ttft_ms=1.0,
        median_tpot_ms=1.0,
        errors=errors,
    )


def test_a_benchmark_in_which_all_is_answered() -> None:
    assert check_benchmark(benchmark(4, 32, "", "", "", ""), WORKLOAD, PROXY) == []


def test_a_benchmark_with_a_failed_request_says_its_error() -> None:
    (found,) = check_benchmark(benchmark(3, 24, "", "Traceback:\n Bad Gateway"), WORKLOAD, PROXY)
    assert (found.id, found.got) == (
        "service.error",
        "3 answers, 24 tokens; the first error: Bad Gateway",
    )


def test_a_benchmark_with_short_answers() -> None:
    assert ids(check_benchmark(benchmark(4, 30), WORKLOAD, PROXY)) == ["service.error"]


METRICS = """\
# TYPE pd_proxy_in_flight gauge
pd_proxy_in_flight 0
# TYPE pd_proxy_instance_in_flight gauge
pd_proxy_instance_in_flight{role="decode",instance="decode-1"} HELD
# TYPE pd_proxy_requests counter
pd_proxy_requests_total{status="200"} 7
"""


def test_load_that_stays_at_the_proxy() -> None:
    (finding,) = check_load_released(METRICS.replace("HELD", "3"), PROXY, waited=30)
    assert (finding.id, finding.where) == ("proxy.stuck", PROXY)
    assert finding.got == (
        "pd_proxy_instance_in_flight{role=decode,instance=decode-1} 3 after 30 s"
    )


def test_a_proxy_that_has_released_all_and_one_that_says_nothing() -> None:
    assert check_load_released(METRICS.replace("HELD", "0"), PROXY, waited=30) == []
    assert check_load_released("", PROXY, waited=30) == []
