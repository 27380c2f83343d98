"""Parsers against text that people posted from real machines, where it differs from the source."""

from __future__ import annotations

import pytest

from pd_validate.facts import hccn, npu_smi
from pd_validate.facts.hccn_conf import parse_conf
from pd_validate.facts.reading import Output, Reason


def out(stdout: str = "", stderr: str = "", code: int = 0) -> Output:
    return Output("…", stdout, stderr, code)


def test_netdetect_spelling_of_driver_25() -> None:
    reading = hccn.parse_netdetect(out("netdetect address: 11.12.165.1\n"))
    assert reading.value == hccn.Netdetect("11.12.165.1")


def test_socket_failed_of_the_910a() -> None:
    reading = hccn.parse_net_health(out("net health status: Socket failed\n"))
    assert reading.value is hccn.NetHealth.SOCKET_FAIL


def test_unset_address_of_an_older_tool_is_empty_text() -> None:
    assert hccn.parse_ip(out("")).value == hccn.Addresses()
    assert hccn.parse_ip(out("", "", 234)).reason is Reason.FAILED


def test_ping_that_lost_its_head_line() -> None:
    reading = hccn.parse_ping(
        out(
            "recv time out seq=0\nrecv seq=1,time=0.097000ms\nrecv seq=2,time=0.066000ms\n"
            "3 packets transmitted, 2 received, 33.33% packet loss\n",
            "Command execute failed!\n",
            1,
        )
    )
    assert reading.value == hccn.Ping(3, 2, (0.097, 0.066))


def test_refusal_below_a_log_warning() -> None:
    noise = '[WARNING] "/var/log/hccn_tool" is not a directory, hccn_tool logs may be lost.\n'
    assert hccn.parse_link(out(f"{noise}link status: DOWN\n")).value is False


def test_link_history_of_the_910a_without_a_down_count() -> None:
    history = hccn.parse_link_stat(
        out(
            "[devid 0]current time        : Wed Aug  2 03:36:43 2022\n"
            "[devid 0]link up count       : 2\n"
            "[devid 0]link change records :\n"
            "[devid 0]    Tue Aug  1 14:44:40 2022    LINK DOWN\n"
        )
    ).value
    assert history is not None
    assert (history.ups, history.downs, len(history.changes)) == (2, None, 1)


def test_lldp_neighbour_that_gives_a_mac_as_port() -> None:
    text = "Chassis ID TLV\n\tMAC: 8c:83\nPort ID TLV\n\tMAC: 0c:4f:9b\nEnd of LLDPDU TLV\n"
    assert hccn.parse_lldp(out(text)).value == hccn.Neighbour("0c:4f:9b")


def test_a2_table_of_25_5_1() -> None:
    table = npu_smi.parse_info(
        out(
            "| npu-smi 25.5.1                   Version: 25.5.1          |\n"
            "| NPU   Name                | Health        | Power(W)      |\n"
            "| Chip                      | Bus-Id        | AICore(%)     |\n"
            "+===========================+===============+===============+\n"
            "| 5     910B3               | OK            | 100.8   44       0    / 0 |\n"
            "| 0                         | 0000:02:00.0  | 12    0    / 0   60156/ 65536 |\n"
            "+===========================+===============+===============+\n"
            "| NPU     Chip              | Process id    | Process name  | Process memory(MB) |\n"
            "| 5       0                 | 2290156       | VLLMEngineCore | 56630             |\n"
        )
    ).value
    assert table is not None
    assert table.rows == (npu_smi.Row(5, 0, None, "910B3", "OK", "0000:02:00.0", 60156, 65536),)
    assert table.processes == (npu_smi.Process(5, 0, 2290156, "VLLMEngineCore", 56630),)


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (Output("x", timed_out=True, seconds=10), Reason.TIMEOUT),
        (Output("x", skipped="left out"), Reason.NOT_READ),
        (out("", "bash: hccn_tool: command not found\n", 127), Reason.MISSING),
        (out("", "sudo: a password is required\n", 1), Reason.PERMISSION),
        (
            out("", "hccn_tool: error while loading shared libraries: libdrvdsmi_host.so\n", 127),
            Reason.DRIVER,
        ),
        (out("something new\n"), Reason.UNPARSABLE),
    ],
)
def test_what_happens_around_the_tool(output: Output, reason: Reason) -> None:
    assert hccn.parse_link(output).reason is reason


CONF = """\
# written by the administrator
address_0=10.20.11.11
netmask_0=255.255.255.0
arp_0=-i eth0 -s 127.0.0.114 bc:1e:85:d8:ca:dd
route_address_10.30.0.0_netmask_255.255.0.0_7=gateway_10.20.11.1
IPv6address_10=fd00::11
address_0=10.99.99.99
tls_enable_0 = 0
not a setting
"""


def test_hccn_conf() -> None:
    conf = parse_conf(out(CONF)).value
    assert conf is not None
    assert conf.get(0, "address") == "10.20.11.11"  # the first of two counts
    assert conf.get(0, "tls_enable") == "0"
    assert conf.get(10, "IPv6address") == "fd00::11"
    assert conf.get(7, "route_address_10.30.0.0_netmask_255.255.0.0") == "gateway_10.20.11.1"
    assert conf.unread == ((9, "not a setting"),)


def test_hccn_conf_that_is_not_there() -> None:
    error = "cat: /etc/hccn.conf: No such file or directory\n"
    assert parse_conf(out("", error, 1)).reason is Reason.MISSING
    assert parse_conf(out("", "cat: /etc/hccn.conf: Permission denied\n", 1)).reason is (
        Reason.PERMISSION
    )
