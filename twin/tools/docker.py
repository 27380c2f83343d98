"""docker of a twin host: containers that are processes of the host itself.

What matters to a harness that starts engines through it is kept: arguments arrive as they were
given, nothing is read by a shell; `exec` passes stdin on only with -i; ending the `docker exec`
client does not end what it started; ending the container ends everything in it. There is no
isolation: files, ports and pids are the host's, and a container sees the host's tools.

A container is a record ``$TWIN_STATE/<host>/containers/<name>.json`` and all processes with its
id in their environment. Those that the fabric names for the host (`Host.containers`) were always
there and are ended by nobody.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NoReturn

from twin.tools import state

MARK = "TWIN_CONTAINER"  # environment variable of every process in a container
KILL_SECONDS = 10.0  # until what was killed must be gone
DAEMON_ERROR = 125  # docker's own exit codes
NOT_EXECUTABLE = 126
NOT_FOUND = 127

# What a host with NPUs has beside its real files.
DEVICE_NODES = ("/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc")
VENDOR_FILES = (
    "/usr/local/Ascend/",
    "/usr/local/dcmi",
    "/usr/local/bin/npu-smi",
    "/usr/local/sbin/npu-smi",
    "/usr/bin/hccn_tool",
    "/etc/ascend_install.info",
    "/etc/hccn.conf",
)

RUN_VALUES = {
    "-e": "--env",
    "-h": "--hostname",
    "-l": "--label",
    "-m": "--memory",
    "-u": "--user",
    "-v": "--volume",
    "-w": "--workdir",
    "--net": "--network",
} | {
    name: name
    for name in (
        *("--add-host", "--cap-add", "--cap-drop", "--cpus", "--cpuset-cpus", "--device"),
        *("--entrypoint", "--env", "--gpus", "--hostname", "--ipc", "--label", "--memory"),
        *("--mount", "--name", "--network", "--pid", "--platform", "--pull", "--restart"),
        *("--runtime", "--security-opt", "--shm-size", "--stop-timeout", "--tmpfs", "--ulimit"),
        *("--user", "--userns", "--volume", "--workdir"),
    )
}
RUN_FLAGS = {
    "-d": "--detach",
    "-i": "--interactive",
    "-t": "--tty",
} | {
    name: name for name in ("--detach", "--init", "--interactive", "--privileged", "--rm", "--tty")
}
EXEC_VALUES = {
    "-e": "--env",
    "-u": "--user",
    "-w": "--workdir",
    "--env": "--env",
    "--user": "--user",
    "--workdir": "--workdir",
}
EXEC_FLAGS = {
    "-d": "--detach",
    "-i": "--interactive",
    "-t": "--tty",
    "--detach": "--detach",
    "--interactive": "--interactive",
    "--privileged": "--privileged",
    "--tty": "--tty",
}


class DockerError(Exception):
    """Told on stderr; the client ends with `exit_code`."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass
class Container:
    """The record of a container. `pid` 0: one that was always there."""

    name: str
    id: str
    image: str = "ascend"
    command: list[str] = field(default_factory=list)
    env: list[str] = field(default_factory=list)  # K=V
    labels: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = ""
    remove: bool = False  # when its first process ends
    pid: int = 0
    started: float = 0.0  # seconds since 1970
    born: str = ""  # start time of the first process as /proc tells it; pids come back

    @property
    def running(self) -> bool:
        return self.pid == 0 or start_time(self.pid) == self.born


