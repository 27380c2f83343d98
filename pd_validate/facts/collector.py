"""The script that reads one host: sent over stdin, run by the host's Python, one JSON document out.

Standard library only and Python 3.8, because it runs where nothing of ours is installed;
it imports nothing of this project. It changes nothing on the host: it runs the queries it
is given, opens files for reading, and binds a port for an instant to see whether it is free.
It judges nothing: `hosts.py` turns its document into typed facts.

Everything that an administrator (or a simulated host) may put in front of the system's own
is found through PATH: hccn_tool, npu-smi, cat, ls, ip, date, id, uname.

Commands run one after the other. hccn_tool does not support concurrent use on a host, and
the two dies of an A3 card share one device OS; hosts run in parallel instead.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from typing import Any

Json = Any  # the document is plain JSON; its shape is that of the functions below

HCCN_TOOL = "/usr/local/Ascend/driver/tools/hccn_tool"
OUT_OF_TIME = "the host's time was used up before"
SETTLE_ROUNDS = 3
SETTLE_PAUSE = 5.0  # seconds
UNSET_TEXTS = ("addr: 0.0.0.0", "address: 0.0.0.0", ": 0:0:0:0:0:0:0:0")  # of -netdetect
FIRST_PAUSE = 0.5  # seconds before a busy device is asked again; doubles each time


def main(request: Json) -> None:
    json.dump(collect(request), sys.stdout)


def collect(request: Json) -> Json:
    """Run what `request` asks for; parts that it does not name are not read."""
    runner = Runner(request["tools"])
    document: Json = {"collected": True}
    if "clock" in request:
        document["clock"] = runner.run({"argv": ["date", "+%s.%N"]})
        read_at = time.monotonic()
    if "files" in request:
        document["files"] = {name: runner.run({"argv": argv}) for name, argv in request["files"]}
    commands = request.get("commands", [])
    results: list[Json] = []
    for spec in commands:
        results.append(runner.run(spec, not_needed(spec, results)))
    settle(runner, commands, results)
    document["commands"] = results
    if "network" in request:
        document["network"] = network(runner, request["network"])
    if "environment" in request:
        document["environment"] = environment(request["environment"])
    if "ports" in request:
        document["ports"] = [port(address, number) for address, number in request["ports"]]
    if "software" in request:
        document["software"] = runner.run(request["software"])
    if "model" in request:
        document["model"] = model(request["model"])
    if "clock" in request:
        document["clock_age"] = time.monotonic() - read_at
    return document


def stop_if_unheard() -> None:
    """End when nobody reads the answer any more: the controller was killed, or gave up."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLERR)
    if any(event & (select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0)):
        os._exit(1)  # even flushing what is buffered would fail


