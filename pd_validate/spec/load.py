"""Reads cluster.yaml: `load_cluster` gives a validated Cluster or one readable SpecError.

Mistakes are told all at once, one line each, in the order of the file; the SpecError's
own place is the first one's. Rules that need more than one value (does this host exist,
is this device free) are in `rules.py`; they are asked once every value is right by itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pd_validate.spec.models import Cluster, Ssh
from pd_validate.spec.rules import Contradiction, contradictions
from pd_validate.spec.source import Node, read
from pd_validate.spec.validate import Problem, all_of, validated


def load_cluster(path: Path, *, environ: Mapping[str, str] | None = None) -> Cluster:
    """Read and validate a cluster file; `environ` (default: the process's) fills `${NAME}`.

    File names of SSH keys and known_hosts files are taken relative to the file in which
    they stand, `~` is the user's home. Nothing is connected to.

    Raises SpecError: what is wrong, with file, line and column, one line per mistake.
    """
    root = read(path, os.environ if environ is None else environ)
    cluster = validated(Cluster, root)
    problems = [_placed(found, root) for found in contradictions(cluster)]
    if problems:
        raise all_of(problems)
    return _with_local_paths(cluster, root)


def _placed(found: Contradiction, root: Node) -> Problem:
    node = root.at(found.path)
    return Problem(node.key_place if found.at_key else node.place, found.message)


def _with_local_paths(cluster: Cluster, root: Node) -> Cluster:
    """`cluster` with the controller's own files (SSH) made absolute."""

    def local(path: Path, *keys: str) -> Path:
        return Path(root.at(keys).place.file).parent.absolute() / path.expanduser()

    def with_local(ssh: Ssh, *keys: str) -> Ssh:
        files = {"key": ssh.key, "known_hosts": ssh.known_hosts}
        # Only what is stated: a host's other keys are the cluster's.
        stated = {k: local(path, *keys, k) for k, path in files.items() if path is not None}
        return ssh.model_copy(update=stated)

    hosts = {
        name: host.model_copy(update={"ssh": with_local(host.ssh, "hosts", name, "ssh")})
        if host.ssh is not None
        else host
        for name, host in cluster.hosts.items()
    }
    ssh = with_local(cluster.ssh, "ssh")
    return cluster.model_copy(update={"ssh": ssh, "hosts": hosts})
