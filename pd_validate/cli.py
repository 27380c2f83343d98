"""`pd-validate`: the same objects as the pytest plugin, without pytest.

pd-validate plan CLUSTER        what would be run on which host; connects to nothing
pd-validate check CLUSTER       validate the cluster file alone
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pd_validate.dry_run import rendered_plan
from pd_validate.errors import SpecError
from pd_validate.spec.load import load_cluster

USAGE_ERROR = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. A file that cannot be used: one line and 4."""
    arguments = _parser().parse_args(argv)
    try:
        cluster = load_cluster(arguments.cluster)
    except SpecError as error:
        print(error, file=sys.stderr)
        return USAGE_ERROR
    if arguments.command == "plan":
        print(rendered_plan(cluster))
    else:
        hosts, instances = len(cluster.hosts), len(cluster.instances)
        print(f"{arguments.cluster}: {cluster.name}, {hosts} hosts, {instances} instances: usable")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pd-validate", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_ in (
        ("plan", "print what would be run on which host, as shell; starts and connects to nothing"),
        ("check", "validate the cluster file alone"),
    ):
        command = commands.add_parser(name, help=help_)
        command.add_argument("cluster", type=Path, help="cluster file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
