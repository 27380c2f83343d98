"""Placeholders in a proxy command of the user's: ``{port}``, ``{decoder_urls}`` …

A list placeholder that is a whole argument becomes one argument per item
(``[--decoder-hosts, "{decoder_hosts}"]``); inside an argument its items are joined
with commas (``--decode={decoder_urls}``). ``{{`` and ``}}`` are literal braces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import Formatter

from pd_validate.spec.models import Cluster, Role
from pd_validate.spec.wording import closest

NAMES = (
    "host",
    "port",
    "model",
    "prefiller_hosts",
    "prefiller_ports",
    "prefiller_urls",
    "decoder_hosts",
    "decoder_ports",
    "decoder_urls",
)


def values_of(cluster: Cluster) -> Mapping[str, str | Sequence[str]]:
    """What each placeholder stands for. Instances are in the order of the file."""
    values: dict[str, str | Sequence[str]] = {
        "host": cluster.hosts[cluster.proxy.host].address,
        "port": str(cluster.proxy.port),
        "model": cluster.model.served_name,
    }
    for role, noun in ((Role.PREFILL, "prefiller"), (Role.DECODE, "decoder")):
        instances = cluster.instances_of(role).values()
        hosts = [cluster.hosts[spec.host].address for spec in instances]
        ports = [str(spec.port) for spec in instances]
        values[f"{noun}_hosts"] = hosts
        values[f"{noun}_ports"] = ports
        values[f"{noun}_urls"] = [
            f"http://{host}:{port}" for host, port in zip(hosts, ports, strict=True)
        ]
    return values


def expanded(command: Sequence[str], cluster: Cluster) -> tuple[str, ...]:
    """`command` with its placeholders filled in. They must be known (`load_cluster` checks)."""
    values = values_of(cluster)
    joined = {k: v if isinstance(v, str) else ",".join(v) for k, v in values.items()}
    argv: list[str] = []
    for argument in command:
        whole = values.get(argument[1:-1]) if argument[:1] == "{" else None
        if whole is None or isinstance(whole, str):
            argv.append(argument.format_map(joined))
        else:
            argv.extend(whole)
    return tuple(argv)


def unknown_placeholders(argument: str) -> list[str]:
    """Complaints about the placeholders of one argument; none if all is well."""
    try:
        fields = [field for _, field, _, _ in Formatter().parse(argument) if field is not None]
    except ValueError as error:
        return [f"`{argument}`: {error}; write {{{{ and }}}} for literal braces"]
    complaints = []
    for field in fields:
        if field not in NAMES:
            close = closest(field, NAMES)
            known = ", ".join(f"{{{name}}}" for name in NAMES)
            hint = f"there are {known}" if close is None else f"did you mean `{{{close}}}`?"
            complaints.append(f"unknown placeholder `{{{field}}}`; {hint}")
    return complaints
