"""What this machine has: versions, keys, space, limits, environment. Reads, judges nothing."""

from __future__ import annotations

import importlib.metadata
import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import paramiko
from packaging.requirements import Requirement  # comes with pytest

from pd_validate.errors import LabError
from pd_validate.hosts.fleet import in_parallel

PROJECT = Path(__file__).parents[2]
DISTRIBUTION = "pd-validate"
DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")  # those that paramiko tries by itself
_QUICK = 10.0  # seconds for a local program to say its version


@dataclass(frozen=True)
class Package:
    """A package that we require (`pytest<9.2,>=8.4`) and its version here, None if it is not."""

    requirement: str
    installed: str | None
    fits: bool


@dataclass(frozen=True)
class KeyFile:
    """A private key; `mode` is None where there is no such file."""

    path: Path
    mode: int | None
    readable: bool = True

    @property
    def open_to_others(self) -> bool:
        return self.mode is not None and bool(self.mode & 0o077)


@dataclass(frozen=True)
class Space:
    """Free bytes where something will be written."""

    path: Path
    free: int
    writable: bool


@dataclass(frozen=True)
class Machine:
    """This machine. A program that is not there is None; `agent_keys` None: no agent answers."""

    python: tuple[int, int, int]
    packages: tuple[Package, ...]
    node: str | None
    npm: str | None
    allure: bool
    vllm: str | None
    agent_keys: int | None
    default_keys: tuple[KeyFile, ...]
    spaces: tuple[Space, ...]
    open_files: int  # soft limit
    environ: Mapping[str, str]


def read_machine(report: Path, environ: Mapping[str, str] = os.environ) -> Machine:
    """`report`: the directory that a run's report will go to."""
    home = Path(environ.get("HOME", "~")).expanduser()
    return Machine(
        python=sys.version_info[:3],
        packages=tuple(_packages()),
        node=version_of("node", environ),
        npm=version_of("npm", environ),
        allure=(PROJECT / "node_modules" / ".bin" / "allure").exists(),
        vllm=_installed("vllm"),
        agent_keys=_agent_keys(environ),
        default_keys=tuple(key_file(home / ".ssh" / name) for name in DEFAULT_KEYS),
        spaces=(_space(report), _space(Path(tempfile.gettempdir()))),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        environ=dict(environ),
    )


def version_of(program: str, environ: Mapping[str, str]) -> str | None:
    """What `program --version` prints, None if it is not there or does not work."""
    path = shutil.which(program, path=environ.get("PATH"))
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, "--version"],
            env=dict(environ),
            capture_output=True,
            text=True,
            timeout=_QUICK,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def key_file(path: Path) -> KeyFile:
    """What is known of a private key without reading it."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return KeyFile(path, None)
    return KeyFile(path, mode, os.access(path, os.R_OK))


def _packages() -> list[Package]:
    """The distribution's own requirements, extras apart; empty if it is not installed."""
    try:
        texts = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = []
    for requirement in map(Requirement, texts):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _installed(requirement.name)
        fits = version is not None and requirement.specifier.contains(version, prereleases=True)
        found.append(Package(str(requirement), version, fits))
    return found


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _agent_keys(environ: Mapping[str, str]) -> int | None:
    """Number of keys in the SSH agent. A forwarded agent whose other end is gone may hang."""
    if not environ.get("SSH_AUTH_SOCK"):
        return None

    def count() -> int | None:
        try:
            agent = paramiko.Agent()
        except (paramiko.SSHException, OSError):
            return None
        try:
            return len(agent.get_keys())
        finally:
            agent.close()

    answer = in_parallel({"agent": count}, timeout=_QUICK)["agent"]
    return None if isinstance(answer, LabError) else answer


def _space(path: Path) -> Space:
    there = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    return Space(path, shutil.disk_usage(there).free, os.access(there, os.W_OK))
