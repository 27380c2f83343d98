"""The parsers against recordings of the vendor's own command code (tests/data/transcripts).

Every recording must be read into the state that the device was in, or into a stated
reason; exit codes decide nothing. What was recorded of both streams in one pipe, or on a
terminal, must be read like the streams apart.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pd_validate.facts import answers, hccn, hccn_details, npu_smi
from pd_validate.facts.reading import Output, Reading, Reason

FOLDER = Path(__file__).parents[2] / "data" / "transcripts"
Transcript = dict[str, Any]

PARSERS: list[Callable[[Output], Reading[Any]]] = [
    *answers.HCCN_PARSERS.values(),
    *answers.NPU_SMI_PARSERS.values(),
    npu_smi.parse_info,
    npu_smi.parse_fields,
    hccn_details.parse_fields,
]


def load(tool: str) -> list[Transcript]:
    lines = (FOLDER / f"{tool}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


ALL = [*load("hccn_tool"), *load("npu-smi")]
BY_NAME = {transcript["name"]: transcript for transcript in ALL}


def forms(transcript: Transcript) -> list[Output]:
    """The streams apart, and however else the same run was recorded."""
    command, code = " ".join(transcript["argv"]), transcript["exit"]
    merged = [transcript[key] for key in ("merged_2>&1_pipe", "merged_tty") if key in transcript]
    apart = Output(command, transcript["stdout"], transcript["stderr"], code)
    return [apart, *(Output(command, text, "", code) for text in merged)]


def read(name: str) -> Reading[Any]:
    transcript = BY_NAME[name]
    return answers.parse(transcript["argv"], forms(transcript)[0])


@pytest.mark.parametrize("transcript", ALL, ids=lambda t: t["name"])
def test_every_recording_has_a_value_or_a_reason(transcript: Transcript) -> None:
    apart, *merged = (answers.parse(transcript["argv"], output) for output in forms(transcript))
    assert (apart.value is None) == (apart.reason is not None)
    assert apart.reason is None or apart.detail
    for reading in merged:
        assert (reading.value, reading.reason) == (apart.value, apart.reason)


def test_no_parser_stumbles_over_any_text() -> None:
    """A wrong command for a parser is not understood; it does not raise and invents nothing."""
    for transcript in ALL:
        for parser in PARSERS:
            for output in forms(transcript):
                reading = parser(output)
                assert (reading.value is None) == (reading.reason is not None)


# What is not understood although the tool answered: an empty ping, and a form we never ask for.
NOT_UNDERSTOOD = {"ping-empty-body", "optical-v2", "npu-smi-proc-mem"}


def test_hardly_anything_is_not_understood() -> None:
    names = {t["name"] for t in ALL if read(t["name"]).reason is Reason.UNPARSABLE}
    assert {name[3:] for name in names} <= NOT_UNDERSTOOD


# --- the state that was simulated decides what must be read -------------------------------------


def states(command: str, key: str) -> list[Transcript]:
    """Recordings of a plain query in which this key of the device's state was set, and no error."""
    return [
        transcript
        for transcript in ALL
        if " ".join(transcript["argv"][3:]) == command
        and key in transcript["state"]
        and not any(k.startswith("op.") or k.endswith(".ret") for k in transcript["state"])
        and transcript["exit"] == 0
    ]


def value(transcript: Transcript) -> Any:
    reading = answers.parse(transcript["argv"], forms(transcript)[0])
    assert reading.ok, (transcript["name"], reading)
    return reading.value


def test_link_states() -> None:
    recorded = states("-link -g", "link")
    assert len(recorded) >= 2
    assert all(value(t) == bool(t["state"]["link"]) for t in recorded)


def test_net_health_states() -> None:
    order = [*list(hccn.NetHealth)]
    recorded = states("-net_health -g", "net_health")
    assert len(recorded) >= 15
    assert all(value(t) is order[int(t["state"]["net_health"])] for t in recorded)


