"""What is written ahead of time is what the tool itself would say, and is not used when it may not.

The tool itself is asked in this process; what is written ahead by the executables on the
host's PATH, whose interpreter is taken away so that nobody else can answer.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from twin_under_test import Outcome, Twin

from twin.fabric import (
    Endpoint,
    LinkChange,
    LinkStat,
    NetHealth,
    Optical,
    PathRule,
    Process,
    Product,
    Tls,
    ToolOverride,
    Vnic,
    healthy_cluster,
)
from twin.tools import ahead

HOSTS = {"p1": "127.0.0.1", "d1": "127.0.0.2"}
NOT_WRITTEN_AHEAD = 99
OUTSIDE = "192.168.2.196"  # a vNIC that is in no super pod


def only_ahead(twin: Twin, host: str, *command: str) -> subprocess.CompletedProcess[str]:
    """The answer of the executables without their Python. `command`: words, or one line."""
    environment = twin.environment(host)
    for tool in ("hccn_tool", "npu-smi"):
        program = twin.directory / "bin" / tool
        lines = program.read_text().splitlines(keepends=True)
        assert lines[-1].startswith("exec ")
        program.write_text("".join([*lines[:-1], f"exit {NOT_WRITTEN_AHEAD}\n"]))
    argv = command if len(command) > 1 else command[0].split()
    return subprocess.run(
        argv, env=environment, capture_output=True, text=True, timeout=30, check=False
    )


def the_tool(twin: Twin, host: str, command: str) -> Outcome:
    tool, _, words = command.partition(" ")
    return twin.smi(host, words) if tool == "npu-smi" else twin.hccn(host, words)


def all_commands(twin: Twin, host: str) -> Iterator[str]:
    """Every query that may be written ahead, and pings to all addresses there are."""
    devices = twin.fabric.hosts[host].devices
    chips = twin.fabric.product.dies_per_card
    yield from (f"npu-smi info{more}" for more in ("", " -l", " -m"))
    for number in devices:
        for query in ahead.CHIP_QUERIES:
            yield f"npu-smi info -t {query} -i {number // chips} -c {number % chips}"
        for query in ahead.DEVICE_QUERIES:
            yield f"hccn_tool -i {number} -{query} -g"
    for number in (0, 1, 5):
        for peer in (d for h in twin.fabric.hosts.values() for d in h.devices.values()):
            for more in ("", f" pkt {devices[number].mtu - 28}") if peer.ip else ():
                yield f"hccn_tool -i {number} -ping -g address {peer.ip}{more}"
            if twin.fabric.product is Product.A3 and peer.vnic.ip != OUTSIDE:
                yield f"hccn_tool -i {number} -hccs_ping -g address {peer.vnic.ip}"


def broken_a2(directory: Path) -> Twin:
    """As many states as there are devices."""
    fabric = healthy_cluster(HOSTS)
    ours = fabric.hosts["d1"].devices
    ours[0].link = "down"
    ours[1].mtu = 4096
    ours[2].ip = None
    ours[3].condition = "refused"
    ours[4].condition = "broken"
    ours[5].net_health = NetHealth.RECEIVE_TIMEOUT
    ours[5].tls = Tls(enable=1)
    ours[5].lldp = None
    ours[6].optical = Optical(present=False)
    ours[6].npu.health, ours[6].npu.errors = "alarm", {"80CB8009": "HBM 'ECC' $error\\n"}
    ours[6].npu.processes = (Process(pid=4242, memory=57000, name="python"),)
    now = int(time.time())
    ours[7].link_stat = LinkStat(down_count=1, changes=(LinkChange(up=False, time=now - 60),))
    ours[7].gateway, ours[7].netdetect = None, None
    fabric.paths = [
        PathRule(source=Endpoint(host="d1"), target=Endpoint(host="p1", device=0), loss=0.34),
        PathRule(source=Endpoint(host="d1"), target=Endpoint(host="p1", device=1), max_bytes=1500),
        PathRule(
            source=Endpoint(host="d1"), target=Endpoint(host="p1", device=2), unreachable=True
        ),
        PathRule(source=Endpoint(host="d1"), target=Endpoint(host="p1", device=3), seconds=0.005),
    ]
    return stored(fabric, directory)


def healthy_a3(directory: Path) -> Twin:
    fabric = healthy_cluster(HOSTS, Product.A3, wait_scale=0.01)
    fabric.hosts["d1"].devices[3].vnic = Vnic(ip=OUTSIDE)
    fabric.hosts["p1"].devices[7].vnic.link = "down"
    fabric.hosts["p1"].superpod = fabric.hosts["d1"].superpod
    return stored(fabric, directory)


def stored(fabric: object, directory: Path) -> Twin:
    twin = Twin(fabric, directory)  # type: ignore[arg-type]  # what both callers pass
    twin.store()
    return twin


@pytest.mark.parametrize("make", [broken_a2, healthy_a3])
def test_every_answer_is_the_tools_own(make: object, tmp_path: Path) -> None:
    twin: Twin = make(tmp_path)  # type: ignore[operator]  # one of the two above
    asked = 0
    for command in all_commands(twin, "d1"):
        told, own = only_ahead(twin, "d1", command), the_tool(twin, "d1", command)
        printed = (told.stdout, own.screen.stdout)
        if "-link_stat" in command:  # its first line shows the time of day
            printed = (told.stdout.partition("\n")[2], own.screen.stdout.partition("\n")[2])
        assert printed[0] == printed[1], command
        assert (told.stderr, told.returncode) == (own.screen.stderr, own.exit), command
        asked += 1
    assert asked > 200


def test_link_stat_shows_the_time_of_the_call(a2: Twin) -> None:
    def shown() -> str:
        said = only_ahead(a2, "p1", "hccn_tool -i 0 -link_stat -g")
        return said.stdout.splitlines()[0].partition(": ")[2]

    before = time.time()
    told = time.mktime(time.strptime(shown()))
    assert int(before) <= told <= time.time()


def test_what_may_not_be_written_ahead_is_left_to_the_tool(a2: Twin) -> None:
    d1 = a2.fabric.hosts["d1"]
    d1.tools.append(ToolOverride(command="hccn_tool -i 1 -link -g", stdout="odd\n"))
    d1.devices[2].busy_until = time.time() + 3600
    d1.devices[3].npu.processes = (Process(pid=os.getpid(), memory=1),)  # named by /proc
    a2.store()
    for command in (
        "hccn_tool -i 1 -link -g",
        "hccn_tool -i 2 -link -g",
        "npu-smi info",
        "hccn_tool -i 0 -optical -dump",
        "hccn_tool -i 99 -link -g",
    ):
        assert only_ahead(a2, "d1", command).returncode == NOT_WRITTEN_AHEAD, command
    assert only_ahead(a2, "d1", "hccn_tool -i 0 -link -g").returncode == 0


def test_arguments_that_only_look_alike_are_left_to_the_tool(a2: Twin) -> None:
    assert only_ahead(a2, "p1", "hccn_tool", "-i", "0", "-link", "-g").returncode == 0
    ended = only_ahead(a2, "p1", "hccn_tool", "-i", "0 -link", "-g")
    assert ended.returncode == NOT_WRITTEN_AHEAD


def test_without_its_key_in_hccn_conf_tls_is_left_to_the_tool(a2: Twin) -> None:
    """The tool then adds the key, as the vendor's does."""
    command = "hccn_tool -i 0 -tls -g"
    assert only_ahead(a2, "d1", command).returncode == 0
    (a2.directory / "d1" / "etc" / "hccn.conf").write_text("address_0=10.20.2.10\n")
    assert only_ahead(a2, "d1", command).returncode == NOT_WRITTEN_AHEAD


def test_a_fabric_that_somebody_else_wrote_counts(a2: Twin) -> None:
    fragment = ahead.directory_of(a2.directory, "d1") / "hccn_tool-0"
    later = fragment.stat().st_mtime + 0.01
    os.utime(a2.directory / "fabric.json", (later, later))
    assert only_ahead(a2, "d1", "hccn_tool -i 0 -link -g").returncode == NOT_WRITTEN_AHEAD


def test_another_user_in_a_container_is_left_to_the_tool(
    a2: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWIN_UID", "65534")
    assert only_ahead(a2, "p1", "hccn_tool -i 0 -link -g").returncode == NOT_WRITTEN_AHEAD
