"""A twin's host reached without SSH: the same tools on PATH, commands by subprocess.

For tests of readers and checks; that SSH carries them is tests/unit/hosts' concern.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pd_validate.hosts.api import Completed
from pd_validate.spec.models import Cluster
from twin.fabric import FabricState
from twin.tools import launch

_PROJECT = Path(__file__).parents[3]


@dataclass(frozen=True)
class TwinCommands:
    """`Commands` as far as readers need it."""

    name: str
    env: Mapping[str, str]

    def python(self, source: str, *, args: Sequence[str] = (), timeout: float) -> Completed:
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-", *args],
            input=source.encode(),
            capture_output=True,
            env=dict(self.env),
            timeout=timeout,
            check=False,
        )
        return Completed(
            "python3 -",
            done.returncode,
            done.stdout.decode(),
            done.stderr.decode(),
            time.monotonic() - started,
        )


def twin_commands(
    cluster: Cluster, state: FabricState, directory: Path, login: Mapping[str, str] | None = None
) -> dict[str, TwinCommands]:
    """One per host of the cluster; `login` is added to every host's environment."""
    tools = directory / "bin"
    launch.install(str(tools))
    for command in ("cat", "ls"):
        _program(tools / command, (_PROJECT / f"twin/wrappers/{command}.sh").read_text())
    state.write(directory / "state")
    for name, host in state.hosts.items():
        _devices(directory / "state" / name / "dev", host.devices)
    return {
        name: TwinCommands(
            name,
            {
                "PATH": f"{tools}:{os.environ['PATH']}",
                "HOME": str(directory),
                "TWIN_STATE": str(directory / "state"),
                "TWIN_HOST": name,
                **(login or {}),
            },
        )
        for name in cluster.hosts
    }


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _devices(directory: Path, numbers: Iterable[int]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (directory / f"davinci{number}").touch()
