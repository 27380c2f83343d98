"""Pings: every way to lose one, folded into the widest place that explains them."""

from __future__ import annotations

import pytest
from lab import BUSY, Lab, hccs_ping_text, ping_text


def spoil(lab: Lab, received: int, *, source: tuple = (None, None), target: tuple = (None, None)):
    """All pings between these places get only `received` packets back; None: any."""
    for task in lab.tasks():
        ends = zip(
            (task.source.host, task.source.device, task.target.host, task.target.device),
            (*source, *target),
            strict=True,
        )
        if all(wanted is None or wanted == actual for actual, wanted in ends):
            text = ping_text(task.address, received)
            lab.answer(task.source.host, " ".join(task.argv), text, "Command execute failed!\n", 1)


def test_one_dead_pair() -> None:
    lab = Lab()
    spoil(lab, 0, source=("p1", 0), target=("d1", 6))
    assert lab.lines() == ["fail ping.unreachable at p1 npu0 -> d1 npu6"]


def test_lossy_pair_tells_its_share() -> None:
    lab = Lab()
    spoil(lab, 2, source=("p1", 0), target=("d1", 6))
    assert lab.lines() == ["fail ping.loss at p1 npu0 -> d1 npu6"]
    assert "2 of 3 packets back (33% lost)" in lab.report().findings[0].got


def test_total_loss_that_exits_zero() -> None:
    lab = Lab()
    text = "device 0 PING 10.20.2.16\n3 packets transmitted, 0 received, 100.00% packet loss\n"
    lab.answer("p1", "hccn_tool -i 0 -ping -g address 10.20.2.16", text)
    assert lab.lines() == ["fail ping.unreachable at p1 npu0 -> d1 npu6"]


def test_no_route_is_said() -> None:
    lab = Lab()
    text = (
        "device 0 PING 10.20.2.16\nFrom 10.20.1.10 Destination Host Unreachable\n"
        "3 packets transmitted, 0 received, 100.00% packet loss\n"
    )
    lab.answer("p1", "hccn_tool -i 0 -ping -g address 10.20.2.16", text, "Command execute failed!")
    assert lab.lines() == ["fail ping.unreachable at p1 npu0 -> d1 npu6"]
    assert "no route" in lab.report().findings[0].got


def test_device_towards_a_host() -> None:
    lab = Lab()
    spoil(lab, 2, source=("p1", 0), target=("d2", None))
    assert lab.lines() == ["fail ping.loss at p1 npu0 -> d2"]


def test_device_that_nobody_reaches_and_that_reaches_nobody() -> None:
    lab = Lab()
    spoil(lab, 0, source=("d1", 6))
    spoil(lab, 0, target=("d1", 6))
    assert lab.lines() == ["fail ping.unreachable at d1 npu6"]
    assert "8 pings to and from" in lab.report().findings[0].got


def test_device_that_loses_what_it_sends() -> None:
    """To whomever: one place, not one for each host that it sends to."""
    lab = Lab()
    spoil(lab, 2, source=("p1", 0))
    assert lab.lines() == ["fail ping.loss at p1 npu0"]
    assert "4 pings towards d1 npu6, d1 npu7" in lab.report().findings[0].got


def test_device_that_nobody_reaches() -> None:
    lab = Lab()
    spoil(lab, 0, target=("d1", 6))
    assert lab.lines() == ["fail ping.unreachable at d1 npu6"]
    assert "4 pings from " in lab.report().findings[0].got


def test_host_that_loses_what_it_sends() -> None:
    lab = Lab()
    spoil(lab, 2, source=("d1", None))
    assert lab.lines() == ["fail ping.loss at d1"]


def test_nobody_reaches_anybody() -> None:
    lab = Lab()
    spoil(lab, 0)
    assert lab.lines() == ["fail ping.unreachable at cluster"]
    assert {cell.verdict.value for cell in lab.report().of("ping")} == {"fail"}


def test_pings_of_a_whole_host_that_faults_of_its_devices_explain() -> None:
    """A netmask too narrow on each of them: the host's dead pings are no fault of their own."""
    lab = Lab()
    for number in range(8):
        address = f"ipaddr:10.20.3.{10 + number}\nnetmask:255.255.255.0\n"
        lab.device("d2", number, "ip", address)
    spoil(lab, 0, source=("d2", None))
    spoil(lab, 0, target=("d2", None))
    roots = [line for line in lab.lines() if " < " not in line]
    assert not [line for line in roots if "ping." in line]
    assert "fail ping.unreachable at d2 < address.subnet" in "\n".join(lab.lines())


def test_a_dead_pair_beside_pings_that_are_explained() -> None:
    lab = Lab()
    lab.device("d1", 6, "net_health", "net health status: Receive timeout\n")
    spoil(lab, 0, source=("d1", 6))
    spoil(lab, 0, target=("d1", 6))
    spoil(lab, 0, source=("p1", 0), target=("d1", 7))
    assert lab.lines() == [
        "fail health.unreachable at d1 npu6",
        "fail ping.unreachable at d1 npu6 < health.unreachable",
        "fail ping.unreachable at p1 npu0 -> d1 npu7",
    ]


def test_whole_host_in_both_directions() -> None:
    lab = Lab()
    for number in range(8):
        spoil(lab, 0, source=("d1", number))
        spoil(lab, 0, target=("d1", number))
    assert lab.lines() == ["fail ping.unreachable at d1"]


