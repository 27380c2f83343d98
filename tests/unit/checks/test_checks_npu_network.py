"""Addresses, hccn.conf, routing, detection, MTU, TLS, super pods: one fault, one root."""

from __future__ import annotations

import pytest
from lab import FAILED, Lab, ping_text, spod_text, tls_text

from pd_validate.spec.models import DockerExecRuntime

NO_IP = ("", "Get ipconf failed, because no ip was preset there!\n", 13)
NO_GATEWAY = ("", "Get gateway failed, because no gateway was preset there!\n", 2)


def conf_without(lab: Lab, host: str, *keys: str, **changed: str) -> None:
    lines = []
    for line in lab._conf(host).splitlines():
        key = line.partition("=")[0]
        if key in changed:
            line = f"{key}={changed[key]}"
        if key not in keys:
            lines.append(line)
    lab.answer(host, "cat /etc/hccn.conf", "\n".join(lines) + "\n")


# --- address ------------------------------------------------------------------------------------


def test_no_address_fails_and_explains_hccn_conf() -> None:
    lab = Lab()
    lab.device("d1", 6, "ip", *NO_IP)
    assert lab.lines() == [
        "fail address.conf-mismatch at d1 npu6 < address.missing",
        "fail address.missing at d1 npu6",
    ]


def test_older_tool_prints_nothing_for_no_address() -> None:
    lab = Lab()
    lab.device("d1", 3, "ip", "")
    assert "warn address.missing at d1 npu3" in lab.lines()


def test_no_address_on_a3_inside_a_super_pod_warns() -> None:
    lab = Lab("A3")
    lab.device("d1", 6, "ip", *NO_IP)
    assert "warn address.missing at d1 npu6" in lab.lines()
    assert all(line.startswith("warn") for line in lab.lines())


def test_a_fabric_of_ipv6_is_well() -> None:
    lab = Lab()
    for index, host in enumerate(lab.cluster.hosts, start=1):
        conf = ""
        for number in range(8):
            address = f"fd00::{index}:{number}"
            lab.device(host, number, "ip", *NO_IP)
            lab.device(host, number, "ip -inet6", f"ipv6_address:{address}\nprefix_length:64\n")
            lab.device(host, number, "netdetect", "netdetect addr: 0.0.0.0\n")
            lab.device(host, number, "netdetect -inet6", "netdetect addr: fd00::1\n")
            lab.device(host, number, "gateway", *NO_GATEWAY)
            lab.device(host, number, "gateway -inet6", "gateway:fd00::1\n")
            conf += f"IPv6address_{number}={address}\nIPv6netmask_{number}=64\n"
            conf += f"IPv6gateway_{number}=fd00::1\ntls_enable_{number}=0\n"
        lab.answer(host, "cat /etc/hccn.conf", conf)
    tasks = lab.tasks()
    assert all("-inet6" in task.argv for task in tasks)
    for task in tasks:
        lab.answer(task.source.host, " ".join(task.argv), ping_text(task.address))
    assert lab.lines() == []


def test_duplicate_address_names_the_device_whose_file_differs() -> None:
    lab = Lab()
    lab.device("p1", 0, "ip", "ipaddr:10.20.2.16\nnetmask:255.255.0.0\n")  # d1 npu6's
    assert lab.lines() == [
        "fail address.conf-mismatch at p1 npu0 < address.duplicate",
        "fail address.duplicate at p1 npu0 -> d1 npu6",
    ]


def test_address_in_a_net_of_the_driver_warns() -> None:
    lab = Lab()
    for host, number in (("p1", 0), ("d1", 6)):
        lab.device(host, number, "ip", f"ipaddr:192.168.1.{number}\nnetmask:255.255.0.0\n")
    assert [line for line in lab.lines() if "reserved" in line] == [
        "warn address.reserved at d1 npu6",
        "warn address.reserved at p1 npu0",
    ]


# --- hccn.conf ----------------------------------------------------------------------------------


def test_stale_line_in_hccn_conf_fails_and_names_both_values() -> None:
    lab = Lab()
    conf_without(lab, "d1", address_7="10.0.0.99")
    report = lab.report()
    assert lab.lines() == ["fail address.conf-mismatch at d1 npu7"]
    assert "10.20.2.17" in report.findings[0].expected
    assert "address_7=10.0.0.99" in report.findings[0].got


