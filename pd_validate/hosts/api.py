"""What the rest of the harness needs of a host: run, put, get, and supervised processes.

Protocols only, so that facts/ and topology/ can be read (and tested) without SSH.
The implementation over fabric is `remote.py`, the fan-out is `fleet.py`, and the
program that supervises processes on the host is `agent.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Completed:
    """A command that ended. `exit_code` is the shell's; a signal N gives 128 + N."""

    command: str
    exit_code: int
    stdout: str
    stderr: str
    seconds: float


@dataclass(frozen=True)
class ProcessSpec:
    """A process to start on a host: argv is not interpreted by any shell.

    `env` is added to the host's login environment; `cwd` must exist. Both output
    streams go to one log file in the run directory, named after `name`.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None


@dataclass(frozen=True)
class ProcessStatus:
    """A supervised process as the host sees it now.

    `exit_code` is None while it runs; a signal N gives -N, as in `subprocess`.
    `started` and `ended` are seconds since the epoch by the host's clock.
    """

    name: str
    pid: int
    exit_code: int | None
    started: float
    ended: float | None
    log: str  # path of the log file on the host

    @property
    def alive(self) -> bool:
        return self.exit_code is None


@dataclass(frozen=True)
class StoppedProcess:
    """A process that lives and does nothing, because a signal has stopped it."""

    pid: int
    title: str  # its command line, as programs set it for themselves, too


class Commands(Protocol):
    """Plain commands and files on one host (inside its container, if it has one)."""

    @property
    def name(self) -> str:
        """The host's name in the cluster file."""
        ...

    def run(
        self,
        command: str,
        *,
        timeout: float,
        stdin: bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a POSIX shell command line. Never raises for an exit code.

        Raises HostUnreachable, HostAuthError, HostKeyChanged, CommandTimeout.
        """
        ...

    def python(self, source: str, *, args: Sequence[str] = (), timeout: float) -> Completed:
        """Run Python source (stdlib only, sent over stdin) with the host's Python 3."""
        ...

    def put(self, data: bytes, path: str, *, mode: int = 0o644) -> None:
        """Write a file atomically (temporary name, then rename); makes parent directories."""
        ...

    def get(self, path: str, *, limit: int | None = None) -> bytes:
        """Read a file; with `limit` only its last `limit` bytes. FileNotFoundError if absent."""
        ...


class Supervisor(Protocol):
    """Processes of one run on one host. When the controller is gone they end by themselves."""

    @property
    def run_dir(self) -> str:
        """This run's directory on the host."""
        ...

    def start(self, spec: ProcessSpec) -> ProcessStatus: ...

    def status(self) -> dict[str, ProcessStatus]:
        """All processes started in this run, by name."""
        ...

    def stop(self, name: str, *, timeout: float) -> ProcessStatus:
        """SIGTERM to the process group, then SIGKILL, then check that the whole group is gone."""
        ...

    def signal(self, name: str, number: int, *, match: str | None = None) -> int:
        """Send a signal to the process, or to those of its group whose title contains `match`.

        Returns the number of processes reached. For faults on purpose.
        """
        ...

    def stopped(self, name: str) -> list[StoppedProcess]:
        """What belongs to the process and stands still because of a signal (SIGSTOP)."""
        ...

    def tail(self, name: str, *, lines: int = 40) -> list[str]: ...

    def close(self, *, keep: bool = False) -> None:
        """End everything and remove the run directory; with `keep` leave all of it running."""
        ...