def test_one_direction_between_two_hosts() -> None:
    lab = Lab()
    spoil(lab, 0, source=("p1", None), target=("d1", None))
    assert lab.lines() == ["fail ping.unreachable at p1 -> d1"]


def test_two_faults_stay_two_findings() -> None:
    lab = Lab()
    spoil(lab, 0, source=("p1", 0), target=("d1", 6))
    spoil(lab, 0, source=("d2", 7), target=("p1", 1))
    assert lab.lines() == [
        "fail ping.unreachable at d2 npu7 -> p1 npu1",
        "fail ping.unreachable at p1 npu0 -> d1 npu6",
    ]


def test_pings_of_unused_npus_warn() -> None:
    lab = Lab()
    spoil(lab, 0, source=("d1", 2), target=("d2", 2))
    assert lab.lines() == ["warn ping.unreachable at d1 npu2 -> d2 npu2"]


def test_large_packets_that_do_not_pass() -> None:
    lab = Lab()
    large = [t for t in lab.tasks() if t.size and t.source.host == "p1" and t.source.device == 0]
    assert {task.size for task in large} == {8192 - 28}  # one full frame with its headers
    for task in large:
        text = f"device 0 PING {task.address}\nsendto: Message too long\n"
        lab.answer("p1", " ".join(task.argv), text, "Command execute failed!\n", 1)
    assert {line.split(" at ")[0] for line in lab.lines()} == {"fail ping.size"}


def test_large_packets_on_a_dead_pair_add_nothing() -> None:
    lab = Lab()
    spoil(lab, 0, source=("p1", 0), target=("d1", 6))
    assert any(task.size for task in lab.tasks() if str(task.target) == "d1 npu6")
    assert len(lab.lines()) == 1


def test_slow_pair_against_the_matrix_warns() -> None:
    lab = Lab()
    text = ping_text("10.20.2.16", times=(5.0, 4.0, 4.2))
    lab.answer("p1", "hccn_tool -i 0 -ping -g address 10.20.2.16", text)
    assert lab.lines() == ["warn ping.slow at p1 npu0 -> d1 npu6"]


def test_a_fabric_that_is_slow_everywhere_has_no_outlier() -> None:
    lab = Lab()
    for task in lab.tasks():
        text = ping_text(task.address, times=(5.0, 4.0, 4.2))
        lab.answer(task.source.host, " ".join(task.argv), text)
    assert lab.lines() == []


def test_first_packet_pays_for_arp_and_is_not_counted() -> None:
    lab = Lab()
    text = ping_text("10.20.2.16", times=(9.0, 0.05, 0.05))
    lab.answer("p1", "hccn_tool -i 0 -ping -g address 10.20.2.16", text)
    assert lab.lines() == []


@pytest.mark.parametrize(
    ("answer", "identifier"),
    [
        (BUSY, "tool.busy"),
        (("device 0 PING 10.20.2.16\n\n", "", 0), "tool.failed"),
        (("", "permission denied: pls check this cmd run permission.\n", 12), "tool.permission"),
    ],
    ids=["busy", "empty", "permission"],
)
def test_ping_that_was_not_made_is_unknown(answer: tuple[str, str, int], identifier: str) -> None:
    lab = Lab()
    lab.answer("p1", "hccn_tool -i 0 -ping -g address 10.20.2.16", *answer)
    assert lab.lines() == [f"unknown {identifier} at p1 npu0"]


# --- A3 -----------------------------------------------------------------------------------------

HCCS = "hccn_tool -i 0 -hccs_ping -g address 192.1.2.193"  # p1 npu0 -> d1 npu6


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (hccs_ping_text("x", received=0), ["fail ping.unreachable at p1 npu0 -> d1 npu6"]),
        (hccs_ping_text("x", received=2), ["fail ping.loss at p1 npu0 -> d1 npu6"]),
        (hccs_ping_text("x", plane=1), ["warn ping.loss at p1 npu0 -> d1 npu6"]),
        (
            "device 0 PING 0.0.0.0\n\nThis pkt ping not start to send!\n"
            "recv seq 0, time = 0.000us, L1 plane check result = 0x0\n\n"
            "0 packets transmitted, 0 received, 0.00% packets loss\nCmd executed successfully!\n",
            ["fail ping.unreachable at p1 npu0 -> d1 npu6"],
        ),
    ],
    ids=["nothing", "partial", "plane", "never-sent"],
)
def test_hccs_ping_whose_exit_code_says_success(text: str, lines: list[str]) -> None:
    lab = Lab("A3")
    assert HCCS in {" ".join(task.argv) for task in lab.tasks()}
    lab.answer("p1", HCCS, text)
    assert lab.lines() == lines


def test_a_host_that_cannot_be_read_is_not_pinged_and_blocks_only_itself() -> None:
    lab = Lab()
    lab.unreachable("d1")
    assert lab.lines() == ["fail host.unreachable at d1"]
    assert {task.target.host for task in lab.tasks()} == {"p1", "d2"}
    report = lab.report()
    assert [f.id for f in report.problems("ping", "d1")] == ["host.unreachable"]
    assert report.problems("ping", "d2") == []


def test_one_host_alone_has_no_ping_and_no_finding() -> None:
    lab = Lab()
    hosts = {"p1": lab.cluster.hosts["p1"]}
    instances = {"prefill-1": lab.cluster.instances["prefill-1"]}
    lab.cluster = lab.cluster.model_copy(update={"hosts": hosts, "instances": instances})
    report = lab.report()
    assert report.findings == ()
    (cell,) = report.of("ping")
    assert cell.note == "the schedule has no ping from here"
