"""NPUs and their tools: lies, refusals, and what kept us from measuring."""

from __future__ import annotations

import pytest
from lab import BUSY, FAILED, Lab, health_text, row_text, table_text

from pd_validate.facts.collector import OUT_OF_TIME
from pd_validate.spec.models import EngineSpec

QUERIES = (
    *("link", "ip", "net_health", "netdetect", "gateway", "lldp"),
    *("link_stat", "optical", "speed", "duplex", "mtu", "tls"),
)


def refuse(lab: Lab, host: str, number: int, *answer: object) -> None:
    """Every query of a device is refused in the same way."""
    for query in QUERIES:
        lab.device(host, number, query, *answer)


def test_a_busy_device_is_unknown_and_never_a_failure() -> None:
    lab = Lab()
    refuse(lab, "d1", 6, *BUSY)
    assert lab.lines() == ["unknown tool.busy at d1 npu6"]
    assert lab.report().verdict.value == "unknown"


def test_one_busy_query_makes_its_test_red_and_no_other() -> None:
    lab = Lab()
    lab.device("d1", 6, "link", *BUSY)
    report = lab.report()
    assert [f.id for f in report.problems("link", "d1")] == ["tool.busy"]
    assert report.problems("gateway", "d1") == []
    assert report.problems("link", "d2") == []


def test_a_tool_that_only_says_failed_is_unknown() -> None:
    lab = Lab()
    lab.device("d1", 6, "gateway", *FAILED)
    assert lab.lines() == ["unknown tool.failed at d1 npu6"]


def test_a_tool_that_does_not_know_its_command_is_unknown() -> None:
    lab = Lab()
    lab.device("d1", 6, "link", "", "Get invalid major cmd.\n", 3)
    assert lab.lines() == ["unknown tool.failed at d1 npu6"]


def test_no_permission_is_said_once_per_host() -> None:
    lab = Lab()
    for number in range(8):
        refuse(lab, "d1", number, "", "permission denied: pls check this cmd run permission.\n", 12)
    assert lab.lines() == ["unknown tool.permission at d1"]


def test_missing_tool_is_said_once_per_host() -> None:
    lab = Lab()
    for number in range(8):
        refuse(lab, "d1", number, "", "hccn_tool: command not found\n", 127)
    assert lab.lines() == ["fail tool.missing at d1"]


def test_two_missing_tools_are_both_named() -> None:
    lab = Lab()
    for number in range(8):
        refuse(lab, "d1", number, "", "hccn_tool: command not found\n", 127)
    for command in ("npu-smi info", "npu-smi info -m"):
        lab.answer("d1", command, "", "npu-smi: command not found\n", 127)
    (finding,) = [f for f in lab.report().findings if f.id == "tool.missing"]
    assert finding.got.startswith("npu-smi: command not found; hccn_tool: command not found (")


def test_driver_that_does_not_answer_explains_the_rest() -> None:
    lab = Lab()
    broken = ("dcmi module initialize failed. ret is -8005\n", "", 187)
    lab.answer("d1", "npu-smi info", *broken)
    lab.answer("d1", "npu-smi info -m", *broken)
    for number in range(8):
        lab.answer("d1", f"npu-smi info -t health -i {number} -c 0", *broken)
        refuse(lab, "d1", number, "", "Get device health status failed!\n", 3)
    lines = lab.lines()
    assert "fail driver.broken at d1" in lines
    assert [line for line in lines if " < " not in line] == ["fail driver.broken at d1"]


def test_npus_of_another_container() -> None:
    lab = Lab()
    held = ("dcmi model initialized failed, because the device is used. ret is -8020\n", "", 172)
    lab.answer("d1", "npu-smi info", *held)
    lab.answer("d1", "npu-smi info -m", *held)
    assert lab.lines() == ["fail device.held at d1"]


@pytest.mark.parametrize(
    "stderr", ["Get invalid device id.\n", "The device is not exist!\n"], ids=["bad-id", "gone"]
)
def test_device_that_does_not_exist(stderr: str) -> None:
    lab = Lab()
    refuse(lab, "d1", 6, "", stderr, 4)
    assert lab.lines() == ["fail device.missing at d1 npu6"]


def test_device_file_that_is_not_there() -> None:
    lab = Lab()
    there = "".join(f"/dev/davinci{number}\n" for number in range(8) if number != 6)
    command = "ls " + " ".join(f"/dev/davinci{number}" for number in range(8))
    lab.answer("d1", command, there, "ls: cannot access '/dev/davinci6'\n", 2)
    assert lab.lines() == ["fail device.missing at d1 npu6"]


def test_device_that_npu_smi_does_not_list() -> None:
    lab = Lab()
    mapping = "\n".join(line for line in lab._mapping().splitlines() if "\t6 " not in line)
    lab.answer("d1", "npu-smi info -m", mapping)
    assert lab.lines() == ["fail device.missing at d1 npu6"]


def test_device_that_is_not_up() -> None:
    lab = Lab()
    lab.device("d1", 6, "link", "", "Get device health status failed!\n", 3)
    for query in QUERIES[1:]:
        lab.device("d1", 6, query, "", "not run: the device did not answer")
    assert lab.lines() == ["fail device.not-ready at d1 npu6"]


def test_a_device_that_hangs_npu_smi_is_not_ready() -> None:
    lab = Lab()
    lab.answer("d1", "npu-smi info -t health -i 6 -c 0", "", "timed out")
    refuse(lab, "d1", 6, "", "not run: the device did not answer")
    assert lab.lines() == ["fail device.not-ready at d1 npu6"]


