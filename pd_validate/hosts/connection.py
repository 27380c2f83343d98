"""One SSH connection to one machine: opened when needed, shared by threads, deadlines on all.

fabric reads the user's ssh_config and builds the connection (also through a jump host);
the channels are paramiko's, because a command here is bytes in, bytes out and an exit code
by a deadline, whatever happens. Nothing ever asks a person.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import shlex
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paramiko
from fabric import Connection as FabricConnection

from pd_validate.errors import (
    CommandTimeout,
    HostAuthError,
    HostKeyChanged,
    HostSilent,
    HostUnreachable,
    LabError,
    WaitTimeout,
)
from pd_validate.spec.models import Ssh
from pd_validate.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

# paramiko tells every failed connection by a traceback, too; for whoever asks for this log.
_LOG = logging.getLogger("pd_validate.ssh")
_LOG.addHandler(logging.NullHandler())

_CHUNK = 256 * 1024  # bytes
_KEEPALIVE = 5  # seconds between probes on an idle connection
_DEAD_AFTER = 15  # seconds without an acknowledgement until the kernel gives a connection up
# OpenSSH allows 10 sessions on one connection (MaxSessions); two are left to others.
_MAX_SESSIONS = 8
_SHOWN = 160  # characters of a command in a message


@dataclass(frozen=True)
class Outcome:
    """A command that ended, as bytes. `exit_code` None: it was ended by an unknown signal."""

    exit_code: int | None
    stdout: bytes
    stderr: bytes
    seconds: float


class SshConnection:
    """A reusable connection to `host`, named `name` in all messages.

    Connects at first use, and again when the connection was lost since. A command that was
    running when it was lost is never repeated.
    """

    def __init__(
        self,
        name: str,
        address: str,
        ssh: Ssh,
        *,
        connect_seconds: float,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self.name = name
        self.address = address
        self.ssh = ssh
        self.connect_seconds = connect_seconds
        self._environ = environ
        self._lock = threading.Lock()
        self._sessions = threading.BoundedSemaphore(_MAX_SESSIONS)
        self._connection: Any = None  # fabric's
        self._closed = False

    @property
    def where(self) -> str:
        """`user@address:port`, with the way there."""
        way = f" through {self.ssh.jump}" if self.ssh.jump else ""
        return f"{self.ssh.user}@{self.address}:{self.ssh.port}{way}"

    # --- life -----------------------------------------------------------------------------------

    def connect(self) -> None:
        """Raises HostUnreachable, HostAuthError, HostKeyChanged within the connect deadline."""
        self._transport()

    def close(self) -> None:
        """Close for good; whoever still waits on it gets HostUnreachable."""
        self._closed = True
        self.drop()

    def drop(self) -> None:
        """Cut the connection now; the next command connects again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            _close(connection)

    # --- commands -------------------------------------------------------------------------------

    def execute(
        self,
        line: str,
        *,
        timeout: float,
        stdin: bytes = b"",
        limit: int | None = None,
        shown: str | None = None,
    ) -> Outcome:
        """Run one command line by the login shell and wait for its end and its output's.

        `limit`: most bytes of output that are accepted per stream (LabError beyond).
        `shown`: what to call the command in messages. Raises CommandTimeout after `timeout`
        seconds, HostUnreachable if the connection was lost on the way.
        """
        started = time.monotonic()
        deadline = started + timeout
        label = _shortened(shown if shown is not None else line)
        if not self._sessions.acquire(timeout=timeout):
            raise CommandTimeout(
                f"{self.name}: `{label}` was not started within {timeout:g} s: "
                f"{_MAX_SESSIONS} other commands are still running there"
            )
        try:
            with self._channel(line, deadline) as channel:
                exchange = _Exchange(channel, deadline, limit)
                try:
                    exchange.run(stdin)
                except TimeoutError:
                    raise CommandTimeout(self._too_slow(label, timeout, exchange)) from None
                except _TooMuch:
                    raise LabError(
                        f"{self.name}: `{label}` printed more than {limit} bytes; it was ended. "
                        "Let it write to a file, or print less"
                    ) from None
                code = exchange.exit_code
                if code is None and not channel.get_transport().is_active():
                    raise HostUnreachable(
                        f"{self.name}: the connection to {self.where} was lost while "
                        f"`{label}` was running, after {time.monotonic() - started:.1f} s"
                    )
                return Outcome(code, exchange.stdout, exchange.stderr, time.monotonic() - started)
        finally:
            self._sessions.release()

    def stream(self, line: str) -> paramiko.Channel:
        """Start a command and return its channel, to talk with it. The caller closes it."""
        return self._open_channel(line, time.monotonic() + self.connect_seconds)

    def _too_slow(self, label: str, timeout: float, exchange: _Exchange) -> str:
        message = f"{self.name}: `{label}` did not end within {timeout:g} s; it was ended"
        if exchange.exited:
            message = (
                f"{self.name}: `{label}` ended, but something it started still held its output "
                f"after {timeout:g} s. Redirect the output of what stays in the background"
            )
        said = _last_line(exchange.stderr) or _last_line(exchange.stdout)
        return f"{message}. Its last line: {said}" if said else message

    @contextmanager
    def _channel(self, line: str, deadline: float) -> Iterator[paramiko.Channel]:
        channel = self._open_channel(line, deadline)
        try:
            yield channel
        finally:
            channel.close()

    def _open_channel(self, line: str, deadline: float) -> paramiko.Channel:
        """A session that runs `line`. A connection that turns out to be dead is replaced, once."""
        replaced = False

        def attempt() -> paramiko.Channel | None:
            nonlocal replaced
            transport = self._transport()
            try:
                return _start(transport, line, _left(deadline))
            except _Refused:
                return None
            except TimeoutError:
                self._forget(transport)
                raise HostUnreachable(
                    f"{self.name}: {self.where} is connected but did not start a command in time. "
                    "Is the machine overloaded or hung?"
                ) from None
            except (paramiko.SSHException, EOFError, OSError) as error:
                self._forget(transport)
                if replaced:
                    raise HostUnreachable(
                        f"{self.name}: {self.where} closes every connection: {_reason(error)}"
                    ) from None
                replaced = True
                return None

        # A server may count sessions a moment longer than we do: until it has reaped what ran.
        try:
            return wait_for(attempt, seconds=_left(deadline), what="a session", interval=0.05)
        except WaitTimeout:
            raise LabError(
                f"{self.name}: the SSH server of {self.where} allows no further session. "
                f"It must allow {_MAX_SESSIONS + 2} at a time: MaxSessions in its sshd_config"
            ) from None

    # --- connecting -----------------------------------------------------------------------------

    def _transport(self) -> paramiko.Transport:
        if self._closed:
            raise HostUnreachable(f"{self.name}: the connection to {self.where} has been closed")
        with self._lock:
            connection = self._connection
            if connection is not None and connection.is_connected:
                return _transport_of(connection)
            if connection is not None:
                _close(connection)
            self._connection = self._open()
            return _transport_of(self._connection)

    def _forget(self, transport: paramiko.Transport) -> None:
        with self._lock:
            connection = self._connection
            if connection is not None and connection.transport is transport:
                self._connection = None
                _close(connection)

    def _open(self) -> Any:
        connection = self._build(self.address, self.ssh.user, self.ssh.port, self._jump())
        try:
            for hop in _hops(connection):
                self._secure(hop)
                where = self.where if hop is connection else f"jump host {_place(hop)}"
                self._establish(hop, where)
        except BaseException:
            _close(connection)
            raise
        transport = _transport_of(connection)
        transport.set_keepalive(_KEEPALIVE)
        if isinstance(transport.sock, socket.socket):  # through a jump host it is a channel
            transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            transport.sock.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_AFTER * 1000
            )
        return connection

    def _jump(self) -> Any:
        if self.ssh.jump is None:
            return None
        user, _, place = self.ssh.jump.rpartition("@")
        host, _, port = place.partition(":")
        return self._build(host, user or self.ssh.user, int(port) if port else 22)

    def _build(self, host: str, user: str, port: int, gateway: Any = None) -> Any:
        """Not connected yet. Without a gateway, a ProxyJump of the user's ssh_config counts."""
        return FabricConnection(
            host,
            user=user,
            port=port,
            gateway=gateway,
            connect_timeout=self.connect_seconds,
            connect_kwargs=self._credentials(),
        )

    def _secure(self, connection: Any) -> None:
        """Deadlines and host keys, which fabric leaves open and unchecked."""
        connection.client.set_log_channel(_LOG.name)
        for step in ("banner_timeout", "auth_timeout", "channel_timeout"):
            connection.connect_kwargs[step] = self.connect_seconds
        if not self.ssh.check_host_key:
            return
        connection.client.set_missing_host_key_policy(
            _RefuseUnknown(self.known_hosts, connection.host, connection.port)
        )
        self._load_known_hosts(connection.client)

    @property
    def known_hosts(self) -> Path:
        return self.ssh.known_hosts or Path("~/.ssh/known_hosts").expanduser()

    def _load_known_hosts(self, client: paramiko.SSHClient) -> None:
        if self.ssh.known_hosts is not None:
            try:
                client.load_system_host_keys(str(self.ssh.known_hosts))
            except OSError as error:
                raise HostKeyChanged(
                    f"{self.name}: cannot read ssh.known_hosts {self.ssh.known_hosts}: "
                    f"{error.strerror}"
                ) from None
            return
        for path in (Path("/etc/ssh/ssh_known_hosts"), self.known_hosts):
            if path.is_file():
                client.load_system_host_keys(str(path))

    def _credentials(self) -> dict[str, Any]:
        """What to log in with. Only what the cluster file names, if it names something."""
        if self.ssh.password_env is not None:
            password = self._environ.get(self.ssh.password_env)
            if not password:
                raise HostAuthError(
                    f"{self.name}: ssh.password_env names {self.ssh.password_env}, which is not "
                    "set in this environment. Export it, or use a key"
                )
            return {"password": password, "allow_agent": False, "look_for_keys": False}
        if self.ssh.key is not None:
            key = self.ssh.key.expanduser()
            if not key.is_file():
                raise HostAuthError(f"{self.name}: the private key ssh.key {key} does not exist")
            return {"key_filename": str(key), "allow_agent": False, "look_for_keys": False}
        return {}

    def _establish(self, connection: Any, where: str) -> None:
        """Connect, with every way that this can fail as one of our errors."""
        started = time.monotonic()
        try:
            connection.open()
        except _UnknownHostKey as error:
            raise HostKeyChanged(f"{self.name}: {error}") from None
        except paramiko.BadHostKeyException as error:
            raise HostKeyChanged(
                f"{self.name}: {where} shows another host key than {self.known_hosts} has: "
                f"expected {_fingerprint(error.expected_key)}, got {_fingerprint(error.key)}. "
                "If the machine was reinstalled, compare the fingerprint on its console, then "
                f"remove the old line: {_keygen_remove(connection, self.known_hosts)}"
            ) from None
        except paramiko.PasswordRequiredException:
            raise HostAuthError(
                f"{self.name}: the key {self.ssh.key or 'in ~/.ssh'} has a passphrase, and nobody "
                "is asked here. Load it into an SSH agent and leave ssh.key out"
            ) from None
        except paramiko.AuthenticationException as error:
            raise HostAuthError(
                f"{self.name}: {where} refuses {self._identity}: {_reason(error)}. "
                f"Try: {self._by_hand}"
            ) from None
        except (paramiko.SSHException, OSError, EOFError) as error:
            if _is_bad_key(error):
                raise HostAuthError(f"{self.name}: cannot use {self._identity}: {error}") from None
            kind = HostSilent if _fell_silent(error) else HostUnreachable
            raise kind(
                f"{self.name}: no SSH session with {where} after "
                f"{time.monotonic() - started:.1f} s: {_reason(error)}. Try: {self._by_hand}"
            ) from None

    @property
    def _identity(self) -> str:
        if self.ssh.password_env is not None:
            return f"user {self.ssh.user} with the password in {self.ssh.password_env}"
        if self.ssh.key is not None:
            return f"user {self.ssh.user} with key {self.ssh.key}"
        return f"user {self.ssh.user} with the SSH agent's and the default keys"

    @property
    def _by_hand(self) -> str:
        parts = ["ssh", "-p", str(self.ssh.port)]
        if self.ssh.key is not None:
            parts += ["-i", str(self.ssh.key)]
        if self.ssh.jump is not None:
            parts += ["-J", self.ssh.jump]
        return shlex.join([*parts, f"{self.ssh.user}@{self.address}", "true"])


