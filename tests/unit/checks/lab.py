"""A cluster whose hosts answer with text: the collector's document without hosts.

Every command of a request is answered as a healthy device does, unless a test says
otherwise; the answers go through the real parsers and all checks. A test states what
is broken and asserts the complete list of findings, so that one more is an error, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pd_validate.checks.network import check_network
from pd_validate.checks.result import Report
from pd_validate.facts.hccn import parse_hccs_ping, parse_ping
from pd_validate.facts.hosts import (
    ClusterFacts,
    HostFailure,
    ReadRequest,
    host_facts,
    requests_of,
)
from pd_validate.facts.pings import PingFacts, PingPlan, PingResult, PingTask, ping_plan
from pd_validate.facts.reading import Output
from pd_validate.spec.models import (
    Cluster,
    Host,
    InstanceSpec,
    ModelSpec,
    ProxySpec,
    Role,
)
from pd_validate.spec.plan import LaunchPlan, launch_plan, run_dirs

Answer = tuple[str, str, int]  # stdout, stderr, exit code

FAILED: Answer = ("", "Command execute failed!\n", 1)
BUSY: Answer = ("hccn_tool is busy, please try again.\n", "", 11)
NOW = 1_800_000_000.0  # seconds since the epoch, of controller and hosts


class Lab:
    """Three hosts, 1P2D: prefill-1 on p1 NPU 0, 1; decode-1 on d1 and decode-2 on d2, NPU 6, 7."""

    def __init__(self, product: str = "A2", **changes: Any) -> None:
        self.cluster = Cluster(
            hardware=f"atlas-800t-{product.lower()}",
            hosts={
                name: Host(address=f"192.0.0.{number}")
                for number, name in enumerate(("p1", "d1", "d2"), start=1)
            },
            model=ModelSpec(path=Path("/model/Qwen3-30B-A3B")),
            instances={
                "prefill-1": InstanceSpec(role=Role.PREFILL, host="p1", devices=(0, 1)),
                "decode-1": InstanceSpec(role=Role.DECODE, host="d1", devices=(6, 7)),
                "decode-2": InstanceSpec(role=Role.DECODE, host="d2", devices=(6, 7)),
            },
            proxy=ProxySpec(host="p1"),
        ).model_copy(update=changes)
        self.a3 = product == "A3"
        self.answers: dict[tuple[str, str], Answer] = {}
        self.failures: dict[str, HostFailure] = {}
        self.changes: dict[str, dict[str, Any]] = {}

    # --- breaking -------------------------------------------------------------------------------

    def answer(
        self, host: str, command: str, stdout: str = "", stderr: str = "", code: int = 0
    ) -> None:
        """What a command answers on a host, e.g. `hccn_tool -i 6 -link -g`."""
        self.answers[host, command] = (stdout, stderr, code)

    def device(self, host: str, device: int, query: str, *answer: Any) -> None:
        """What `hccn_tool -i <device> -<query> -g` answers."""
        self.answer(host, f"hccn_tool -i {device} -{query} -g", *answer)

    def unreachable(self, host: str, identifier: str = "host.unreachable") -> None:
        self.failures[host] = HostFailure(host, identifier, f"{host}: no route to host")

    def change(self, host: str, **parts: Any) -> None:
        """Parts of the collector's document of one host, e.g. `environment={…}`."""
        self.changes.setdefault(host, {}).update(parts)

    # --- judging --------------------------------------------------------------------------------

    @property
    def plan(self) -> LaunchPlan:
        return launch_plan(self.cluster, run_dirs=run_dirs(self.cluster, "run"))

    @property
    def facts(self) -> ClusterFacts:
        requests = requests_of(self.cluster, self.plan)
        return ClusterFacts(
            {
                name: host_facts(request, self._document(name, request), NOW - 1, 2.0)
                for name, request in requests.items()
                if name not in self.failures
            },
            self.failures,
        )

    def tasks(self) -> list[PingTask]:
        """All pings that will be run."""
        plan = ping_plan(self.cluster, self.facts)
        return [task for host in self.cluster.hosts for task in plan.of(host)]

    def report(self, *, idle: bool = True) -> Report:
        facts = self.facts
        plan = ping_plan(self.cluster, facts)
        return check_network(self.cluster, self.plan, facts, self._ping(plan), idle=idle)

    def lines(self, *, idle: bool = True) -> list[str]:
        """`severity id at place`, with ` < cause` for a consequence; sorted."""
        return sorted(
            f"{finding.severity.value} {finding.id} at {finding.where}"
            + "".join(sorted(f" < {cause.id}" for cause in finding.because))
            for finding in self.report(idle=idle).findings
        )

    # --- healthy answers ------------------------------------------------------------------------

    def _ping(self, plan: PingPlan) -> PingFacts:
        tasks = [task for name in self.cluster.hosts for task in plan.of(name)]
        return PingFacts(plan, tuple(self._pinged(task) for task in tasks))

    def _pinged(self, task: PingTask) -> PingResult:
        output = self._output(task.source.host, " ".join(task.argv))
        return PingResult(task, parse_hccs_ping(output) if task.hccs else parse_ping(output))

    def _document(self, host: str, request: ReadRequest) -> dict[str, Any]:
        address = self.cluster.hosts[host].address
        document = {
            "clock": self._json(host, "date +%s.%N"),
            "clock_age": 1.0,
            "files": {
                name: self._json(host, " ".join(argv)) for name, argv in request.document["files"]
            },
            "commands": [
                self._json(host, " ".join(self._argv(command)))
                for command in request.document["commands"]
            ],
            "network": {
                "cards": [
                    card("lo", "127.0.0.1", 8, "LOOPBACK", "UP"),
                    card("eth0", address, 24, "UP"),
                ],
                "own_address": address,
            },
            "environment": {},
            "ports": [
                {"address": where, "port": port, "free": True}
                for where, port in request.document["ports"]
            ],
            "software": self._json(host, "software"),
            "model": {"path": "/model/Qwen3-30B-A3B", "files": {"config.json": [700, "aa"]}},
        }
        return document | self.changes.get(host, {})

    def _argv(self, command: Mapping[str, Any]) -> list[str]:
        card, chip = command.get("card_and_chip", (0, 0))
        return [word.format(card=card, chip=chip) for word in command["argv"]]

    def _json(self, host: str, command: str) -> dict[str, Any]:
        output = self._output(host, command)
        return {
            "command": command,
            "stdout": output.stdout,
            "stderr": output.stderr,
            "exit": output.exit_code,
            "seconds": output.seconds,
            "skipped": output.skipped,
            "timed_out": output.timed_out,
        }

    def _output(self, host: str, command: str) -> Output:
        known = self.answers.get((host, command))
        if known is None and "-inet6" in command:
            return Output(command, skipped="`-ip -g` has answered")
        if known is None:
            known = self._healthy(host, command)
        stdout, stderr, code = known
        if stderr.startswith("not run: "):
            return Output(command, skipped=stderr.removeprefix("not run: "))
        if stderr == "timed out":
            return Output(command, timed_out=True, seconds=10)
        return Output(command, stdout, stderr, code, seconds=0.05)

    def _healthy(self, host: str, command: str) -> Answer:
        words = command.split()
        if words[0] == "hccn_tool":
            return self._hccn(host, int(words[2]), words[3], words), "", 0
        texts = {
            "npu-smi info -m": self._mapping(),
            "npu-smi info": self._table(),
            "cat /etc/hccn.conf": self._conf(host),
            "date +%s.%N": f"{NOW}\n",
            "uname -r": "5.10.0\n",
            "systemd-detect-virt": "none\n",
            "software": SOFTWARE,
        }
        if command in texts:
            return texts[command], "", 0
        if command.startswith("npu-smi info -t health"):
            return HEALTHY, "", 0
        if command.startswith("npu-smi info -t spod-info"):
            card, chip = int(words[-3]), int(words[-1])
            return self._spod(host, card * 2 + chip), "", 0
        if command.startswith("ls "):
            return "".join(f"{name}\n" for name in words[1:]), "", 0
        return "", "", 0

    def index(self, host: str) -> int:
        return list(self.cluster.hosts).index(host)

    def _hccn(self, host: str, device: int, query: str, words: list[str]) -> str:
        server = self.index(host)
        if query == "-ping":
            return ping_text(words[6])
        if query == "-hccs_ping":
            return hccs_ping_text(words[6])
        return {
            "-link": "link status: UP\n",
            "-ip": f"ipaddr:10.20.{server + 1}.{10 + device}\nnetmask:255.255.0.0\n",
            "-net_health": "net health status: Success\n",
            "-netdetect": "netdetect address: 10.20.0.1\n",
            "-gateway": f"default gateway:10.20.0.1, Iface:eth{device}\n",
            "-lldp": "Chassis ID TLV\n\tMAC: 8c:83\nPort ID TLV\n\tIfname: 400GE1/1/5:1\n",
            "-link_stat": LINK_STAT.format(device=device),
            "-optical": OPTICAL,
            "-speed": "Speed: 200000 Mb/s\n",
            "-duplex": "Duplex: Full\n",
            "-mtu": "mtu:8192\n",
            "-tls": tls_text(device, 0),
            "-vnic": (
                "vnic link status: UP\n"
                f"vnic ipaddr: 192.{server}.{2 + device % 2}.{199 - device}\n"
                "vnic netmask: 255.0.0.0\n"
            ),
        }[query]

    def _conf(self, host: str) -> str:
        number = self.index(host) + 1
        return "".join(
            f"address_{device}=10.20.{number}.{10 + device}\nnetmask_{device}=255.255.0.0\n"
            f"gateway_{device}=10.20.0.1\ntls_enable_{device}=0\n"
            for device in range(16 if self.a3 else 8)
        )

    def _spod(self, host: str, device: int) -> str:
        server = self.index(host)
        sdid = server << 22 | device // 2 << 18 | device % 2 << 16 | device
        return spod_text(sdid, server)

    def _mapping(self) -> str:
        if self.a3:
            head = "\tNPU ID  Chip ID  Chip Logic ID  Chip Phy-ID  Chip Name\n"
            rows = (f"\t{d // 2}  {d % 2}  {d}  {d}  Ascend910\n" for d in range(16))
            return head + "".join(rows)
        head = "\tNPU ID  Chip ID  Chip Logic ID  Chip Name\n"
        rows = (f"\t{d}  0  {d}  Ascend 910B3\n\t{d}  1  -  Mcu\n" for d in range(8))
        return head + "".join(rows)

    def _table(self) -> str:
        rows = {d: row_text(d, a3=self.a3) for d in range(16 if self.a3 else 8)}
        return table_text(rows)