class Runner:
    """Runs commands serially, each with a deadline, and asks a busy device again.

    A device that does not answer one command in time is not asked further ones, and one
    that stays busy through all retries gets one attempt per further command; otherwise a
    single sick device would cost its time limit for every query there is. All waits for
    busy devices together end with the host's patience.
    """

    def __init__(self, options: Json) -> None:
        self.timeout = float(options["timeout"])  # seconds, of one command
        self.budget = float(options["budget"])  # seconds, of all of them
        self.retries = int(options["retries"])
        self.patience = float(options["patience"])  # seconds, for busy devices, of the host
        self.stop_texts = options["stop_texts"]  # the device is gone or not up: ask no more
        self.prefix = options["prefix"]  # before the vendor's tools: sudo -n, or nothing
        self.started = time.monotonic()
        self.silent: dict[int, str] = {}  # device -> the command that it did not answer
        self.stayed_busy: set[int] = set()
        self.refusing: set[int] = set()  # devices that failed where a busy one says so
        self.as_root: bool | None = None  # None: not asked yet
        self.settings = ""  # hccn.conf, for commands that depend on a key of it
        self.chips: dict[int, list[str]] = {}  # physical id -> card and chip for npu-smi

    def run(self, spec: Json, skip: str = "") -> Json:
        """`spec`: argv, and optionally shown, env, timeout, device, needs_key, keep, and texts:
        `retry_texts` of a busy device; `maybe_busy_texts` of one that is busy or refuses, which
        it does if an earlier answer had one of the `refusal_texts` of its command.

        `skip`: why it shall not be run.
        """
        stop_if_unheard()
        argv = [self.substitute(word, spec) for word in spec["argv"]]
        as_root = self.prefix if spec["argv"][0] in ("hccn_tool", "npu-smi") else []
        shown = spec.get("shown") or " ".join(as_root + argv)
        if as_root:
            # Root's PATH under sudo often lacks the directory where we find the tool.
            argv = [*as_root, shutil.which(argv[0]) or argv[0], *argv[1:]]
        why = skip or self.reason_to_skip(spec)
        if why:
            return {"command": shown, "skipped": why}
        device = spec.get("device")
        retries = 0 if device in self.stayed_busy else self.retries
        pause = FIRST_PAUSE
        attempt = 1
        while True:
            result = execute(argv, spec.get("timeout", self.timeout), spec.get("env"))
            text = result["stdout"] + result["stderr"]
            busy_texts = list(spec.get("retry_texts", ()))
            if device not in self.refusing:
                busy_texts += spec.get("maybe_busy_texts", ())
            again = any(busy in text for busy in busy_texts)
            if not again or attempt > retries or min(self.left(), self.patience) < pause:
                break
            time.sleep(pause)
            self.patience -= pause
            pause *= 2
            attempt += 1
        result["command"] = shown
        result["attempts"] = attempt
        if device is not None:
            if again:
                self.stayed_busy.add(device)
            if any(refusal in text for refusal in spec.get("refusal_texts", ())):
                self.refusing.add(device)
            if result["timed_out"] or any(stop in text for stop in self.stop_texts):
                self.silent[device] = shown
        if spec.get("keep") == "settings":
            self.settings = result["stdout"]
        if spec.get("keep") == "chips":
            self.chips = chips(result["stdout"])
        return result

    def substitute(self, word: str, spec: Json) -> str:
        """Card and chip of a device as npu-smi counts them on this host, or as the profile says."""
        if word == "hccn_tool" and os.path.exists(HCCN_TOOL):
            return HCCN_TOOL
        if word in ("{card}", "{chip}"):
            index = 0 if word == "{card}" else 1
            pair = self.chips.get(spec["device"], spec["card_and_chip"])
            return str(pair[index])
        return word

    def reason_to_skip(self, spec: Json) -> str:
        if self.left() <= 0:
            return f"{OUT_OF_TIME}, {self.budget:.0f} s for all commands"
        silent = self.silent.get(spec.get("device"))
        if silent is not None:
            return f"the device did not answer `{silent}`"
        key = spec.get("needs_key")
        if key and self.root() and not re.search(f"^{re.escape(key)} *=", self.settings, re.M):
            return (
                f"as root this query would add {key} to /etc/hccn.conf, which does not have it; "
                "this harness changes nothing on a host"
            )
        return ""

    def left(self) -> float:
        """Seconds left of the budget."""
        return self.budget - (time.monotonic() - self.started)

    def root(self) -> bool:
        """Whether the vendor's tools see root as their user."""
        if self.as_root is None:
            user = execute(["id", "-u"], self.timeout)["stdout"].strip()
            self.as_root = bool(self.prefix) or user == "0"
        return self.as_root


def not_needed(spec: Json, results: list[Json]) -> str:
    """Why a command that depends on an earlier answer (`only_if`: index, texts) is left out."""
    if "only_if" not in spec:
        return ""
    index, texts = spec["only_if"]
    said = results[index].get("stdout", "") + results[index].get("stderr", "")
    if any(text in said for text in texts):
        return ""
    return f"`{results[index]['command']}` has answered"


def settle(runner: Runner, commands: Json, results: list[Json]) -> None:
    """Ask again, all together, where a state was on its way: a few pauses for the whole host.

    A command may name texts that mean "not yet" (`settle_texts`), and another command
    (`settle_unless`, by index) whose answer shows that there is nothing to wait for.
    """
    for _ in range(SETTLE_ROUNDS):
        moving = [
            index
            for index, spec in enumerate(commands)
            if any(
                text in results[index].get("stdout", "") for text in spec.get("settle_texts", ())
            )
            and not any(
                text in results[spec["settle_unless"]].get("stdout", "") for text in UNSET_TEXTS
            )
        ]
        if not moving or runner.left() < SETTLE_PAUSE:
            return
        time.sleep(SETTLE_PAUSE)
        for index in moving:
            results[index] = runner.run(commands[index])