def test_stale_line_of_an_unused_npu_warns() -> None:
    lab = Lab()
    conf_without(lab, "d1", address_2="10.0.0.99")
    assert lab.lines() == ["warn address.conf-mismatch at d1 npu2"]


def test_other_netmask_in_hccn_conf_fails() -> None:
    lab = Lab()
    conf_without(lab, "p1", netmask_0="255.255.255.0")
    assert lab.lines() == ["fail address.conf-mismatch at p1 npu0"]


NO_FILE = ("", "cat: /etc/hccn.conf: No such file or directory\n", 1)


@pytest.mark.parametrize("answer", [NO_FILE, ("", "", 0)])
def test_no_hccn_conf_on_a_host_warns_once(answer: tuple[str, str, int]) -> None:
    lab = Lab()
    lab.answer("d1", "cat /etc/hccn.conf", *answer)
    assert lab.lines() == ["warn address.conf-missing at d1 /etc/hccn.conf"]


def test_no_hccn_conf_in_a_container_fails() -> None:
    lab = Lab()
    runtime = DockerExecRuntime(kind="docker-exec", container="vllm")
    lab.cluster = lab.cluster.model_copy(update={"runtime": runtime})
    lab.answer("d1", "cat /etc/hccn.conf", *NO_FILE)
    assert lab.lines() == ["fail address.conf-missing at d1 /etc/hccn.conf"]


def test_hccn_conf_that_lacks_one_npu_warns() -> None:
    lab = Lab()
    conf_without(lab, "d1", "address_6", "netmask_6", "gateway_6")
    assert lab.lines() == ["warn address.conf-missing at d1 npu6 /etc/hccn.conf"]


def test_hccn_conf_that_may_not_be_read_is_unknown() -> None:
    lab = Lab()
    denied = ("", "cat: /etc/hccn.conf: Permission denied\n", 1)
    lab.answer("d1", "cat /etc/hccn.conf", *denied)
    assert lab.lines() == ["unknown tool.permission at d1 /etc/hccn.conf"]
    assert [f.id for f in lab.report().problems("hccn-conf", "d1")] == ["tool.permission"]


# --- routing ------------------------------------------------------------------------------------


def test_no_gateway_in_one_subnet_is_well() -> None:
    lab = Lab()
    for host in lab.cluster.hosts:
        conf_without(lab, host, *(f"gateway_{n}" for n in range(8)))
        for number in range(8):
            lab.device(host, number, "gateway", *NO_GATEWAY)
    assert lab.lines() == []


def test_gateway_outside_the_subnet_fails() -> None:
    lab = Lab()
    lab.device("d1", 6, "gateway", "default gateway:10.99.0.1, Iface:eth6\n")
    conf_without(lab, "d1", gateway_6="10.99.0.1")
    assert lab.lines() == ["fail gateway.outside-subnet at d1 npu6"]


def two_subnets() -> Lab:
    """p1 in 10.30/16, the decoders in 10.20/16, each with a gateway."""
    lab = Lab()
    for number in range(8):
        lab.device("p1", number, "ip", f"ipaddr:10.30.1.{10 + number}\nnetmask:255.255.0.0\n")
        lab.device("p1", number, "gateway", f"default gateway:10.30.0.1, Iface:eth{number}\n")
    text = lab._conf("p1").replace("10.20.", "10.30.")
    lab.answer("p1", "cat /etc/hccn.conf", text)
    return lab


def test_routed_subnets_are_well() -> None:
    assert two_subnets().lines() == []


def test_missing_gateway_between_subnets_fails() -> None:
    lab = two_subnets()
    lab.device("d1", 6, "gateway", *NO_GATEWAY)
    conf_without(lab, "d1", "gateway_6")
    assert lab.lines() == ["fail gateway.missing at d1 npu6"]


def test_one_npu_in_another_subnet_without_gateways_fails() -> None:
    lab = Lab()
    for host in lab.cluster.hosts:
        conf_without(lab, host, *(f"gateway_{n}" for n in range(8)))
        for number in range(8):
            lab.device(host, number, "gateway", *NO_GATEWAY)
    lab.device("d2", 7, "ip", "ipaddr:10.99.0.7\nnetmask:255.255.0.0\n")
    assert lab.lines() == [
        "fail address.conf-mismatch at d2 npu7 < address.subnet",
        "fail address.subnet at d2 npu7",
    ]


