"""Hosts without SSH: commands and processes of this machine, in a directory per host."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pd_validate.errors import HostUnreachable, LabError
from pd_validate.hosts.api import Completed, ProcessSpec, ProcessStatus, StoppedProcess

ENGINE = Path(__file__).with_name("small_engine.py")


@dataclass
class LocalCommands:
    """`Commands` by subprocess. `ran` are the command lines, `copied` the files put."""

    name: str
    ran: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    lost: bool = False  # nothing reaches the host

    def run(
        self,
        command: str,
        *,
        timeout: float,
        stdin: bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        if self.lost:
            raise HostUnreachable(f"{self.name}: no route to host")
        self.ran.append(command)
        started = time.monotonic()
        done = subprocess.run(
            ["/bin/sh", "-c", command], input=stdin, capture_output=True, timeout=timeout, env=env
        )
        return Completed(
            command,
            done.returncode,
            done.stdout.decode(),
            done.stderr.decode(),
            time.monotonic() - started,
        )

    def python(self, source: str, *, args: Sequence[str] = (), timeout: float) -> Completed:
        raise NotImplementedError("bring-up reads nothing")

    def put(self, data: bytes, path: str, *, mode: int = 0o644) -> None:
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_bytes(data)
        except OSError as error:
            raise LabError(f"{self.name}: cannot write {path}: {error}") from error
        self.copied.append(path)

    def get(self, path: str, *, limit: int | None = None) -> bytes:
        data = Path(path).read_bytes()
        return data if limit is None else data[-limit:]


class LocalSupervisor:
    """`Supervisor` of processes of this machine: each is a small engine that behaves as told.

    `urls` and `behaviours` are by process name; what is not named serves as it should.
    """

    def __init__(
        self, run_dir: Path, urls: Mapping[str, str], behaviours: Mapping[str, str]
    ) -> None:
        self._directory = run_dir
        self._urls = urls
        self._behaviours = behaviours
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.specs: dict[str, ProcessSpec] = {}
        self.lost = False  # the agent has ended, and what it had started with it

    @property
    def run_dir(self) -> str:
        return str(self._directory)

    def start(self, spec: ProcessSpec) -> ProcessStatus:
        self.specs[spec.name] = spec
        behaviour = self._behaviours.get(spec.name, "serves")
        self._directory.mkdir(parents=True, exist_ok=True)
        with self._log(spec.name).open("wb") as log:
            self._processes[spec.name] = subprocess.Popen(
                [sys.executable, "-S", str(ENGINE), self._urls[spec.name], behaviour],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(spec.env),
            )
        return self.status()[spec.name]

    def status(self) -> dict[str, ProcessStatus]:
        if self.lost:
            self.close()
            raise HostUnreachable("lost our agent there")
        return {
            name: ProcessStatus(name, p.pid, p.poll(), 0.0, None, str(self._log(name)))
            for name, p in self._processes.items()
        }

    def stop(self, name: str, *, timeout: float) -> ProcessStatus:
        self._processes[name].terminate()
        self._processes[name].wait(timeout)
        return self.status()[name]

    def signal(self, name: str, number: int, *, match: str | None = None) -> int:
        self._processes[name].send_signal(signal.Signals(number))
        return 1

    def stopped(self, name: str) -> list[StoppedProcess]:
        process = self._processes[name]
        if process.poll() is not None:
            return []
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        return [StoppedProcess(process.pid, name)] if state in "tT" else []

    def tail(self, name: str, *, lines: int = 40) -> list[str]:
        return self._log(name).read_text().splitlines()[-lines:]

    def close(self, *, keep: bool = False) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait(10)

    def _log(self, name: str) -> Path:
        return self._directory / f"{name}.log"


@dataclass(frozen=True)
class LocalHost:
    commands: LocalCommands
    supervisor: LocalSupervisor


@dataclass
class Told:
    """`Progress` that remembers."""

    lines: list[str] = field(default_factory=list)

    def start(self, host: str, what: str) -> None:
        self.lines.append(f"{host}: {what}")

    def done(self, host: str, note: str = "") -> None:
        self.lines.append(f"{host}: done {note}")

    def fail(self, host: str, why: str) -> None:
        self.lines.append(f"{host}: failed {why}")
