"""Physical link: each fault at one device, and nothing else said."""

from __future__ import annotations

import pytest
from lab import FAILED, Lab

from pd_validate.spec.models import EngineSpec


@pytest.mark.parametrize("product", ["A2", "A3"])
def test_healthy_cluster_has_no_finding(product: str) -> None:
    report = Lab(product).report()
    assert report.findings == ()
    assert {result.verdict.value for result in report.results} == {"pass"}


def test_link_down_of_a_used_npu_fails() -> None:
    lab = Lab()
    lab.device("d1", 6, "link", "link status: DOWN\n")
    assert lab.lines() == ["fail link.down at d1 npu6"]


def test_link_down_of_an_unused_npu_warns() -> None:
    lab = Lab()
    lab.device("d1", 2, "link", "link status: DOWN\n")
    assert lab.lines() == ["warn link.down at d1 npu2"]


def test_every_npu_must_be_well_if_the_cluster_file_says_all() -> None:
    lab = Lab()
    lab.cluster = lab.cluster.model_copy(
        update={"checks": lab.cluster.checks.model_copy(update={"devices": "all"})}
    )
    lab.device("d1", 2, "link", "link status: DOWN\n")
    assert lab.lines() == ["fail link.down at d1 npu2"]


def test_roce_link_of_an_a3_in_one_super_pod_only_warns() -> None:
    lab = Lab("A3")
    lab.device("d1", 6, "link", "link status: DOWN\n")
    assert lab.lines() == ["warn link.down at d1 npu6"]


def test_link_down_explains_what_follows_from_it() -> None:
    lab = Lab()
    lab.device("d1", 6, "link", "link status: DOWN\n")
    lab.device("d1", 6, "net_health", "net health status: Fault\n")
    lab.device("d1", 6, "lldp", "", "Execute failed: Link status is down.\n", 22)
    lab.device("d1", 6, "speed", "Speed: Unknown!\n")
    assert lab.lines() == [
        "fail health.unreachable at d1 npu6 < link.down",
        "fail link.down at d1 npu6",
    ]


def test_dead_link_is_not_pinged_and_says_so() -> None:
    lab = Lab()
    lab.device("d1", 6, "link", "link status: DOWN\n")
    (cell,) = [c for c in lab.report().of("ping", "d1") if c.where.device == 6]
    assert cell.verdict.value == "unknown"
    assert "link down" in cell.note


def test_flapping_within_the_last_hour_of_device_time_warns() -> None:
    lab = Lab()
    lab.device(
        "p1",
        0,
        "link_stat",
        "[devid 0]current time        : Sat Nov 22 12:00:00 2025\n"
        "[devid 0]link up count       : 3\n"
        "[devid 0]link change records :\n"
        "[devid 0]    Sat Nov 22 11:55:20 2025    LINK UP\n"
        "[devid 0]    Sat Nov 22 11:55:00 2025    LINK DOWN\n",
    )
    assert lab.lines() == ["warn link.flapping at p1 npu0"]


def test_an_old_link_loss_is_no_flapping() -> None:
    lab = Lab()
    lab.device(
        "p1",
        0,
        "link_stat",
        "[device 0]current time        : Thu Jan  1 06:00:00 1970\n"
        "[device 0]link up count       : 2\n"
        "[device 0]link change records :\n"
        "[device 0]    Thu Jan  1 00:10:00 1970    LINK UP\n"
        "[device 0]    Thu Jan  1 00:09:00 1970    LINK DOWN\n",
    )
    assert lab.lines() == []


ABSENT = "optical info:\npresent              : not present\ntemperature          : NA\n"


def test_missing_module_with_a_dead_link_is_the_root() -> None:
    lab = Lab()
    lab.device("p1", 1, "optical", ABSENT)
    lab.device("p1", 1, "link", "link status: DOWN\n")
    assert lab.lines() == [
        "fail link.down at p1 npu1 < optics.absent",
        "fail optics.absent at p1 npu1",
    ]


def test_missing_module_with_a_link_only_warns() -> None:
    lab = Lab()
    lab.device("p1", 1, "optical", ABSENT)
    assert lab.lines() == ["warn optics.absent at p1 npu1"]


def test_module_without_light_fails() -> None:
    lab = Lab()
    lab.device("p1", 1, "optical", "present   : present\nRx Los Flag          : 0xff\n")
    assert lab.lines() == ["fail optics.los at p1 npu1"]


def test_optics_that_a_product_does_not_have_are_not_judged() -> None:
    lab = Lab()
    lab.device("p1", 1, "optical", "The command is not supported on this product.\n", "", 13)
    assert lab.lines() == []


@pytest.mark.parametrize("answer", [("\n", "", 0), FAILED])
def test_no_neighbour_warns(answer: tuple[str, str, int]) -> None:
    lab = Lab()
    lab.device("p1", 0, "lldp", *answer)
    assert lab.lines() == ["warn link.no-neighbour at p1 npu0"]


def test_neighbour_that_is_an_npu_is_noted() -> None:
    lab = Lab()
    lab.device(
        "p1",
        0,
        "lldp",
        "Port ID TLV\n\tMAC: 0c:4f\nSystem Description TLV\n\tAscendNPU\n",
    )
    report = lab.report()
    assert report.findings == ()
    assert any("is an NPU, not a switch" in note for note in report.notes)


@pytest.mark.parametrize(
    ("query", "text"), [("speed", "Speed: 100000 Mb/s\n"), ("duplex", "Duplex: Half\n")]
)
def test_speed_or_duplex_unlike_the_others_fails(query: str, text: str) -> None:
    lab = Lab()
    lab.device("d2", 7, query, text)
    assert lab.lines() == ["fail link.speed-mismatch at d2 npu7"]


def test_on_a3_a_dead_roce_port_is_a_failure_where_hccl_is_told_to_use_roce() -> None:
    lab = Lab("A3", engine=EngineSpec(env={"HCCL_INTRA_ROCE_ENABLE": "1"}))
    lab.device("d1", 6, "link", "link status: DOWN\n")
    assert "fail link.down at d1 npu6" in lab.lines()


def test_a_port_that_does_not_tell_its_speed_is_not_known_to_be_well() -> None:
    lab = Lab()
    lab.device("d2", 7, "speed", "Speed: Unknown!\n")
    assert lab.lines() == ["unknown link.speed-mismatch at d2 npu7"]
    lab.device("d2", 7, "duplex", "Duplex: Half\n")
    assert lab.lines() == ["fail link.speed-mismatch at d2 npu7"]


def test_speeds_that_nobody_tells_are_no_fault() -> None:
    lab = Lab()
    for host in ("p1", "d1", "d2"):
        for number in range(8):
            lab.device(host, number, "speed", "Speed: Unknown!\n")
    assert lab.lines() == []


def test_all_ports_of_a_host_are_one_fault() -> None:
    lab = Lab()
    for number in range(8):
        lab.device("d2", number, "link", "link status: DOWN\n")
        lab.device("d2", number, "net_health", "net health status: Fault\n")
    assert lab.lines() == ["fail health.unreachable at d2 < link.down", "fail link.down at d2"]
    assert "(all 8 NPUs of the host)" in lab.report().findings[0].got
    cells = lab.report().of("link", "d2")
    assert {cell.verdict.value for cell in cells} == {"fail"}


def test_all_ports_but_one_are_as_many_faults() -> None:
    lab = Lab()
    for number in range(1, 8):
        lab.device("d2", number, "link", "link status: DOWN\n")
    assert len(lab.lines()) == 7
