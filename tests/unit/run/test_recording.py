"""What a run has seen, in the form of its record. Real facts: of simulated hosts, over SSH."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from foreign import Foreign

from pd_validate import __version__, recording
from pd_validate.catalogue import Layer
from pd_validate.facts.hosts import ClusterFacts, read_cluster, requests_of
from pd_validate.findings import Finding, Verdict, Where
from pd_validate.hosts.remote import RemoteHost
from pd_validate.report.record import CheckResult, InstanceNode, RunRecord
from pd_validate.report.states import State, States
from pd_validate.spec.load import load_cluster
from pd_validate.spec.models import Cluster, Role
from pd_validate.spec.plan import launch_plan, run_dirs
from pd_validate.topology.topology import LinkProof
from pd_validate.traffic.client import Answer

ANSWER = Answer("r1", 200, "text", ttft=0.2, seconds=1.2, completion_tokens=11)
PAIR = Where(host="d1", instance="decode-1", peer_host="p1", peer_instance="prefill-1")


@pytest.fixture(scope="module")
def cluster(foreign: Foreign) -> Cluster:
    return load_cluster(foreign.directory / "cluster.yaml")


@pytest.fixture(scope="module")
def facts(cluster: Cluster) -> Iterator[ClusterFacts]:
    plan = launch_plan(cluster, run_dirs=run_dirs(cluster, "recording"))
    hosts = {name: RemoteHost.of_cluster(cluster, name) for name in cluster.hosts}
    try:
        yield read_cluster(hosts, requests_of(cluster, plan))
    finally:
        for host in hosts.values():
            host.close()


def test_environment(cluster: Cluster, facts: ClusterFacts) -> None:
    told = recording.environment(cluster, facts)
    assert told["hardware"] == "atlas-800t-a2"
    assert told["pd-validate"] == __version__
    for name in ("driver", "firmware", "torch", "vllm", "python", "kernel", "model digest"):
        values = told[name]
        assert isinstance(values, dict), name
        assert list(values) == list(cluster.hosts), name
        assert len(set(values.values())) == 1, name
    assert "torch_npu" not in told  # nowhere installed here


def test_environment_of_a_host_that_differs(cluster: Cluster, facts: ClusterFacts) -> None:
    d1 = facts.hosts["d1"]
    assert d1.model is not None
    name, (size, _) = next(iter(d1.model.files.items()))
    model = replace(d1.model, files={**d1.model.files, name: (size, "another")})
    hosts = {**facts.hosts, "d1": replace(d1, model=model)}
    digests = recording.environment(cluster, replace(facts, hosts=hosts))["model digest"]
    assert isinstance(digests, dict)
    assert digests["p1"] == digests["d2"] != digests["d1"]


def test_latency_of_streamed_answers() -> None:
    """10 tokens after the first one in one second."""
    (timing,) = recording.requests([ANSWER])
    assert timing.request == "r1"
    assert timing.ttft == pytest.approx(0.2)
    assert timing.tpot == pytest.approx(0.1)


@pytest.mark.parametrize("answer", [replace(ANSWER, status=500), replace(ANSWER, ttft=None)])
def test_what_has_no_latency(answer: Answer) -> None:
    assert recording.requests([answer]) == []


def test_one_token_has_no_time_per_token() -> None:
    (timing,) = recording.requests([replace(ANSWER, completion_tokens=1)])
    assert timing.tpot is None


@pytest.mark.parametrize(
    ("findings", "verdict", "state"),
    [
        ((), Verdict.PASS, State.PASS),
        ((Finding(id="kvlink.failed", where=PAIR),), Verdict.FAIL, State.FAIL),
    ],
)
def test_links_that_bring_up_proved(
    findings: tuple[Finding, ...], verdict: Verdict, state: State
) -> None:
    """They are the KV link's step of the ladder, and the colour of the arrow between the two."""
    (check,) = recording.link_checks([LinkProof(PAIR, findings, 0.5)])
    assert (check.id, check.layer, check.verdict) == ("kv-link", Layer.KV_LINK, verdict)
    states = States(with_checks([check], findings))
    assert states.layer(Layer.KV_LINK).state is state
    source, target = states_instances()
    assert states.kv_link(source, target) is state
    other = target.model_copy(update={"name": "decode-2"})
    assert states.kv_link(source, other) is State.NONE


def states_instances() -> tuple[InstanceNode, InstanceNode]:
    return (
        InstanceNode(name="prefill-1", role=Role.PREFILL, host="p1"),
        InstanceNode(name="decode-1", role=Role.DECODE, host="d1"),
    )


def with_checks(checks: list[CheckResult], findings: tuple[Finding, ...]) -> RunRecord:
    record = RunRecord.model_validate({"cluster": "c", "started": "2026-01-01T00:00:00Z"})
    record.instances = list(states_instances())
    record.checks, record.findings = checks, list(findings)
    return record


def test_what_was_left() -> None:
    left = Finding(id="leftover.port", where=Where(host="d1", port=8080), got="a listener")
    told = recording.leftovers({"p1": [], "d1": [left]})
    assert told == {"p1": [], "d1": ["leftover.port: a listener"]}


def test_usage_goes_into_the_record_as_it_was_seen() -> None:
    (usage,) = recording.kv_usage({"decode-1": [(10.0, 0.5), (11.0, 0.0)]})
    assert json.loads(usage.model_dump_json()) == {
        "instance": "decode-1",
        "samples": [[10.0, 0.5], [11.0, 0.0]],
    }
