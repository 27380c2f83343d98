"""The record: what goes in comes out, and the small judgements made on it."""

import pytest
from examples import EXAMPLES, dead_link
from pydantic import ValidationError

from pd_validate.findings import Finding, Severity, Verdict, Where
from pd_validate.report.families import families
from pd_validate.report.record import RunRecord, differing_hosts, exit_meaning, worst
from pd_validate.spec.models import Cluster


@pytest.mark.parametrize("name", EXAMPLES)
def test_round_trip_through_json(name, tmp_path):
    record = EXAMPLES[name]()
    path = tmp_path / "record.json"
    path.write_text(record.to_json(), encoding="utf-8")
    assert RunRecord.load(path) == record


def test_unknown_key_is_refused():
    with pytest.raises(ValidationError, match="hostz"):
        RunRecord.model_validate({**dead_link().model_dump(), "hostz": []})


def test_topology_is_taken_from_the_cluster_file():
    cluster = Cluster.model_validate(
        {
            "hosts": {"p1": {"address": "192.0.0.1"}, "d1": {"address": "192.0.0.2"}},
            "model": {"path": "/models/qwen"},
            "instances": {
                "prefill-1": {"role": "prefill", "host": "p1", "devices": [0, 1]},
                "decode-1": {"role": "decode", "host": "d1", "devices": [7, 6], "port": 13701},
            },
            "proxy": {"host": "p1"},
        }
    )
    record = dead_link()
    record.add_cluster(cluster, {"p1": range(8), "d1": range(8)})
    assert [(host.name, host.address, len(host.devices)) for host in record.hosts] == [
        ("p1", "192.0.0.1", 8),
        ("d1", "192.0.0.2", 8),
    ]
    decode = record.instances[1]
    assert (decode.name, decode.host, decode.devices, decode.port) == (
        "decode-1",
        "d1",
        (7, 6),
        13701,
    )
    assert record.proxy is not None
    assert record.proxy.port == 8080


@pytest.mark.parametrize(
    ("values", "marked"),
    [
        ({"p1": "a", "d1": "a", "d2": "a"}, set()),
        ({"p1": "a", "d1": "b", "d2": "a"}, {"d1"}),
        ({"p1": "a", "d1": "b"}, {"p1", "d1"}),  # nobody can say which one is wrong
        ({}, set()),
    ],
)
def test_hosts_that_differ_are_the_minority(values, marked):
    assert differing_hosts(values) == marked


def test_worst_verdict():
    assert worst([]) is None
    assert worst([Verdict.PASS, Verdict.UNKNOWN]) is Verdict.UNKNOWN
    assert worst([Verdict.UNKNOWN, Verdict.FAIL, Verdict.PASS]) is Verdict.FAIL


def test_exit_codes_have_a_meaning():
    assert exit_meaning(10) == "the cluster is not fit (pre-flight)"
    assert exit_meaning(None) == exit_meaning(99) == ""


# Families: the cause first, its consequences folded under it.


def _finding(finding_id, because=(), severity=Severity.FAIL, **where):
    return Finding(
        id=finding_id,
        where=Where(**where),
        severity=severity,
        because=tuple(cause.as_cause() for cause in because),
    )


def test_consequences_of_consequences_fold_under_the_root():
    link = _finding("link.down", host="d1", device=6)
    kvlink = _finding("kvlink.failed", [link], instance="decode-1")
    service = _finding("service.error", [kvlink])
    (family,) = families([service, kvlink, link])
    assert family.root == link
    assert family.consequences == (kvlink, service)


def test_failures_come_first_then_lower_layers():
    warn = _finding("link.no-neighbour", severity=Severity.WARN)
    unknown = _finding("tool.busy", severity=Severity.UNKNOWN)
    service, link = _finding("service.error"), _finding("link.down")
    roots = [family.root for family in families([warn, unknown, service, link])]
    assert roots == [link, service, unknown, warn]


def test_consequence_of_two_causes_stands_once_under_the_lower_one():
    link, tls = _finding("link.down"), _finding("tls.mismatch")
    kvlink = _finding("kvlink.failed", [tls, link])
    first, second = families([tls, kvlink, link])
    assert (first.root, first.consequences) == (link, (kvlink,))
    assert (second.root, second.consequences) == (tls, ())


def test_no_finding_vanishes():
    missing = _finding("link.down")
    orphan = _finding("kvlink.failed", [missing])
    first = _finding("service.error", [_finding("service.timeout")])
    second = _finding("service.timeout", [_finding("service.error")])
    shown = [family.root for family in families([orphan, first, second])]
    assert shown == [orphan, first, second]
