"""Runs a line of shell as a reader of the docs would."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

SECONDS = 120  # for one command, on a busy machine


def run(line: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell as a user with the environment activated would."""
    return subprocess.run(
        ["sh", "-c", line],
        cwd=cwd,
        env=_environment(variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Ours, without what speaks to the pytest that runs this test."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    high, low = divmod(os.getpid(), 250)  # a loopback network that no other test uses
    return {
        **outside,
        "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
        "PD_TWIN_NETWORK": f"127.{2 + high % 250}.{low}",
        **variables,
    }
