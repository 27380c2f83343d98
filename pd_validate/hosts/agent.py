"""Runs ON a host: supervises the processes of one run, and never leaves any behind.

Standard library only, Python >= 3.8; sent over by `supervisor.py`, which is the other half.
As a program it has four uses (first argument):

    serve      supervise one run; talks JSON lines over standard input and output
    attach     connect standard input and output with an agent that is already serving
    watch      wait for the end of an agent (its pipe closes) and clean up after it
    survey     print what is on this host: runs, their processes, the lock, ports in use
    clean      end and remove what a dead run left here

What holds, and by what means:

* Processes run in a session of their own, with PD_RUN_ID, PD_RUN_DIR and PD_PROCESS in
  their environment, and a pid record. The agent is their subreaper, so whatever descends
  from them stays its descendant: it ends exactly these.
* The controller is gone when standard input ends, or nothing came for `lease` seconds.
  Then everything is ended (SIGTERM, after GRACE seconds SIGKILL), the commands given for
  the end are run (they remove what is no process of ours, such as a container), and the run
  directory is removed.
* If the agent is killed, the kernel kills its children (PR_SET_PDEATHSIG), and the watch
  ends what else carries this run's mark.
* One run per work directory: the agent holds an flock on <workdir>/lock, and so does its
  watch, so the kernel frees the lock when both are gone and not before.
* After `close` with keep, the agent stays as it is without a lease, until somebody attaches
  and closes it.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import errno
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # this subscript does not exist at run time in Python 3.8
    Message = dict[str, Any]

SOURCE = globals().get("SOURCE", "")  # our own text, when we were sent over

RUN_ID = "PD_RUN_ID"
RUN_DIR = "PD_RUN_DIR"
PROCESS = "PD_PROCESS"
FOR_ANYBODY = ("attach", "status", "stopped", "tail")
FOR_HELPERS = (*FOR_ANYBODY, "start", "stop", "signal")
FOR_THE_OWNER = (*FOR_HELPERS, "beat", "at_end", "close")
AT_END = "at_end.json"  # in the run directory: what is to be run when everything has ended
OWN_PROCESSES = ("agent", "watch")  # values of PD_PROCESS that are the supervisor's own

GRACE = 5.0  # seconds from SIGTERM to SIGKILL when nobody says otherwise
GONE_AFTER = 10.0  # seconds after SIGKILL until we say that something cannot be killed
POLL = 0.05  # seconds between two looks at /proc while something is being ended
AT_END_SECONDS = 15.0  # for each command given for the end
TAIL_BYTES = 256 * 1024
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
# The log of a process, below the work directory: its run, its name.
LOG = re.compile(r"([^/]+)/logs/([^/]+)\.log(?: \(deleted\))?$")
NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")


# --- /proc --------------------------------------------------------------------------------------


class Found(NamedTuple):
    """A process as /proc has it. `start` is in clock ticks since boot; it tells reused pids."""

    pid: int
    parent: int
    session: int
    state: str
    start: int


def processes() -> dict[int, Found]:
    """All processes of this machine (or container) that have not ended."""
    table = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            found = process(int(entry))
            if found is not None and found.state not in "ZX":
                table[found.pid] = found
    return table


def process(pid: int) -> Found | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return None
    # The name in parentheses may itself contain spaces and parentheses.
    fields = text[text.rindex(")") + 2 :].split()
    return Found(pid, int(fields[1]), int(fields[3]), fields[0], int(fields[19]))


def environment(pid: int) -> dict[str, str]:
    """The environment a process was started with; empty if it may not be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return {}
    return dict(item.split("=", 1) for item in text.split("\0") if "=" in item)


