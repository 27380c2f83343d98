"""Scenario files: what is accepted, in which forms, and what an error says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from pd_validate.errors import SpecError
from pd_validate.findings import Where
from pd_validate.spec.models import InstanceSpec
from twin.cluster import cluster_file, described_cluster
from twin.fabric import FabricState, NetHealth, Product, healthy_cluster
from twin.names import check_names
from twin.scenario import (
    ClockFault,
    EnvFault,
    HttpFault,
    InstanceFault,
    ListenFault,
    Scenario,
    ToolFault,
    load_scenario,
)


@pytest.fixture
def fabric() -> FabricState:
    return healthy_cluster(HOSTS)


HOSTS = {"p1": "127.0.0.1", "d1": "127.0.0.2", "d2": "127.0.0.3"}


@pytest.fixture(scope="module")
def instances() -> Mapping[str, InstanceSpec]:
    return described_cluster(cluster_file("")).instances


def load(tmp_path: Path, text: str) -> Scenario:
    file = tmp_path / "scenario.yaml"
    file.write_text(text)
    return load_scenario(file)


def broken(tmp_path: Path, fabric: FabricState, *faults: str) -> FabricState:
    text = "faults:\n" + "".join(f"  - {fault}\n" for fault in faults)
    load(tmp_path, text).break_fabric(fabric)
    return fabric


# --- where `clean` may stand ----------------------------------------------------------------------

FORMS = {
    "below the list, as in the design": """\
expect:
  - {id: link.down, where: {host: d1, device: 6}}
  clean: false   # others may fail
""",
    "below a list at the margin": """\
expect:
- {id: link.down, where: {host: d1, device: 6}}
  clean: false
marks: network
""",
    "in the last item": """\
expect:
  - id: link.down
    where: {host: d1, device: 6}
    clean: false
""",
    "an item of the list": """\
expect:
  - {id: link.down, where: {host: d1, device: 6}}
  - clean: false
""",
    "a mapping": """\
expect:
  findings:
    - {id: link.down, where: {host: d1, device: 6}}
  clean: false
""",
    "at the top, after": """\
expect:
  - {id: link.down, where: {host: d1, device: 6}}
clean: false
""",
    "at the top, before a mapping": """\
