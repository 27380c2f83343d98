"""The SSH servers of a twin's hosts, as the process that starts them holds them.

`sshd.py` is the program: one process that forks a server for each host.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

_START_SECONDS = 30.0  # until a server must accept connections
_STOP_SECONDS = 5.0
_PROJECT = Path(__file__).parent.parent


@dataclass(frozen=True)
class SshdConfig:
    """What one server needs to know. Paths are absolute; port 0 lets the kernel choose."""

    address: str
    port: int
    user: str
    host_key: str
    authorized_keys: str
    directory: str  # the host's home: where commands start
    env: dict[str, str] = field(default_factory=dict)  # the whole environment of commands

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> SshdConfig:
        return cls(**json.loads(text))


@dataclass
class Server:
    """A server's process."""

    pid: int
    handle: int | None  # a pidfd: true also when the id is used again; None: ended at once
    port: int = 0  # 0: it does not accept connections yet

    def ended(self, seconds: float) -> bool:
        """Whether it has ended, or does within `seconds`."""
        return self.handle is None or bool(select.select([self.handle], [], [], seconds)[0])

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when it has ended."""
        if self.handle is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.handle, number)

    def close(self) -> None:
        """Let the handle go."""
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None


class ServerFailed(Exception):
    """A server does not accept connections; the message says why, as the end of a sentence."""


class Servers:
    """Servers by name of their host; the host's home is `root`/NAME."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._parent: subprocess.Popen[bytes] | None = None  # of all servers
        self._heard = b""  # the beginning of a line
        self._servers: dict[str, Server] = {}

    def launch(self, name: str, config: SshdConfig) -> None:
        """Start a server; several start side by side. See `wait_listening`."""
        (self._root / name / "sshd.json").write_text(config.to_json())
        if self._parent is None:
            self._parent = self._start_parent()
        assert self._parent.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: that is found out when we wait
            self._parent.stdin.write(name.encode() + b"\n")

    def wait_listening(self, name: str) -> Server:
        """Wait until a server accepts connections. Raises ServerFailed."""
        deadline = time.monotonic() + _START_SECONDS
        while True:
            server = self._servers.get(name)
            if server is not None and server.port:
                return server
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._failed(name, f"did not answer within {_START_SECONDS:g} s")
            if not self._listen(server, left):
                raise self._failed(name, "ended")

    def kill(self, name: str) -> None:
        """SIGKILL a server."""
        server = self._servers.pop(name)
        server.send(signal.SIGKILL)
        server.ended(_STOP_SECONDS)
        server.close()

    def stop(self) -> None:
        """End all servers."""
        for server in self._servers.values():
            server.send(signal.SIGTERM)
        for name, server in list(self._servers.items()):
            server.ended(_STOP_SECONDS)
            self.kill(name)
        if self._parent is not None:
            self._parent.kill()
            self._parent.communicate()
            self._parent = None

    def _start_parent(self) -> subprocess.Popen[bytes]:
        with (self._root / "sshd.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "twin.sshd", str(self._root), "--parent", str(os.getpid())],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=_PROJECT,
                start_new_session=True,  # a Ctrl-C in the terminal is for the controller alone
            )

    def _listen(self, server: Server | None, seconds: float) -> bool:
        """Take what is said next, for at most `seconds`; False when `server` has ended instead."""
        assert self._parent is not None
        assert self._parent.stdout is not None
        if server is not None and server.handle is None:
            return False
        out = self._parent.stdout.fileno()
        handles = [out] if server is None or server.handle is None else [out, server.handle]
        ready, _, _ = select.select(handles, [], [], seconds)
        if out not in ready:
            return not ready  # nothing at all: the caller's deadline
        data = os.read(out, 64 * 1024)
        *lines, self._heard = (self._heard + data).split(b"\n")
        for line in lines:
            self._take(**json.loads(line))
        return bool(data)

    def _take(self, host: str, pid: int = 0, port: int = 0) -> None:
        if pid:
            self._servers[host] = Server(pid, _handle(pid))
        elif host in self._servers:  # or it has been killed meanwhile
            self._servers[host].port = port

    def _failed(self, name: str, why: str) -> ServerFailed:
        logs = (self._root / name / "sshd.log", self._root / "sshd.log")
        words = "".join(log.read_text() for log in logs if log.exists()).strip()
        return ServerFailed(f"{why}. Its last words: {words[-400:] or '(none)'}")


def _handle(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None