class Host:
    """The containers of this host."""

    def __init__(self) -> None:
        try:
            layout = state.load()
            self.name = os.environ["TWIN_HOST"]
            self._its = layout["hosts"][self.name]
        except (KeyError, OSError, ValueError) as error:
            raise DockerError(
                f"twin: docker: no state: {error!r} (TWIN_STATE, TWIN_HOST)"
            ) from None
        self._records = Path(state.state_directory(), self.name, "containers")

    @property
    def device_nodes(self) -> set[str]:
        return {f"/dev/davinci{number}" for number in self._its["devices"]} | set(DEVICE_NODES)

    def containers(self) -> Iterator[Container]:
        """All, those that ended too; forgets those that were to be removed at their end."""
        for name in self._its["containers"]:
            yield Container(name=name, id=name.encode().hex().ljust(64, "0")[:64])
        for path in sorted(self._records.glob("*.json")):
            container = Container(**json.loads(path.read_text(encoding="utf-8")))
            if container.remove and not container.running:
                self.forget(container)
            else:
                yield container

    def find(self, wanted: str) -> Container | None:
        """By name or by the start of the id."""
        for container in self.containers():
            if wanted == container.name or (len(wanted) >= 4 and container.id.startswith(wanted)):
                return container
        return None

    def reserve(self, container: Container) -> None:
        """Claim the container's name; DockerError if it is taken."""
        taken = self.find(container.name)
        if taken is None:
            self._records.mkdir(parents=True, exist_ok=True)
            try:
                os.close(os.open(self._record(container), os.O_CREAT | os.O_EXCL, 0o644))
                self.keep(container)
                return
            except FileExistsError:
                taken = container
        raise DockerError(
            f'docker: Error response from daemon: Conflict. The container name "/{container.name}"'
            f' is already in use by container "{taken.id}". You have to remove (or rename) that'
            " container to be able to reuse that name.\nSee 'docker run --help'.",
            DAEMON_ERROR,
        )

    def keep(self, container: Container) -> None:
        beside = self._records / f".{container.name}"
        beside.write_text(json.dumps(asdict(container)), encoding="utf-8")
        beside.replace(self._record(container))

    def forget(self, container: Container) -> None:
        self._record(container).unlink(missing_ok=True)
        self.log(container).unlink(missing_ok=True)

    def log(self, container: Container) -> Path:
        return self._records / f"{container.name}.log"

    def _record(self, container: Container) -> Path:
        return self._records / f"{container.name}.json"


def main(argv: Sequence[str]) -> int:
    """Run one call (`argv` with the program's name); returns its exit code."""
    args = list(argv[1:])
    if args[:1] == ["container"]:
        del args[0]
    try:
        if not args or args[0] in ("--help", "-h", "help"):
            print("Usage:  docker [OPTIONS] COMMAND")
            return 0
        if args[0] in ("version", "--version", "-v"):
            print("Docker version 24.0.7, build twin")
            return 0
        if args[0] not in COMMANDS:
            raise DockerError(f"docker: '{args[0]}' is not a docker command.\nSee 'docker --help'")
        return COMMANDS[args[0]](Host(), args[1:])
    except DockerError as error:
        print(error, file=sys.stderr)
        return error.exit_code


# --- exec and run ---------------------------------------------------------------------------------


def _exec(host: Host, args: list[str]) -> int:
    options, rest = _parse("exec", args, EXEC_VALUES, EXEC_FLAGS)
    if len(rest) < 2:
        raise DockerError('"docker exec" requires at least 2 arguments.')
    container = host.find(rest[0])
    if container is None:
        raise DockerError(f"Error response from daemon: No such container: {rest[0]}")
    if not container.running:
        raise DockerError(f"Error response from daemon: Container {container.id} is not running")
    start = _Start(
        argv=rest[1:],
        env=_environment(container, options.get("--env", []), options.get("--user", [])),
        workdir=options.get("--workdir", [container.workdir])[-1],
        takes_input="--interactive" in options and "--detach" not in options,
    )
    try:
        pid = start.spawn(Path(os.devnull) if "--detach" in options else None)
    except StartError as error:
        raise DockerError(
            "OCI runtime exec failed: exec failed: unable to start container process:"
            f" {error}: unknown",
            error.exit_code,
        ) from None
    return 0 if "--detach" in options else _wait(pid)


def _run(host: Host, args: list[str]) -> int:
    options, rest = _parse("run", args, RUN_VALUES, RUN_FLAGS)
    if not rest:
        raise DockerError('"docker run" requires at least 1 argument.', DAEMON_ERROR)
    _check_host_has(host, options)
    container_id = secrets.token_hex(32)
    entrypoint = options.get("--entrypoint", [])[-1:]
    container = Container(
        name=options.get("--name", [f"twin_{container_id[:12]}"])[-1],
        id=container_id,
        image=rest[0],
        command=[*entrypoint, *rest[1:]] or ["/bin/sh"],
        env=options.get("--env", []),
        labels=dict(_pair(label) for label in options.get("--label", [])),
        workdir=options.get("--workdir", ["/"])[-1],
        user=options.get("--user", [""])[-1],
        remove="--rm" in options,
    )
    host.reserve(container)
    detached = "--detach" in options
    start = _Start(
        argv=container.command,
        env=_environment(container, [], []),
        workdir=container.workdir,
        takes_input="--interactive" in options and not detached,
    )
    try:
        container.pid = start.spawn(host.log(container) if detached else None)
    except StartError as error:
        host.forget(container)
        raise DockerError(
            "docker: Error response from daemon: failed to create task for container: failed to"
            " create shim task: OCI runtime create failed: runc create failed: unable to start"
            f" container process: {error}: unknown.",
            error.exit_code,
        ) from None
    container.born = start_time(container.pid)
    container.started = time.time()
    host.keep(container)
    if detached:
        print(container.id)
        return 0
    # Unlike exec, run hands signals on to what it started.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda caught, _frame: os.kill(container.pid, caught))
    exit_code = _wait(container.pid)
    _end_all(container)
    if container.remove:
        host.forget(container)
    return exit_code