class _Refused(Exception):
    """No session now, on a connection that is fine."""


def _start(transport: paramiko.Transport, line: str, seconds: float) -> paramiko.Channel:
    """A session that runs `line`.

    Raises TimeoutError after `seconds` without an answer, _Refused if there is none to be had
    now; any other exception means that the connection is dead.
    """
    try:
        channel = transport.open_session(timeout=seconds)
    except paramiko.SSHException as error:
        if not transport.is_active():
            raise
        if "Timeout" in str(error):
            raise TimeoutError from None
        # No ChannelException: of several threads refused at once, paramiko tells only one why.
        raise _Refused from None
    late = threading.Event()

    def give_up() -> None:
        late.set()
        channel.close()

    alarm = threading.Timer(seconds, give_up)  # exec_command itself waits for ever
    alarm.start()
    try:
        channel.exec_command(line)
    except (paramiko.SSHException, EOFError, OSError):
        channel.close()
        if late.is_set():
            raise TimeoutError from None
        if transport.is_active():
            raise _Refused from None
        raise
    finally:
        alarm.cancel()
    channel.settimeout(seconds)
    return channel


class _TooMuch(Exception):
    """More output than asked for."""


class _Exchange:
    """The bytes of one command: writes its input, and reads both outputs until their end."""

    def __init__(self, channel: paramiko.Channel, deadline: float, limit: int | None) -> None:
        self._channel = channel
        self._deadline = deadline
        self._limit = limit
        self._out: list[bytes] = []
        self._err: list[bytes] = []
        self._failure: Exception | None = None

    @property
    def stdout(self) -> bytes:
        return b"".join(self._out)

    @property
    def stderr(self) -> bytes:
        return b"".join(self._err)

    @property
    def exited(self) -> bool:
        """An exit status came; paramiko's own exit_status_ready() is also true once closed."""
        return self._channel.exit_status >= 0

    @property
    def exit_code(self) -> int | None:
        code = self._channel.exit_status
        return None if code < 0 else code

    def run(self, stdin: bytes) -> None:
        """Raises TimeoutError at the deadline, _TooMuch."""
        helpers = [
            threading.Thread(target=self._guarded, args=(work,), daemon=True)
            for work in (lambda: self._read(self._channel.recv_stderr, self._err),)
        ]
        if stdin:
            helpers.append(
                threading.Thread(
                    target=self._guarded, args=(lambda: self._write(stdin),), daemon=True
                )
            )
        else:
            self._channel.shutdown_write()
        for helper in helpers:
            helper.start()
        try:
            self._read(self._channel.recv, self._out)
            # After end of file the exit status is at most one message away.
            self._channel.status_event.wait(self._left)
        except Exception as error:
            self._failure = self._failure or error
            self._channel.close()
        for helper in helpers:
            helper.join(max(1.0, self._left))
        if self._failure is not None:
            raise self._failure
        if not self._channel.status_event.is_set():
            raise TimeoutError

    @property
    def _left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._failure = self._failure or error
            self._channel.close()  # ends the other threads' waits, too

    def _read(self, receive: Callable[[int], bytes], into: list[bytes]) -> None:
        size = 0
        while True:
            left = self._left
            if left == 0.0:
                raise TimeoutError
            self._channel.settimeout(left)
            data = receive(_CHUNK)
            if not data:
                return
            into.append(data)
            size += len(data)
            if self._limit is not None and size > self._limit:
                raise _TooMuch

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        # OSError: the command does not read its input, which is its own affair.
        with suppress(OSError):
            while view and not self._channel.exit_status_ready():
                view = view[self._channel.send(bytes(view[:_CHUNK])) :]
            self._channel.shutdown_write()


