"""What is said of the fabric once follows everywhere: in other tools, on other hosts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from twin_under_test import Twin

from twin.fabric import (
    Certificate,
    Endpoint,
    FabricState,
    LinkChange,
    LinkStat,
    NetHealth,
    Npu,
    Optical,
    PathRule,
    Process,
    Tls,
    hccn_conf_of,
    healthy_cluster,
)
from twin.tools import state

BETWEEN_P1_AND_D1 = ("10.20.1.10", "10.20.2.10")


def path(twin: Twin, source: str, target: str) -> state.PathState:
    return state.path_state(state.load(str(twin.directory)), source, target)


def test_a_fabric_is_read_back_as_it_was_written(a3: Twin) -> None:
    a3.fabric.device("d1", 3).link = "down"
    a3.fabric.hosts["d2"].hccn_conf = None
    a3.fabric.kv_faults.append({"do": "corrupt"})
    a3.store()
    assert FabricState.read(a3.directory) == a3.fabric


def test_the_quick_reader_sees_every_field(a2: Twin) -> None:
    device = state.load(str(a2.directory))["hosts"]["d1"]["devices"]["3"]
    assert device == a2.fabric.device("d1", 3).model_dump(mode="json")


def test_unknown_words_are_refused(a2: Twin) -> None:
    with pytest.raises(ValidationError, match="lnk"):
        a2.fabric.device("d1", 0).lnk = "down"  # type: ignore[attr-defined]  # the point of it


def test_hosts_are_independent() -> None:
    fabric = healthy_cluster({"a": "127.0.0.2", "b": "127.0.0.3"})
    fabric.device("a", 0).npu.health = "alarm"
    assert fabric.device("b", 0).npu.health == fabric.device("a", 1).npu.health == "ok"


def test_addresses_are_unique_and_in_one_subnet() -> None:
    fabric = healthy_cluster({f"h{n}": f"127.0.1.{n}" for n in range(32)})
    addresses = [d.ip for h in fabric.hosts.values() for d in h.devices.values()]
    assert len(set(addresses)) == 32 * 8
    assert all(ip is not None and ip.startswith("10.20.") for ip in addresses)


def test_hccn_conf_names_what_the_devices_have(a2: Twin) -> None:
    conf = Path(state.hccn_conf_path(str(a2.directory), "d1")).read_text()
    assert conf == hccn_conf_of(a2.fabric.hosts["d1"].devices)
    assert "address_7=10.20.2.17\n" in conf
    assert "tls_enable_0=0\n" in conf


# --- paths ----------------------------------------------------------------------------------------


def test_healthy_path(a2: Twin) -> None:
    assert path(a2, *BETWEEN_P1_AND_D1).reason == "ok"


@pytest.mark.parametrize("broken", ["p1", "d1"])
def test_a_link_that_is_down_carries_nothing_in_either_direction(a2: Twin, broken: str) -> None:
    a2.fabric.device(broken, 0).link = "down"
    a2.store()
    assert path(a2, *BETWEEN_P1_AND_D1).dead
    assert path(a2, *reversed(BETWEEN_P1_AND_D1)).dead
    assert path(a2, "10.20.1.11", "10.20.2.11").reason == "ok"


def test_no_device_has_the_address(a2: Twin) -> None:
    assert path(a2, "10.20.1.10", "10.20.9.9").reason == "no-such-address"


def test_other_subnet_needs_a_gateway(a2: Twin) -> None:
    device = a2.fabric.device("d1", 0)
    device.ip, device.mask = "10.30.0.10", "255.255.255.0"
    device.gateway = None
    a2.store()
    assert path(a2, "10.20.1.10", "10.30.0.10").dead, "the answer finds no way back"
    assert path(a2, "10.30.0.10", "10.20.1.10").reason == "no-route"
    device.gateway = "10.30.0.1"
    a2.store()
    assert path(a2, "10.20.1.10", "10.30.0.10").reason == "ok"


def test_of_two_owners_of_an_address_one_answers(a2: Twin) -> None:
    a2.fabric.device("d2", 5).ip = "10.20.2.10"
    a2.store()
    layout = state.load(str(a2.directory))
    assert [(o.host, o.id) for o in state.owners(layout, "10.20.2.10")] == [("d1", 0), ("d2", 5)]
    assert path(a2, *BETWEEN_P1_AND_D1).reason == "ok"


def test_rules_hold_in_their_direction_only(a2: Twin) -> None:
    rule = PathRule(source=Endpoint(host="p1", device=0), target=Endpoint(host="d1"), loss=0.33)
    a2.fabric.paths.append(rule)
    a2.store()
    assert path(a2, *BETWEEN_P1_AND_D1).loss == 0.33
    assert path(a2, *reversed(BETWEEN_P1_AND_D1)).loss == 0
    assert path(a2, "10.20.1.11", "10.20.2.10").loss == 0


def test_unequal_mtus_limit_the_packet(a2: Twin) -> None:
    a2.fabric.device("d1", 0).mtu = 1500
    a2.store()
    assert path(a2, *BETWEEN_P1_AND_D1).max_bytes == 1500


def test_dies_of_one_a3_host_do_not_meet_by_roce(a3: Twin) -> None:
    assert path(a3, "10.20.1.10", "10.20.1.12").dead
    assert path(a3, "10.20.1.10", "10.20.2.12").reason == "ok"


# --- hccn_tool ------------------------------------------------------------------------------------


def test_link_down_shows_in_link_health_lldp_and_pings(a2: Twin) -> None:
    a2.fabric.device("d1", 6).link = "down"
    a2.store()
    assert a2.hccn("d1", "-i 6 -link -g").screen.stdout == "link status: DOWN\n"
    assert a2.hccn("d1", "-i 6 -net_health -g").screen.stdout == "net health status: Fault\n"
    assert a2.hccn("d1", "-i 6 -lldp -g").exit == 22
    for host, target in (("p1", "10.20.2.16"), ("d1", "10.20.1.10")):
        ping = a2.hccn(host, f"-i 6 -ping -g address {target}")
        assert "100.00% packet loss" in ping.screen.stdout
        assert (ping.screen.stderr, ping.exit) == ("Command execute failed!\n", 1)


def test_healthy_ping(a2: Twin) -> None:
    ping = a2.hccn("p1", "-i 0 -ping -g address 10.20.3.17")
    assert ping.screen.stdout == (
        "device 0 PING 10.20.3.17\n"
        "recv seq=0,time=0.181000ms\n"
        "recv seq=1,time=0.055000ms\n"
        "recv seq=2,time=0.048000ms\n"
        "3 packets transmitted, 3 received, 0.00% packet loss\n"
    )
    assert ping.exit == 0


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"loss": 0.33}, "recv time out seq=0\n"),
        ({"loss": 0.33}, "33.33% packet loss"),
        ({"loss": 0.66}, "66.67% packet loss"),
        ({"unreachable": True}, "Destination Host Unreachable"),
        ({"max_bytes": 1500}, "Message too long"),
        ({"seconds": 0.002}, "recv seq=1,time=2.055000ms"),
    ],
)
def test_a_disturbed_path_shows_in_its_ping(
    a2: Twin, rule: dict[str, float], expected: str
) -> None:
    ends = {"from": {"host": "p1"}, "to": {"host": "d1", "device": 2}}
    a2.fabric.paths.append(PathRule.model_validate(ends | rule))
    a2.store()
    assert expected in a2.hccn("p1", "-i 0 -ping -g address 10.20.2.12").screen.stdout
    assert a2.hccn("p1", "-i 0 -ping -g address 10.20.2.13").exit == 0


def test_ipv6(a2: Twin) -> None:
    for host, address in (("p1", "fd00::11"), ("d1", "fd00::21")):
        a2.fabric.device(host, 0).ip6 = address
    a2.store()
    assert a2.hccn("p1", "-i 0 -ip -inet6 -g").screen.stdout == (
        "ipv6_address:fd00::11\nprefix_length:64\n"
    )
    ping = "-i 0 -ping -inet6 -g ipv6_address"
    assert "3 received" in a2.hccn("p1", f"{ping} fd00::21").screen.stdout
    assert a2.hccn("p1", f"{ping} fd00::99").exit == 1


def test_no_address(a2: Twin) -> None:
    a2.fabric.device("d1", 1).ip = None
    a2.store()
    assert a2.hccn("d1", "-i 1 -ip -g").exit == 13
    assert a2.hccn("d1", "-i 1 -ping -g address 10.20.1.10").exit == 1


@pytest.mark.parametrize(
    ("condition", "command", "exit_code", "text"),
    [
        ("busy", "-link -g", 11, "hccn_tool is busy, please try again.\n"),
        ("busy", "-net_health -g", 1, "Command execute failed!\n"),
        ("busy", "-tls -g", 11, "hccn_tool is busy, please try again.\n"),
        ("refused", "-ip -g", 12, "permission denied: pls check this cmd run permission.\n"),
        ("broken", "-mtu -g", 1, "Command execute failed!\n"),
        ("gone", "-link -g", 4, "The device is not exist!\n"),
        ("not-ready", "-link -g", 3, "Get device health status failed!\n"),
    ],
)
def test_conditions(a2: Twin, condition: str, command: str, exit_code: int, text: str) -> None:
    a2.fabric.device("d1", 4).condition = condition  # type: ignore[assignment]  # one of Condition
    a2.store()
    outcome = a2.hccn("d1", f"-i 4 {command}")
    assert (outcome.screen.pipe, outcome.exit) == (text, exit_code)
    assert outcome.screen.slept == (300 if condition == "not-ready" else 0)
    assert a2.hccn("d1", f"-i 5 {command}").exit == 0


def test_busy_for_a_while(a2: Twin) -> None:
    device = a2.fabric.device("d1", 0)
    device.busy_until = 1e12
    a2.store()
    assert a2.hccn("d1", "-i 0 -link -g").exit == 11
    device.busy_until = 1.0
    a2.store()
    assert a2.hccn("d1", "-i 0 -link -g").exit == 0


@pytest.mark.parametrize(
    ("state", "word"),
    [
        ({}, "Success"),
        ({"netdetect": "10.20.3.16"}, "Success"),  # another NPU
        ({"netdetect": "10.20.9.9"}, "Receive timeout"),  # nobody
        ({"mask": "255.255.255.0"}, "Receive timeout"),  # neither it nor the gateway is near
        ({"gateway": None}, "Success"),  # none needed
        ({"ip": None}, "Socket fail"),
        ({"link": "down"}, "Fault"),
        ({"netdetect": None}, "Init"),
    ],
)
def test_network_health_is_what_looking_for_the_address_gives(
    a2: Twin, state: dict[str, Any], word: str
) -> None:
    for name, value in state.items():
        setattr(a2.fabric.device("d1", 6), name, value)
    a2.store()
    said = a2.hccn("d1", "-i 6 -net_health -g").screen.stdout
    assert said == f"net health status: {word}\n"


def test_device_texts_follow_their_fields(a2: Twin) -> None:
    device = a2.fabric.device("d1", 0)
    device.net_health = NetHealth.RECEIVE_TIMEOUT
    device.lldp = None
    device.tls = Tls(enable=1, certificates=(Certificate(end="Fri Jan  1 00:00:00 2021"),))
    device.link_stat = LinkStat(now=100, changes=(LinkChange(up=False, time=40),))
    device.optical = Optical(rx_los=0xFF, rx_power=0.0)
    device.speed = 100000
    device.netdetect = None
    device.gateway = None
    a2.store()

    def said(command: str) -> str:
        return a2.hccn("d1", f"-i 0 {command} -g").screen.pipe

    assert said("-net_health") == "net health status: Receive timeout\n"
    assert said("-lldp") == "\n"
    assert "tls switch[1]" in said("-tls")
    assert "\t tls expiration status[2]" in said("-tls")
    assert "[devid 0]    Thu Jan  1 00:00:40 1970    LINK DOWN\n" in said("-link_stat")
    assert "Rx Los Flag          : 0xff\n" in said("-optical")
    assert said("-speed") == "Speed: 100000 Mb/s\n"
    assert said("-netdetect") == "netdetect addr: 0.0.0.0\n"
    assert said("-gateway") == "Get gateway failed, because no gateway was preset there!\n"


def test_raw_answers_come_first(a2: Twin) -> None:
    a2.fabric.device("d1", 0).answers = {"op.0x0008.result": 256}
    a2.store()
    assert a2.hccn("d1", "-i 0 -link -g").exit == 25


def test_changes_are_refused(a2: Twin) -> None:
    before = (a2.directory / "fabric.json").read_bytes()
    assert a2.hccn("d1", "-i 0 -link -s down", user="nobody").exit == 12
    as_root = a2.hccn("d1", "-i 0 -link -s down")
    assert (as_root.exit, "not modelled" in as_root.screen.stderr) == (70, True)
    assert (a2.directory / "fabric.json").read_bytes() == before


def test_driver_not_loaded(a2: Twin) -> None:
    a2.fabric.hosts["d1"].driver.state = "not-loaded"
    a2.store()
    assert a2.hccn("d1", "-i 0 -link -g").exit == 4
    assert a2.smi("d1", "info").exit == 187


# --- A3 -------------------------------------------------------------------------------------------


def test_vnic_and_sdid_of_a_superpod(a3: Twin) -> None:
    assert a3.hccn("d1", "-i 9 -vnic -g").screen.stdout == (
        "vnic link status: UP\nvnic ipaddr: 192.1.3.190\nvnic netmask: 255.0.0.0\n"
    )
    spod = a3.smi("d1", "info -t spod-info -i 4 -c 1").screen.stdout
    assert f"SDID                           : {1 << 22 | 4 << 18 | 1 << 16 | 9}\n" in spod
    assert "Server Index                   : 1\n" in spod


@pytest.mark.parametrize(
    "target", ["address 192.1.3.190", f"sdid {1 << 22 | 4 << 18 | 1 << 16 | 9}"]
)
def test_hccs_ping_reaches_any_die_of_the_superpod(a3: Twin, target: str) -> None:
    outcome = a3.hccn("p1", f"-i 0 -hccs_ping -g {target} cnt 2")
    assert "device 0 PING 192.1.3.190\n\n" in outcome.screen.stdout
    assert "2 packets transmitted, 2 received, 0.00% packets loss" in outcome.screen.stdout
    assert outcome.screen.slept == 1


def test_hccs_ping_does_not_mind_the_roce_link(a3: Twin) -> None:
    a3.fabric.device("d1", 9).link = "down"
    a3.store()
    said = a3.hccn("p1", "-i 0 -hccs_ping -g address 192.1.3.190").screen.stdout
    assert "3 received" in said


def test_hccs_ping_to_a_vnic_that_is_down_is_lost_and_exits_0(a3: Twin) -> None:
    a3.fabric.device("d1", 9).vnic.link = "down"
    a3.store()
    outcome = a3.hccn("p1", "-i 0 -hccs_ping -g address 192.1.3.190")
    assert "This pkt check recv msg fail!" in outcome.screen.stdout
    assert "3 packets transmitted, 0 received, 100.00% packets loss" in outcome.screen.stdout
    assert outcome.exit == 0


def test_hccs_ping_ends_at_the_superpod(a3: Twin) -> None:
    superpod = a3.fabric.hosts["d1"].superpod
    assert superpod is not None
    superpod.id = 1
    a3.store()
    said = a3.hccn("p1", "-i 0 -hccs_ping -g address 192.1.3.190").screen.stdout
    assert "0 received" in said


# --- npu-smi --------------------------------------------------------------------------------------


def test_npu_smi_shows_health_memory_and_processes(a2: Twin) -> None:
    a2.fabric.device("d1", 5).npu = Npu(
        health="alarm",
        errors={"A4025021": "heart beat lost"},
        hbm_used=60156,
        processes=(Process(pid=4193999, memory=56630, name="VLLMEngineCore"),),
    )
    a2.store()
    table = a2.smi("d1", "info").screen.stdout
    assert "| 5     910B3               | Alarm         |" in table
    assert "60156 / 65536" in table
    assert "| 5       0                 | 4193999       | VLLMEngineCore           | 56630" in table
    assert a2.smi("d1", "info -t health -i 5 -c 0").screen.stdout == (
        "\tHealth Status                  : Alarm\n"
        "\tError Code                     : A4025021\n"
        "\tError Information              : heart beat lost\n"
    )


def test_npu_smi_calls_an_unreadable_card_ok(a2: Twin) -> None:
    a2.fabric.device("d1", 5).condition = "gone"
    a2.store()
    table = a2.smi("d1", "info").screen.stdout
    assert "| 5                         | OK            | 0.0         0 " in table
    assert a2.smi("d1", "info -t health -i 5 -c 0").exit == 211


def test_npu_smi_of_held_devices(a2: Twin) -> None:
    a2.fabric.hosts["d1"].driver.state = "held"
    a2.store()
    outcome = a2.smi("d1", "info")
    assert outcome.exit == 172
    assert "because the device is used. ret is -8020" in outcome.screen.stdout


def test_a_card_that_is_missing(a2: Twin) -> None:
    del a2.fabric.hosts["d1"].devices[3]
    a2.store()
    assert "Total Count                    : 7\n" in a2.smi("d1", "info -l").screen.stdout
    assert a2.smi("d1", "info -t health -i 3 -c 0").exit == 215
    assert a2.hccn("d1", "-i 3 -link -g").exit == 4


def test_versions_come_from_the_driver(a2: Twin) -> None:
    driver = a2.fabric.hosts["d1"].driver
    driver.version, driver.firmware = "24.1.0", "7.5.0.1.1"
    a2.store()
    assert "Version: 24.1.0 " in a2.smi("d1", "info").screen.stdout
    assert "7.5.0.1.1\n" in a2.hccn("d1", "-i 0 -version -g").screen.stdout