def test_address_states() -> None:
    recorded = states("-ip -g", "ip.addr")
    assert recorded
    for transcript in recorded:
        assert str(value(transcript).first.ip) == transcript["state"]["ip.addr"]
        assert str(value(transcript).first.netmask) == transcript["state"]["ip.mask"]


def test_gateway_states() -> None:
    recorded = states("-gateway -g", "gateway")
    assert recorded
    assert all(value(t).address == t["state"]["gateway"] for t in recorded)


def test_vnic_states() -> None:
    recorded = states("-vnic -g", "vnic.addr")
    assert len(recorded) >= 4
    for transcript in recorded:
        assert value(transcript).up == bool(transcript["state"]["vnic.link"])
        assert str(value(transcript).address.ip) == transcript["state"]["vnic.addr"]


def test_mtu_states() -> None:
    recorded = states("-mtu -g", "mtu")
    assert recorded
    assert all(value(t) == t["state"]["mtu"] for t in recorded)


def test_tls_states() -> None:
    recorded = states("-tls -g", "tls.enable")
    assert len(recorded) >= 10
    for transcript in recorded:
        assert value(transcript).enabled == bool(transcript["state"]["tls.enable"])
        assert value(transcript).certificates == transcript["state"]["tls.certs"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("A2-gateway-none", hccn.Gateway(None)),
        ("A2-netdetect-unset", hccn.Netdetect(None)),
        ("A2-netdetect-inet6-unset", hccn.Netdetect(None)),
        ("A2-netdetect-inet6-set", hccn.Netdetect("fd00::1")),
        ("A2-ip-none", hccn.Addresses()),
        ("A3-tls-none", hccn.Tls(None)),
        ("A2-lldp-empty", hccn.Neighbour(None)),
        ("A2-link-enolink", False),
        ("A2-speed-minus1", "Unknown"),
        ("A3-optical-dump-absent", hccn.Optics(present=False)),
        ("A2-ping-loss-without-keyword", hccn.Ping(3, 0)),
        ("A2-ping-host-unreachable", hccn.Ping(3, 0, no_route=True)),
        ("A2-ping-too-long", hccn.Ping(3, 0, too_long=True)),
        ("A3-hccs_ping-never-completes", hccn.Ping(0, 0)),
        ("A3-hccs_ping-loss-check", hccn.Ping(3, 0)),
    ],
)
def test_states_that_a_tool_tells_by_an_error_are_values(name: str, expected: object) -> None:
    assert read(name).value == expected


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("A2-link-busy", Reason.BUSY),
        ("A2-link-getlock", Reason.BUSY),
        ("A3-hccs_ping-ebusy-positive", Reason.BUSY),
        ("A2-optical-dump-i2cbusy", Reason.BUSY),
        ("A2-link-notpermitted", Reason.PERMISSION),
        ("A2-badid-99", Reason.NO_DEVICE),
        ("A2-device-gone", Reason.NO_DEVICE),
        ("A2-not-ready-300s", Reason.NOT_READY),
        ("A2-hccs_ping", Reason.UNSUPPORTED),
        ("A2-unknown-cmd-950", Reason.UNSUPPORTED),
        ("A2-ping-pkt-65508", Reason.REFUSED),
        ("A2-net_health-busy", Reason.FAILED),  # the tool does not say busy here
        ("A2-nouser-link", Reason.FAILED),  # no text at all
        ("A2-npu-smi-init-8005", Reason.DRIVER),
        ("A2-npu-smi-init-8020", Reason.HELD),
        ("A3-npu-smi-spod-info-i8", Reason.NO_DEVICE),
        ("A2-npu-smi-health-ffffffff", Reason.FAILED),
        ("A2-npu-smi-spod-info", Reason.UNSUPPORTED),
    ],
)
def test_reasons(name: str, reason: Reason) -> None:
    assert read(name).reason is reason


# --- npu-smi ------------------------------------------------------------------------------------


def row_of(name: str, physical: int) -> npu_smi.Row | None:
    product = name[:2]
    chips = read(f"{product}-npu-smi-m").value
    table = read(name).value
    chip = next(chip for chip in chips if chip.physical == physical)
    assert isinstance(table, npu_smi.Table)
    return table.row(chip)


