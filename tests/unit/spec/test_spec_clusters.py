"""Every ready cluster file loads, and its plan has no fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from pd_validate.checks.plan import check_plan
from pd_validate.findings import Severity
from pd_validate.spec.load import load_cluster
from pd_validate.spec.models import Cluster, Role
from pd_validate.spec.plan import launch_plan, run_dirs
from pd_validate.spec.profiles import devices_of, profile_of

CLUSTERS = Path(__file__).parents[3] / "clusters"
FILES = sorted(path.name for path in CLUSTERS.glob("*.yaml"))


def load(name: str) -> Cluster:
    return load_cluster(CLUSTERS / name, environ={})


def test_the_expected_files_are_there() -> None:
    assert set(FILES) >= {
        "2p2d.yaml",
        "a3-1p2d.yaml",
        "atlas-800t-a2-1p2d-ours.yaml",
        "atlas-800t-a2-1p2d.yaml",
        "containers.yaml",
        "one-host-1p1d.yaml",
        "twin-1p2d.yaml",
        "twin-32.yaml",
        "twin-a3.yaml",
    }


@pytest.mark.parametrize("name", FILES)
def test_its_plan_has_no_fault(name: str) -> None:
    cluster = load(name)
    plan = launch_plan(cluster, run_dirs=run_dirs(cluster, "r1"), audit="full")
    findings = check_plan(cluster, plan)
    assert [f for f in findings if f.severity is not Severity.WARN] == []


@pytest.mark.parametrize("name", FILES)
def test_it_is_named_after_its_file(name: str) -> None:
    assert f"{load(name).name}.yaml" == name


def test_two_prefillers_and_two_decoders() -> None:
    cluster = load("2p2d.yaml")
    assert [len(cluster.instances_of(role)) for role in Role] == [2, 2]


def test_a3_has_sixteen_devices_in_eight_cards() -> None:
    cluster = load("a3-1p2d.yaml")
    profile = profile_of(cluster)
    assert (profile.devices, profile.cards, profile.super_pod) == (16, 8, True)
    assert profile.card_and_chip(13) == (6, 1)
    assert devices_of(cluster, "p1") == tuple(range(16))


def test_twin_has_the_guides_topology_on_loopback() -> None:
    twin, guide = load("twin-1p2d.yaml"), load("atlas-800t-a2-1p2d.yaml")
    assert twin.hardware == guide.hardware
    assert twin.instances == guide.instances
    assert [host.address for host in twin.hosts.values()] == ["127.0.0.1", "127.0.0.2", "127.0.0.3"]


def test_twin_model_comes_from_the_environment() -> None:
    cluster = load_cluster(CLUSTERS / "twin-1p2d.yaml", environ={"PD_TWIN_MODEL": "/my/model"})
    assert cluster.model.path == Path("/my/model")


def test_thirty_two_hosts() -> None:
    cluster = load("twin-32.yaml")
    assert len(cluster.hosts) == 32
    assert len({host.address for host in cluster.hosts.values()}) == 32
    assert list(cluster.hosts)[:3] == ["p1", "d1", "d2"]


def test_ssh_files_are_found_from_the_users_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ops")
    assert load("containers.yaml").ssh.key == Path("/home/ops/.ssh/id_ed25519")


def test_ssh_files_are_relative_to_the_file_they_stand_in(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "ssh.yaml").write_text("ssh: {key: keys/id}")
    text = (CLUSTERS / "one-host-1p1d.yaml").read_text()
    host = "node: {address: 10.20.0.11, ssh: {known_hosts: known}}"
    path = tmp_path / "cluster.yaml"
    path.write_text("include: site/ssh.yaml\n" + text.replace("node: {address: 10.20.0.11}", host))
    cluster = load_cluster(path, environ={})
    assert cluster.ssh.key == tmp_path / "site" / "keys" / "id"
    assert cluster.ssh_of("node").known_hosts == tmp_path / "known"


def test_a_host_states_only_what_differs_in_ssh(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(
        f"include: {CLUSTERS / 'one-host-1p1d.yaml'}\n"
        "ssh: {user: ops, key: id, port: 2200}\n"
        "hosts: {node: {ssh: {port: 2222}}}"
    )
    ssh = load_cluster(path, environ={}).ssh_of("node")
    assert (ssh.user, ssh.port, ssh.key) == ("ops", 2222, tmp_path / "id")