def title(pid: int) -> str:
    """The command line, as programs set it for themselves, too."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            text = file.read().decode("utf-8", "replace").replace("\0", " ").strip()
        if text:
            return text
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return ""


def descendants(root: int, table: dict[int, Found]) -> set[int]:
    children: dict[int, list[int]] = {}
    for found in table.values():
        children.setdefault(found.parent, []).append(found.pid)
    reached: set[int] = set()
    pending = list(children.get(root, ()))
    while pending:
        pid = pending.pop()
        reached.add(pid)
        pending.extend(children.get(pid, ()))
    return reached


def seconds_since_boot() -> float:
    with open("/proc/uptime") as file:
        return float(file.read().split()[0])


def started_at(found: Found) -> float:
    """Seconds since the epoch."""
    return time.time() - (seconds_since_boot() - found.start / os.sysconf("SC_CLK_TCK"))


def send(pids: Iterable[int], number: int) -> int:
    reached = 0
    for pid in sorted(pids):  # parents first, as far as one can tell: they know how to end well
        try:
            os.kill(pid, number)
            reached += 1
        except ProcessLookupError:
            pass
        except PermissionError:  # it changed its user; said by whoever finds it still there
            pass
    return reached


def end_steps(targets: Callable[[], set[int]], grace: float) -> Iterable[None]:
    """End what `targets()` gives until it gives nothing: SIGTERM, then SIGKILL.

    Yields whenever the caller should wait for POLL seconds; stops when all are gone or
    GONE_AFTER seconds after the SIGKILL.
    """
    begin = time.monotonic()
    told: set[int] = set()
    while True:
        left = targets()
        if not left:
            return
        elapsed = time.monotonic() - begin
        if elapsed > grace + GONE_AFTER:
            return
        if elapsed > grace:
            send(left, signal.SIGKILL)
        else:
            send(left - told, signal.SIGTERM)
            send(left - told, signal.SIGCONT)  # a stopped process sees SIGTERM only then
            told |= left
        yield


def end_now(targets: Callable[[], set[int]], grace: float) -> set[int]:
    """`end_steps`, blocking. Returns what could not be ended."""
    for _ in end_steps(targets, grace):
        time.sleep(POLL)
    return targets()


# --- files --------------------------------------------------------------------------------------


def write_json(path: str, data: Any) -> None:
    """Atomically, readable by the owner only."""
    temporary = f"{path}.{os.getpid()}.tmp"
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(data, file)
    os.rename(temporary, path)


def read_json(path: str) -> Message | None:
    try:
        with open(path) as file:
            data = json.load(file)
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def remove_tree(path: str) -> str | None:
    """Returns the path if something of it could not be removed."""
    shutil.rmtree(path, ignore_errors=True)
    return path if os.path.exists(path) else None


def run_at_end(run_dir: str) -> list[str]:
    """Run the commands given for the end of a run. Returns what went wrong, one line each."""
    wrong = []
    for argv in (read_json(os.path.join(run_dir, AT_END)) or {}).get("commands", []):
        try:
            subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=AT_END_SECONDS,
                check=True,
            )
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode("utf-8", "replace").strip().splitlines()
            wrong.append(f"{' '.join(argv)}: {said[-1] if said else error.returncode}")
        except (OSError, subprocess.TimeoutExpired) as error:
            wrong.append(f"{' '.join(argv)}: {error}")
    return wrong


class Refused(Exception):
    """A request that cannot be done; the text goes to the controller."""


class Locked(Exception):
    """Somebody else's lock. `info` is what stands in it; `held` whether its run lives."""

    def __init__(self, info: Message, held: bool) -> None:
        super().__init__(info)
        self.info = info
        self.held = held


def take_lock(path: str, owner: str) -> tuple[int, Message | None]:
    """The open, locked lock file, and what a dead run of the same owner had left in it.

    Raises Locked if a run lives, or if a dead one of another owner has not been cleaned.
    """
    tries = 5  # is_held() of somebody who only looks has it for a moment, too
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            tries -= 1
            if tries:
                time.sleep(POLL)
                continue
            raise Locked(read_json(path) or {}, held=True) from None
        # Whoever held it may have removed the file between our open and our flock.
        try:
            same = os.path.samestat(os.fstat(handle), os.stat(path))
        except FileNotFoundError:
            same = False
        if not same:
            os.close(handle)
            continue
        left = read_json(path)
        if left is not None and left.get("owner") != owner:
            os.close(handle)
            raise Locked(left, held=False)
        return handle, left


def is_held(path: str) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY)  # another account's file can only be read
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(handle)


