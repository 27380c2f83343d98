"""Writes ahead of time what a host's tools will say, so that a call needs no interpreter.

Starting Python takes a tool call 20 ms of CPU, and a large cluster is asked thousands of
times. So whenever the fabric is stored, the usual queries are answered here, by the tools'
own code, and put into shell fragments which the executables on a host's PATH read first
(`launch.py`): one for npu-smi and one for each device,

    $TWIN_STATE/<host>/ahead/npu-smi
    $TWIN_STATE/<host>/ahead/hccn_tool-0 …

A fragment that knows the call prints the answer and exits; of any other it says nothing, and
the tool is run. Not written ahead is what is answered verbatim by a scenario, and what changes
with time, except the clock that -link_stat shows.
"""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from twin.tools import answers, hccn_tool, npu_smi, state
from twin.tools.answers import DeviceAnswers
from twin.tools.console import Console
from twin.tools.launch import user_name
from twin.tools.state import PathState

DEVICE_QUERIES = (
    *("link", "ip", "net_health", "netdetect", "gateway", "lldp", "link_stat", "optical"),
    *("speed", "duplex", "mtu", "mac", "tls", "vnic"),
    *("ip -inet6", "netdetect -inet6", "gateway -inet6"),
)
CHIP_QUERIES = ("health", "spod-info", "usages")
HCCS_LARGEST = 3000  # bytes, what -hccs_ping sends at most
IP_AND_ICMP_HEADERS = 28  # bytes
LATER = 86400.0  # seconds; an answer that differs by then changes with time


@dataclass(frozen=True)
class Answer:
    """What one call does: `seconds` to wait, both streams, exit code."""

    seconds: float
    stdout: str
    stderr: str
    exit: int


Ask = Callable[[Sequence[str], int], Answer]  # a call, and which of the two moments


class _Recorder(Console):
    """Keeps what a tool prints; a wait is only counted."""

    def __init__(self, now: float, wait_scale: float) -> None:
        super().__init__(wait_scale=wait_scale)
        self._now = now
        self._scale = wait_scale
        self.seconds = 0.0
        self.stdout: list[str] = []
        self.stderr: list[str] = []

    def out(self, text: str) -> None:
        self.stdout.append(text)

    def err(self, text: str) -> None:
        self.stderr.append(text)

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds * self._scale

    def now(self) -> float:
        return self._now

    def answer(self, code: int, pause: float) -> Answer:
        return Answer(pause + self.seconds, "".join(self.stdout), "".join(self.stderr), code & 0xFF)


def directory_of(fabric: Path, host: str) -> Path:
    """Where the fragments of `host` lie."""
    return fabric / host / "ahead"


def forget(fabric: Path) -> None:
    """Remove all fragments: the fabric is about to change."""
    for directory in fabric.glob("*/ahead"):
        shutil.rmtree(directory)


def write(fabric: Path) -> None:
    """Answer the usual queries of all hosts of the fabric that is stored in `fabric`."""
    layout = state.load(str(fabric))
    now = time.time()
    for name in layout["hosts"]:
        host = _Host(layout, name, state.hccn_conf_path(str(fabric), name), now)
        directory = directory_of(fabric, name)
        directory.mkdir(parents=True, exist_ok=True)
        _store(directory / "npu-smi", host.npu_smi())
        for device in host.devices:
            _store(directory / f"hccn_tool-{device}", host.hccn_tool(device))


def _store(path: Path, lines: Iterable[str]) -> None:
    text = "\n".join(['case "$# $*" in', *lines, "esac", ""])
    path.write_bytes(text.encode("utf-8", "surrogateescape"))