# --- detection ----------------------------------------------------------------------------------


def test_unset_netdetect_warns_and_silences_net_health() -> None:
    lab = Lab()
    lab.device("p1", 0, "netdetect", "netdetect addr: 0.0.0.0\n")
    lab.device("p1", 0, "net_health", "net health status: Init\n")
    assert lab.lines() == ["warn netdetect.unset at p1 npu0"]


@pytest.mark.parametrize(
    ("state", "identifier"),
    [
        ("Receive timeout", "health.unreachable"),
        ("Unreachable", "health.unreachable"),
        ("Time exceeded", "health.unreachable"),
        ("Fault", "health.unreachable"),
        ("Init", "health.not-started"),
        ("Detect ip set", "health.not-started"),
        ("Socket fail", "health.fault"),
        ("Socket failed", "health.fault"),
        ("Thread error", "health.fault"),
        ("Unknown", "health.fault"),
    ],
)
def test_every_state_of_net_health(state: str, identifier: str) -> None:
    lab = Lab()
    lab.device("p1", 0, "net_health", f"net health status: {state}\n")
    assert lab.lines() == [f"fail {identifier} at p1 npu0"]


# --- agreement ----------------------------------------------------------------------------------


def test_other_mtu_fails() -> None:
    lab = Lab()
    lab.device("d2", 6, "mtu", "mtu:1500\n")
    assert lab.lines() == ["fail mtu.mismatch at d2 npu6"]


def test_tls_of_one_npu_fails_there() -> None:
    lab = Lab()
    lab.device("d1", 6, "tls", tls_text(6, 1))
    assert lab.lines() == ["fail tls.mismatch at d1 npu6"]


def test_tls_of_a_whole_host_is_one_finding() -> None:
    lab = Lab()
    for number in range(8):
        lab.device("d1", number, "tls", tls_text(number, 1))
    assert lab.lines() == ["fail tls.mismatch at d1"]


NO_CERTIFICATE = ("", "No certificate found, please set certs firstly!\n", 14)


def test_devices_without_certificates_have_tls_off() -> None:
    lab = Lab()
    lab.device("d1", 6, "tls", *NO_CERTIFICATE)
    assert lab.lines() == []


def test_expired_certificate_matters_only_with_tls_on() -> None:
    lab = Lab()
    lab.device("d1", 6, "tls", tls_text(6, 0, status=2))
    assert lab.lines() == []
    for host in lab.cluster.hosts:
        for number in range(8):
            lab.device(host, number, "tls", tls_text(number, 1))
    lab.device("d1", 6, "tls", tls_text(6, 1, status=2))
    assert lab.lines() == ["fail tls.expired at d1 npu6"]


def test_certificates_of_another_issuer_warn_with_tls_on() -> None:
    lab = Lab()
    for switch, lines in ((0, []), (1, ["warn tls.mismatch at d2 npu7"])):
        for host in ("p1", "d1", "d2"):
            for number in range(8):
                name = "Other CA" if (host, number) == ("d2", 7) else "Huawei Equipment CA"
                issuer = f"\t issuer[/C=CN/CN={name}]\n"
                lab.device(host, number, "tls", tls_text(number, switch) + issuer)
        assert lab.lines() == lines
    assert "/C=CN/CN=Other CA" in lab.report().findings[0].got


def test_tls_that_must_not_be_read_is_noted_and_no_finding() -> None:
    lab = Lab()
    for number in range(8):
        lab.device("d1", number, "tls", "", "not run: it would change /etc/hccn.conf")
    report = lab.report()
    assert report.findings == ()
    assert any("d1: TLS of NPU 0, 1, 2, 3, 4, 5, 6, 7 not read" in note for note in report.notes)


# --- super pod ----------------------------------------------------------------------------------


def test_vnic_down_fails() -> None:
    lab = Lab("A3")
    lab.device(
        "d1",
        6,
        "vnic",
        "vnic link status: DOWN\nvnic ipaddr: 192.1.2.193\nvnic netmask: 255.0.0.0\n",
    )
    assert lab.lines() == ["fail vnic.down at d1 npu6"]