@pytest.mark.parametrize(("product", "count"), [("A2", 8), ("A3", 16)])
def test_every_die_has_its_row(product: str, count: int) -> None:
    for physical in range(count):
        row = row_of(f"{product}-npu-smi-info", physical)
        assert row is not None
        assert row.readable
        assert row.hbm_total == 65536


def test_ok_of_a_chip_whose_queries_failed_is_not_readable() -> None:
    row = row_of("A2-npu-smi-info-all-queries-fail-card3", 3)
    assert row is not None
    assert row.health == "OK"
    assert not row.readable


def test_row_without_its_upper_half() -> None:
    assert row_of("A2-npu-smi-info-health-5", 3) is None
    row = row_of("A3-npu-smi-info-health-5", 6)
    assert row is not None
    assert row.card is None


def test_numbers_without_a_blank_before_the_slash() -> None:
    row = row_of("A2-npu-smi-info-hbm-120000", 0)
    assert row is not None
    assert (row.hbm_used, row.hbm_total) == (120000, 131072)


def test_processes_with_and_without_a_name() -> None:
    table = read("A3-npu-smi-info-process-die1").value
    assert isinstance(table, npu_smi.Table)
    assert [(p.card, p.chip, p.name) for p in table.processes] == [
        (5, 1, "VLLMEngineCore"),
        (5, 1, ""),
    ]


def test_management_controllers_are_no_npus() -> None:
    assert [chip.physical for chip in read("A2-npu-smi-m").value] == list(range(8))
    assert [chip.physical for chip in read("A3-npu-smi-m").value] == list(range(16))
    chip = read("A3-npu-smi-m").value[7]
    assert (chip.card, chip.chip) == (3, 1)


def test_dies_are_counted_by_cards_or_by_chips() -> None:
    assert sum(read("A3-npu-smi-l").value.values()) == 16
    assert sum(read("A3-npu-smi-l-16cards").value.values()) == 16


def test_health_with_several_codes() -> None:
    health = read("A3-npu-smi-health-alarm").value
    assert health.status is npu_smi.HealthWord.ALARM
    assert health.codes == ("A4025021", "8C03A000", "8C084E00")
    assert health.texts[0] == "ascend_monitor adda heart beat lost error"


def test_super_device_id_of_a_die() -> None:
    spod = read("A3-npu-smi-spod-info-c1").value
    assert spod.sdid == spod.expected_sdid(7)
    assert spod.inside
    assert not read("A3-npu-smi-spod-info-all-ones").value.inside


# --- what no check rests on ---------------------------------------------------------------------


def test_counters() -> None:
    counters = read("A2-stat-filled").value
    assert counters["roce_new_pkt_rty_num"] == 17
    assert set(read("A2-stat-zero").value.values()) == {0}


def test_routing_table() -> None:
    routes = read("A2-route").value
    assert routes[0] == hccn_details.Route("default", "10.20.0.1", "0.0.0.0", "eth0")
    assert routes[1].gateway is None
    assert read("A2-route-empty").value == ()


def test_arp_table() -> None:
    assert read("A2-arp").value["10.20.0.21"] == "0c:4f:9b:b5:ca:75"
    assert read("A2-arp-empty").value == {}


def test_flow_control_and_traffic_classes() -> None:
    assert read("A2-pfc").value == (False, False, False, False, True, False, False, False)
    assert read("A2-dscp_to_tc-one").value == {33: 2}
    assert len(read("A2-dscp_to_tc").value) == 64
    assert read("A2-dscp_to_tc-busy").reason is Reason.BUSY


def test_fields() -> None:
    assert read("A2-version").value["Network Firmware Version"] == "7.8.0.5.216"
    assert read("A2-mac").value == {"mac addr": "0c:4f:9b:b5:ca:74"}
    assert read("A2-process-no").value == {"device hccp process": "not exist"}
    assert read("A2-cfg-status-2").value == {"config status": "FAIL"}
    assert dict(read("A2-npu-smi-board-card").value)["Software Version"] == "25.5.1"
