"""The options of a run: one group on the command line, each with an environment fallback."""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from pd_validate.errors import SpecError

TWIN = "twin"
AUDIT_LEVELS = ("off", "sample", "full")


class _Group(Protocol):
    def addoption(self, *names: str, **attributes: Any) -> None: ...


@dataclass(frozen=True)
class Options:
    """What was asked for. `cluster` empty: this is no run on a cluster."""

    cluster: str
    scenario: Path | None
    report: Path
    findings: Path | None
    quarantine: Path | None
    audit: Literal["off", "sample", "full"]
    keep_up: bool
    reuse: bool
    dry_run: bool
    allow_faults: bool
    lock_wait: float
    baselines: Path
    soak: float

    @staticmethod
    def add_to(group: _Group) -> None:
        """Add all options to a pytest option group."""

        def add(name: str, variable: str, help: str, **attributes: Any) -> None:
            value = os.environ.get(variable)
            default: Any = attributes.pop("default", None)
            if attributes.get("action") == "store_true":
                default = value not in (None, "", "0")
            elif value:
                default = value
            group.addoption(
                name,
                dest=variable.lower(),
                default=default,
                help=f"{help} (${variable})",
                **attributes,
            )

        add(
            "--cluster",
            "PD_CLUSTER",
            "cluster file, or `twin` for the embedded cluster",
            metavar="FILE|twin",
            default="",
        )
        add("--scenario", "PD_SCENARIO", "break the twin as this file says", metavar="FILE")
        add("--report", "PD_REPORT", "directory of the report", metavar="DIR", default="pd-report")
        add("--findings", "PD_FINDINGS", "also write findings.json here", metavar="FILE")
        add(
            "--quarantine",
            "PD_QUARANTINE",
            "known faults that do not make the run red, each with its issue and expiry date",
            metavar="FILE",
        )
        add("--audit", "PD_AUDIT", "digest KV on both sides", choices=AUDIT_LEVELS, default="full")
        add("--keep-up", "PD_KEEP_UP", "leave the topology running", action="store_true")
        add("--reuse", "PD_REUSE", "attach to a topology left running", action="store_true")
        add(
            "--lock-wait",
            "PD_LOCK_WAIT",
            "wait so long for another run on the same hosts to end",
            metavar="SECONDS",
            default="0",
        )
        add(
            "--dry-run",
            "PD_DRY_RUN",
            "print what would run on which host, run nothing",
            action="store_true",
        )
        add(
            "--baselines",
            "PD_BASELINES",
            "golden answers and figures to hold this run against; what has none is recorded",
            metavar="DIR",
            default="pd-baselines",
        )
        add(
            "--soak",
            "PD_SOAK",
            "how long tests of the mark `soak` go on",
            metavar="SECONDS",
            type=float,
            default="600",
        )
        add(
            "--allow-faults",
            "PD_ALLOW_FAULTS",
            "run tests that break things on purpose",
            action="store_true",
        )

    @classmethod
    def of(cls, namespace: argparse.Namespace) -> Options:
        def path(value: str | None) -> Path | None:
            return Path(value) if value else None

        return cls(
            cluster=namespace.pd_cluster or (TWIN if namespace.pd_scenario else ""),
            scenario=path(namespace.pd_scenario),
            report=Path(namespace.pd_report),
            findings=path(namespace.pd_findings),
            quarantine=path(namespace.pd_quarantine),
            audit=cast(Literal["off", "sample", "full"], namespace.pd_audit),
            keep_up=namespace.pd_keep_up,
            reuse=namespace.pd_reuse,
            dry_run=namespace.pd_dry_run,
            allow_faults=namespace.pd_allow_faults,
            lock_wait=_seconds(namespace.pd_lock_wait),
            baselines=Path(namespace.pd_baselines),
            soak=float(namespace.pd_soak),
        )

    def check(self) -> None:
        """What argparse does not see: values of the environment, places of results.

        Raises SpecError.
        """
        if self.audit not in AUDIT_LEVELS:
            raise SpecError(f"$PD_AUDIT is {self.audit!r}, not one of {', '.join(AUDIT_LEVELS)}")
        if not 0 <= self.lock_wait < math.inf:
            raise SpecError("--lock-wait is a number of seconds, 0 or more")
        blocked = _not_a_directory(self.report)
        if blocked is not None:
            raise SpecError(f"--report {self.report} cannot be a directory: {blocked} is a file")
        if self.findings is None:
            return
        blocked = _not_a_directory(self.findings.parent)
        if blocked is not None:
            raise SpecError(f"--findings {self.findings} cannot be written: {blocked} is a file")
        if self.findings.is_dir():
            raise SpecError(f"--findings {self.findings} is a directory, not a file to write")


def _seconds(text: str) -> float:
    """NaN for what is no number: `check` says so, with a message."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _not_a_directory(path: Path) -> Path | None:
    """The part of `path` that exists and keeps a directory from being made there."""
    return next((p for p in (path, *path.parents) if p.exists() and not p.is_dir()), None)