def test_vnic_that_cannot_be_read_fails() -> None:
    lab = Lab("A3")
    lab.device("d1", 6, "vnic", *FAILED)
    assert lab.lines() == ["fail vnic.down at d1 npu6"]


def test_host_outside_a_super_pod_is_one_finding() -> None:
    lab = Lab("A3")
    for number in range(16):
        lab.device(
            "d1",
            number,
            "vnic",
            "vnic link status: UP\n"
            f"vnic ipaddr: 192.168.2.{199 - number}\nvnic netmask: 255.255.255.0\n",
        )
        card, chip = divmod(number, 2)
        lab.answer(
            "d1",
            f"npu-smi info -t spod-info -i {card} -c {chip}",
            spod_text(4294967295, 4294967295, 4294967295),
        )
    assert lab.lines() == ["fail vnic.outside-superpod at d1"]


def test_two_hosts_with_one_server_index_are_one_finding() -> None:
    lab = Lab("A3")
    lab.index = lambda host: {"p1": 0, "d1": 1, "d2": 1}[host]  # type: ignore[method-assign]
    roots = [f for f in lab.report().findings if not f.because]
    assert [(f.id, str(f.where)) for f in roots if f.id.startswith("sdid")] == [
        ("sdid.duplicate", "d2 -> d1")
    ]


def test_sdid_that_does_not_fit_the_device_fails() -> None:
    lab = Lab("A3")
    lab.answer("d1", "npu-smi info -t spod-info -i 3 -c 0", spod_text(1 << 22 | 5, 1))
    assert lab.lines() == ["fail sdid.mismatch at d1 npu6"]


def test_vnic_of_another_server_index_fails() -> None:
    lab = Lab("A3")
    lab.device(
        "d1",
        6,
        "vnic",
        "vnic link status: UP\nvnic ipaddr: 192.9.2.193\nvnic netmask: 255.0.0.0\n",
    )
    assert lab.lines() == ["fail sdid.mismatch at d1 npu6"]


def test_address_line_missing_among_the_others_of_its_npu() -> None:
    """The KV transport looks for exactly that line first."""
    lab = Lab()
    conf = "".join(
        f"address_{n}=10.20.2.{10 + n}\nnetmask_{n}=255.255.0.0\n" for n in range(8) if n != 6
    )
    lab.answer("d1", "cat /etc/hccn.conf", conf + "netmask_6=255.255.0.0\n")
    assert lab.lines() == ["warn address.conf-missing at d1 npu6 /etc/hccn.conf"]


def test_a_gateway_that_cannot_be_reached_routes_nothing() -> None:
    """A wrong mask is one fault: the subnet; gateway and hccn.conf follow from it."""
    lab = Lab()
    lab.device("d1", 6, "ip", "ipaddr:10.20.2.16\nnetmask:255.255.255.0\n")
    lab.device("d1", 6, "gateway", "default gateway:10.20.0.1, Iface:eth6\n")
    assert [line for line in lab.lines() if " < " not in line] == ["fail address.subnet at d1 npu6"]


def test_a_host_with_another_server_index_is_one_finding() -> None:
    lab = Lab("A3")
    for card in range(8):
        for chip in range(2):
            command = f"npu-smi info -t spod-info -i {card} -c {chip}"
            sdid = 1 << 22 | card << 18 | chip << 16 | card * 2 + chip
            text = f"SDID : {sdid}\nSuper Pod Size : 384\nSuper Pod ID : 0\nServer Index : 5\n"
            lab.answer("d1", command, text)
    assert lab.lines() == ["fail sdid.mismatch at d1"]


def test_vnic_of_a_device_that_refuses_everything_is_not_measured() -> None:
    lab = Lab("A3")
    lab.device("d1", 6, "link", "", "permission denied: pls check this cmd run permission.\n", 12)
    lab.device("d1", 6, "vnic", *FAILED)
    assert lab.lines() == [
        "unknown tool.failed at d1 npu6 < tool.permission",
        "unknown tool.permission at d1 npu6",
    ]


def test_gateway_that_only_hccn_conf_has_warns() -> None:
    lab = Lab()
    lab.device("d1", 6, "gateway", *NO_GATEWAY)
    assert lab.lines() == ["warn address.conf-mismatch at d1 npu6"]