# --- what is on this host -----------------------------------------------------------------------


def mark(pid: int, workdir: str) -> dict[str, str]:
    """RUN_ID, RUN_DIR and PROCESS of a process of a run in `workdir`; empty for any other.

    They stand in its environment. A program that writes a title over its command line, as
    vLLM's workers do, blanks that, and is known by the run's log that it writes to.
    """
    variables = environment(pid)
    if variables.get(RUN_DIR, "").startswith(os.path.join(workdir, "")):
        return {name: variables.get(name, "") for name in (RUN_ID, RUN_DIR, PROCESS)}
    inside = os.path.join(os.path.realpath(workdir), "")
    for output in (1, 2):
        try:
            path = os.readlink(f"/proc/{pid}/fd/{output}")
        except OSError:
            return {}
        log = LOG.match(path[len(inside) :]) if path.startswith(inside) else None
        if log is not None:
            run_id, name = log.groups()
            return {RUN_ID: run_id, RUN_DIR: os.path.join(workdir, run_id), PROCESS: name}
    return {}


def marked(workdir: str, run_id: str | None = None) -> dict[int, dict[str, str]]:
    """Processes (but this one) of runs in `workdir`, or of one of them, by pid, with their mark."""
    found = {}
    for pid in processes():
        about = mark(pid, workdir) if pid != os.getpid() else {}
        if about and run_id in (None, about[RUN_ID]):
            found[pid] = about
    return found


def runs(workdir: str) -> list[Message]:
    """What every run directory says about its run, with `run_dir` and `alive`."""
    found = []
    try:
        entries = sorted(os.listdir(workdir))
    except OSError:
        return []
    for entry in entries:
        run_dir = os.path.join(workdir, entry)
        about = read_json(os.path.join(run_dir, "run.json"))
        if about is not None:
            about["run_dir"] = run_dir
            about["alive"] = agent_lives(about)
            found.append(about)
    return found


def agent_lives(about: Message) -> bool:
    found = process(int(about.get("agent_pid", 0)))
    return found is not None and found.start == about.get("agent_start")


def listening(workdir: str, ports: Iterable[int], address: str) -> list[Message]:
    """Listening TCP sockets that a server at `address` would collide with on these ports."""
    wanted = set(ports)
    sockets: dict[str, Message] = {}
    for table, family in (("/proc/net/tcp", socket.AF_INET), ("/proc/net/tcp6", socket.AF_INET6)):
        try:
            with open(table) as file:
                lines = file.read().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            raw, _, port = fields[1].partition(":")
            if fields[3] != "0A" or int(port, 16) not in wanted:
                continue
            bound = unpack_address(raw, family)
            if collide(bound, address):
                sockets[fields[9]] = {"port": int(port, 16), "address": bound, "pid": None}
    for pid, inode in socket_owners(set(sockets)):
        run_id = mark(pid, workdir).get(RUN_ID)
        sockets[inode].update(pid=pid, command=title(pid), run_id=run_id)
    return sorted(sockets.values(), key=lambda found: int(found["port"]))


def unpack_address(raw: str, family: int) -> str:
    """An address as the kernel prints it: words of 32 bits in the machine's byte order."""
    words = [int(raw[at : at + 8], 16) for at in range(0, len(raw), 8)]
    text = socket.inet_ntop(family, struct.pack(f"={len(words)}I", *words))
    return text[len("::ffff:") :] if text.startswith("::ffff:") else text


def collide(bound: str, address: str) -> bool:
    anywhere = ("0.0.0.0", "::")
    return bound in anywhere or address in anywhere or bound == address


def socket_owners(inodes: set[str]) -> Iterable[tuple[int, str]]:
    if not inodes:
        return
    for pid in processes():
        try:
            handles = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for handle in handles:
            try:
                link = os.readlink(f"/proc/{pid}/fd/{handle}")
            except OSError:
                continue
            if link.startswith("socket:[") and link[8:-1] in inodes:
                yield pid, link[8:-1]


