"""Loads that a connector gave up, links that it made anew, answers that a proxy made up for."""

from __future__ import annotations

from pd_validate.checks.pulls import check_failed_loads, check_remade_links
from pd_validate.checks.served import check_access_logs
from pd_validate.findings import Where
from pd_validate.traffic.trace import TraceRecord

HOSTS = {"prefill-1": "p1", "decode-1": "d1", "decode-2": "d2"}


def record(request: str, rank: int, phase: str, instance: str = "decode-1") -> TraceRecord:
    return TraceRecord.model_validate(
        {
            "request": request,
            "remote_request": "P-1" if phase != "produced" else None,
            "instance": instance,
            "rank": rank,
            "phase": phase,
            "layers": ["model.layers.0", "model.layers.1"],
            "blocks": [4, 5, 6],
            "tokens": 300,
            "digests": {},
            "bytes": 1,
        }
    )


def test_a_load_that_failed_is_missing_kv_at_its_rank() -> None:
    records = [record("cmpl-pd-1", 1, "failed"), record("P-1", 1, "produced", "prefill-1")]
    log = [
        "(Worker_TP0 pid=6) ERROR [peers.py:152] KV pull of cmpl-pd-1 failed (link): not this one",
        "(Worker_TP1 pid=7) ERROR [peers.py:152] KV pull of cmpl-pd-1 failed (timeout): 20 s",
    ]
    (finding,) = check_failed_loads(records, HOSTS, {"decode-1": log})
    assert finding.id == "kv.missing"
    assert finding.where == Where(
        host="d1",
        instance="decode-1",
        rank=1,
        request="cmpl-pd-1",
        peer_host="p1",
        peer_instance="prefill-1",
    )
    assert finding.got == "the connector gave the load up (timeout)"
    assert finding.evidence == (log[1],)


def test_a_load_without_a_link_is_a_link_that_failed() -> None:
    log = ["ERROR KV pull of cmpl-pd-1 failed (unreachable): no answer"]
    (finding,) = check_failed_loads([record("cmpl-pd-1", 0, "failed")], HOSTS, {"decode-1": log})
    assert finding.id == "kvlink.failed"


def test_loads_that_fail_again_and_again_are_one_finding() -> None:
    records = [record(f"cmpl-pd-{n}", 0, "failed") for n in range(3)]
    (finding,) = check_failed_loads(records, HOSTS, {})
    assert finding.where.request == "cmpl-pd-0"
    assert finding.got == "the connector gave the load up, and 2 more"


def test_loads_that_arrived_or_were_given_up_on_purpose_are_no_finding() -> None:
    records = [
        record("cmpl-pd-1", 0, "received"),
        record("cmpl-pd-left-2", 0, "failed"),  # its client hung up: the harness itself
        record("cmpl-somebody-else", 0, "failed"),
    ]
    assert check_failed_loads(records, HOSTS, {}) == []


def test_a_link_that_was_made_anew_is_named() -> None:
    line = "(Worker_TP1 pid=7) WARNING KV pull of cmpl-pd-1: LLM_FAILED; trying a fresh link"
    logs = {"decode-1": [line, "INFO up", line], "decode-2": ["INFO KV link to x is up"]}
    (finding,) = check_remade_links(logs, HOSTS)
    assert finding.id == "kvlink.failed"
    assert finding.where == Where(host="d1", instance="decode-1", rank=1)
    assert finding.got == "it broke in 2 pulls and was made anew"


def test_a_5xx_that_no_client_saw_is_in_the_access_log() -> None:
    good = 'INFO:     127.0.0.1:40532 - "POST /v1/completions HTTP/1.1" 200 OK'
    refused = 'INFO:     127.0.0.1:40532 - "POST /v1/completions HTTP/1.1" 400 Bad Request'
    bad = 'INFO:     127.0.0.1:9 - "POST /v1/chat/completions HTTP/1.1" 500 Internal Server Error'
    early = 'INFO:     127.0.0.1:9 - "GET /health HTTP/1.1" 503 Service Unavailable'
    logs = {"decode-1": [good, refused, early], "decode-2": [good, bad]}
    (finding,) = check_access_logs(logs, HOSTS)
    assert finding.id == "service.error"
    assert finding.where == Where(host="d2", instance="decode-2")
    assert finding.got == "1 (500), says its log"