class _UnknownHostKey(paramiko.SSHException):
    """The host's key is in no known_hosts file."""


class _RefuseUnknown(paramiko.MissingHostKeyPolicy):
    """Like ssh's StrictHostKeyChecking=yes, with a message that says what to do."""

    def __init__(self, known_hosts: Path, host: str, port: int) -> None:
        self._known_hosts = known_hosts
        self._host = host
        self._port = port

    def missing_host_key(
        self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey
    ) -> None:
        raise _UnknownHostKey(
            f"the host key of {hostname} is not in {self._known_hosts} "
            f"(it shows {_fingerprint(key)}). Compare it with `ssh-keygen -lf "
            "/etc/ssh/ssh_host_*_key.pub` on its console, then add it: "
            f"ssh-keyscan -p {self._port} {self._host} >> {self._known_hosts}"
        )


def _left(deadline: float) -> float:
    """Seconds until `deadline`, but enough for one attempt."""
    return max(0.1, deadline - time.monotonic())


def _fingerprint(key: paramiko.PKey) -> str:
    digest = base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")
    return f"{key.get_name()} SHA256:{digest}"


def _keygen_remove(connection: Any, known_hosts: Path) -> str:
    name = connection.host if connection.port == 22 else f"[{connection.host}]:{connection.port}"
    return shlex.join(["ssh-keygen", "-f", str(known_hosts), "-R", name])


