"""Applies a scenario's faults to what is real in a twin: hosts, their files, and engines.

Silicon is broken by `Scenario.break_fabric`; what is here touches the directories and SSH
servers of the simulated hosts, and leaves word for the plugin that vLLM loads in every
process of an instance (`engine_faults.json` in TWIN_STATE; twin/site/twin_engine).
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from twin.engine import ENGINE_FAULTS
from twin.hosts import TwinHost, TwinHosts
from twin.scenario import (
    ClockFault,
    EnvFault,
    FileFault,
    HttpFault,
    InstanceFault,
    ListenFault,
    ProxyFault,
    Scenario,
    SshFault,
    ToolFault,
)
from twin.tools.launch import TOOLS

# A foreign process of a scenario: listens, says nothing, until its standard input closes.
_LISTENER = """
import socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("listening", flush=True)
sys.stdin.read()
"""


def write_engine_faults(state: Path, scenario: Scenario, *, later: bool = False) -> None:
    """Store the faults of instances; the file is there even if there are none.

    `later`: faults of HTTP answers may still come, so every instance is made ready for them.
    """
    faults = {
        "http": [
            {"instance": fault.instance, "http": fault.http.in_words_of_the_engine()}
            for fault in scenario.of(HttpFault)
        ],
        "instance": [fault.model_dump() for fault in scenario.of(InstanceFault)],
        "proxy": next((fault.proxy for fault in scenario.of(ProxyFault)), None),
        "later": later,
    }
    written = (state / ENGINE_FAULTS).with_suffix(".new")  # engines may be reading it
    written.write_text(json.dumps(faults, indent=2))
    written.replace(state / ENGINE_FAULTS)


def environment_of(scenario: Scenario, host: str, home: Path) -> dict[str, str]:
    """The variables that the scenario sets on a host, `~/` replaced by its home directory."""
    return {
        name: value.replace("~/", f"{home}/")
        for fault in scenario.of(EnvFault, host)
        for name, value in fault.env.items()
    }


def break_host(scenario: Scenario, name: str, hosts: TwinHosts, undo: ExitStack) -> None:
    """Make one running host as the scenario says. `undo` gets what must end with the twin."""
    host = hosts[name]
    for file in scenario.of(FileFault, name):
        _place(host, file)
    for clock in scenario.of(ClockFault, name):
        _shift_clock(host, clock.clock)
    _answer_verbatim(host, list(scenario.of(ToolFault, name)))
    for listen in scenario.of(ListenFault, name):
        undo.callback(_end, _listener(host.address, listen.listen))
    for ssh in scenario.of(SshFault, name):
        _break_ssh(ssh, name, hosts, undo)


def _break_ssh(fault: SshFault, name: str, hosts: TwinHosts, undo: ExitStack) -> None:
    if fault.ssh == "down":
        hosts.kill(name)
    elif fault.ssh == "hang":
        host = hosts[name]
        hosts.kill(name)
        undo.callback(_end, _listener(host.address, host.port))
    elif fault.ssh == "refuse-key":
        hosts.refuse_key(name)
    else:
        hosts.change_key(name)


def _place(host: TwinHost, fault: FileFault) -> None:
    path = host.directory / fault.file.removeprefix("~/")
    if fault.text is None:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(fault.text)
    if fault.text.startswith("#!"):
        path.chmod(0o755)


def _shift_clock(host: TwinHost, seconds: float) -> None:
    shift = f"{seconds:+.3f} seconds"
    _program(host, "date", f'{_WITHOUT_OWN_DIRECTORY}\nexec date -d {shlex.quote(shift)} "$@"\n')


def _answer_verbatim(host: TwinHost, faults: list[ToolFault]) -> None:
    """Put programs before the host's own that answer as told, and else become the host's own.

    The vendor's tools know the verbatim answers by themselves (twin/tools/launch.py).
    """
    by_program: dict[str, list[ToolFault]] = {}
    for fault in faults:
        program = Path(fault.tool.split()[0]).name
        if program not in TOOLS:
            by_program.setdefault(program, []).append(fault)
    for program, its in by_program.items():
        own = host.directory / "bin" / program
        if own.exists():
            kept = own.rename(own.with_name(f"{program}.twin"))
            become = f'exec {shlex.quote(str(kept))} "$@"'
        else:
            become = f'{_WITHOUT_OWN_DIRECTORY}\nexec {program} "$@"'
        cases = "".join(_case(fault) for fault in its)
        _program(host, program, f'case "$*" in\n{cases}esac\n{become}\n')


def _case(fault: ToolFault) -> str:
    arguments = " ".join(fault.tool.split()[1:])
    return (
        f"  {shlex.quote(arguments)})\n"
        f"    sleep {fault.seconds:g}\n"
        f"    printf %s {shlex.quote(fault.stderr)} >&2\n"
        f"    printf %s {shlex.quote(fault.stdout)}\n"
        f"    exit {fault.exit} ;;\n"
    )


_WITHOUT_OWN_DIRECTORY = "PATH=${PATH#*:}  # so that the name is the real program's"


def _program(host: TwinHost, name: str, script: str) -> None:
    path = host.directory / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}")
    path.chmod(0o755)


def _listener(address: str, port: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", _LISTENER, address, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    if not process.stdout.readline():
        raise OSError(f"the scenario's foreign process cannot listen on {address}:{port}")
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.communicate(timeout=5)