def _check_host_has(host: Host, options: dict[str, list[str]]) -> None:
    """DockerError for a device or a bind source that this host has not."""
    for device in options.get("--device", []):
        node = device.partition(":")[0]
        if node not in host.device_nodes and not os.path.exists(node):
            raise DockerError(
                "docker: Error response from daemon: error gathering device information while"
                f' adding custom device "{node}": no such file or directory.',
                DAEMON_ERROR,
            )
    for mount in options.get("--mount", []):
        parts = dict(_pair(part) for part in mount.split(","))
        source = parts.get("source", parts.get("src", ""))
        if parts.get("type", "volume") != "bind" or os.path.exists(source):
            continue
        if not source.startswith(VENDOR_FILES):
            raise DockerError(
                'docker: Error response from daemon: invalid mount config for type "bind":'
                f" bind source path does not exist: {source}.\nSee 'docker run --help'.",
                DAEMON_ERROR,
            )


def _environment(container: Container, env: list[str], user: list[str]) -> dict[str, str]:
    """The host's environment with the container's and the call's on top; a bare name is kept
    from the caller, as docker does.
    """
    added = dict(_pair(entry) for entry in (*container.env, *env) if "=" in entry)
    name = user[-1] if user else container.user
    if name:
        added["TWIN_UID"] = str(_uid(name))
    return {**os.environ, **added, MARK: container.id}


def _uid(user: str) -> int:
    name = user.partition(":")[0]
    if name.isdigit():
        return int(name)
    import pwd

    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise DockerError(
            f"unable to find user {name}: no matching entries in passwd file", NOT_EXECUTABLE
        ) from None


