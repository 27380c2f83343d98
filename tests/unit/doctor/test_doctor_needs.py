"""What the doctor says of a machine: of a sound one nothing, of each lack one line and a cure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pd_validate.doctor import needs
from pd_validate.doctor.machine import KeyFile, Machine, Package, Space
from pd_validate.doctor.need import Need, State, is_fit, told
from pd_validate.spec.models import Cluster

KEY = Path("/home/u/.ssh/id_ed25519")


def missing(found: list[Need]) -> list[tuple[str, str]]:
    """(what, cure) of everything without which no run works."""
    return [(need.what, need.get) for need in found if need.state is State.MISSING]


def noted(found: list[Need]) -> list[str]:
    return [need.what for need in found if need.state is State.NOTE]


def test_a_sound_machine(sound: Machine) -> None:
    found = needs.needs_of(sound)
    assert {need.state for need in found} == {State.OK}
    assert not any(need.get for need in found)
    assert is_fit(found)
    assert told(found).endswith("ready to run")


def test_an_old_python(sound: Machine) -> None:
    found = needs.needs_of(replace(sound, python=(3, 10, 12)))
    ((what, get),) = missing(found)
    assert (what, "3.11" in get) == ("Python 3.11", True)
    assert not is_fit(found)


@pytest.mark.parametrize("installed", [None, "9.2.0"])
def test_a_package_that_is_absent_or_not_the_pinned_one(
    sound: Machine, installed: str | None
) -> None:
    wrong = Package("pytest<9.2,>=8.4", installed, False)
    found = needs.packages(replace(sound, packages=(*sound.packages, wrong)))
    assert missing(found) == [
        ("package pytest<9.2,>=8.4", ".venv/bin/pip install 'pytest<9.2,>=8.4'")
    ]
    assert found[0].found == (installed or "not installed")


def test_not_installed_at_all(sound: Machine) -> None:
    ((_, get),) = missing(needs.packages(replace(sound, packages=())))
    assert "pip install -e ." in get


@pytest.mark.parametrize(
    ("change", "cure"),
    [
        ({"node": None}, "install Node 20"),
        ({"node": "v18.1.0"}, "install Node 20"),
        ({"node": "v20.1.0", "allure": False}, "npm ci"),
        ({"allure": False, "npm": None}, "install npm"),
    ],
)
def test_without_allure_a_run_works(sound: Machine, change: dict[str, object], cure: str) -> None:
    found = needs.allure(replace(sound, **change))  # type: ignore[arg-type] # fields by name
    assert found.state is State.NOTE
    assert cure in found.get


def test_without_vllm_only_the_embedded_cluster_is_missing(sound: Machine) -> None:
    found = needs.twin(replace(sound, vllm=None))
    assert (found.state, "make env" in found.get) == (State.NOTE, True)


@pytest.mark.parametrize(
    ("space", "word"),
    [
        (Space(Path("/var/report"), 10_000_000, True), "GB for logs"),
        (Space(Path("/var/report"), 50_000_000_000, False), "writable"),
    ],
)
def test_no_space_for_the_report(sound: Machine, space: Space, word: str) -> None:
    ((what, get),) = missing(needs.spaces(replace(sound, spaces=(space,))))
    assert what == "space in /var/report"
    assert word in get


def test_open_files_by_the_number_of_hosts(sound: Machine) -> None:
    assert needs.open_files(sound, 3).state is State.OK
    assert needs.open_files(replace(sound, open_files=-1), 1000).state is State.OK
    few = needs.open_files(replace(sound, open_files=512), 32)
    assert (few.state, few.get) == (State.MISSING, "ulimit -n 768")


@pytest.mark.parametrize("name", ["PYTHONOPTIMIZE", "PYTEST_DISABLE_PLUGIN_AUTOLOAD", "PYTHONHOME"])
def test_variables_that_break_a_run(sound: Machine, name: str) -> None:
    found = needs.environment(replace(sound, environ={name: "1"}))
    assert missing(found) == [(f"no ${name}", f"unset {name}")]
    assert missing(needs.environment(replace(sound, environ={name: ""}))) == []


def test_variables_that_change_a_run_are_told(sound: Machine) -> None:
    environ = {"PYTEST_ADDOPTS": "-x", "PD_AUDIT": "off", "PYTHONPATH": "/elsewhere"}
    found = needs.environment(replace(sound, environ=environ))
    assert missing(found) == []
    assert noted(found) == ["$PYTEST_ADDOPTS", "$PYTHONPATH", "$PD_AUDIT"]


def test_an_http_proxy(sound: Machine, cluster: Cluster) -> None:
    """Told without its value, which may hold a password; quiet where all hosts are exempt."""
    environ = {"http_proxy": "http://u:geheim@proxy:3128", "no_proxy": "localhost"}
    proxied = replace(sound, environ=environ)
    (found,) = needs.proxies(proxied, cluster)
    assert found.state is State.NOTE
    assert found.get == "export no_proxy=localhost,127.0.0.7,127.0.0.8"
    assert "geheim" not in str(found)
    exempt = replace(sound, environ=environ | {"no_proxy": "127.0.0.7,127.0.0.8"})
    assert [need.state for need in needs.proxies(exempt, cluster)] == [State.OK]
    assert needs.proxies(sound, cluster) == []


def test_no_way_to_log_in(sound: Machine) -> None:
    assert needs.way_to_log_in(sound).state is State.OK
    key = KeyFile(KEY, 0o600)
    alone = replace(sound, agent_keys=None, default_keys=(key,))
    assert needs.way_to_log_in(alone).found == "id_ed25519"
    none = needs.way_to_log_in(replace(sound, agent_keys=0))
    assert (none.state, none.found) == (State.NOTE, "none in ~/.ssh, the agent is empty")
    assert "ssh-keygen" in none.get


def test_permissions_of_keys() -> None:
    assert needs.key_permissions([KeyFile(KEY, 0o600), KeyFile(KEY, None)]) == []
    (wide,) = needs.key_permissions([KeyFile(KEY, 0o644)])
    assert (wide.state, wide.get) == (State.NOTE, f"chmod 600 {KEY}")
    (shut,) = needs.key_permissions([KeyFile(KEY, 0o600, readable=False)])
    assert (shut.state, shut.get) == (State.MISSING, f"chmod u+r {KEY}")


def test_what_a_login_rests_on(sound: Machine, cluster: Cluster) -> None:
    there, absent = KeyFile(KEY, 0o600), KeyFile(KEY, None)
    assert needs.login_of(sound, cluster, "p1", there, True) == []
    ((_, get),) = missing(needs.login_of(sound, cluster, "p1", absent, True))
    assert f"ssh-keygen -t ed25519 -f {KEY}" in get
    ((what, get),) = missing(needs.login_of(sound, cluster, "d1", there, False))
    assert what == "d1: host key"
    assert f"-p {cluster.ssh_of('d1').port} 127.0.0.8 >> " in get


def test_a_password_that_is_not_in_the_environment(sound: Machine, cluster: Cluster) -> None:
    ssh = cluster.ssh_of("p1").model_copy(update={"password_env": "PW", "key": None})
    host = cluster.hosts["p1"].model_copy(update={"ssh": ssh})
    changed = cluster.model_copy(update={"hosts": cluster.hosts | {"p1": host}})
    ((what, get),) = missing(needs.login_of(sound, changed, "p1", None, True))
    assert (what, get) == ("p1: login", "export PW=…, or use a key")
    given = replace(sound, environ={"PW": "geheim"})
    assert needs.login_of(given, changed, "p1", None, True) == []


def test_no_key_at_all(sound: Machine, cluster: Cluster) -> None:
    bare = replace(sound, agent_keys=None)
    assert [w for w, _ in missing(needs.login_of(bare, cluster, "p1", None, True))] == ["p1: login"]
