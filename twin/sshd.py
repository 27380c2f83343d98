"""The SSH servers of simulated hosts: real keys, real shells, real SFTP, a process for each.

``python -m twin.sshd ROOT`` reads names of hosts, one a line, and forks a server for each (what
a server imports costs more than all it does while a cluster is validated, so that is done once).
It says ``{"host": NAME, "pid": N}`` for each, and the server ``{"host": NAME, "port": N}`` once
it accepts connections. When its standard input closes, or it dies, the kernel kills the servers:
whoever started it holds the other end, so none outlives them, not even one that was stopped by
a signal.

A server behaves as OpenSSH's sshd does without a terminal [tried with OpenSSH 9.2p1]: each command
runs by ``/bin/sh -c`` in a session of its own; when the client goes away, the command gets end
of file and broken pipes, but no signal; the channel stays open until both the command has ended
and nobody holds its output any more; a death by signal is reported as exit-signal.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO

import asyncssh

from twin.servers import SshdConfig

_CHUNK = 64 * 1024  # bytes
_PR_SET_PDEATHSIG = 1  # prctl(2); it counts the thread that started us as our parent


class _Server(asyncssh.SSHServer):  # type: ignore[misc]  # asyncssh is skipped by mypy
    """One connection: public keys only, one user, forwarding allowed (for jump hosts)."""

    def __init__(self, config: SshdConfig) -> None:
        self._config = config

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn

    def begin_auth(self, username: str) -> bool:
        # An unknown user is asked for keys like any other, and none fits.
        if username == self._config.user:
            self._connection.set_authorized_keys(self._config.authorized_keys)
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def connection_requested(
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> bool:
        return True


async def _run_command(process: asyncssh.SSHServerProcess, config: SshdConfig) -> None:
    """One command of one SSH channel (without a command: a shell that reads its input)."""
    argv = ["/bin/sh", "-c", process.command] if process.command else ["/bin/sh"]
    # Not asyncio's subprocesses: our ends of the pipes must be closable when the client goes.
    # Not asyncssh's redirect(): it loses the end of file of a command that ends at once.
    child = subprocess.Popen(  # noqa: ASYNC220  # a fork of this small program is quick
        argv,
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=config.directory,
        env={**config.env, **_ssh_variables(process)},
        start_new_session=True,
    )
    feeder = asyncio.create_task(_feed(process, child))
    # The channel ends when the last holder of the output has closed it.
    output = asyncio.gather(
        _drain(child.stdout, process.stdout), _drain(child.stderr, process.stderr)
    )
    client_gone = asyncio.create_task(process.channel.wait_closed())
    await asyncio.wait((output, client_gone), return_when=asyncio.FIRST_COMPLETED)
    if client_gone.done():
        output.cancel()
    code = await _exit_code(child)
    feeder.cancel()
    client_gone.cancel()
    if process.is_closing():
        return
    if code < 0:
        process.exit_with_signal(signal.Signals(-code).name.removeprefix("SIG"))
    else:
        process.exit(code)


def _ssh_variables(process: asyncssh.SSHServerProcess) -> dict[str, str]:
    client, client_port = process.get_extra_info("peername")[:2]
    server, server_port = process.get_extra_info("sockname")[:2]
    return {
        "SSH_CLIENT": f"{client} {client_port} {server_port}",
        "SSH_CONNECTION": f"{client} {client_port} {server} {server_port}",
    }


async def _feed(process: asyncssh.SSHServerProcess, child: subprocess.Popen[bytes]) -> None:
    """From the client to the command, until end of file on either side."""
    assert child.stdin is not None
    os.set_blocking(child.stdin.fileno(), False)
    with child.stdin as pipe, contextlib.suppress(OSError, asyncssh.Error):
        while True:
            try:
                data = await process.stdin.read(_CHUNK)
            except asyncssh.SignalReceived as received:
                _send_signal(child, received.signal)
                continue
            if not data:
                return
            while data:
                try:
                    data = data[os.write(pipe.fileno(), data) :]
                except BlockingIOError:
                    await _writable(pipe.fileno())


async def _drain(pipe: IO[bytes] | None, client: asyncssh.SSHWriter) -> None:
    """From the command to the client, until end of file or the client's disappearance."""
    reader = asyncio.StreamReader(limit=_CHUNK)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), pipe
    )
    with contextlib.closing(transport), contextlib.suppress(OSError, asyncssh.Error):
        while data := await reader.read(_CHUNK):
            client.write(data)
            await client.drain()


def _send_signal(child: subprocess.Popen[bytes], name: str) -> None:
    """A signal request of the client goes to the command's process group, as in OpenSSH."""
    if child.poll() is None:
        os.killpg(child.pid, signal.Signals[f"SIG{name}"])


async def _writable(handle: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(handle, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(handle)


async def _exit_code(child: subprocess.Popen[bytes]) -> int:
    """Wait for the end of a child; -N for signal N."""
    if (code := child.poll()) is not None:
        return code
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    handle = os.pidfd_open(child.pid)
    loop.add_reader(handle, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)
    return child.wait()


def _handler(config: SshdConfig) -> Callable[[asyncssh.SSHServerProcess], Awaitable[None]]:
    async def handle(process: asyncssh.SSHServerProcess) -> None:
        await _run_command(process, config)

    return handle


async def serve(config: SshdConfig, announce: Callable[[int], None]) -> None:
    """Serve until ended. `announce` gets the port once connections are accepted."""
    os.chdir(config.directory)  # SFTP's relative paths start here
    acceptor = await asyncssh.listen(
        config.address,
        config.port,
        server_factory=lambda: _Server(config),
        server_host_keys=[config.host_key],
        process_factory=_handler(config),
        sftp_factory=True,
        encoding=None,
        password_auth=False,
        kbdint_auth=False,
        gss_host=None,
        keepalive_interval=10,
        login_timeout=20,
        line_editor=False,
    )
    announce(acceptor.get_port())
    await acceptor.wait_closed()


def _serve_host(home: Path, parent: int) -> None:
    """The life of a forked server."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # its commands' exit codes are wanted
    _end_with_parent(parent)
    os.setsid()  # a Ctrl-C in the terminal is for the controller alone
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    log = os.open(home / "sshd.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 2)
    config = SshdConfig.from_json((home / "sshd.json").read_text())
    asyncio.run(serve(config, lambda port: _say(host=home.name, port=port)))


def _end_with_parent(parent: int) -> None:
    """Have the kernel kill us when `parent` dies; it may have died already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _say(**what: str | int) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")  # one call: lines of several writers stay whole


def main() -> None:
    parser = argparse.ArgumentParser(description="SSH servers of simulated hosts")
    parser.add_argument("root", type=Path, help="directory with a home for each host")
    parser.add_argument("--parent", type=int, required=True, help="process id of whoever starts us")
    options = parser.parse_args()
    _end_with_parent(options.parent)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended servers are reaped by the kernel
    own = os.getpid()
    while name := sys.stdin.buffer.readline().decode().strip():
        pid = os.fork()
        if pid == 0:
            try:
                _serve_host(options.root / name, own)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)  # not through the parent's own clean-up
        _say(host=name, pid=pid)


if __name__ == "__main__":
    main()