def execute(argv: list[str], timeout: float, more: dict[str, str] | None = None) -> Json:
    """Run a command to its end or its deadline; its whole process group ends with it.

    `more`: variables over those of the login.
    """
    started = time.monotonic()
    environment = dict(os.environ, LC_ALL="C", **(more or {}))
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        text = "command not found" if missing else os.strerror(error.errno or 0)
        return answer("", f"{argv[0]}: {text}\n", 127 if missing else 126, started)
    try:
        stdout, stderr = process.communicate(timeout=timeout)
        return answer(decode(stdout), decode(stderr), process.returncode, started)
    except subprocess.TimeoutExpired:
        return dict(answer("", end(process), None, started), timed_out=True)


def end(process: subprocess.Popen[bytes]) -> str:
    """Kill what did not end. Text if it cannot be killed: stuck in the driver, or under sudo."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.communicate(timeout=2)
    except subprocess.TimeoutExpired:
        return f"process {process.pid} cannot be killed; it waits inside the driver, or is root's\n"
    return ""


def decode(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def answer(stdout: str, stderr: str, code: int | None, started: float) -> Json:
    # A signal N is 128 + N, as the shell reports it.
    return {
        "stdout": stdout,
        "stderr": stderr,
        "exit": 128 - code if code is not None and code < 0 else code,
        "seconds": round(time.monotonic() - started, 4),
        "timed_out": False,
    }


def chips(text: str) -> dict[int, list[str]]:
    """Physical id -> card and chip, of `npu-smi info -m`; rows of other chips have `-`."""
    has_physical = "Phy-ID" in text
    found = {}
    for line in text.splitlines():
        cells = line.split()
        if len(cells) > 3 and all(cell.isdigit() for cell in cells[:3]):
            physical = cells[3] if has_physical else cells[0]
            found[int(physical)] = cells[:2]
    return found


# --- host network -------------------------------------------------------------------------------


def network(runner: Runner, options: Json) -> Json:
    """Network cards with addresses and flags, and the address that vLLM would take for its own."""
    result = runner.run({"argv": ["ip", "-j", "addr"]})
    cards = None
    if result.get("exit") == 0:
        try:
            cards = json.loads(result["stdout"])
        except ValueError:
            cards = None
    if cards is None:  # no iproute2, as in many containers
        cards = [card(name) for name in sorted(os.listdir("/sys/class/net"))]
    return {"cards": cards, "own_address": own_address()}


def card(name: str) -> Json:
    """What the kernel tells of a network card, in the shape of `ip -j addr`. IPv4 only."""
    try:
        bits = int(first_word(f"/sys/class/net/{name}/flags"), 16)
    except ValueError:
        bits = 0
    flags = [word for bit, word in ((0x1, "UP"), (0x8, "LOOPBACK")) if bits & bit]
    if first_word(f"/sys/class/net/{name}/carrier") == "0":
        flags.append("NO-CARRIER")
    addresses = []
    local = card_number(name, 0x8915)  # SIOCGIFADDR
    mask = card_number(name, 0x891B)  # SIOCGIFNETMASK
    if local and mask:
        prefix = bin(struct.unpack("!I", socket.inet_aton(mask))[0]).count("1")
        addresses.append({"family": "inet", "local": local, "prefixlen": prefix})
    return {"ifname": name, "flags": flags, "addr_info": addresses}


def first_word(path: str) -> str:
    """Of a small file; empty if it cannot be read."""
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


def card_number(name: str, call: int) -> str:
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            data = fcntl.ioctl(probe, call, struct.pack("256s", name.encode()[:15]))
        except OSError:
            return ""
    return socket.inet_ntoa(data[20:24])


def own_address() -> str:
    """What vLLM's get_ip() answers without VLLM_HOST_IP: the source address of the default route.

    As vLLM does (vllm/utils, v0.10.1): connect a datagram socket to a public resolver, IPv4
    first. That sends no packet.
    """
    for family, target in (
        (socket.AF_INET, ("8.8.8.8", 80)),
        (socket.AF_INET6, ("2001:4860:4860::8888", 80)),
    ):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(target)
                return str(probe.getsockname()[0])
        except OSError:
            continue
    return "0.0.0.0"


def environment(prefixes: list[str]) -> dict[str, str]:
    """Variables whose name starts with one of `prefixes`; no secret leaves the host."""
    return {
        name: without_secrets(value.encode("utf-8", "replace").decode())
        for name, value in os.environ.items()
        if name.startswith(tuple(prefixes)) and not re.search("KEY|TOKEN|SECRET|PASS", name)
    }


def without_secrets(text: str) -> str:
    """No passwords in URLs, no values of options that are named like secrets."""
    text = re.sub(r"//[^/@\s]*@", "//***@", text)
    return re.sub(r"(?i)(-[\w-]*(?:key|token|secret|passw)[\w-]*[= ])\S+", r"\1***", text)


def port(address: str, number: int) -> Json:
    """Whether a server could listen at `address`:`number` now, and if not, who does.

    A port that no one listens on is free even if an outgoing connection has it for now.
    """
    state: Json = {"address": address, "port": number, "free": True}
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: a connection of an earlier run in TIME_WAIT is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, number))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                listeners = listening(address, number)
                return dict(state, free=not listeners, holder=holder(listeners))
            return dict(state, free=None, error=os.strerror(error.errno or 0))
    return state


_LISTEN = "0A"  # in the state column of /proc/net/tcp


_ANY = ("0.0.0.0", "::")


def listening(address: str, number: int) -> set[str]:
    """Inodes of the sockets that listen on a TCP port where a server at `address` would."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table) as file:
                rows = [line.split() for line in file][1:]
        except OSError:
            continue
        for row in rows:
            where, _, port_number = row[1].rpartition(":")
            if row[3] == _LISTEN and int(port_number, 16) == number:
                bound = written_address(where)
                if address in _ANY or bound in (address, *_ANY):
                    inodes.add(row[9])
    return inodes