clean: false
expect: {findings: [{id: link.down, where: {host: d1, device: 6}}]}
""",
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS.keys())
def test_clean_may_stand_where_people_write_it(tmp_path: Path, text: str) -> None:
    scenario = load(tmp_path, text)
    assert scenario.must_be_clean is False
    assert [(wanted.id, str(wanted.where)) for wanted in scenario.expect.findings] == [
        ("link.down", "d1 npu6")
    ]


def test_only_clean_is_a_healthy_twin(tmp_path: Path) -> None:
    scenario = load(tmp_path, "expect:\n  clean: true\n")
    assert (scenario.expect.findings, scenario.must_be_clean) == ((), True)


def test_lines_stay_where_they_are(tmp_path: Path) -> None:
    text = FORMS["below the list, as in the design"] + "\nfaults:\n  - {host: d1, devise: 6}\n"
    with pytest.raises(SpecError, match=r"scenario\.yaml:6:5: no kind of fault has the keys"):
        load(tmp_path, text)


def test_a_wrong_value_of_clean_is_said_at_its_line(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"scenario\.yaml:3:"):
        load(tmp_path, "expect:\n  - {id: link.down}\n  clean: perhaps\n")


# --- what is expected -----------------------------------------------------------------------------


def test_a_path_may_be_written_as_from_and_to(tmp_path: Path) -> None:
    text = "expect: [{id: ping.loss, where: {from: {host: p1, device: 0}, to: {host: d2}}}]\n"
    (wanted,) = load(tmp_path, text).expect.findings
    assert wanted.where == Where(host="p1", device=0, peer_host="d2")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("{id: link.down, where: {host: d1, nic: eth0}}", "unknown word 'nic'"),
        ("{id: link.dwon}", r"id: must be a finding of docs/checks.md \(`link.down`\?\)"),
        ("{id: link.down, severity: error}", "severity: must be `fail` or `unknown` or `warn`"),
        ("{where: {host: d1}}", "an expected finding needs `id:`"),
        ("link.down", "must be a mapping"),
    ],
)
def test_what_can_never_be_found_is_an_error(tmp_path: Path, wanted: str, message: str) -> None:
    with pytest.raises(SpecError, match=rf"scenario\.yaml:3:\d+: .*{message}"):
        load(tmp_path, f"expect:\n  - {{id: link.down}}\n  - {wanted}\n")


def test_marks_that_no_test_has(tmp_path: Path) -> None:
    assert load(tmp_path, "marks: network or (kv and not soak)\n").marks is not None
    with pytest.raises(SpecError, match=r"scenario\.yaml:1:1: marks: must be made of `network`"):
        load(tmp_path, "marks: netwrok\n")


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("{host: d1, device: 6, link: sideways}", "link: must be `up` or `down`, not `sideways`"),
        ("{host: d1, device: 6, lnik: down}", "unknown word 'lnik' in a fault with `device`; did"),
        ("{host: d1, listen: many}", "listen: "),
        ("{kv: {to: d1, do: delay}}", "`seconds` belongs to `do: delay`"),
        ("{kv: {rank: 1, do: zero}}", "`rank` needs `to`"),
        ("link down on d1", "a fault is a mapping"),
        ("{host: d1, file: /etc/passwd, text: x}", "file: must lie in the host's home"),
        ("{host: d1, file: ~/../p1/x, text: x}", "file: must lie in the host's home"),
        ("{host: d1, listen: 70000}", "listen: must be at most 65535"),
        ("{host: d1, device: 6, address: banana}", "address: must be an IPv4 address"),
        ("{host: d1, device: 6}", "nothing is said of the device"),
        ("{from: {host: p1}, to: {host: d1}}", "nothing disturbs the path"),
        ("{from: {host: p1}, to: {host: d1}, loss: 33}", "loss: must be at most 1"),
        ("{host: d1, device: 6, link: down, listen: 80}", "'device' in a fault with `listen`"),
        ("{host: d1, tool: ''}", "tool: must be a command"),
        ("{host: d1, file: ~/x}", "a fault with `file` needs `text:`"),
        ("{kv: {layer: -1, do: zero}}", "kv.layer: must be at least 0"),
        ("{kv: {request: 0, do: zero}}", "kv.request: must be at least 1"),
        ("{instance: decode-1, http: {status: 42}}", "http.status: must be at least 200"),
    ],
)
def test_a_wrong_fault_is_one_line_that_names_it(tmp_path: Path, fault: str, message: str) -> None:
    with pytest.raises(SpecError, match=rf"scenario\.yaml:2:\d+: .*{message}") as raised:
        load(tmp_path, f"faults:\n  - {fault}\n")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("{host: d9, device: 6, link: down}", "the host d9; there are p1, d1, d2"),
        ("{host: d1, device: 8, link: down}", "device of host d1 8; there are 0, 1"),
        ("{from: {host: p1}, to: {host: d7}, loss: 0.5}", "the host d7"),
        ("{from: {host: p1, device: 9}, to: {host: d1}, loss: 0.5}", "device of host p1 9"),
        ("{kv: {to: decode-9, do: zero}}", "instance or host decode-9"),
        ("{kv: {to: decode-1, rank: 2, do: zero}}", "rank of decode-1 2; there are 0, 1"),
        ("{kv: {layer: 4, do: zero}}", "layer 4; there are 0, 1, 2, 3"),
        ("{kv: {to: prefill-1, do: zero}}", "pulled by decoders, and prefill-1 is or has none"),
        ("{kv: {from: d2, do: zero}}", "comes from prefillers, and d2 is or has none"),
        ("{instance: decode-9, at: pulling, do: kill}", "instance decode-9; there are prefill-1"),
        ("{instance: decode-1, at: pulling, do: kill, rank: 2}", "rank of decode-1 2"),
        ("{instance: prefill-1, at: pulling, do: kill}", "prefill-1 never comes to `pulling`"),
        ("{instance: proxy, http: {status: 500}}", "the instance proxy; there are prefill-1"),
        ("{host: d1, device: 6, vnic: {link: down}}", "only an A3 has `vnic`"),
        ("{host: d1, superpod: null}", "only an A3 has `superpod`"),
    ],
)
def test_what_the_cluster_has_not_is_told_at_its_line(
    tmp_path: Path,
    fabric: FabricState,
    instances: Mapping[str, InstanceSpec],
    fault: str,
    message: str,
) -> None:
    scenario = load(tmp_path, f"faults:\n  - {fault}\n")
    with pytest.raises(SpecError, match=rf"scenario\.yaml:2:\d+: .*{message}"):
        check_names(scenario, fabric, instances, layers=4)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("{host: d7}", "the host d7; there are p1, d1, d2"),
        ("{from: {host: p1}, to: {host: d7}}", "the host d7"),
        ("{instance: decode-9}", "instance decode-9; there are prefill-1, decode-1"),
    ],
)
def test_a_finding_expected_where_nothing_is(
    tmp_path: Path,
    fabric: FabricState,
    instances: Mapping[str, InstanceSpec],
    where: str,
    message: str,
) -> None:
    text = f"expect:\n  - clean: true\n  - {{id: ping.loss, where: {where}}}\n"
    with pytest.raises(SpecError, match=rf"scenario\.yaml:3:\d+: .*{message}"):
        check_names(load(tmp_path, text), fabric, instances, layers=4)


def test_names_that_are_there(
    tmp_path: Path, fabric: FabricState, instances: Mapping[str, InstanceSpec]
) -> None:
    text = """\