class _Host:
    """One host, asked now and later."""

    def __init__(self, layout: state.Layout, name: str, conf: str, now: float) -> None:
        self._layout = layout
        self._its = layout["hosts"][name]
        self._name = name
        self._conf = conf
        self._times = (now, now + LATER)
        user = user_name(self._its["uid"])
        self._machines = [
            answers.machine_of(layout, name, conf="", user=user, now=moment)
            for moment in self._times
        ]
        self._smi_values = [npu_smi.values_of(layout, name, moment) for moment in self._times]

    @property
    def devices(self) -> list[int]:
        return [int(number) for number in self._its["devices"]]

    # --- npu-smi ------------------------------------------------------------------------------

    def npu_smi(self) -> Iterator[str]:
        chips = 2 if self._layout["product"] == "A3" else 1
        commands = ["info", "info -l", "info -m"]
        commands += [f"info -t board -i {card}" for card in {d // chips for d in self.devices}]
        for device in self.devices:
            card, chip = divmod(device, chips)
            commands += [f"info -t {query} -i {card} -c {chip}" for query in CHIP_QUERIES]
        processes = [d["npu"]["processes"] for d in self._its["devices"].values()]
        if any(process["name"] is None for some in processes for process in some):
            commands.remove("info")  # it looks for their names
        for command in commands:
            yield from self._case(["npu-smi", *command.split()], self._ask_npu_smi)

    def _ask_npu_smi(self, argv: Sequence[str], moment: int) -> Answer:
        console = self._console(moment)
        code = npu_smi.main(argv, self._smi_values[moment], console)
        return console.answer(code, self._its["seconds"])

    # --- hccn_tool ----------------------------------------------------------------------------

    def hccn_tool(self, device: int) -> Iterator[str]:
        head = ["hccn_tool", "-i", str(device)]
        for query in DEVICE_QUERIES:
            yield from self._case([*head, *f"-{query} -g".split()], self._ask_hccn_tool)
        answers_now = self._machines[0].devices.get(device)
        if isinstance(answers_now, DeviceAnswers) and not self._its["tools"]:
            yield from self._pings(head, answers_now)

    def _ask_hccn_tool(self, argv: Sequence[str], moment: int) -> Answer:
        console = self._console(moment)
        code = hccn_tool.main(argv, self._machines[moment], console)
        seconds = self._its["devices"][argv[2]]["seconds"]
        return console.answer(code, self._its["seconds"] if seconds is None else seconds)

    def _pings(self, head: list[str], device: DeviceAnswers) -> Iterator[str]:
        """Towards every address that a device of the cluster has, with the two usual sizes.

        The answer follows from what the path is like, so one of each kind is asked for.
        """
        full_frame = device.number("mtu") - IP_AND_ICMP_HEADERS
        ways = _alike((ip, device.path_to(ip)) for ip in _addresses(self._layout, "ip"))
        for words in ([], ["pkt", str(full_frame)]):
            yield from self._ping_cases([*head, "-ping", "-g", "address"], words, ways)
        if self._layout["product"] != "A3":
            return
        vnics = [ip for ip in _addresses(self._layout, "vnic") if _is_in_a_superpod(ip)]
        ways = _alike((ip, device.hccs_path_to(hccn_tool.sdid_of(ip))) for ip in vnics)
        for words in ([], ["pkt", str(HCCS_LARGEST)]):
            yield from self._ping_cases([*head, "-hccs_ping", "-g", "address"], words, ways)

    def _ping_cases(
        self, head: list[str], words: list[str], ways: Iterable[list[str]]
    ) -> Iterator[str]:
        count = len(head) + len(words)  # without the program, with the address
        begin = shlex.quote(f"{count} {' '.join(head[1:])} ")
        yield f"{begin}*{shlex.quote(' '.join(['', *words])) if words else ''})"
        yield " case $6 in"
        for targets in ways:
            answer = self._lasting([*head, targets[0], *words], self._ask_hccn_tool)
            if answer is None:
                continue
            yield f" {'|'.join(targets)})"
            yield from _said(answer, _with(answer.stdout, f" {targets[0]}\n", '" $6\n"'))
        yield " esac ;;"

    # --- both ---------------------------------------------------------------------------------

    def _console(self, moment: int) -> _Recorder:
        return _Recorder(self._times[moment], self._layout["wait_scale"])

    def _case(self, argv: list[str], ask: Ask) -> Iterator[str]:
        """The fragment's lines for one call; none if its answer cannot be known ahead."""
        answer = self._lasting(argv, ask)
        if answer is None:
            return
        yield f"{shlex.quote(f'{len(argv) - 1} {chr(32).join(argv[1:])}')})"
        if "-tls" in argv:
            # The real tool adds this key to hccn.conf when it is missing; that is for the tool.
            key = shlex.quote(f"tls_enable_{argv[2]}=")
            yield f" while read -r line; do case $line in {key}*)"
            yield from _said(answer, shlex.quote(answer.stdout))
            yield f" esac; done < {shlex.quote(self._conf)} ;;"
        else:
            yield from _said(answer, _with(answer.stdout, _shown(self._times[0]), _CLOCK))

    def _lasting(self, argv: list[str], ask: Ask) -> Answer | None:
        """The answer, if it is the same tomorrow but for the time of day that it shows."""
        if state.override_of(self._its, argv) is not None:
            return None
        now, later = (ask(argv, moment) for moment in range(len(self._times)))
        shown = later.stdout.replace(_shown(self._times[1]), _shown(self._times[0]), 1)
        return now if now == replace(later, stdout=shown) else None


# --- shell ----------------------------------------------------------------------------------------

_SLEEP = shutil.which("sleep") or "sleep"  # the system's, whatever a scenario puts before it
_CLOCK = f'"$(LC_ALL=C {shutil.which("date") or "date"} "+%a %b %e %H:%M:%S %Y")"'


def _shown(moment: float) -> str:
    """The time as the tools print it; `_CLOCK` prints the time of the call in this form."""
    return time.asctime(time.localtime(int(moment)))


def _with(text: str, part: str, instead: str) -> str:
    """`text` as a word of the shell, the first `part` of it replaced by the word `instead`."""
    before, found, after = text.partition(part)
    return shlex.quote(before) + (instead + shlex.quote(after) if found else "")


def _said(answer: Answer, stdout: str) -> Iterator[str]:
    """Commands that act as `answer`; `stdout` is a word of the shell."""
    if answer.seconds:
        yield f" {_SLEEP} {answer.seconds:g}"
    if answer.stderr:
        yield f" printf %s {shlex.quote(answer.stderr)} >&2"
    if answer.stdout:
        yield f" printf %s {stdout}"
    yield f" exit {answer.exit};;"


# --- the cluster's addresses ----------------------------------------------------------------------


def _addresses(layout: state.Layout, kind: str) -> list[str]:
    """All `ip` or `vnic` addresses of the cluster's devices, each once."""
    devices = [device for host in layout["hosts"].values() for device in host["devices"].values()]
    found = [device["ip"] if kind == "ip" else device["vnic"]["ip"] for device in devices]
    return list(dict.fromkeys(address for address in found if address is not None))


def _is_in_a_superpod(vnic: str) -> bool:
    try:
        return hccn_tool.is_sdid(hccn_tool.sdid_of(vnic))
    except hccn_tool.Failure:
        return False


def _alike(ways: Iterable[tuple[str, PathState | None]]) -> list[list[str]]:
    """Addresses in groups to which the way is the same."""
    groups: dict[tuple[object, ...] | None, list[str]] = {}
    for address, way in ways:
        key = None if way is None else (way.reason, way.loss, way.seconds, way.max_bytes)
        groups.setdefault(key, []).append(address)
    return list(groups.values())
