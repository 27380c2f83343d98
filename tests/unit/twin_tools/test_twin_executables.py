"""The executables on a host's PATH: real processes, streams and exit codes."""

from __future__ import annotations

import os
import pty
import subprocess
import time

from twin_under_test import Twin

from twin.fabric import Product, ToolOverride, healthy_cluster

LOST = (
    "device 0 PING 10.20.9.9\n"
    "recv time out seq=0\nrecv time out seq=1\nrecv time out seq=2\n"
    "3 packets transmitted, 0 received, 100.00% packet loss\n"
)


def test_streams_and_exit_code(a2: Twin) -> None:
    ended = a2.shell("p1", "hccn_tool", "-i", "0", "-ping", "-g", "address", "10.20.9.9")
    assert (ended.stdout, ended.stderr) == (LOST, "Command execute failed!\n")
    assert ended.returncode == 1


def test_into_one_pipe_stderr_comes_first(a2: Twin) -> None:
    words = ("hccn_tool", "-i", "0", "-ping", "-g", "address", "10.20.9.9")
    assert a2.shell("p1", *words, merged=True).stdout == "Command execute failed!\n" + LOST


def test_on_a_terminal_all_is_in_order(a2: Twin) -> None:
    ours, theirs = pty.openpty()
    words = ("hccn_tool", "-i", "0", "-ping", "-g", "address", "10.20.9.9")
    subprocess.run(
        words, env=a2.environment("p1"), stdout=theirs, stderr=theirs, timeout=30, check=False
    )
    os.close(theirs)
    shown = os.read(ours, 4096).decode().replace("\r\n", "\n")
    os.close(ours)
    assert shown == LOST + "Command execute failed!\n"


def test_each_host_sees_its_own_devices(a2: Twin) -> None:
    addresses = [
        a2.shell(host, "hccn_tool", "-i", "0", "-ip", "-g").stdout for host in ("p1", "d1")
    ]
    assert addresses == [
        "ipaddr:10.20.1.10\nnetmask:255.255.0.0\n",
        "ipaddr:10.20.2.10\nnetmask:255.255.0.0\n",
    ]


def test_a_change_is_seen_by_the_next_call(a2: Twin) -> None:
    words = ("hccn_tool", "-i", "0", "-link", "-g")
    assert a2.shell("p1", *words).stdout == "link status: UP\n"
    a2.fabric.device("p1", 0).link = "down"
    a2.store()
    assert a2.shell("p1", *words).stdout == "link status: DOWN\n"


def test_an_override_is_printed_as_it_stands(a2: Twin) -> None:
    a2.fabric.hosts["d2"].tools.append(
        ToolOverride(
            command="/usr/bin/hccn_tool  -i 6 -net_health -g",
            stdout="net health status: Ünknown",
            stderr="noise\n",
            exit=9,
        )
    )
    a2.store()
    ended = a2.shell("d2", "hccn_tool", "-i", "6", "-net_health", "-g")
    assert (ended.stdout, ended.stderr, ended.returncode) == (
        "net health status: Ünknown",
        "noise\n",
        9,
    )
    assert a2.shell("d2", "hccn_tool", "-i", "5", "-net_health", "-g").returncode == 0
    assert a2.shell("d1", "hccn_tool", "-i", "6", "-net_health", "-g").returncode == 0


def test_a_call_takes_the_time_that_is_set(a2: Twin) -> None:
    a2.fabric.hosts["d1"].seconds = 0.2
    a2.fabric.device("d1", 1).seconds = 0.0
    a2.store()

    def seconds(device: str) -> float:
        begun = time.monotonic()
        a2.shell("d1", "hccn_tool", "-i", device, "-link", "-g")
        return time.monotonic() - begun

    assert seconds("0") >= 0.2
    assert seconds("1") < 0.2


def test_tls_query_appends_to_the_host_s_hccn_conf(a2: Twin) -> None:
    a2.fabric.hosts["d1"].hccn_conf = "address_0=10.20.2.10\n"
    a2.store()
    conf = a2.directory / "d1" / "etc" / "hccn.conf"
    for _ in range(2):
        assert a2.shell("d1", "hccn_tool", "-i", "0", "-tls", "-g").returncode == 0
    assert conf.read_text() == "address_0=10.20.2.10\ntls_enable_0=0\n"


def test_npu_smi_and_a_host_of_another_product(a2: Twin) -> None:
    a2.fabric = healthy_cluster({"x1": "127.0.0.2"}, Product.A3)
    a2.store()
    ended = a2.shell("x1", "npu-smi", "info", "-l")
    assert "Total Count                    : 8\n" in ended.stdout
    assert ended.stdout.count("Chip Count                     : 2\n") == 8


def test_the_rank_table_generator_finds_every_device(a2: Twin, a3: Twin) -> None:
    """With the commands of vllm-ascend's gen_ranktable.py, and answers cut as it cuts them."""

    def cut(twin: Twin, command: str) -> list[str]:
        lines = twin.shell("d1", "sh", "-c", command).stdout.strip().split("\n")
        return [line.split(":")[1].strip() for line in lines]

    def devices(twin: Twin) -> dict[int, str]:
        cards = [int(card) for card in cut(twin, 'npu-smi info -l | grep "NPU ID"')]
        chips = int(cut(twin, 'npu-smi info -l | grep "Chip Count"')[0])
        query = "-ip" if chips == 1 else "-vnic"
        return {
            device: cut(twin, f"hccn_tool -i {device} {query} -g | grep ipaddr")[0]
            for device in (card * chips + chip for card in cards for chip in range(chips))
        }

    assert devices(a2) == {n: d.ip for n, d in a2.fabric.hosts["d1"].devices.items()}
    its = a3.fabric.hosts["d1"].devices
    assert devices(a3) == {n: d.vnic.ip for n, d in its.items()}
    assert cut(a3, "npu-smi info -t spod-info -i 7 -c 1 | grep SDID") == [str(its[15].sdid)]
    assert cut(a3, 'npu-smi info -t spod-info -i 7 -c 1 | grep "Super Pod ID"') == ["0"]


def test_without_a_state_the_tool_says_what_is_missing(a2: Twin) -> None:
    ended = a2.shell("nobody", "hccn_tool", "-i", "0", "-link", "-g")
    assert ended.returncode == 1
    assert "TWIN_HOST" in ended.stderr