class StartError(Exception):
    """The command could not be started; the text is as the container runtime puts it."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass
class _Start:
    """A command to be started in a session of its own, so that no signal to us reaches it."""

    argv: list[str]
    env: dict[str, str]
    workdir: str
    takes_input: bool

    def spawn(self, log: Path | None) -> int:
        """The pid of the started process; `log`: where its output goes, None: where ours goes."""
        reading, writing = os.pipe()  # the child's only message is why it failed
        os.set_inheritable(writing, False)
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            self._become(log, writing)
        os.close(writing)
        with os.fdopen(reading, encoding="utf-8") as pipe:
            failure = pipe.read()
        if failure:
            os.waitpid(pid, 0)
            code, _, message = failure.partition(" ")
            raise StartError(message, int(code))
        return pid

    def _become(self, log: Path | None, report: int) -> NoReturn:
        code, message = DAEMON_ERROR, ""
        try:
            os.setsid()
            if not self.takes_input:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            if log is not None:
                output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
                os.dup2(output, 1)
                os.dup2(output, 2)
            try:
                os.chdir(self.workdir)
            except OSError:
                code = NOT_FOUND
                message = f'chdir to cwd ("{self.workdir}") failed: no such file or directory'
                raise
            program = self.argv[0]
            try:
                os.execvpe(program, self.argv, self.env)
            except PermissionError:
                code, message = NOT_EXECUTABLE, f'exec: "{program}": permission denied'
            except OSError:
                code = NOT_FOUND
                where = "no such file or directory" if "/" in program else ""
                message = f'exec: "{program}": {where or "executable file not found in $PATH"}'
        except OSError as error:
            message = message or str(error)
        finally:
            os.write(report, f"{code} {message}".encode())
            os._exit(code)


def _wait(pid: int) -> int:
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


# --- the others -----------------------------------------------------------------------------------


def _remove(host: Host, args: list[str]) -> int:
    options, names = _parse("rm", args, {}, {"-f": "--force", "--force": "--force", "-v": "-v"})

    def remove(container: Container) -> None:
        if container.running and "--force" not in options:
            raise DockerError(
                "Error response from daemon: cannot remove container"
                f' "/{container.name}": container is running: stop the container before'
                " removing or force remove"
            )
        _end_all(container)
        host.forget(container)

    return _each(host, names, remove, missing_is_fine="--force" in options)


def _stop(host: Host, args: list[str]) -> int:
    options, names = _parse("stop", args, {"-t": "--time", "--time": "--time"}, {})
    grace = float(options.get("--time", ["10"])[-1])

    def stop(container: Container) -> None:
        if container.pid and container.running:
            os.kill(container.pid, signal.SIGTERM)
            poll(lambda: not container.running, grace)
        _end_all(container)

    return _each(host, names, stop)


def _kill(host: Host, args: list[str]) -> int:
    options, names = _parse("kill", args, {"-s": "--signal", "--signal": "--signal"}, {})
    name = options.get("--signal", ["KILL"])[-1].upper().removeprefix("SIG")
    number = int(name) if name.isdigit() else signal.Signals[f"SIG{name}"]

    def kill(container: Container) -> None:
        if not container.running:
            raise DockerError(
                f"Error response from daemon: Cannot kill container: {container.name}: Container"
                f" {container.id} is not running"
            )
        if container.pid:
            os.kill(container.pid, number)
        if number == signal.SIGKILL:
            _end_all(container)

    return _each(host, names, kill)


def _each(
    host: Host,
    names: list[str],
    act: Callable[[Container], None],
    *,
    missing_is_fine: bool = False,
) -> int:
    """Act on every container named, say each name that went well; 1 if one did not."""
    exit_code = 0
    for name in names:
        container = host.find(name)
        try:
            if container is not None:
                act(container)
            elif not missing_is_fine:
                raise DockerError(f"Error response from daemon: No such container: {name}")
            else:
                print(f"Error: No such container: {name}", file=sys.stderr)
                continue
            print(name)
        except DockerError as error:
            print(error, file=sys.stderr)
            exit_code = 1
    return exit_code


def _list(host: Host, args: list[str]) -> int:
    values = {name: name for name in ("--filter", "--format")} | {"-f": "--filter"}
    flags = {"-a": "--all", "-q": "--quiet"} | {n: n for n in ("--all", "--quiet", "--no-trunc")}
    options, _ = _parse("ps", args, values, flags)
    shown = [
        container
        for container in host.containers()
        if ("--all" in options or container.running)
        and all(_passes(container, wanted) for wanted in options.get("--filter", []))
    ]
    short = None if "--no-trunc" in options else 12
    template = options.get("--format", [""])[-1]
    if "--quiet" in options:
        template = "{{.ID}}"
    elif not template:
        print("CONTAINER ID   IMAGE     COMMAND   CREATED   STATUS    PORTS     NAMES")
    for container in shown:
        words = {
            "ID": container.id[:short],
            "Names": container.name,
            "Image": container.image,
            "Command": json.dumps(" ".join(container.command)),
            "State": "running" if container.running else "exited",
            "Status": "Up" if container.running else "Exited",
        }
        line = template or "{{.ID}}   {{.Image}}   {{.Command}}   -   {{.Status}}   -   {{.Names}}"
        for word, value in words.items():
            line = line.replace("{{." + word + "}}", value)
        print(line)
    return 0


def _passes(container: Container, wanted: str) -> bool:
    kind, value = _pair(wanted)
    if kind == "name":
        return value.strip("^$/") in container.name
    if kind == "id":
        return container.id.startswith(value)
    if kind == "status":
        return value == ("running" if container.running else "exited")
    if kind == "label":
        label, _, text = value.partition("=")
        return label in container.labels and text in ("", container.labels[label])
    raise DockerError(f"Error response from daemon: invalid filter '{kind}'")


def _inspect(host: Host, args: list[str]) -> int:
    values = {"-f": "--format", "--format": "--format", "--type": "--type"}
    options, names = _parse("inspect", args, values, {})
    found, exit_code = [], 0
    for name in names:
        container = host.find(name)
        if container is None:
            print(f"Error: No such object: {name}", file=sys.stderr)
            exit_code = 1
        else:
            found.append(_description(container))
    template = options.get("--format", [""])[-1]
    if not template:
        print(json.dumps(found, indent=4))
    for description in found if template else ():
        print(_filled(template, description))
    return exit_code


def _description(container: Container) -> dict[str, object]:
    running = container.running
    return {
        "Id": container.id,
        "Name": f"/{container.name}",
        "State": {
            "Status": "running" if running else "exited",
            "Running": running,
            "Pid": container.pid if running else 0,
            "StartedAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(container.started)),
        },
        "Config": {
            "Image": container.image,
            "Cmd": container.command,
            "Env": container.env,
            "Labels": container.labels,
            "WorkingDir": container.workdir,
            "User": container.user,
        },
        "HostConfig": {"NetworkMode": "host", "AutoRemove": container.remove},
    }


def _filled(template: str, description: dict[str, object]) -> str:
    """A Go template of plain fields, ``{{.State.Running}}`` or ``{{json .Config}}``."""
    text, rest = "", template
    while "{{" in rest:
        before, _, rest = rest.partition("{{")
        field_, _, rest = rest.partition("}}")
        words = field_.split()
        value: object = description
        for key in words[-1].split("."):
            if key:
                if not isinstance(value, dict) or key not in value:
                    raise DockerError(f"template parsing error: no field {words[-1]}", 64)
                value = value[key]
        if words[0] == "json":
            text += before + json.dumps(value)
        else:
            text += before + (str(value).lower() if isinstance(value, bool) else str(value))
    return text + rest


def _logs(host: Host, args: list[str]) -> int:
    _, names = _parse("logs", args, {"--tail": "--tail", "-n": "--tail"}, {})
    container = host.find(names[0]) if names else None
    if container is None:
        raise DockerError(f"Error response from daemon: No such container: {''.join(names[:1])}")
    log = host.log(container)
    if log.exists():
        sys.stdout.buffer.write(log.read_bytes())
        sys.stdout.flush()
    return 0


COMMANDS: dict[str, Callable[[Host, list[str]], int]] = {
    "exec": _exec,
    "inspect": _inspect,
    "kill": _kill,
    "logs": _logs,
    "ls": _list,
    "ps": _list,
    "rm": _remove,
    "run": _run,
    "stop": _stop,
}


# --- processes ------------------------------------------------------------------------------------


def _end_all(container: Container) -> None:
    """Kill every process of the container and wait until they are gone."""
    if not container.pid:
        return

    def none_left() -> bool:
        for pid in _members(container):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return not any(_members(container))

    if not poll(none_left, KILL_SECONDS):
        raise DockerError(
            f"Error response from daemon: tried to kill container {container.name}, but did not"
            " receive an exit event"
        )


def _members(container: Container) -> Iterator[int]:
    """Pids of the container's processes: those with its mark, whatever they became since."""
    mark = f"{MARK}={container.id}".encode()
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                environment = Path("/proc", entry, "environ").read_bytes()
            except OSError:
                continue  # gone, or another user's
            if mark in environment.split(b"\0"):
                yield int(entry)


