"""What a run needs, held against what this machine has. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Iterable

from pd_validate.doctor.machine import KeyFile, Machine
from pd_validate.doctor.need import Need, State, ok
from pd_validate.spec.models import Cluster

OLDEST_PYTHON = (3, 11)
OLDEST_NODE = 20  # Allure 3.18 runs on 20; its quality gate needs 22
# Every process's log is fetched up to 64 MiB and lies there twice, once in the archive.
FREE_BYTES = 2_000_000_000
# Sockets, pipes and log files of pytest and of one host, with room to spare.
FILES, FILES_PER_HOST = 256, 16

_PIP = "python3.11 -m venv .venv && .venv/bin/pip install -e ."
_BREAKS = {
    "PYTHONOPTIMIZE": "Python then runs no assertion: tests cannot fail",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "pytest then does not load our plugin: no --cluster",
    "PYTHONHOME": "Python then takes its own modules from elsewhere",
}
_CHANGES = {
    "PYTEST_ADDOPTS": "added to every pytest command line",
    "PYTHONPATH": "modules there come before those installed",
    "LD_PRELOAD": "loaded into every program",
}
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def needs_of(machine: Machine) -> list[Need]:
    """What every run needs, whatever the cluster."""
    return [
        python(machine),
        *packages(machine),
        allure(machine),
        twin(machine),
        *spaces(machine),
        *environment(machine),
    ]


def python(machine: Machine) -> Need:
    found = ".".join(map(str, machine.python))
    if machine.python[:2] < OLDEST_PYTHON:
        return Need(State.MISSING, "Python 3.11", found, f"install Python 3.11, then {_PIP}")
    return ok("Python 3.11", found)


def packages(machine: Machine) -> list[Need]:
    """One line if all fit, else one for each that does not."""
    if not machine.packages:
        return [Need(State.MISSING, "packages", "pd-validate itself is not installed", _PIP)]
    return [
        Need(
            State.MISSING,
            f"package {package.requirement}",
            package.installed or "not installed",
            f".venv/bin/pip install '{package.requirement}'",
        )
        for package in machine.packages
        if not package.fits
    ] or [ok("packages", f"{len(machine.packages)} as required")]


def allure(machine: Machine) -> Need:
    """Node, npm and Allure: only for Allure's HTML, never needed for a verdict."""
    without = "summary.html is made without it; for Allure's HTML "
    if machine.node is None or _major(machine.node) < OLDEST_NODE:
        found = machine.node or "no Node"
        return Need(
            State.NOTE, "Allure HTML", found, f"{without}install Node {OLDEST_NODE} or newer"
        )
    if machine.allure:
        return ok("Allure HTML", f"Node {machine.node}")
    if machine.npm is None:
        return Need(State.NOTE, "Allure HTML", "no npm", f"{without}install npm, then: npm ci")
    return Need(State.NOTE, "Allure HTML", "Allure is not installed", f"{without}run: npm ci")


def twin(machine: Machine) -> Need:
    """The embedded cluster alone runs vLLM here."""
    if machine.vllm is None:
        get = "only for `--cluster twin`: make env"
        return Need(State.NOTE, "embedded cluster", "no vLLM in this environment", get)
    return ok("embedded cluster", f"vLLM {machine.vllm}")


def spaces(machine: Machine) -> list[Need]:
    needs = []
    for space in machine.spaces:
        what, free = f"space in {space.path}", f"{space.free / 1e9:.1f} GB free"
        if not space.writable:
            get = f"make it writable for {_user(machine)}, or choose another directory"
            needs.append(Need(State.MISSING, what, "not writable", get))
        elif space.free < FREE_BYTES:
            get = f"{FREE_BYTES / 1e9:g} GB for logs and their archive; choose another --report"
            needs.append(Need(State.MISSING, what, free, get))
        else:
            needs.append(ok(what, free))
    return needs


def _user(machine: Machine) -> str:
    return machine.environ.get("USER", "this user")


def open_files(machine: Machine, hosts: int) -> Need:
    """`hosts`: how many the run will talk to."""
    needed = FILES + FILES_PER_HOST * hosts
    found = "unlimited" if machine.open_files < 0 else str(machine.open_files)
    if 0 <= machine.open_files < needed:
        return Need(State.MISSING, "open files", found, f"ulimit -n {needed}")
    return ok("open files", found)


