"""Starts a tool of a twin host: finds the host's state, applies what is said of every call, runs.

Environment: TWIN_STATE the fabric's directory, TWIN_HOST the host this runs on, TWIN_UID (set by
`docker exec --user`) whom a tool takes for its user instead of the host's. `install` makes
the executables: shell scripts that print what is written ahead (`ahead.py`), if it is, and
else start this Python without site packages.
"""

from __future__ import annotations

import os
import sys

from twin.tools import state
from twin.tools.console import Console

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from twin.tools.state import Layout

TOOLS = ("hccn_tool", "npu-smi", "docker")
_AHEAD = {"hccn_tool": "hccn_tool-$2", "npu-smi": "npu-smi"}  # tool -> its fragment


def install(directory: str) -> None:
    """Write the executables into `directory` (made if missing), for this interpreter and tree.

    Launchers and not the modules themselves: so the modules are compiled once, and the
    interpreter is named by path and not searched for, which can take longer than the answer.
    On a terminal the streams come out in another order, which only the tool itself does.
    """
    os.makedirs(directory, exist_ok=True)
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    for tool in TOOLS:
        path = os.path.join(directory, tool)
        start = (
            f"import sys; sys.path.insert(0, {root!r}); "
            f"from twin.tools.launch import run; run({tool!r}, sys.argv)"
        )
        with open(path, "w", encoding="utf-8") as file:
            file.write("#!/bin/sh\n")
            if tool in _AHEAD:
                file.write(_PRINT_AHEAD.format(fragment=_AHEAD[tool]))
            file.write(f"exec {_quoted(os.path.realpath(sys.executable))} -SEIc ")
            file.write(f'{_quoted(start)} "$@"\n')
        os.chmod(path, 0o755)


# A fragment older than the fabric is of a state that somebody else has changed since.
_PRINT_AHEAD = """\
ahead=$TWIN_STATE/$TWIN_HOST/ahead/{fragment}
if [ -r "$ahead" ] && [ ! -t 1 ] && [ -z "$TWIN_UID" ] &&
    ! [ "$TWIN_STATE/fabric.json" -nt "$ahead" ]
then . "$ahead"
fi
"""


def _quoted(text: str) -> str:
    """As one word of the shell; shlex is too slow to import here."""
    return "'" + text.replace("'", "'\"'\"'") + "'"


def run(tool: str, argv: Sequence[str]) -> None:
    """The whole life of a tool's process; does not return."""
    if tool == "docker":
        from twin.tools import docker

        sys.exit(docker.main(argv))
    argv = [tool, *argv[1:]]
    try:
        layout = state.load()
        host = os.environ["TWIN_HOST"]
        its = layout["hosts"][host]
    except (KeyError, OSError, ValueError) as error:
        sys.exit(f"twin: {tool}: no state: {error!r} (TWIN_STATE, TWIN_HOST)")
    console = Console(wait_scale=layout["wait_scale"])
    override = state.override_of(its, argv)
    if override is not None:
        _pause(override["seconds"])
        console.err(override["stderr"])
        console.out(override["stdout"])
        exit_code = int(override["exit"])
    elif tool == "hccn_tool":
        exit_code = _run_hccn_tool(argv, layout, host, console)
    else:
        from twin.tools import npu_smi

        _pause(its["seconds"])
        exit_code = npu_smi.main(argv, npu_smi.values_of(layout, host, console.now()), console)
    console.flush()
    # Not sys.exit: taking the interpreter down in order costs more than starting it.
    os._exit(exit_code)


def _run_hccn_tool(argv: Sequence[str], layout: Layout, host: str, console: Console) -> int:
    from twin.tools import answers, hccn_tool

    its = layout["hosts"][host]
    device = its["devices"].get(argv[2]) if len(argv) > 2 else None
    seconds = device["seconds"] if device is not None else None
    _pause(its["seconds"] if seconds is None else seconds)
    machine = answers.machine_of(
        layout,
        host,
        conf=state.hccn_conf_path(state.state_directory(), host),
        user=user_name(int(os.environ.get("TWIN_UID", its["uid"]))),
        now=console.now(),
    )
    return hccn_tool.main(argv, machine, console)


def user_name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def _pause(seconds: float) -> None:
    """What the call takes on this host; a figure of the scenario, not of the vendor's."""
    if seconds > 0:
        import time

        time.sleep(seconds)