def written_address(words: str) -> str:
    """An address of /proc/net/tcp or tcp6 (words of 32 bits in this machine's order) as text."""
    packed = b"".join(
        struct.pack("=I", int(words[start : start + 8], 16)) for start in range(0, len(words), 8)
    )
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    text = socket.inet_ntop(family, packed)
    return text[len("::ffff:") :] if text.startswith("::ffff:") else text  # Python 3.8


def holder(inodes: set[str]) -> str:
    """Process that has one of these sockets, as far as we may see it; empty if not."""
    links = {f"socket:[{inode}]" for inode in inodes}
    for path in glob.iglob("/proc/[0-9]*/fd/*"):
        try:
            if os.readlink(path) not in links:
                continue
            pid = path.split("/")[2]
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                command = " ".join(decode(file.read()).replace("\0", " ").split())  # one line
            return f"pid {pid}: {without_secrets(command)[:200]}"
        except OSError:
            continue
    return ""


# --- model --------------------------------------------------------------------------------------

WHOLE = 32 << 20  # bytes; a file up to this size is digested whole
SAMPLES = 16  # pieces of a larger file, evenly spread, ends included
PIECE = 64 << 10  # bytes


def model(path: str) -> Json:
    """Size and digest of every file of the model. Large weights are sampled, not read whole."""
    if not os.path.isdir(path):
        return {"path": path, "error": "no such directory"}
    files = {}
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            full = os.path.join(folder, name)
            if name.startswith("."):
                continue
            try:
                files[os.path.relpath(full, path)] = digest(full)
            except OSError as error:
                files[os.path.relpath(full, path)] = [-1, os.strerror(error.errno or 0)]
    return {"path": path, "files": files}


def digest(path: str) -> list[Any]:
    """[size in bytes, digest]."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= WHOLE:
            total.update(file.read())
        else:
            for index in range(SAMPLES):
                file.seek((size - PIECE) * index // (SAMPLES - 1))
                total.update(file.read(PIECE))
    return [size, total.hexdigest()[:32]]
