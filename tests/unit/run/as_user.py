"""pytest run as a user runs it: a process of its own, in an empty directory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

DEADLINE = 240.0  # seconds; a run takes a few, a crowded machine much longer

# A cluster file that is right, at addresses that no route leads to.
USABLE = """\
name: three-servers
nic: eth0
hosts:
  p1: {address: 192.0.2.1}
  d1: {address: 192.0.2.2}
  d2: {address: 192.0.2.3}
model: {path: /model/Qwen3-30B-A3B}
instances:
  prefill-1: {role: prefill, host: p1, devices: [0, 1]}
  decode-1: {role: decode, host: d1, devices: [6, 7]}
  decode-2: {role: decode, host: d2, devices: [6, 7]}
proxy: {host: p1}
"""


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours without what the surrounding test run has set for itself."""
    ours = ("PYTEST_", "PD_", "PY_COLORS", "COLUMNS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "NO_COLOR": "1", **(changes or {})}


def run_pytest(
    arguments: Sequence[str], directory: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`python -m pytest …` in `directory`, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=directory,
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def told(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Every line that the run printed."""
    return [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