@pytest.mark.parametrize("command", ["npu-smi info", "npu-smi info -m"])
def test_npu_smi_that_is_not_understood_is_unknown(command: str) -> None:
    lab = Lab()
    lab.answer("d1", command, "something new\n")
    assert lab.lines() == ["unknown tool.failed at d1"]


def test_queries_that_a_slow_host_left_no_time_for_are_unknown() -> None:
    lab = Lab()
    for query in QUERIES[1:]:
        lab.device("d1", 7, query, "", f"not run: {OUT_OF_TIME}, 60 s for all commands")
    assert lab.lines() == ["unknown host.hang at d1"]
    assert [f.id for f in lab.report().problems("gateway", "d1")] == ["host.hang"]


@pytest.mark.parametrize(
    ("word", "severity"),
    [("Warning", "warn"), ("Alarm", "fail"), ("Critical", "fail"), ("UNKNOWN", "fail")],
)
def test_health_of_an_npu(word: str, severity: str) -> None:
    lab = Lab()
    lab.answer(
        "d1", "npu-smi info -t health -i 6 -c 0", health_text(word, "A4025021", "heart beat")
    )
    assert lab.lines() == [f"{severity} device.unhealthy at d1 npu6"]
    assert "A4025021 heart beat" in lab.report().findings[0].got


def test_health_query_that_fails_is_unknown_though_the_table_says_ok() -> None:
    lab = Lab()
    lab.answer("d1", "npu-smi info -t health -i 6 -c 0", 'Failed to query "health" result.\n')
    assert lab.lines() == ["unknown device.unhealthy at d1 npu6"]


def test_table_row_without_name_or_memory_is_unknown_though_it_says_ok() -> None:
    lab = Lab()
    rows = {number: row_text(number, a3=False) for number in range(8)}
    rows[6] = "| 6     | OK | 0.0 0 0 / 0 |\n| 0 | 0000:00:00.0 | 0  0 / 0  0 / 0 |\n"
    lab.answer("d1", "npu-smi info", table_text(rows))
    assert lab.lines() == ["unknown device.unhealthy at d1 npu6"]


def test_table_that_lacks_a_card_row_is_unknown() -> None:
    lab = Lab()
    rows = {number: row_text(number, a3=False) for number in range(8)}
    rows[6] = "| 0 | 0000:C2:00.0 | 0  0 / 0  3445 / 65536 |\n"
    lab.answer("d1", "npu-smi info", table_text(rows))
    assert lab.lines() == ["unknown device.unhealthy at d1 npu6"]


def occupied(lab: Lab, host: str, number: int, used: int, processes: str = "") -> None:
    rows = {each: row_text(each, a3=False) for each in range(8)}
    rows[number] = row_text(number, a3=False, used=used)
    lab.answer(host, "npu-smi info", table_text(rows, processes))


def test_engine_of_somebody_else_on_our_npu_fails() -> None:
    lab = Lab()
    occupied(lab, "d1", 6, 60156, "| 6  0 | 2290156 | VLLMEngineCore | 56630 |\n")
    assert lab.lines() == ["fail device.in-use at d1 npu6"]
    assert "pid 2290156 VLLMEngineCore" in lab.report().findings[0].got


def test_a_little_memory_in_use_warns() -> None:
    lab = Lab()
    occupied(lab, "d1", 6, 6000)
    assert lab.lines() == ["warn device.in-use at d1 npu6"]


def test_memory_in_use_is_well_where_no_instance_runs_or_ours_do() -> None:
    lab = Lab()
    occupied(lab, "d1", 3, 60156)
    assert lab.lines() == []
    occupied(lab, "d1", 6, 60156)
    assert lab.lines(idle=False) == []


def test_a_host_whose_devices_are_all_busy_is_one_finding() -> None:
    lab = Lab()
    for command in (
        f"hccn_tool -i {device} -{query} -g"
        for device in range(8)
        for query in ("link", "ip", "gateway", "mtu")
    ):
        lab.answer("d2", command, *BUSY)
    assert lab.lines() == ["unknown tool.busy at d2"]


def with_memory(lab: Lab, host: str, total: int) -> None:
    rows = {n: row_text(n, a3=False).replace("65536", str(total)) for n in range(8)}
    lab.answer(host, "npu-smi info", table_text(rows))


def test_npus_in_use_with_other_memory_than_the_rest() -> None:
    lab = Lab()
    with_memory(lab, "d1", 32768)
    assert lab.lines() == [
        "warn device.memory-mismatch at d1 npu6",
        "warn device.memory-mismatch at d1 npu7",
    ]


def test_engine_that_leaves_nothing_for_hccl() -> None:
    lab = Lab(engine=EngineSpec(gpu_memory_utilization=0.995))
    assert lab.lines() == ["warn plan.memory at p1 prefill-1"], "two links of 200 MiB, 328 left"
    finding = lab.report().findings[0]
    assert "200 MiB for each of 2 links" in finding.expected
    assert finding.got == "328 of 65536 MiB, with gpu_memory_utilization 0.995"


def test_usual_share_leaves_enough() -> None:
    lab = Lab(engine=EngineSpec(gpu_memory_utilization=0.95, env={"HCCL_BUFFSIZE": "1024"}))
    assert lab.lines() == []


@pytest.mark.parametrize(("word", "severity"), [("Warning", "warn"), ("Alarm", "fail")])
def test_health_that_only_the_table_tells(word: str, severity: str) -> None:
    lab = Lab()
    rows = {n: row_text(n, a3=False, health=word if n == 6 else "OK") for n in range(8)}
    lab.answer("d1", "npu-smi info", table_text(rows))
    assert lab.lines() == [f"{severity} device.unhealthy at d1 npu6"]
    assert f"{word} in npu-smi info" in lab.report().findings[0].got
