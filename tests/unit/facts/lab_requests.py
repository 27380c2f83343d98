"""Every command that any request to a host can contain."""

from __future__ import annotations

from pathlib import Path

from pd_validate.facts.hosts import requests_of
from pd_validate.facts.pings import Npu, PingTask
from pd_validate.spec.load import load_cluster
from pd_validate.spec.plan import launch_plan, run_dirs

_CLUSTERS = Path(__file__).parents[3] / "clusters"


def all_commands() -> list[list[str]]:
    commands: list[list[str]] = []
    for name in ("atlas-800t-a2-1p2d.yaml", "twin-a3.yaml"):
        cluster = load_cluster(_CLUSTERS / name)
        plan = launch_plan(cluster, run_dirs=run_dirs(cluster, "run"))
        for request in requests_of(cluster, plan).values():
            commands += [command["argv"] for command in request.document["commands"]]
            commands += [argv for _, argv in request.document["files"]]
    for address, hccs in (("10.0.0.1", False), ("fd00::1", False), ("192.0.2.199", True)):
        commands.append(PingTask(Npu("a", 0), Npu("b", 0), address, hccs, 1792).argv)
    return commands