def _hops(connection: Any) -> list[Any]:
    """The connections on the way, in the order they are opened; a ProxyCommand is none."""
    gateway = connection.gateway
    before = _hops(gateway) if isinstance(gateway, FabricConnection) else []
    return [*before, connection]


def _place(connection: Any) -> str:
    return f"{connection.user}@{connection.host}:{connection.port}"


def _transport_of(connection: Any) -> paramiko.Transport:
    transport = connection.transport
    assert isinstance(transport, paramiko.Transport)
    return transport


def _close(connection: Any) -> None:
    """Close a fabric connection and its jump host's; errors of a dead connection do not matter."""
    with suppress(Exception):
        connection.client.close()
    if isinstance(connection.gateway, FabricConnection):
        _close(connection.gateway)


# The last one is paramiko's for a refused key in PEM form: it tries the file as every kind of
# key, and raises what it met last.
_BAD_KEY = ("private key", "no authentication methods", "encountered ")


def _is_bad_key(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, paramiko.SSHException) and any(word in text for word in _BAD_KEY)


def _fell_silent(error: BaseException) -> bool:
    """Whether these are paramiko's words for a greeting or a handshake that did not come.

    A peer that greets with something else, or hangs up, has another cause behind its error.
    """
    text = str(error)
    waited = isinstance(error.__context__, TimeoutError)
    return "No existing session" in text or ("protocol banner" in text and waited)


def _reason(error: BaseException) -> str:
    """An exception as the end of a sentence."""
    if isinstance(error, paramiko.ssh_exception.NoValidConnectionsError):
        return "; ".join(dict.fromkeys(_reason(each) for each in error.errors.values()))
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, EOFError):
        return "the server hung up"
    if _fell_silent(error):
        return "it accepted the connection and then said nothing"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).rstrip(".") or type(error).__name__


def _shortened(command: str) -> str:
    line = " ".join(command.split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 2] + " …"


def _last_line(output: bytes) -> str:
    lines = output.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:_SHOWN] if lines else ""
