"""`pd-validate`: the same objects as the pytest plugin, without pytest.

pd-validate doctor [CLUSTER]    what this machine lacks to run, and how to get it
pd-validate check CLUSTER       validate the cluster file alone
pd-validate plan CLUSTER        what would be run on which host; connects to nothing
pd-validate up CLUSTER          bring the service up and leave it running
pd-validate status CLUSTER      what runs on the hosts, also while a run is at work
pd-validate logs CLUSTER        last lines of every process's log
pd-validate down CLUSTER        end what was left running, remove what dead runs left
pd-validate report DIR          draw a run's reports again from its saved record
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pd_validate.doctor import examine
from pd_validate.doctor.need import is_fit, told
from pd_validate.dry_run import rendered_plan
from pd_validate.errors import PdValidateError, SpecError
from pd_validate.maintenance import Told, down, logs, status
from pd_validate.report.places import Places
from pd_validate.report.remake import remake
from pd_validate.report.terminal import HostProgress, console_for, print_summary
from pd_validate.session import Session
from pd_validate.spec.load import load_cluster
from pd_validate.spec.models import Cluster
from pd_validate.spec.runtime import check_can_stay

USAGE_ERROR = 4
NOT_FIT = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. A file that cannot be used: one line and 4."""
    arguments = _parser().parse_args(argv)
    try:
        return _COMMANDS[arguments.command].run(arguments)
    except SpecError as error:
        print(error, file=sys.stderr)
        return USAGE_ERROR
    except PdValidateError as error:
        print(error, file=sys.stderr)
        return 1


def _doctor(arguments: argparse.Namespace) -> int:
    cluster = load_cluster(arguments.cluster) if arguments.cluster is not None else None
    needs = examine(cluster, arguments.report)
    print(told(needs))
    return 0 if is_fit(needs) else NOT_FIT


def _report(arguments: argparse.Namespace) -> int:
    remade = remake(arguments.directory)
    print_summary(console_for(sys.stdout), remade.record, Places(arguments.directory).summary)
    print(remade.allure)
    return 0


def _check(cluster: Cluster, arguments: argparse.Namespace) -> int:
    hosts, instances = len(cluster.hosts), len(cluster.instances)
    print(f"{arguments.cluster}: {cluster.name}, {hosts} hosts, {instances} instances: usable")
    return 0


def _plan(cluster: Cluster, arguments: argparse.Namespace) -> int:
    print(rendered_plan(cluster))
    return 0


def _up(cluster: Cluster, arguments: argparse.Namespace) -> int:
    check_can_stay(cluster)
    console = console_for(sys.stdout)
    with HostProgress(console, list(cluster.hosts)) as progress:
        session = Session(cluster, audit="off", progress=progress)
        keep = False
        try:
            session.topology()
            keep = True
        finally:
            session.close(keep=keep)
    print(f"up: http://{cluster.hosts[cluster.proxy.host].address}:{cluster.proxy.port}")
    return 0


def _say(told: Told) -> int:
    print("\n".join(told.lines))
    return 0 if told.ok else 1


def _on(
    work: Callable[[Cluster, argparse.Namespace], int],
) -> Callable[[argparse.Namespace], int]:
    """A command that works on the cluster of its file. Raises SpecError."""
    return lambda arguments: work(load_cluster(arguments.cluster), arguments)


@dataclass(frozen=True)
class _Command:
    help: str
    run: Callable[[argparse.Namespace], int]


_COMMANDS = {
    "doctor": _Command(
        "what this machine lacks to run, and how to get it; with a cluster file, also whether "
        "its hosts can be reached (exit code 10 if something is missing)",
        _doctor,
    ),
    "check": _Command("validate the cluster file alone", _on(_check)),
    "plan": _Command(
        "print what would be run on which host, as shell; connects to nothing", _on(_plan)
    ),
    "up": _Command("bring the service up and leave it running", _on(_up)),
    "status": _Command("what runs on the hosts", _on(lambda cluster, _: _say(status(cluster)))),
    "logs": _Command(
        "last lines of every process's log",
        _on(lambda cluster, arguments: _say(logs(cluster, lines=arguments.lines))),
    ),
    "down": _Command(
        "end what was left running, remove what dead runs left",
        _on(lambda cluster, _: _say(down(cluster))),
    ),
    "report": _Command("draw a run's reports again from its saved record.json", _report),
}


def _parser() -> argparse.ArgumentParser:
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="pd-validate", description=summary)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in _COMMANDS.items():
        added = commands.add_parser(name, help=command.help, description=command.help)
        if name == "report":
            added.add_argument("directory", type=Path, help="directory of the run's report")
            continue
        optional = "?" if name == "doctor" else None
        added.add_argument("cluster", type=Path, nargs=optional, help="cluster file")
        if name == "logs":
            added.add_argument("--lines", type=int, default=40, help="of each log (default: 40)")
        if name == "doctor":
            added.add_argument(
                "--report",
                type=Path,
                default=Path("pd-report"),
                help="where the report will go (default: pd-report)",
            )
    return parser


if __name__ == "__main__":
    sys.exit(main())
