"""Readers and checks on whole simulated clusters: the vendor's tools as the twin plays them.

Each cluster is read once; several faults are put at different devices, and the complete
list of findings is asserted. How every single answer is read and judged: the other tests
of this folder and tests/unit/checks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from twin_host import twin_commands

from pd_validate.checks.network import check_network
from pd_validate.checks.result import Report
from pd_validate.facts.addresses import device_addresses
from pd_validate.facts.hosts import read_cluster, requests_of
from pd_validate.facts.pings import ping_plan, run_pings
from pd_validate.spec.models import (
    Checks,
    Cluster,
    Host,
    InstanceSpec,
    ModelSpec,
    ProxySpec,
    Role,
    Timeouts,
)
from pd_validate.spec.plan import launch_plan, run_dirs
from twin.fabric import (
    Endpoint,
    FabricState,
    PathRule,
    Process,
    Product,
    Tls,
    healthy_cluster,
)

DEVICES = {"p1": (0, 1, 2), "d1": (6, 7), "d2": (6, 7)}


def cluster(product: Product, directory: Path) -> Cluster:
    """1P2D on loopback, with a few devices of each host to be quick."""
    model = directory / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    return Cluster(
        hardware=f"atlas-800t-{product.lower()}",
        nic="lo",
        python=sys.executable,
        hosts={
            name: Host(address=f"127.0.0.{number}", devices=DEVICES[name])
            for number, name in enumerate(DEVICES, start=1)
        },
        model=ModelSpec(path=model),
        instances={
            # Ports that nobody else on this machine is likely to use.
            "prefill-1": instance(Role.PREFILL, "p1", (0, 1), 23700),
            "decode-1": instance(Role.DECODE, "d1", (6, 7), 23710),
            "decode-2": instance(Role.DECODE, "d2", (6, 7), 23720),
        },
        proxy=ProxySpec(host="p1", port=23790),
        checks=Checks(software=False),
        timeouts=Timeouts(tool=3),
    )


def instance(role: Role, host: str, devices: tuple[int, ...], port: int) -> InstanceSpec:
    return InstanceSpec(
        role=role, host=host, devices=devices, port=port, side_channel_port=port + 1
    )


def run(product: Product, directory: Path, spoil: Callable[[FabricState], None]) -> Report:
    intent = cluster(product, directory)
    addresses = {name: host.address for name, host in intent.hosts.items()}
    state = healthy_cluster(addresses, product, wait_scale=0.0)
    spoil(state)
    commands = twin_commands(intent, state, directory)
    plan = launch_plan(intent, run_dirs=run_dirs(intent, "run"))
    facts = read_cluster(commands, requests_of(intent, plan))  # type: ignore[arg-type]
    pings = run_pings(commands, intent, ping_plan(intent, facts))  # type: ignore[arg-type]
    assert len(device_addresses(intent, facts)) <= sum(map(len, DEVICES.values()))
    assert {(p.address, p.port) for p in facts.hosts["d1"].ports} == {
        ("0.0.0.0", 23710),  # the API, as vLLM binds it
        *(("127.0.0.2", port) for port in range(23711, 23715)),  # the side channel's block
        ("127.0.0.2", 16666),  # HCCL, on the device and on the host
        *(("127.0.0.2", port) for port in (60000, 60006, 60007)),
    }
    for host in state.hosts:
        conf = directory / "state" / host / "etc/hccn.conf"
        assert conf.read_text() == state.hosts[host].hccn_conf  # reading changed nothing
    return check_network(intent, plan, facts, pings)


def lines(report: Report) -> list[str]:
    return sorted(
        f"{finding.severity.value} {finding.id} at {finding.where}"
        + "".join(sorted(f" < {cause.id}" for cause in finding.because))
        for finding in report.findings
    )


@pytest.mark.parametrize("product", list(Product))
def test_healthy_cluster_has_no_finding(product: Product, tmp_path: Path) -> None:
    report = run(product, tmp_path, lambda state: None)
    assert lines(report) == []
    assert {result.verdict.value for result in report.results} == {"pass"}


def test_faults_of_an_a2_cluster(tmp_path: Path) -> None:
    def spoil(state: FabricState) -> None:
        state.device("d1", 6).link = "down"
        state.device("d1", 7).npu.health = "alarm"
        state.device("p1", 1).tls = Tls(enable=1)
        state.device("p1", 2).condition = "gone"  # no instance uses it
        state.device("d2", 6).npu.hbm_used = 60156
        state.device("d2", 6).npu.processes = (Process(pid=1, memory=56630, name="other"),)
        conf = state.hosts["d2"].hccn_conf or ""
        state.hosts["d2"].hccn_conf = conf.replace("address_7=10.20.3.17", "address_7=10.0.0.99")
        state.paths.append(
            PathRule.model_validate(
                {"from": Endpoint(host="p1", device=0), "to": Endpoint(host="d2"), "loss": 0.33}
            )
        )

    assert lines(run(Product.A2, tmp_path, spoil)) == [
        "fail address.conf-mismatch at d2 npu7",
        "fail device.in-use at d2 npu6",
        "fail device.unhealthy at d1 npu7",
        "fail health.unreachable at d1 npu6 < link.down",
        "fail link.down at d1 npu6",
        "fail ping.loss at p1 npu0 -> d2",
        "fail tls.mismatch at p1 npu1",
        "warn device.missing at p1 npu2",
        "warn device.unhealthy at p1 npu2 < device.missing",
    ]


def test_faults_of_an_a3_cluster(tmp_path: Path) -> None:
    def spoil(state: FabricState) -> None:
        state.device("d1", 6).vnic.link = "down"
        state.device("d2", 7).sdid = 2 << 22 | 5
        state.device("p1", 0).npu.health = "warning"

    roots = [line for line in lines(run(Product.A3, tmp_path, spoil)) if " < " not in line]
    assert roots == [
        "fail sdid.mismatch at d2 npu7",
        "fail vnic.down at d1 npu6",
        "warn device.unhealthy at p1 npu0",
    ]
