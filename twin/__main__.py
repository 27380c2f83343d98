"""`python -m twin FILE`: a twin that stays until Ctrl-C, and the cluster file to reach it.

FILE is written as one for foreign hosts: plain addresses, ports, a key. From another
terminal: `pytest --cluster FILE`, also with --keep-up and --reuse.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

import yaml

from pd_validate.errors import SpecError
from twin.cluster import TwinCluster, cluster_file
from twin.hosts import TwinError
from twin.scenario import load_scenario


def main() -> int:
    """Runs until SIGINT or SIGTERM. Exit code 4 for a file that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m twin", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="cluster file to write")
    parser.add_argument("--cluster", default="", help="a cluster file to start from")
    parser.add_argument("--scenario", type=Path, help="break the twin as this file says")
    arguments = parser.parse_args()
    try:
        scenario = load_scenario(arguments.scenario) if arguments.scenario else None
        name = arguments.cluster or (scenario.cluster if scenario is not None else "")
        twin = TwinCluster.start(cluster_file(name), scenario)
    except SpecError as error:
        print(error, file=sys.stderr)
        return 4
    except (TwinError, OSError) as error:
        print(f"the twin does not start: {error}", file=sys.stderr)
        return 1
    with twin:
        data = twin.cluster.model_dump(mode="json", exclude_unset=True)
        arguments.file.write_text(yaml.safe_dump(data, sort_keys=False))
        print(f"{len(twin.cluster.hosts)} hosts run; cluster file: {arguments.file}", flush=True)
        asked_to_end = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: asked_to_end.set())
        asked_to_end.wait()
    arguments.file.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