def table_text(rows: Mapping[int, str], processes: str = "") -> str:
    """`npu-smi info` with these rows, by device, and these lines of the process table."""
    frame = "+===========================+===============+======================+\n"
    head = "| npu-smi 25.5.1            Version: 25.5.1                          |\n"
    names = "| NPU     Chip              | Process id    | Process name | Memory |\n"
    return head + frame + frame.join(rows.values()) + frame + names + frame + processes + frame


def row_text(device: int, *, a3: bool, health: str = "OK", used: int = 3445) -> str:
    card, name, ids = device, "910B3", "0"
    if a3:
        card, name, ids = device // 2, "Ascend910", f"{device % 2}     {device}"
    return (
        f"| {card}     {name}   | {health}  | 92.8   36   0 / 0 |\n"
        f"| {ids}   | 0000:C1:00.0  | 0   0 / 0   {used} / 65536 |\n"
    )


def ping_text(
    address: str, received: int = 3, times: tuple[float, ...] = (0.18, 0.05, 0.05)
) -> str:
    lines = [f"device 0 PING {address}"]
    for seq in range(3):
        came = seq < received
        lines.append(
            f"recv seq={seq},time={times[seq]:f}ms" if came else f"recv time out seq={seq}"
        )
    lost = (3 - received) * 100 / 3
    return "\n".join(
        [*lines, f"3 packets transmitted, {received} received, {lost:.2f}% packet loss\n"]
    )