def start_time(pid: int) -> str:
    """When the process began, as /proc counts; empty if there is none, or only its remains."""
    try:
        text = Path("/proc", str(pid), "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]


def poll(done: Callable[[], bool], seconds: float) -> bool:
    """Whether `done` became true within `seconds`."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True


# --- arguments ------------------------------------------------------------------------------------


def _parse(
    command: str, args: list[str], values: dict[str, str], flags: dict[str, str]
) -> tuple[dict[str, list[str]], list[str]]:
    """Options up to the first word that is none (exec and run), and what follows it.

    `values` and `flags`: spelling -> name, with and without a value. DockerError for others.
    """
    interspersed = command not in ("exec", "run")
    options: dict[str, list[str]] = {}
    rest: list[str] = []
    words = iter(args)
    for word in words:
        if not word.startswith("-") or word == "-":
            rest.append(word)
            if interspersed:
                continue
            break
        if word == "--":
            break
        for spelling, value in _split(command, word, values, flags):
            if spelling in flags:
                options.setdefault(flags[spelling], []).append("true")
            else:
                given = value if value is not None else next(words, None)
                if given is None:
                    raise DockerError(f"flag needs an argument: {spelling}", DAEMON_ERROR)
                options.setdefault(values[spelling], []).append(given)
    return options, [*rest, *words]


def _split(
    command: str, word: str, values: dict[str, str], flags: dict[str, str]
) -> Iterator[tuple[str, str | None]]:
    """``--name=x``, ``-e K=V``, ``-eK=V``, ``-it``: each option with the value inside the word."""
    if word.startswith("--"):
        name, equals, value = word.partition("=")
        if name not in values and name not in flags:
            raise _unknown(command, f"unknown flag: {name}")
        yield name, value if equals else None
        return
    letters = word[1:]
    for position, letter in enumerate(letters):
        spelling = f"-{letter}"
        if spelling in flags:
            yield spelling, None
        elif spelling in values:
            inside = letters[position + 1 :].removeprefix("=")
            yield spelling, inside or None
            return
        else:
            raise _unknown(command, f"unknown shorthand flag: '{letter}' in {word}")


def _unknown(command: str, message: str) -> DockerError:
    code = DAEMON_ERROR if command in ("exec", "run") else 1
    return DockerError(f"{message}\nSee 'docker {command} --help'.", code)


def _pair(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key, value


if __name__ == "__main__":
    from twin.tools.launch import run

    run("docker", sys.argv)