def survey(workdir: str, ports: Iterable[int], address: str) -> Message:
    table = processes()
    lock = os.path.join(workdir, "lock")
    info = read_json(lock)
    return {
        "now": time.time(),
        "runs": runs(workdir),
        "processes": [
            {
                "pid": pid,
                "run_id": variables.get(RUN_ID, ""),
                "name": variables.get(PROCESS, ""),
                "command": title(pid),
                "started": started_at(table[pid]) if pid in table else 0.0,
            }
            for pid, variables in sorted(marked(workdir).items())
        ],
        "lock": None if info is None else dict(info, path=lock, held=is_held(lock)),
        "ports": listening(workdir, ports, address),
    }


def clean(workdir: str, run_id: str) -> Message:
    """End and remove what is left of a dead run. Refused for a run whose agent lives."""
    about = [run for run in runs(workdir) if run["run_id"] == run_id]
    if any(run["alive"] for run in about):
        raise Refused(f"run {run_id} is alive; its own controller ends it, or attach to it")
    ended = marked(workdir, run_id)
    names = {pid: title(pid) for pid in ended}
    left = end_now(lambda: set(marked(workdir, run_id)), GRACE)
    wrong: list[str] = []
    if not left:
        for run in about:
            wrong += run_at_end(run["run_dir"])
            remove_tree(run["run_dir"])
        lock = os.path.join(workdir, "lock")
        info = read_json(lock)
        if info is not None and info.get("run_id") == run_id and not is_held(lock):
            os.unlink(lock)
    return {
        "ended": [names[pid] for pid in sorted(set(ended) - left)],
        "left": [{"pid": pid, "command": names.get(pid, title(pid))} for pid in sorted(left)],
        "wrong": wrong,
    }


# --- talking ------------------------------------------------------------------------------------