def hccs_ping_text(address: str, sent: int = 3, received: int = 3, plane: int = 0) -> str:
    text = f"device 0 PING {address}\n"
    for seq in range(3):
        came = seq < received
        text += f"\nThis pkt {'ping success' if came else 'check recv msg fail'}!\n"
        time = "12.345" if came else "0.000"
        text += f"recv seq {seq}, time = {time}us, L1 plane check result = {plane:#x}\n"
    loss = 0.0 if sent == 0 else (sent - received) * 100 / sent
    text += f"\n{sent} packets transmitted, {received} received, {loss:.2f}% packets loss\n"
    return text + "Cmd executed successfully!\n"


def tls_text(device: int, switch: int, status: int = 0) -> str:
    return (
        f"dev_id:{device}, tls switch[{switch}](0:disable, 1:enable), tls preconfigured[1]"
        "(0:non-preset, 1:preset), tls alarm time threshold[60]days\n"
        f"dev_id:{device}, [pub cert] info:\n"
        f"\t tls expiration status[{status}](0:normal, 1:near expiration, 2:has expired)\n"
    )


def spod_text(sdid: int, server: int, pod: int = 0) -> str:
    return (
        f"\tSDID                           : {sdid}\n"
        "\tSuper Pod Size                 : 384\n"
        f"\tSuper Pod ID                   : {pod}\n"
        f"\tServer Index                   : {server}\n"
    )


def health_text(word: str, codes: str = "NA", text: str = "NA") -> str:
    return (
        f"\tHealth Status                  : {word}\n"
        f"\tError Code                     : {codes}\n"
        f"\tError Information              : {text}\n"
    )


def software_text(**versions: str | None) -> str:
    known: dict[str, str | None] = {
        "torch": "2.5.1",
        "torch_npu": "2.5.1.post1",
        "vllm": "0.10.1.1",
        "vllm_ascend": "0.10.1rc1",
    }
    return json.dumps(
        {
            "python": "3.11.7",
            "packages": known | versions,
            "cann": "version=8.2.RC1\n",
            "modules": {"llm_datadist": "/usr/local/llm_datadist/__init__.py"},
        }
    )


def card(name: str, address: str, prefix: int, *flags: str) -> dict[str, Any]:
    entry = {"family": "inet", "local": address, "prefixlen": prefix}
    return {"ifname": name, "flags": list(flags), "addr_info": [entry]}


HEALTHY = health_text("OK")
SOFTWARE = software_text()
LINK_STAT = (
    "[devid {device}]current time        : Sat Nov 22 12:00:00 2025\n"
    "[devid {device}]link up count       : 1\n"
    "[devid {device}]link down count     : 0\n"
    "[devid {device}]link change records : NA\n"
)
OPTICAL = "optical info:\npresent              : present\nRx Los Flag          : 0x0\n"