faults:
  - {host: "*", device: "*", mtu: 1500}
  - {from: {host: "*"}, to: {host: d1, device: 7}, loss: 0.5}
  - {kv: {from: p1, to: d2/7, layer: 3, do: zero}}
  - {instance: proxy, at: serving, do: kill}
expect:
  - {id: engine.exited, where: {host: p1, instance: proxy}}
"""
    check_names(load(tmp_path, text), fabric, instances, layers=4)


def test_an_a3_has_vnics_and_a_super_pod(
    tmp_path: Path, instances: Mapping[str, InstanceSpec]
) -> None:
    text = "faults: [{host: d1, device: 6, vnic: {link: down}}, {host: d2, superpod: null}]\n"
    check_names(load(tmp_path, text), healthy_cluster(HOSTS, Product.A3), instances, layers=4)


def test_a_device_in_another_state(tmp_path: Path, fabric: FabricState) -> None:
    fault = "{host: d1, device: 6, link: down, address: null, net_health: Init, health: alarm}"
    device = broken(tmp_path, fabric, fault).device("d1", 6)
    assert (device.link, device.ip, device.net_health) == ("down", None, NetHealth.INIT)
    assert device.npu.health == "alarm"
    assert fabric.device("d1", 7).link == "up"


def test_every_device_of_every_host(tmp_path: Path, fabric: FabricState) -> None:
    broken(tmp_path, fabric, '{host: "*", device: "*", mtu: 1500}')
    assert {d.mtu for host in fabric.hosts.values() for d in host.devices.values()} == {1500}


def test_conf_changes_the_file_and_not_the_device(tmp_path: Path, fabric: FabricState) -> None:
    before = fabric.device("d1", 7).ip
    broken(tmp_path, fabric, "{host: d1, device: 7, conf: {address: 10.0.0.99, gateway: null}}")
    conf = (fabric.hosts["d1"].hccn_conf or "").splitlines()
    assert "address_7=10.0.0.99" in conf
    assert not any(line.startswith("gateway_7=") for line in conf)
    assert any(line.startswith("gateway_6=") for line in conf)
    assert fabric.device("d1", 7).ip == before


def test_the_whole_file_may_be_missing(tmp_path: Path, fabric: FabricState) -> None:
    broken(tmp_path, fabric, "{host: d1, hccn_conf: missing}")
    assert fabric.hosts["d1"].hccn_conf is None
    assert fabric.hosts["d2"].hccn_conf is not None


def test_a_path_in_one_direction_or_both(tmp_path: Path, fabric: FabricState) -> None:
    broken(
        tmp_path,
        fabric,
        "{from: {host: p1, device: 0}, to: {host: d2}, loss: 0.33}",
        "{from: {host: p1}, to: {host: d1}, both: true, unreachable: true}",
    )
    ways = [(rule.source.host, rule.target.host, rule.loss) for rule in fabric.paths]
    assert ways == [("p1", "d2", 0.33), ("p1", "d1", 0.0), ("d1", "p1", 0.0)]


def test_a_path_from_every_host_to_every_device_of_one(tmp_path: Path, fabric: FabricState) -> None:
    broken(tmp_path, fabric, '{from: {host: "*"}, to: {host: d1, device: "*"}, loss: 0.5}')
    ways = [(rule.source.host, rule.target.host, rule.target.device) for rule in fabric.paths]
    assert ways == [(host, "d1", None) for host in fabric.hosts]


def test_kv_faults_are_left_to_llm_datadist(tmp_path: Path, fabric: FabricState) -> None:
    broken(
        tmp_path,
        fabric,
        "{kv: {to: decode-2, request: 3, layer: 1, block: last, do: corrupt}}",
        "{kv: {from: prefill-1, to: decode-1, rank: 1, do: delay, seconds: 0.5}}",
    )
    assert fabric.kv_faults == [
        {"to": "decode-2", "request": 3, "layer": 1, "block": "last", "do": "corrupt"},
        {"from": "prefill-1", "to": "decode-1/1", "do": "delay", "seconds": 0.5},
    ]


def test_faults_of_one_kind_and_host(tmp_path: Path) -> None:
    scenario = load(
        tmp_path,
        """\
