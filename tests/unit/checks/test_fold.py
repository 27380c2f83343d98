"""One finding per fault, not one per request, rank or layer that met it."""

from __future__ import annotations

from typing import Any

from pd_validate.checks.fold import folded
from pd_validate.findings import Finding, Severity, Where

D1 = {"host": "d1", "instance": "decode-1"}
PULL = {**D1, "peer_host": "p1", "peer_instance": "prefill-1"}


def at(id_: str, **place: Any) -> Finding:
    return Finding(id=id_, where=Where(**place), got="wrong", evidence=(str(place),))


def told(*findings: Finding) -> list[str]:
    return [f"{finding.id} at {finding.where}" for finding in folded(findings)]


def test_a_decoder_that_fails_every_request_is_one_fault() -> None:
    (finding,) = folded([at("service.error", **D1, request=f"r{n}") for n in range(5)])
    assert finding.where == Where(**D1, request="r0")
    assert finding.got == "wrong; in 5 requests"


def test_a_pull_that_brings_zeros_everywhere_is_one_fault() -> None:
    """Its place is what all of it shares, and the first layer to look at."""
    found = [
        at("kv.missing", **PULL, rank=rank, layer=layer, request=request, block=9 + layer)
        for request in ("r1", "r2")
        for rank in (0, 1)
        for layer in (0, 1, 2, 3)
    ]
    (finding,) = folded(found)
    assert (finding.where.instance, finding.where.rank, finding.where.layer) == (
        "decode-1",
        None,
        0,
    )
    assert finding.got == "wrong; in layers 0, 1, 2, 3; on ranks 0, 1; in 2 requests"
    assert len(finding.evidence) == 8


def test_faults_of_other_requests_at_other_places_stay_apart() -> None:
    found = [
        at("kv.corrupt", **PULL, rank=0, layer=1, request="r1"),
        at("kv.corrupt", **PULL, rank=1, layer=2, request="r2"),
        at("kv.swapped", **PULL, rank=0, layer=1, request="r1"),
    ]
    assert len(folded(found)) == 3


def test_a_place_that_says_less_goes_into_the_one_that_says_more() -> None:
    """In either order: an access log names no peer, and a failed link does."""
    less, more = at("service.error", **D1), at("service.error", **PULL)
    for order in ([less, more], [more, less]):
        (finding,) = folded(order)
        assert finding.where == more.where
    assert len(folded([at("service.error", **D1), at("service.timeout", **PULL)])) == 2


def test_two_peers_are_two_faults() -> None:
    other = {**D1, "peer_host": "p2", "peer_instance": "prefill-2"}
    assert len(folded([at("kvlink.failed", **PULL), at("kvlink.failed", **other)])) == 2


def test_ranks_without_a_request_stay_apart() -> None:
    """The rank table of two ranks has two wrong lines."""
    found = [at("ranktable.device", **D1, rank=0), at("ranktable.device", **D1, rank=1)]
    assert len(folded(found)) == 2


def test_hosts_and_devices_are_not_folded() -> None:
    found = [at("link.down", host="d1"), at("link.down", host="d1", device=6)]
    assert told(*found) == ["link.down at d1", "link.down at d1 npu6"]


def test_the_worst_counts() -> None:
    warned = at("kv.missing", **D1).model_copy(update={"severity": Severity.UNKNOWN})
    (finding,) = folded([warned, at("kv.missing", **D1, request="r")])
    assert finding.severity is Severity.FAIL
