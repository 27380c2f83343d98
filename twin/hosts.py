"""Simulated hosts on loopback addresses: directories, keys, tools and a running SSH server each.

A twin host is this machine seen through its own SSH server (`sshd.py`), with its own home
directory, environment and ``bin/`` first on PATH:

    <root>/keys/                      the user's key, and known_hosts with all host keys
    <root>/<host>/                    the host's home directory
    <root>/<host>/bin/                hccn_tool, npu-smi, docker; cat and ls, which see the
                                      host's own /etc/hccn.conf and /dev/davinci*
    <root>/<host>/sshd.log
    <state>/<host>/etc/hccn.conf      what `cat /etc/hccn.conf` shows on that host
    <state>/<host>/dev/davinci0 …     what `ls /dev/davinci*` shows

`vllm` and `python3` are those of the environment that runs this program.
"""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from twin.servers import ServerFailed, Servers, SshdConfig
from twin.tools.launch import install

_WRAPPERS = Path(__file__).parent / "wrappers"


@dataclass(frozen=True)
class TwinHostSpec:
    """What one simulated host shall be. Port 0: a free one. `env`: added to its environment."""

    name: str
    address: str = "127.0.0.1"
    port: int = 0
    devices: Sequence[int] = range(8)  # ids of its /dev/davinci files
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TwinHost:
    """A running host, and all that is needed to log in."""

    name: str
    address: str
    port: int
    user: str
    key: Path
    known_hosts: Path
    directory: Path  # its home
    pid: int  # of its SSH server


class TwinError(Exception):
    """A simulated host could not be started; the message says which and why."""


class TwinHosts:
    """All simulated hosts of one twin. Ends with `stop()`, as a context manager, or with us.

    The SSH servers (`servers.py`) do not outlive this process.
    """

    def __init__(self, specs: Sequence[TwinHostSpec], *, root: Path, state: Path) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._root = root.resolve()
        self._state = state.resolve()
        self._servers = Servers(self._root)
        self._hosts: dict[str, TwinHost] = {}

    @classmethod
    def start(cls, specs: Sequence[TwinHostSpec], *, root: Path, state: Path) -> Self:
        """Make everything below `root` and start all servers at once.

        `state` is the directory of the fabric's state (TWIN_STATE). Raises TwinError if a
        server does not accept connections in time; nothing is left running then.
        """
        hosts = cls(specs, root=root, state=state)
        with ExitStack() as undo:
            undo.callback(hosts.stop)
            hosts._prepare()
            for name in hosts._specs:
                hosts._launch(name)
            for name in hosts._specs:
                hosts._await(name)
            hosts._write_known_hosts()
            undo.pop_all()
        return hosts

    @property
    def hosts(self) -> dict[str, TwinHost]:
        """By name, in the order of the specs."""
        return dict(self._hosts)

    def __getitem__(self, name: str) -> TwinHost:
        return self._hosts[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End all servers. What detached itself on the hosts lives on, as on a real host."""
        self._servers.stop()

    def kill(self, name: str) -> None:
        """SIGKILL one host's SSH server, with all its connections. See `restart`."""
        self._servers.kill(name)

    def restart(self, name: str) -> TwinHost:
        """Start a killed server again: same address, port and key."""
        self._launch(name, port=self._hosts[name].port)
        self._await(name)
        return self._hosts[name]

    def refuse_key(self, name: str) -> None:
        """From now on the host does not accept our key any more (host.auth)."""
        self._authorized_keys(name).write_bytes(_public_line(Ed25519PrivateKey.generate()))

    def change_key(self, name: str) -> TwinHost:
        """The host comes back with another host key, as after a reinstallation."""
        self.kill(name)
        _make_key(self._host_key(name))
        return self.restart(name)

    # --- files ----------------------------------------------------------------------------------

    def _prepare(self) -> None:
        keys = self._root / "keys"
        keys.mkdir(parents=True, exist_ok=True)
        if not self._user_key.exists():
            _make_key(self._user_key)
        for name, spec in self._specs.items():
            home = self._root / name
            (home / "bin").mkdir(parents=True, exist_ok=True)
            if not self._host_key(name).exists():
                _make_key(self._host_key(name))
            self._authorized_keys(name).write_bytes(_public(self._user_key).read_bytes())
            install(str(home / "bin"))
            for command in ("cat", "ls"):
                _write_program(home / "bin" / command, (_WRAPPERS / f"{command}.sh").read_text())
            (self._state / name / "etc").mkdir(parents=True, exist_ok=True)
            devices = self._state / name / "dev"
            devices.mkdir(exist_ok=True)
            for device in spec.devices:
                (devices / f"davinci{device}").touch()

    def _write_known_hosts(self) -> None:
        lines = [
            f"[{host.address}]:{host.port} {_public(self._host_key(name)).read_text()}"
            for name, host in self._hosts.items()
        ]
        self._known_hosts.write_text("".join(lines))

    # --- servers --------------------------------------------------------------------------------

    def _launch(self, name: str, port: int | None = None) -> None:
        spec = self._specs[name]
        home = self._root / name
        config = SshdConfig(
            address=spec.address,
            port=spec.port if port is None else port,
            user=self._user,
            host_key=str(self._host_key(name)),
            authorized_keys=str(self._authorized_keys(name)),
            directory=str(home),
            env=self._environment(spec),
        )
        self._servers.launch(name, config)

    def _await(self, name: str) -> None:
        spec = self._specs[name]
        try:
            server = self._servers.wait_listening(name)
        except ServerFailed as error:
            message = f"twin host {name}: its SSH server on {spec.address} {error}"
            raise TwinError(message) from None
        self._hosts[name] = TwinHost(
            name=name,
            address=spec.address,
            port=server.port,
            user=self._user,
            key=self._user_key,
            known_hosts=self._known_hosts,
            directory=self._root / name,
            pid=server.pid,
        )

    def _environment(self, spec: TwinHostSpec) -> dict[str, str]:
        home = self._root / spec.name
        path = [home / "bin", Path(sys.executable).parent, *_SYSTEM_PATH]
        return {
            "HOME": str(home),
            "USER": self._user,
            "LOGNAME": self._user,
            "SHELL": "/bin/sh",
            "LANG": "C.UTF-8",
            "PATH": ":".join(str(part) for part in path),
            "TWIN_STATE": str(self._state),
            "TWIN_HOST": spec.name,
            "TWIN_HOST_ADDRESS": spec.address,
            "VLLM_HOST_IP": spec.address,
            "VLLM_ASCEND_LLMDD_RPC_IP": spec.address,
            **spec.env,
        }

    @property
    def _user(self) -> str:
        return pwd.getpwuid(os.getuid()).pw_name

    @property
    def _user_key(self) -> Path:
        return self._root / "keys" / "id_ed25519"

    @property
    def _known_hosts(self) -> Path:
        return self._root / "keys" / "known_hosts"

    def _authorized_keys(self, name: str) -> Path:
        return self._root / "keys" / f"authorized_{name}"

    def _host_key(self, name: str) -> Path:
        return self._root / "keys" / f"host_{name}"


_SYSTEM_PATH = (
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
)


def _public(key: Path) -> Path:
    return key.with_name(key.name + ".pub")


def _make_key(path: Path) -> None:
    """A new key pair at `path` and `path`.pub, as ssh-keygen writes them."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption())
    _write_private(path, private)
    _public(path).write_bytes(_public_line(key))


def _public_line(key: Ed25519PrivateKey) -> bytes:
    public = key.public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH)
    return public + b" twin\n"


def _write_private(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)


def _write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
