"""What runs on a cluster's hosts, and how to end it: `pd-validate status`, `logs` and `down`.

Works without the controller that started it: everything needed lies on the hosts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pd_validate.errors import LabError
from pd_validate.hosts.fleet import in_parallel
from pd_validate.hosts.remote import RemoteHost
from pd_validate.hosts.supervisor import RemoteSupervisor, clean, survey
from pd_validate.spec.models import Cluster


@dataclass(frozen=True)
class Told:
    """What was found or done on each host, one line each; `ok` False if something is left."""

    lines: tuple[str, ...]
    ok: bool = True


def status(cluster: Cluster) -> Told:
    """Runs, their processes and the lock on every host. Changes nothing."""
    return _on_hosts(cluster, _status)


def logs(cluster: Cluster, *, lines: int) -> Told:
    """The last `lines` of the log of every process of runs that are alive."""
    return _on_hosts(cluster, partial(_logs, lines=lines))


def down(cluster: Cluster) -> Told:
    """End runs that were left running and remove what dead runs left; others' runs stay."""
    return _on_hosts(cluster, _down)


def _on_hosts(cluster: Cluster, work: Callable[[RemoteHost, str], Told]) -> Told:
    def one(name: str) -> Told:
        with RemoteHost.of_cluster(cluster, name) as host:
            return work(host, str(cluster.workdir_of(name)))

    lines: list[str] = []
    ok = True
    for name, told in in_parallel({name: partial(one, name) for name in cluster.hosts}).items():
        if isinstance(told, LabError):
            told = Told((str(told),), ok=False)
        lines += [f"{name}: {line}" for line in told.lines]
        ok = ok and told.ok
    return Told(tuple(lines), ok)


def _status(host: RemoteHost, workdir: str) -> Told:
    seen = survey(host, workdir)
    lines = [str(run) for run in seen.runs]
    for found in seen.processes:
        command = " ".join(found.command.split())[:100]
        lines.append(f"  pid {found.pid} {found.name}: {command}")
    if seen.lock is not None:
        lines.append(f"lock {seen.lock.path}: {'held' if seen.lock.held else 'stale'}")
    return Told(tuple(lines) or ("nothing of pd-validate runs here",))


def _logs(host: RemoteHost, workdir: str, *, lines: int) -> Told:
    supervisor = RemoteSupervisor.attach(host, workdir=workdir, own=False)
    if supervisor is None:
        return Told(("nothing of pd-validate runs here",))
    try:
        told: list[str] = []
        for name in supervisor.status():
            told += [f"== {name}", *supervisor.tail(name, lines=lines)]
    finally:
        supervisor.detach()
    return Told(tuple(told))


def _down(host: RemoteHost, workdir: str) -> Told:
    seen = survey(host, workdir)
    lines: list[str] = []
    ok = True
    for run in seen.runs:
        if not run.alive:
            continue
        if not run.kept:
            lines.append(f"left alone, its controller is at work: {run}")
            ok = False
            continue
        supervisor = RemoteSupervisor.attach(host, workdir=workdir, run_id=run.run_id)
        if supervisor is not None:
            supervisor.close()
            lines.append(f"ended: {run}")
    for run_id in seen.dead_runs:
        ended = clean(host, workdir, run_id)
        lines.append(f"removed what run {run_id} had left ({len(ended)} processes)")
    return Told(tuple(lines) or ("nothing to end",), ok)
