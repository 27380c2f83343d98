"""What a run would do on each host, as shell text that can be pasted. Connects to nothing."""

from __future__ import annotations

from pd_validate.spec.models import Cluster
from pd_validate.spec.plan import AuditLevel, launch_plan, render_shell, run_dirs
from pd_validate.spec.runtime import enter

RUN_ID = "RUN"  # stands for the id that a real run gets


def rendered_plan(cluster: Cluster, *, audit: AuditLevel = "off") -> str:
    """One block per host: how to enter its container, then each process with its environment."""
    plan = launch_plan(cluster, run_dirs=run_dirs(cluster, RUN_ID), audit=audit)
    blocks = []
    for name, host in cluster.hosts.items():
        if plan.on(name):
            shell = render_shell(plan, name, enter=enter(cluster, name, RUN_ID))
            blocks.append(f"### {name} ({host.address})\n\n{shell}")
    return "\n\n".join(blocks)
