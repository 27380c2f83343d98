"""Commands and files on one host over SSH, inside its container if it has one.

Files travel through commands, not SFTP: one round trip each, and the same way into a
container as onto the host.
"""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from types import TracebackType
from typing import Self

import paramiko

from pd_validate.errors import LabError
from pd_validate.hosts.api import Completed
from pd_validate.hosts.connection import Outcome, SshConnection
from pd_validate.spec.models import Cluster, HostRuntime, Ssh, Timeouts
from pd_validate.spec.runtime import AnyRuntime, wrap

MAX_OUTPUT = 64 * 1024 * 1024  # bytes a command may print per stream
_SLOWEST_COPY = 1024 * 1024  # bytes per second that a file copy must at least make
_HOST_GRACE = 1.0  # seconds after which the host itself ends a command that we gave up
_NO_SUCH_FILE = 44  # our own exit code of the reading script
_WRONG_SIZE = 45


class RemoteHost:
    """One host of the cluster file; implements `Commands`. For use by several threads.

    `timeouts.connect` limits each connection attempt; `timeouts.command` is what a file
    operation may take beside the time for its bytes. `run_id` names the container of a
    docker-run runtime.
    """

    def __init__(
        self,
        name: str,
        address: str,
        ssh: Ssh,
        *,
        runtime: AnyRuntime | None = None,
        timeouts: Timeouts | None = None,
        python: str = "python3",
        run_id: str = "",
        connection: SshConnection | None = None,
    ) -> None:
        self._name = name
        self.runtime = runtime or HostRuntime()
        self.timeouts = timeouts or Timeouts()
        self.python_executable = python
        self.run_id = run_id
        self._connection = connection or SshConnection(
            name, address, ssh, connect_seconds=self.timeouts.connect
        )

    @classmethod
    def of_cluster(cls, cluster: Cluster, name: str, *, run_id: str = "") -> Self:
        """The host called `name` in the cluster file."""
        host = cluster.hosts[name]
        return cls(
            name,
            host.ssh_address or host.address,
            cluster.ssh_of(name),
            runtime=cluster.runtime_of(name),
            timeouts=cluster.timeouts,
            python=cluster.python,
            run_id=run_id,
        )

    def outside(self) -> RemoteHost:
        """The machine itself, over the same connection, whatever container commands go to."""
        return RemoteHost(
            self._name,
            self._connection.address,
            self._connection.ssh,
            timeouts=self.timeouts,
            python=self.python_executable,
            run_id=self.run_id,
            connection=self._connection,
        )

    def separate(self) -> RemoteHost:
        """The same host over a connection of its own, which the caller closes."""
        return RemoteHost(
            self._name,
            self._connection.address,
            self._connection.ssh,
            runtime=self.runtime,
            timeouts=self.timeouts,
            python=self.python_executable,
            run_id=self.run_id,
        )

    @property
    def name(self) -> str:
        return self._name

    @property
    def where(self) -> str:
        """`user@address:port`, for messages."""
        return self._connection.where

    def connect(self) -> None:
        """Log in now instead of at the first command. Raises as `run` does."""
        self._connection.connect()

    def drop(self) -> None:
        """Cut the connection under whoever uses it; the next command connects again."""
        self._connection.drop()

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- commands -------------------------------------------------------------------------------

    def run(
        self,
        command: str,
        *,
        timeout: float,
        stdin: bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a POSIX shell command line. Never raises for an exit code.

        The host itself ends the command soon after `timeout` seconds, also when we are gone.
        `env` shows in the host's process list while the command runs: no secrets there.
        Raises HostUnreachable, HostAuthError, HostKeyChanged, CommandTimeout; LabError if it
        prints more than MAX_OUTPUT bytes.
        """
        outcome = self._shell(
            command, timeout=timeout, stdin=stdin or b"", env=env, limit=MAX_OUTPUT
        )
        return _completed(command, outcome)

    def python(self, source: str, *, args: Sequence[str] = (), timeout: float) -> Completed:
        """Run Python source (stdlib only, sent over stdin) with the host's Python 3, in `/`."""
        # -X utf8: an old locale of the host must not garble what is printed.
        line = shlex.join([self.python_executable, "-X", "utf8", "-", *args])
        outcome = self._shell(
            f"cd / && exec {line}", timeout=timeout, stdin=source.encode(), limit=MAX_OUTPUT
        )
        return _completed(line, outcome)

    def stream(self, argv: Sequence[str], *, env: Mapping[str, str]) -> paramiko.Channel:
        """Start a program that we talk with; no deadline but its own. The caller closes it."""
        # exec: no shell of ours stays between the server and the program.
        return self._connection.stream(f"exec {self._wrapped(argv, env)}")

    # --- files ----------------------------------------------------------------------------------

    def put(self, data: bytes, path: str, *, mode: int = 0o644) -> None:
        """Write a file atomically (temporary name, then rename); makes parent directories."""
        target = PurePosixPath(path)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        outcome = self._shell(
            _PUT.format(
                parent=shlex.quote(str(target.parent)),
                path=shlex.quote(str(target)),
                temporary=shlex.quote(str(temporary)),
                mode=f"{mode:o}",
                size=len(data),
                wrong_size=_WRONG_SIZE,
            ),
            timeout=self._copy_seconds(len(data)),
            stdin=data,
            shown=f"write {path}",
        )
        if outcome.exit_code == _WRONG_SIZE:
            raise LabError(
                f"{self.name}: {path} was not written: not all of its {len(data)} bytes arrived"
            )
        if outcome.exit_code != 0:
            raise LabError(f"{self.name}: cannot write {path}: {_said(outcome)}")

    def get(self, path: str, *, limit: int | None = None) -> bytes:
        """Read a file; with `limit` only its last `limit` bytes. FileNotFoundError if absent."""
        quoted = shlex.quote(path)
        read = f"cat -- {quoted}" if limit is None else f"tail -c {limit} -- {quoted}"
        outcome = self._shell(
            f"test -e {quoted} || exit {_NO_SUCH_FILE}; exec {read}",
            timeout=self._copy_seconds(MAX_OUTPUT if limit is None else limit),
            shown=f"read {path}",
        )
        if outcome.exit_code == _NO_SUCH_FILE:
            raise FileNotFoundError(f"{self.name}: {path} does not exist")
        if outcome.exit_code != 0:
            raise LabError(f"{self.name}: cannot read {path}: {_said(outcome)}")
        return outcome.stdout

    def _copy_seconds(self, size: int) -> float:
        return self.timeouts.command + size / _SLOWEST_COPY

    # --- how a command gets there ---------------------------------------------------------------

    def _shell(
        self,
        command: str,
        *,
        timeout: float,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        limit: int | None = None,
        shown: str | None = None,
    ) -> Outcome:
        script = _BOUNDED.format(deadline=timeout + _HOST_GRACE, command=shlex.quote(command))
        return self._connection.execute(
            self._wrapped(("/bin/sh", "-c", script), env or {}),
            timeout=timeout,
            stdin=stdin,
            limit=limit,
            shown=shown or command,
        )

    def _wrapped(self, argv: Sequence[str], env: Mapping[str, str]) -> str:
        return shlex.join(wrap(self.runtime, argv, run_id=self.run_id, env=env))


# The host keeps the deadline too (coreutils), because a server does not end a command whose
# client went away. `exit $?`: this shell must not be replaced by the command, so that a death
# by signal N is the exit code 128 + N.
_BOUNDED = """\
if command -v timeout >/dev/null 2>&1
then timeout -k 2 {deadline:g} /bin/sh -c {command}
else /bin/sh -c {command}
fi
exit $?"""

# A file whose end got lost on the way is as bad as none: the size must be right before it counts.
_PUT = """\
path={path} temporary={temporary}
mkdir -p -- {parent} || exit 1
test ! -d "$path" || {{ echo 'it is a directory' >&2; exit 1; }}
trap 'rm -f -- "$temporary"' EXIT
(umask 077; cat > "$temporary") || exit 1
test "$(wc -c < "$temporary")" -eq {size} || exit {wrong_size}
chmod {mode} "$temporary" && mv -f -- "$temporary" "$path"
"""


def _completed(command: str, outcome: Outcome) -> Completed:
    return Completed(
        command=command,
        # Without a status the command was ended by a signal that the server did not name.
        exit_code=137 if outcome.exit_code is None else outcome.exit_code,
        stdout=outcome.stdout.decode("utf-8", "replace"),
        stderr=outcome.stderr.decode("utf-8", "replace"),
        seconds=outcome.seconds,
    )


def _said(outcome: Outcome) -> str:
    return outcome.stderr.decode("utf-8", "replace").strip() or f"exit code {outcome.exit_code}"
