"""What lies under a symptom of the service: one fault, one root."""

from __future__ import annotations

import pytest

from pd_validate.checks.explain import explained
from pd_validate.findings import Finding, Where, root_findings

P = Where(host="p1", instance="prefill-1")
D1 = Where(host="d1", instance="decode-1")
D2 = Where(host="d2", instance="decode-2")
PROXY = Where(host="p1", instance="proxy")
PULL = Where(host="d1", instance="decode-1", peer_host="p1", peer_instance="prefill-1")


def at(id_: str, where: Where) -> Finding:
    return Finding(id=id_, where=where)


@pytest.mark.parametrize(
    ("cause", "symptom"),
    [
        (at("engine.exited", D1), at("service.error", D1)),
        (at("engine.exited", D1), at("service.error", PROXY)),
        (at("engine.exited", D1), at("drain.leak", P)),
        (at("service.error", D1), at("drain.leak", P)),
        (at("engine.exited", P), at("kv.missing", PULL)),
        (at("engine.hung", D1), at("service.timeout", PROXY)),
        (at("kvlink.failed", D1), at("kv.missing", D1)),
        (at("kv.missing", D1), at("service.error", D1)),
        (at("kv.corrupt", D1), at("parity.diverged", D1)),
        (at("kv.corrupt", D1), at("determinism.diverged", PROXY)),
        (at("kv.stale", D1), at("golden.diverged", PROXY)),
        (at("service.error", D1), at("service.error", PROXY)),
        (at("parity.diverged", D1), at("determinism.diverged", D1)),
    ],
    ids=lambda finding: f"{finding.id}@{finding.where}",
)
def test_the_lower_one_is_the_root(cause: Finding, symptom: Finding) -> None:
    """In whatever order they were found."""
    for order in ([cause, symptom], [symptom, cause]):
        assert root_findings(explained(order)) == [cause]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (at("engine.exited", D1), at("service.error", D2)),
        (at("kv.corrupt", D1), at("parity.diverged", D2)),
        (at("kv.missing", D1), at("kv.missing", D2)),
        (at("service.error", D1), at("service.error", D2)),
        (at("service.error", D1), at("drain.leak", D1)),
        (at("service.error", PROXY), at("drain.leak", P)),
        (at("service.error", D1), at("drain.stuck", P)),
        (at("engine.exited", D1), at("kv.corrupt", D1)),
        (at("engine.exited", D1), at("proxy.empty", PROXY)),
        (at("kv.slow", D1), at("parity.diverged", D1)),
    ],
    ids=lambda finding: f"{finding.id}@{finding.where}",
)
def test_two_faults_stay_two(one: Finding, other: Finding) -> None:
    assert len(root_findings(explained([one, other]))) == 2


def test_causes_are_filled_in_once() -> None:
    """At the end of a run everything is explained again."""
    again = explained(explained([at("engine.exited", D1), at("service.error", D1)]))
    assert [len(finding.because) for finding in again] == [0, 1]
