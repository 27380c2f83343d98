"""clusters/atlas-800t-a2-1p2d.yaml gives the guide's own environment, arguments and commands.

The guide's text (tests/data/guide/) and our rendered shell are both run by bash, with a
stand-in for the program they start; what the two stand-ins were given is compared,
variable by variable and argument by argument, JSON by meaning.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pd_validate.ranktable import seats
from pd_validate.spec.arguments import options
from pd_validate.spec.load import load_cluster
from pd_validate.spec.models import Cluster, Role
from pd_validate.spec.plan import LaunchPlan, launch_plan, render_shell

GUIDE = Path(__file__).parents[2] / "data" / "guide"
INSTANCES = {"prefiller": "prefill-1", "decoder-1": "decode-1", "decoder-2": "decode-2"}

# Where we differ from the guide on purpose. Everything else must be equal.
ADDED_VARIABLES = {
    # Without it an engine with TP=2 runs on NPUs 0 and 1 whatever the rank table says:
    # the decoders of the guide would hold their KV on other devices than they link.
    "ASCEND_RT_VISIBLE_DEVICES": {"p1": "0,1", "d1": "6,7", "d2": "6,7"},
    # The connector looks for vLLM's get_ip() in the rank table; on a host with several
    # networks that is the address of the default route, not the one of --ips.
    "VLLM_HOST_IP": {"p1": "192.0.0.1", "d1": "192.0.0.2", "d2": "192.0.0.3"},
}
# The guide leaves the path to the reader ("/path/to/your/generated/ranktable.json").
READERS_CHOICE = {"DISAGGREGATED_PREFILL_RANK_TABLE_PATH"}
# The guide's proxy flag is an abbreviation that argparse happens to accept.
ABBREVIATED = {"--prefiller-port": "--prefiller-ports"}
JSON_OPTIONS = ("--kv-transfer-config", "--additional-config")

STAND_IN = """\
#!{python} -SE
import json, os, sys
with open({record!r}, "w") as file:
    json.dump({{"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd()}}, file)
"""


@dataclass(frozen=True)
class Started:
    """What a program was started with: its arguments, and the variables exported for it."""

    argv: list[str]
    env: dict[str, str]
    cwd: str


def run_with_stand_in(
    command: Sequence[str], program: str, directory: Path, env: Mapping[str, str] | None = None
) -> Started:
    """Run a command in which `program` only records how it was started."""
    bin_dir, record = directory / "bin", directory / "started.json"
    bin_dir.mkdir(parents=True)
    stand_in = bin_dir / program
    stand_in.write_text(STAND_IN.format(python=sys.executable, record=str(record)))
    stand_in.chmod(0o755)
    base = {"PATH": f"{bin_dir}:/usr/bin:/bin", "HOME": str(directory), "LC_ALL": "C.UTF-8"}
    subprocess.run(command, env=base | dict(env or {}), cwd=directory, check=True, timeout=20)
    started = json.loads(record.read_text())
    shell_sets = {"PWD", "SHLVL", "_", "OLDPWD"}
    exported = {k: v for k, v in started["env"].items() if k not in shell_sets and k not in base}
    return Started(started["argv"], exported, started["cwd"])


def run_guide(block: str, program: str, directory: Path) -> Started:
    return run_with_stand_in(["bash", str(GUIDE / f"{block}.sh")], program, directory)


def meaning(argv: Sequence[str]) -> dict[str, Any]:
    """Options with their values, order aside (the guide's own differs between its servers)."""
    found: dict[str, Any] = dict(options(argv))
    for name in JSON_OPTIONS:
        if name in found:
            found[name] = json.loads(found[name])
    return {ABBREVIATED.get(name, name): value for name, value in found.items()}


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    path = Path(__file__).parents[3] / "clusters" / "atlas-800t-a2-1p2d.yaml"
    assert len(path.read_text().splitlines()) <= 25, "the guide's example stays short"
    return load_cluster(path, environ={})


@pytest.fixture
def plan(cluster: Cluster, tmp_path: Path) -> LaunchPlan:
    return launch_plan(cluster, run_dirs=dict.fromkeys(cluster.hosts, str(tmp_path)))


def without(env: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in env.items() if name not in names}


@pytest.mark.parametrize("server", INSTANCES)
class TestServer:
    def test_environment(self, plan: LaunchPlan, server: str, tmp_path: Path) -> None:
        launch = plan.instances[INSTANCES[server]]
        guide = run_guide(server, "vllm", tmp_path)

        assert without(launch.env, *ADDED_VARIABLES, *READERS_CHOICE) == without(
            guide.env, *READERS_CHOICE
        )
        assert set(launch.env) == set(guide.env) | set(ADDED_VARIABLES)
        for name, by_host in ADDED_VARIABLES.items():
            assert launch.env[name] == by_host[launch.host]

    def test_variables_are_in_the_guides_order(
        self, plan: LaunchPlan, server: str, tmp_path: Path
    ) -> None:
        text = (GUIDE / f"{server}.sh").read_text()
        exported = [line.split()[1].split("=")[0] for line in text.splitlines() if "export" in line]
        assert list(plan.instances[INSTANCES[server]].env)[: len(exported)] == exported

    def test_arguments(self, plan: LaunchPlan, server: str, tmp_path: Path) -> None:
        launch = plan.instances[INSTANCES[server]]
        guide = run_guide(server, "vllm", tmp_path)

        assert launch.argv[0] == "vllm"
        assert launch.argv[1:3] == tuple(guide.argv[:2]), "serve, and the model"
        assert meaning(launch.argv) == meaning(guide.argv)
        assert len(launch.argv) - 1 == len(guide.argv)

    def test_json_keys_are_in_the_guides_order(
        self, plan: LaunchPlan, server: str, tmp_path: Path
    ) -> None:
        launch = plan.instances[INSTANCES[server]]
        guide = run_guide(server, "vllm", tmp_path)
        for name in JSON_OPTIONS:
            ours, theirs = meaning(launch.argv)[name], meaning(guide.argv)[name]
            assert json.dumps(ours) == json.dumps(theirs)

    def test_the_printed_shell_starts_the_same(
        self, plan: LaunchPlan, server: str, tmp_path: Path
    ) -> None:
        launch = plan.instances[INSTANCES[server]]
        script = render_shell(plan, launch.host).split("\n\n# proxy")[0]

        started = run_with_stand_in(["bash", "-c", script], "vllm", tmp_path)

        assert tuple(started.argv) == launch.argv[1:]
        assert started.env == launch.env
        assert started.cwd == launch.cwd

    def test_what_is_really_executed_starts_the_same(
        self, plan: LaunchPlan, server: str, tmp_path: Path
    ) -> None:
        launch = plan.instances[INSTANCES[server]]
        assert launch.command != launch.argv, "CANN's scripts are sourced first"

        started = run_with_stand_in(launch.command, "vllm", tmp_path, env=launch.env)

        assert tuple(started.argv) == launch.argv[1:]
        assert started.env == launch.env


def test_the_prefillers_arguments_are_in_the_guides_order(plan: LaunchPlan, tmp_path: Path) -> None:
    guide = run_guide("prefiller", "vllm", tmp_path)
    ours = [a for a in plan.instances["prefill-1"].argv if a.startswith("--")]
    assert ours == [a for a in guide.argv if a.startswith("--")]


def test_proxy(plan: LaunchPlan, tmp_path: Path) -> None:
    guide = run_guide("proxy", "python", tmp_path)

    program, script, *arguments = plan.proxy.argv
    # The guide is in the script's directory; we run it from the run directory.
    assert (program, Path(script).name) == ("python", guide.argv[0])
    assert meaning(arguments) == meaning(guide.argv[1:])
    assert plan.proxy.host == "p1", "on the prefiller's node"


def test_our_proxy_takes_the_guides_arguments(clusters: Path, tmp_path: Path) -> None:
    guide = run_guide("proxy", "python", tmp_path)
    cluster = load_cluster(clusters / "atlas-800t-a2-1p2d-ours.yaml", environ={})
    plan = launch_plan(cluster, run_dirs=dict.fromkeys(cluster.hosts, "/run"))
    assert plan.proxy.argv[:3] == ("python3", "-m", "proxy")
    assert meaning(plan.proxy.argv[3:]) == meaning(guide.argv[1:])


def test_ranktable_commands(cluster: Cluster) -> None:
    """What the guide types into gen_ranktable.sh on each node is what our table is made from."""
    text = (GUIDE / "ranktable.sh").read_text().replace("\\\n", "")
    commands = [line.split() for line in text.splitlines() if line.startswith("bash ")]
    taken = seats(cluster)
    hosts = list(dict.fromkeys(seat.host for seat in taken))
    for host, command in zip(hosts, commands, strict=True):
        given = options(command)
        # Order of --ips is the order of the table: prefillers first.
        assert given["--ips"] == " ".join(cluster.hosts[h].address for h in hosts)
        assert given["--local-device-ids"] == ",".join(
            str(seat.device) for seat in taken if seat.host == host
        )
        assert given["--prefill-device-cnt"] == str(_count(taken, Role.PREFILL))
        assert given["--decode-device-cnt"] == str(_count(taken, Role.DECODE))
        assert given["--network-card-name"] == cluster.nic_of(host)
        assert given["--npus-per-node"] == str(len([s for s in taken if s.host == host]))


def _count(taken: Sequence[Any], role: Role) -> int:
    return sum(seat.role is role for seat in taken)