def environment(machine: Machine) -> list[Need]:
    """Variables that break a run, and those that change it without being seen."""
    needs = [
        Need(State.MISSING, f"no ${name}", why, f"unset {name}")
        for name, why in _BREAKS.items()
        if machine.environ.get(name)
    ]
    for name, why in _CHANGES.items():
        if value := machine.environ.get(name):
            needs.append(Need(State.NOTE, f"${name}", f"{value}: {why}"))
    for name in sorted(machine.environ):
        if name.startswith("PD_") and machine.environ[name]:
            why = "an option's default or a setting of ours"
            needs.append(Need(State.NOTE, f"${name}", f"{machine.environ[name]}: {why}"))
    return needs or [ok("environment", "no variable that disturbs")]


def proxies(machine: Machine, cluster: Cluster | None) -> list[Need]:
    """The harness goes past HTTP proxies; curl and other clients by hand do not."""
    found = [n for n in machine.environ if n.lower() in _PROXIES and machine.environ[n]]
    if not found:
        return []
    exempt = machine.environ.get("no_proxy") or machine.environ.get("NO_PROXY") or ""
    listed = {entry.strip() for entry in exempt.split(",")}
    addresses = [host.address for host in cluster.hosts.values()] if cluster else []
    missing = [address for address in addresses if address not in listed and "*" not in listed]
    if cluster is not None and not missing:
        return [ok("HTTP proxy", f"{', '.join(sorted(found))}; no_proxy has all hosts")]
    wanted = ",".join([*(e for e in exempt.split(",") if e), *(missing or ["<the hosts>"])])
    # The value may hold a password: it is not shown.
    text = f"{', '.join(sorted(found))} set: we go past it, curl by hand does not"
    return [Need(State.NOTE, "HTTP proxy", text, f"export no_proxy={wanted}")]


def way_to_log_in(machine: Machine) -> Need:
    """Without a cluster file: is there any key at all?"""
    there = [key.path.name for key in machine.default_keys if key.mode is not None]
    if machine.agent_keys:
        return ok("SSH keys", f"{machine.agent_keys} in the agent")
    if there:
        return ok("SSH keys", ", ".join(there))
    agent = "the agent is empty" if machine.agent_keys == 0 else "no agent"
    get = "ssh-keygen -t ed25519, then ssh-copy-id to every host; or name one: `ssh: {key: …}`"
    return Need(State.NOTE, "SSH keys", f"none in ~/.ssh, {agent}", get)


def key_permissions(keys: Iterable[KeyFile]) -> list[Need]:
    """ssh refuses a private key that others may read; we would not, so it is a note."""
    needs = []
    for key in dict.fromkeys(keys):
        what = f"key {key.path}"
        if key.mode is not None and not key.readable:
            needs.append(Need(State.MISSING, what, "not readable", f"chmod u+r {key.path}"))
        elif key.open_to_others:
            found = f"mode {key.mode:04o}: others may read it, and ssh refuses it"
            needs.append(Need(State.NOTE, what, found, f"chmod 600 {key.path}"))
    return needs


def login_of(
    machine: Machine, cluster: Cluster, host: str, key: KeyFile | None, known: bool | None
) -> list[Need]:
    """What logging in to one host rests on: a key or a password, and its host key.

    `key`: the file that the cluster file names, if any. `known`: whether its host key is in
    known_hosts; None if that cannot be told (the user's ssh_config may name it otherwise).
    """
    ssh = cluster.ssh_of(host)
    what, needs = f"{host}: login", []
    if ssh.password_env is not None and not machine.environ.get(ssh.password_env):
        get = f"export {ssh.password_env}=…, or use a key"
        needs.append(Need(State.MISSING, what, f"${ssh.password_env} is not set", get))
    elif key is not None and key.mode is None:
        get = f"ssh-keygen -t ed25519 -f {key.path}, or correct `ssh: {{key: …}}`"
        needs.append(Need(State.MISSING, what, f"there is no {key.path}", get))
    elif ssh.password_env is None and key is None:
        way = way_to_log_in(machine)
        if way.state is not State.OK:
            needs.append(Need(State.MISSING, what, way.found, way.get))
    if ssh.check_host_key and known is False:
        file = ssh.known_hosts or "~/.ssh/known_hosts"
        address = cluster.hosts[host].ssh_address or cluster.hosts[host].address
        get = f"compare its fingerprint, then: ssh-keyscan -p {ssh.port} {address} >> {file}"
        needs.append(Need(State.MISSING, f"{host}: host key", f"not in {file}", get))
    return needs


def _major(version: str) -> int:
    digits = version.lstrip("v").partition(".")[0]
    return int(digits) if digits.isdigit() else 0
