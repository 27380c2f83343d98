"""The launch: every instance and the proxy up, as planned, and one real answer."""

from __future__ import annotations

import json

import pytest

from pd_validate.checks.answers import check_served
from pd_validate.plugin import Judge
from pd_validate.session import Session
from pd_validate.topology.service import Service
from pd_validate.topology.topology import Topology

pytestmark = pytest.mark.topology


def test_instance_is_healthy(service: Service, instance: str) -> None:
    """/health answers 200, and the model is served under its planned name."""
    client = service.instances[instance]
    assert client.get("/health")[0] == 200
    assert service.cluster.model.served_name in client.models()


def test_instance_runs_as_planned(pd: Session, topology: Topology, instance: str) -> None:
    """The process on the host has the plan's environment, value by value."""
    launch = pd.plan.instances[instance]
    status = topology.status()[instance]
    assert status.alive
    environ = pd.environment_of_process(launch.host, status.pid)
    wrong = {
        name: f"planned {value!r}, is {environ.get(name)!r}"
        for name, value in launch.env.items()
        if environ.get(name) != value
    }
    assert not wrong, f"{instance} on {launch.host}: environment differs: {json.dumps(wrong)}"


def test_processes_live(topology: Topology, judge: Judge) -> None:
    """Nothing that was started has ended."""
    judge(topology.check_alive())


def test_guides_curl(service: Service, judge: Judge) -> None:
    """'Who are you?', 100 tokens, temperature 0, through the proxy: 200 and text."""
    answer = service.proxy.complete("Who are you?", max_tokens=100)
    judge(check_served(answer, service.where(service.proxy.name)))
    assert answer.completion_tokens
    assert answer.finish_reason in ("length", "stop")
    judge.note(f"answer: {answer.text!r}")


@pytest.mark.kv
def test_every_pair_is_linked(service: Service, prefiller: str, decoder: str, judge: Judge) -> None:
    """A request prefilled on this prefiller can be decoded on this decoder."""
    answer = service.disaggregate(prefiller, decoder, "Is this link up?", max_tokens=4)
    judge(check_served(answer, service.where(decoder, prefiller)))
