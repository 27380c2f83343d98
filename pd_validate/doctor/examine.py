"""The whole examination, in the order in which a person mends things."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pd_validate.doctor import needs
from pd_validate.doctor.machine import KeyFile, Machine, key_file, read_machine
from pd_validate.doctor.need import Need, State
from pd_validate.doctor.reach import knows, reach
from pd_validate.spec.models import Cluster


def examine(
    cluster: Cluster | None, report: Path, environ: Mapping[str, str] = os.environ
) -> list[Need]:
    """What a run on `cluster` needs of this machine; without one, what every run needs.

    Connects to the hosts of `cluster` (and changes nothing there). `report` is the directory
    that the report will go to.
    """
    machine = read_machine(report, environ)
    found = needs.needs_of(machine)
    found += needs.proxies(machine, cluster)
    found.append(needs.open_files(machine, len(cluster.hosts) if cluster else 0))
    if cluster is None:
        found.append(needs.way_to_log_in(machine))
        return found + needs.key_permissions(machine.default_keys)
    return found + _of_hosts(machine, cluster)


def _of_hosts(machine: Machine, cluster: Cluster) -> list[Need]:
    named = {name: _key_of(cluster, name) for name in cluster.hosts}
    keys = [key for key in named.values() if key is not None]
    found = needs.key_permissions(keys or machine.default_keys)
    reached = reach(cluster)
    for name in cluster.hosts:
        met = reached[name]
        # Who is in needs no advice on how to get in.
        if any(need.state is State.MISSING for need in met):
            known = knows(cluster, name)
            found += needs.login_of(machine, cluster, name, named[name], known)
        found += met
    return found


def _key_of(cluster: Cluster, host: str) -> KeyFile | None:
    key = cluster.ssh_of(host).key
    return None if key is None else key_file(key.expanduser())