faults:
  - {host: d2, tool: "hccn_tool -i 6 -net_health -g", stderr: "no\\n", exit: 1, seconds: 2}
  - {host: d1, env: {HCCL_IF_IP: 10.9.9.9, VLLM_LLMDD_RPC_PORT: 5657}}
  - {host: "*", clock: -3.5}
  - {host: d1, listen: 5557}
  - {instance: decode-1, at: pulling, do: kill}
  - {instance: decode-1, http: {status: 500, after_chunks: 3}}
""",
    )
    (tool,) = scenario.of(ToolFault, "d2")
    assert (tool.exit, tool.seconds) == (1, 2.0)
    (env,) = scenario.of(EnvFault, "d1")
    assert env.env == {"HCCL_IF_IP": "10.9.9.9", "VLLM_LLMDD_RPC_PORT": "5657"}
    assert list(scenario.of(EnvFault, "d2")) == []
    assert [fault.clock for fault in scenario.of(ClockFault, "p1")] == [-3.5]
    assert [fault.listen for fault in scenario.of(ListenFault)] == [5557]
    assert [fault.do for fault in scenario.of(InstanceFault)] == ["kill"]
    assert [fault.http.after_chunks for fault in scenario.of(HttpFault)] == [3]


def test_a_cluster_file_beside_the_scenario(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("name: own\n")
    assert load(tmp_path, "cluster: own.yaml\n").cluster == str(tmp_path / "own.yaml")
    assert load(tmp_path, "cluster: twin-a3.yaml\n").cluster == "twin-a3.yaml"