class Lines:
    """JSON lines over file descriptors that never block the agent.

    Not asyncio's pipes: these take data that arrives on a socket used as standard output
    for its end.
    """

    def __init__(
        self,
        read_from: int,
        write_to: int,
        on_message: Callable[[Lines, Message], None],
        on_end: Callable[[Lines], None],
    ) -> None:
        self._in = read_from
        self._out = write_to
        self._on_message = on_message
        self._on_end = on_end
        self._received = b""
        self._unsent = b""
        self._open = True
        self._loop = asyncio.get_event_loop()
        for handle in (read_from, write_to):
            os.set_blocking(handle, False)
        self._loop.add_reader(read_from, self._readable)

    def send(self, message: Message) -> None:
        if self._open:
            self._unsent += json.dumps(message).encode() + b"\n"
            self._writable()

    def close(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._in)
            self._loop.remove_writer(self._out)
            if self._in > 2:  # a socket is ours alone; standard input and output stay
                os.close(self._in)

    def flush(self, seconds: float) -> None:
        """Before we exit: wait a moment until the last answer is out."""
        deadline = time.monotonic() + seconds
        while self._open and self._unsent and time.monotonic() < deadline:
            self._writable()
            time.sleep(POLL / 5)

    def _end(self) -> None:
        if self._open:
            self.close()
            self._on_end(self)

    def _readable(self) -> None:
        try:
            data = os.read(self._in, 65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end()
            return
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            if self._open and line.strip():
                self._on_message(self, json.loads(line.decode("utf-8")))

    def _writable(self) -> None:
        while self._unsent:
            try:
                self._unsent = self._unsent[os.write(self._out, self._unsent) :]
            except BlockingIOError:
                self._loop.add_writer(self._out, self._writable)
                return
            except OSError:
                self._end()
                return
        self._loop.remove_writer(self._out)


# --- serve --------------------------------------------------------------------------------------


class Child:
    """A process that we started, and its record in <run_dir>/pids/."""

    def __init__(self, name: str, popen: Any, argv: list[str], log: str, record: str) -> None:
        self.name = name
        self.popen = popen
        self.argv = argv
        self.log = log
        self.record = record
        self.started = time.time()
        self.ended: float | None = None
        self.exit_code: int | None = None
        found = process(popen.pid)
        self.start = found.start if found is not None else 0

    @property
    def pid(self) -> int:
        return int(self.popen.pid)

    def report(self) -> Message:
        return {
            "name": self.name,
            "pid": self.pid,
            "exit_code": self.exit_code,
            "started": self.started,
            "ended": self.ended,
            "log": self.log,
        }

    def save(self) -> None:
        write_json(self.record, dict(self.report(), argv=self.argv, start=self.start))


class Agent:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.run_dir = os.path.join(options.workdir, options.run_id)
        self.lock_path = os.path.join(options.workdir, "lock")
        self.children: dict[str, Child] = {}
        self.kept = False
        self.owner: Lines | None = None  # whose lease it is
        self.helpers: list[Lines] = []  # processes of the same controller, without a lease
        self.lock = -1
        self.watch: Any = None
        self.watch_pipe = -1
        self.last_heard = 0.0
        self.ending: asyncio.Future[None] | None = None
        self.finished = asyncio.Event()
        self.survivors: list[Message] = []
        self.files_left: str | None = None
        self.wrong_at_end: list[str] = []
        self.answers: set[asyncio.Future[None]] = set()

    async def serve(self) -> int:
        self.owner = Lines(0, 1, self._on_message, self._on_end)
        try:
            stale = self._begin()
        except Locked as locked:
            answer = {"error": "locked", "lock": locked.info, "held": locked.held}
            self.owner.send(dict(answer, path=self.lock_path, now=time.time()))
            self.owner.flush(1.0)
            return 3
        except (OSError, Refused) as error:
            text = f"cannot use the work directory {self.options.workdir}: {error}"
            self.owner.send({"error": "refused", "text": text})
            self.owner.flush(1.0)
            return 3
        loop = asyncio.get_event_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end_run)
        loop.add_signal_handler(signal.SIGHUP, lambda: None)
        self._listen()
        self._heard()
        self._check_lease()
        self.owner.send(dict(self._about(), stale=stale, now=time.time()))
        await self.finished.wait()
        return 0 if not self.survivors else 1

    def _about(self) -> Message:
        return {
            "run_id": self.options.run_id,
            "run_dir": self.run_dir,
            "owner": self.options.owner,
            "controller_pid": self.options.controller_pid,
            "started": self.began,
            "lease": self.options.lease,
            "kept": self.kept,
            "agent_pid": os.getpid(),
            "agent_start": self.own_start,
        }

    def _begin(self) -> Message | None:
        """Lock, run directory, watch. Returns what a dead run of ours had left in the lock."""
        os.makedirs(self.options.workdir, exist_ok=True)
        self.lock, stale = take_lock(self.lock_path, self.options.owner)
        if stale is not None and stale.get("run_id") != self.options.run_id:
            clean(self.options.workdir, stale["run_id"])
            # clean() leaves a lock that is held, as this one is by now.
        own = process(os.getpid())
        self.own_start = own.start if own is not None else 0
        self.began = time.time()
        self._save_lock()
        for directory in (self.run_dir, self.run_dir + "/pids", self.run_dir + "/logs"):
            os.makedirs(directory, mode=0o700, exist_ok=True)
        write_json(os.path.join(self.run_dir, "run.json"), self._about())
        with open(os.path.join(self.run_dir, "agent.py"), "w") as file:
            file.write(SOURCE)
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._start_watch()
        return stale

    def _save_lock(self) -> None:
        """In place: the lock is on this very file, so it must not be replaced."""
        text = json.dumps(self._about()).encode()
        os.ftruncate(self.lock, 0)
        os.pwrite(self.lock, text, 0)

    def _start_watch(self) -> None:
        mine, its = os.pipe()[::-1]
        self.watch_pipe = mine
        self.watch = subprocess.Popen(
            [
                *(sys.executable, os.path.join(self.run_dir, "agent.py"), "watch"),
                *("--workdir", self.options.workdir, "--run-id", self.options.run_id),
                *("--pipe", str(its), "--lock", str(self.lock)),
                *(["--keep-files"] if self.options.keep_files else []),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(its, self.lock),
            start_new_session=True,
            env=dict(os.environ, PD_PROCESS="watch"),
            cwd="/",
        )
        os.close(its)

    def _listen(self) -> None:
        """A socket for whoever attaches. Named relative to its directory: long paths do not fit."""
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        os.chdir(self.run_dir)
        self.listener.bind("agent.sock")
        os.chdir("/")
        self.listener.listen(8)
        self.listener.setblocking(False)
        asyncio.get_event_loop().add_reader(self.listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self.listener.accept()
        except OSError:
            return
        handle = connection.detach()
        Lines(handle, handle, self._on_message, self._on_end)

    # --- the controller's life ------------------------------------------------------------------

    def _heard(self) -> None:
        self.last_heard = time.monotonic()

    def _check_lease(self, second_look: bool = False) -> None:
        """Ends the run when the lease is over, looking twice: we may ourselves have been frozen."""
        if self.ending is not None:
            return
        left = self.last_heard + self.options.lease - time.monotonic()
        if self.kept or left > 0:
            wait = self.options.lease if self.kept else left
            asyncio.get_event_loop().call_later(wait, self._check_lease)
        elif not second_look:
            asyncio.get_event_loop().call_later(POLL * 4, self._check_lease, True)
        else:
            self._end_run()

    def _on_end(self, client: Lines) -> None:
        if client in self.helpers:
            self.helpers.remove(client)
        if client is self.owner:
            self.owner = None
            if self.kept:
                leave_terminal()
            else:
                self._end_run()

    def _reap(self) -> None:
        """Collect everything that ended: our processes, and orphans that came to us."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            if self.watch is not None and pid == self.watch.pid:
                self.watch.returncode = code
                os.close(self.watch_pipe)
                if self.ending is None:
                    self._start_watch()
            for child in self.children.values():
                if child.pid == pid and child.exit_code is None:
                    child.popen.returncode = child.exit_code = code
                    child.ended = time.time()
                    child.save()

    # --- requests -------------------------------------------------------------------------------

    def _on_message(self, client: Lines, message: Message) -> None:
        if client is self.owner:
            self._heard()
        answer = asyncio.ensure_future(self._answer(client, message))
        self.answers.add(answer)  # asyncio itself would not keep it from being collected
        answer.add_done_callback(self.answers.discard)

    async def _answer(self, client: Lines, message: Message) -> None:
        try:
            handler = getattr(self, "do_" + message["op"])
            if message["op"] not in self._allowed(client):
                raise Refused("attach as the owner first")
            result = handler(client, message)
            if asyncio.iscoroutine(result):
                result = await result
        except Refused as error:
            client.send({"id": message.get("id"), "error": str(error)})
        except Exception as error:  # a bug here must not leave the controller waiting
            text = f"{type(error).__name__}: {error}"
            client.send({"id": message.get("id"), "error": text})
        else:
            client.send({"id": message.get("id"), "result": result})
        if self.ending is not None and self.ending.done():
            client.flush(1.0)
            self.finished.set()

    def _allowed(self, client: Lines) -> tuple[str, ...]:
        if client is self.owner:
            return FOR_THE_OWNER
        return FOR_HELPERS if client in self.helpers else FOR_ANYBODY

    def do_beat(self, client: Lines, message: Message) -> None:
        return None

    def do_attach(self, client: Lines, message: Message) -> Message:
        if message["own"]:
            if not self.kept or self.owner is not None:
                raise Refused(f"its controller {self.options.owner} is at work")
            self.owner = client
            self._heard()
        elif message.get("helps"):
            self.helpers.append(client)
        return self._about()

    def do_status(self, client: Lines, message: Message) -> list[Message]:
        return [child.report() for child in self.children.values()]

    def do_start(self, client: Lines, message: Message) -> Message:
        name, argv = message["name"], message["argv"]
        if self.ending is not None:
            raise Refused("the run is being ended")
        if not NAME.match(name) or name in OWN_PROCESSES:
            raise Refused(f"{name!r} is no name for a process: letters, digits, dot, dash")
        if name in self.children and self._members(name):
            raise Refused(f"process {name} runs already; stop it first")
        log = os.path.join(self.run_dir, "logs", name + ".log")
        variables = dict(os.environ, **message["env"])
        variables[RUN_ID] = self.options.run_id
        variables[RUN_DIR] = self.run_dir
        variables[PROCESS] = name
        with open(log, "ab") as output:
            try:
                popen = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=message["cwd"] or self.run_dir,
                    env=variables,
                    start_new_session=True,
                    preexec_fn=die_with(os.getpid()),
                )
            except OSError as error:
                missing = error.filename or argv[0]
                raise Refused(f"cannot start {name}: {missing}: {error.strerror}") from None
        record = os.path.join(self.run_dir, "pids", name + ".json")
        child = self.children[name] = Child(name, popen, argv, log, record)
        child.save()
        return child.report()

    async def do_stop(self, client: Lines, message: Message) -> Message:
        child = self._child(message["name"])
        for _ in end_steps(lambda: self._members(child.name), message["timeout"]):
            await asyncio.sleep(POLL)
        left = self._members(child.name)
        if left:
            named = ", ".join(f"{pid} ({title(pid)[:80]})" for pid in sorted(left))
            raise Refused(f"{child.name} could not be ended, SIGKILL has no effect on: {named}")
        self._reap()
        return child.report()

    def do_signal(self, client: Lines, message: Message) -> int:
        child = self._child(message["name"])
        if message["match"] is None:
            reached = {child.pid} if child.exit_code is None else set()
        else:
            reached = {pid for pid in self._members(child.name) if message["match"] in title(pid)}
        return send(reached, message["number"])

    def do_stopped(self, client: Lines, message: Message) -> list[Message]:
        """Members of a process that a signal has stopped: they live, and do nothing."""
        table = processes()
        members = self._members(message["name"]) & table.keys()
        stopped = sorted(pid for pid in members if table[pid].state in "tT")
        return [{"pid": pid, "title": title(pid)} for pid in stopped]

    def do_tail(self, client: Lines, message: Message) -> list[str]:
        child = self._child(message["name"])
        with open(child.log, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
        return text.splitlines()[-message["lines"] :]

    async def do_close(self, client: Lines, message: Message) -> Message:
        if message["keep"]:
            if self.ending is not None:
                raise Refused("the run is being ended, it cannot be kept any more")
            self.kept = True
            self._save_lock()
            write_json(os.path.join(self.run_dir, "run.json"), self._about())
            return {"kept": True}
        await self._end_everything()
        return {
            "kept": False,
            "left": self.survivors,
            "files": self.files_left,
            "wrong": self.wrong_at_end,
        }

    def do_at_end(self, client: Lines, message: Message) -> None:
        path = os.path.join(self.run_dir, AT_END)
        commands = (read_json(path) or {}).get("commands", [])
        write_json(path, {"commands": [*commands, message["argv"]]})

    def _child(self, name: str) -> Child:
        if name not in self.children:
            known = ", ".join(sorted(self.children)) or "none"
            raise Refused(f"there is no process {name} in this run (there are: {known})")
        return self.children[name]

    # --- who belongs to us ----------------------------------------------------------------------

    def _all_members(self) -> set[int]:
        """Every living process that descends from us, but the watch."""
        table = processes()
        watch = self.watch.pid if self.watch is not None else -1
        return descendants(os.getpid(), table) - {watch}

    def _members(self, name: str) -> set[int]:
        """What belongs to one process: its session, its descendants, and who carries its name."""
        child = self.children[name]
        table = processes()
        below = descendants(child.pid, table) | {child.pid} if child.exit_code is None else set()
        return {
            pid
            for pid in descendants(os.getpid(), table)
            if pid in below
            or table[pid].session == child.pid
            or environment(pid).get(PROCESS) == name
        }

    # --- the end --------------------------------------------------------------------------------

    def _end_run(self) -> None:
        """End everything and exit, with nobody to answer to."""
        self._end_everything().add_done_callback(lambda _: self.finished.set())

    def _end_everything(self) -> asyncio.Future[None]:
        if self.ending is None:
            self.ending = asyncio.ensure_future(self._end_members())
        return self.ending

    async def _end_members(self) -> None:
        for _ in end_steps(self._all_members, GRACE):
            await asyncio.sleep(POLL)
        self._reap()
        left = self._all_members()
        self.survivors = [{"pid": pid, "command": title(pid)} for pid in sorted(left)]
        if left:
            return  # the lock and the run directory stay, and say whose they are
        self.wrong_at_end = run_at_end(self.run_dir)
        if not self.options.keep_files:
            self.files_left = remove_tree(self.run_dir)
        os.unlink(self.lock_path)
        # The watch has nothing to do any more: a word instead of a closed pipe.
        os.write(self.watch_pipe, b".")
        self.watch.wait(GONE_AFTER)


def leave_terminal() -> None:
    """Let go of a connection that has ended, so that it can be closed completely."""
    null = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1, 2):
        os.dup2(null, handle)
    os.close(null)


def die_with(parent: int) -> Callable[[], None]:
    """For a child before its exec: SIGKILL from the kernel when `parent` ends."""
    prctl = ctypes.CDLL(None).prctl  # looked up here: after the fork as little as possible

    def prepare() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it ended before prctl
            os._exit(127)

    return prepare


# --- the other uses -----------------------------------------------------------------------------


def watch(options: argparse.Namespace) -> None:
    """Wait for the agent's end; if it did not say goodbye, do its last duty."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if os.read(options.pipe, 1):
        return
    left = end_now(lambda: set(marked(options.workdir, options.run_id)), GRACE)
    if left:
        return  # the run directory stays and names them
    run_dir = os.path.join(options.workdir, options.run_id)
    run_at_end(run_dir)
    if not options.keep_files:
        remove_tree(run_dir)
    lock = os.path.join(options.workdir, "lock")
    if os.path.exists(lock) and os.path.samestat(os.stat(lock), os.fstat(options.lock)):
        os.unlink(lock)


def attach(options: argparse.Namespace) -> int:
    """Copy between standard input and output and the agent of a living run."""
    living = [
        run
        for run in runs(options.workdir)
        if run["alive"] and options.run_id in ("", run["run_id"])
    ]
    if not living:
        print(json.dumps({"error": "absent"}), flush=True)
        return 3
    os.chdir(living[0]["run_dir"])
    agent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    agent.connect("agent.sock")
    os.chdir("/")
    print(json.dumps(dict(living[0], now=time.time())), flush=True)
    loop = asyncio.new_event_loop()
    copy(loop, 0, agent.fileno())
    copy(loop, agent.fileno(), 1)
    loop.run_forever()
    return 0


def copy(loop: asyncio.AbstractEventLoop, source: int, target: int) -> None:
    def forward() -> None:
        try:
            data = os.read(source, 65536)
            while data:
                data = data[os.write(target, data) :]
                if not data:
                    return
        except OSError:
            pass
        loop.stop()

    loop.add_reader(source, forward)


def serve(options: argparse.Namespace) -> int:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return asyncio.run(_serve(options))


async def _serve(options: argparse.Namespace) -> int:
    return await Agent(options).serve()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="pd-validate-agent")
    parser.add_argument("use", choices=("serve", "attach", "watch", "survey", "clean"))
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--run-id", default="")
    parser.add_argument("--owner", default="", help="user@controller")
    parser.add_argument("--controller-pid", type=int, default=0)
    parser.add_argument("--lease", type=float, default=20.0, help="seconds")
    parser.add_argument("--keep-files", action="store_true", help="do not remove the run directory")
    parser.add_argument("--pipe", type=int, help="watch: closes when the agent ends")
    parser.add_argument("--lock", type=int, help="watch: the agent's open lock file")
    parser.add_argument("--ports", default="", help="survey: comma-separated")
    parser.add_argument("--address", default="0.0.0.0", help="survey: where servers would listen")
    options = parser.parse_args(arguments)
    options.workdir = os.path.abspath(options.workdir)
    if options.use == "serve":
        return serve(options)
    if options.use == "attach":
        return attach(options)
    if options.use == "watch":
        watch(options)
        return 0
    try:
        if options.use == "survey":
            ports = [int(port) for port in options.ports.split(",") if port]
            print(json.dumps(survey(options.workdir, ports, options.address)))
        else:
            print(json.dumps(clean(options.workdir, options.run_id)))
    except Refused as error:
        print(json.dumps({"error": str(error)}))
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
