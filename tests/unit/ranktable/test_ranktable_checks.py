"""Broken rank tables: each gives exactly its finding, with host, device and rank.

Each case takes the guide's sound table and breaks one thing. `on` says on which hosts the
broken table lies; the others keep the sound one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from pd_validate.checks.ranktable import check_rank_tables
from pd_validate.findings import Finding, Severity, Where, root_findings
from pd_validate.ranktable import DeviceAddress, generate, render
from pd_validate.spec.models import Cluster
from pd_validate.spec.plan import LaunchPlan, launch_plan, run_dirs

ALL = ("p1", "d1", "d2")
PATH = "/tmp/pd-validate/r1/ranktable.json"
Table = dict[str, Any]
Break = Callable[[Table], object]


@dataclass(frozen=True)
class Case:
    name: str
    breaks: Break
    id: str
    where: Where
    says: str  # a part of expected or got
    on: Sequence[str] = ALL


def prefill(table: Table) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = table["prefill_device_list"]
    return entries


def decode(table: Table) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = table["decode_device_list"]
    return entries


def set_all(entries: list[dict[str, Any]], **values: str) -> None:
    for entry in entries:
        entry.update(values)


def swap(entries: list[dict[str, Any]], a: int, b: int) -> None:
    entries[a], entries[b] = entries[b], entries[a]


def swap_roles(table: Table) -> None:
    table["prefill_device_list"], table["decode_device_list"] = decode(table), prefill(table)


def all_cards_of_the_first_node(table: Table) -> None:
    """v0.10.1rc1's generator without --local-device-ids, counts 2 and 4."""
    for index, entry in enumerate(decode(table)):
        entry.update(
            server_id="192.0.0.1", device_id=str(index + 2), device_ip=f"29.1.1.{index + 12}"
        )


SCHEMA = "ranktable.schema"
CASES = [
    # -- form
    Case("no decode list", lambda t: t.pop("decode_device_list"), SCHEMA, Where(host="p1"),
         "decode_device_list: missing"),
    Case("a list that is none", lambda t: t.update(prefill_device_list="x"), SCHEMA,
         Where(host="p1"), "prefill_device_list: 'x'"),
    Case("an empty list", lambda t: prefill(t).clear(), SCHEMA, Where(host="p1"),
         "prefill_device_list: []"),
    Case("an entry that is no object", lambda t: decode(t).insert(0, 7), SCHEMA,  # type: ignore[arg-type]  # wrong on purpose
         Where(host="p1"), "decode_device_list[0]: 7"),
    Case("an entry without its address", lambda t: decode(t)[2].pop("device_ip"), SCHEMA,
         Where(host="p1"), "decode_device_list[2].device_ip: missing"),
    Case("a device id as a number", lambda t: decode(t)[0].update(device_id=6), SCHEMA,
         Where(host="p1"), "decode_device_list[0].device_id: 6, not quoted"),
    Case("a cluster id that is no number", lambda t: prefill(t)[1].update(cluster_id="two"),
         SCHEMA, Where(host="p1"), 'prefill_device_list[1].cluster_id: "two"'),
    Case("an address that is none", lambda t: decode(t)[3].update(device_ip="29.1.3.300"),
         SCHEMA, Where(host="p1"), 'decode_device_list[3].device_ip: "29.1.3.300"'),
    # -- against the devices
    Case("an outdated address", lambda t: decode(t)[1].update(device_ip="29.1.2.99"),
         "ranktable.stale", Where(host="d1", device=7), "device_ip 29.1.2.99 in the table"),
    Case("another NPU's address", lambda t: decode(t)[1].update(device_ip="29.1.2.16"),
         "ranktable.stale", Where(host="d1", device=7), "device_ip 29.1.2.17 (the device's)"),
    # -- by itself
    Case("a device twice", lambda t: decode(t).append(dict(decode(t)[3], cluster_id="9")),
         "ranktable.duplicate", Where(host="d2", device=7, peer_host="d2", peer_device=7),
         "device 7 of 192.0.0.3 also for device 7 of 192.0.0.3"),
    Case("a cluster id twice", lambda t: decode(t)[0].update(cluster_id="1"),
         "ranktable.duplicate", Where(host="d1", device=6, peer_host="p1", peer_device=0),
         "cluster_id 1 also for device 0 of 192.0.0.1"),
    Case("a cluster id twice, spelt differently", lambda t: decode(t)[0].update(cluster_id="02"),
         "ranktable.duplicate", Where(host="d1", device=6, peer_host="p1", peer_device=1),
         "cluster_id 02 also for device 1 of 192.0.0.1"),
    Case("a device in both lists", lambda t: decode(t).append(prefill(t)[1]),
         "ranktable.overlap", Where(host="p1", device=1), "device 1 of 192.0.0.1 in both lists"),
    Case("the fallback of gen_ranktable.sh",
         lambda t: set_all(decode(t)[:2], server_id="127.0.0.1"),
         "ranktable.loopback", Where(device=6), "127.0.0.1 for device 6, 29.1.2.16"),
    # -- against the plan
    Case("decoders on their host's other address",
         lambda t: set_all(decode(t)[2:], server_id="10.0.0.3"),
         "ranktable.server-id", Where(host="d2", instance="decode-2"),
         "decode_device_list has 10.0.0.3, 192.0.0.2"),
    Case("an address with a blank", lambda t: set_all(prefill(t), server_id="192.0.0.1 "),
         "ranktable.server-id", Where(host="p1", instance="prefill-1"),
         "server_id 192.0.0.1 in prefill_device_list"),
    Case("one entry with another host's address",
         lambda t: decode(t)[1].update(server_id="10.0.0.2"),
         "ranktable.device", Where(host="d1", device=7, instance="decode-1", rank=1), "only 6"),
    Case("an instance's devices missing", lambda t: decode(t).pop(3),
         "ranktable.device", Where(host="d2", device=7, instance="decode-2", rank=1),
         "device 7 (rank 1) of 192.0.0.3 in decode_device_list"),
    Case("both devices wrong",
         lambda t: [decode(t)[i].update(device_id=str(i), device_ip=f"29.1.2.{10 + i}")
                    for i in (0, 1)],
         "ranktable.device", Where(host="d1", device=6, instance="decode-1", rank=0),
         "devices 6 (rank 0), 7 (rank 1) of 192.0.0.2"),
    Case("order of the ranks", lambda t: swap(decode(t), 0, 1),
         "ranktable.order", Where(host="d1", device=6, instance="decode-1", rank=0),
         "rank 0 picks device 7, rank 1 picks device 6"),
    Case("order of the prefiller's ranks", lambda t: swap(prefill(t), 0, 1),
         "ranktable.order", Where(host="p1", device=0, instance="prefill-1", rank=0),
         "the table's order is 1, 0"),
    # -- between hosts
    Case("one host's table is an older one",
         lambda t: set_all(decode(t)[2:3], device_ip="29.1.3.50"),
         "ranktable.differs", Where(host="d2", peer_host="p1"),
         "decode_device_list[2].device_ip is '29.1.3.50', not '29.1.3.16'", on=("d2",)),
    Case("one host's table has fewer devices", lambda t: decode(t).pop(),
         "ranktable.differs", Where(host="d1", peer_host="p1"),
         "decode_device_list has 3 devices, not 4", on=("d1",)),
    Case("one host's table has another field", lambda t: decode(t)[0].update(super_pod_id="0"),
         "ranktable.differs", Where(host="d1", peer_host="p1"),
         "decode_device_list[0].super_pod_id is '0', not None", on=("d1",)),
    Case("the first host's table is the odd one", lambda t: swap(decode(t), 0, 2),
         "ranktable.differs", Where(host="p1", peer_host="d1"),
         "decode_device_list[0].server_id", on=("p1",)),
    Case("one host's table is of another version", lambda t: t.update(version="1.0"),
         "ranktable.differs", Where(host="d2", peer_host="p1"), "version is '1.0', not '1.2'",
         on=("d2",)),
]  # fmt: skip  # a table of one case per entry reads better than one argument per line


def check(
    cluster: Cluster,
    plan: LaunchPlan,
    addresses: Sequence[DeviceAddress],
    breaks: Break = lambda table: None,
    on: Sequence[str] = ALL,
) -> list[Finding]:
    table = generate(cluster, addresses)
    broken = copy.deepcopy(table)
    breaks(broken)
    files = {host: render(broken if host in on else table) for host in ALL}
    return check_rank_tables(cluster, plan, files, addresses)


def test_the_generated_table_has_no_finding(
    guide: Cluster, plan: LaunchPlan, addresses: list[DeviceAddress]
) -> None:
    assert check(guide, plan, addresses) == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_broken_table_gives_exactly_its_finding(
    case: Case, guide: Cluster, plan: LaunchPlan, addresses: list[DeviceAddress]
) -> None:
    findings = root_findings(check(guide, plan, addresses, case.breaks, case.on))
    if case.id == SCHEMA:
        # The same broken file on three hosts: said once for each.
        assert [f.where.host for f in findings] == sorted(ALL)
        findings = [f for f in findings if f.where.host == case.where.host]
    (finding,) = findings
    assert finding.id == case.id
    assert finding.severity is Severity.FAIL
    assert finding.where.matches(case.where)
    assert finding.where.rank == case.where.rank
    assert case.says in f"{finding.expected} | {finding.got}"


def test_there_are_at_least_twenty_five() -> None:
    assert len(CASES) >= 25


def test_every_device_of_the_first_node(
    guide: Cluster, plan: LaunchPlan, addresses: list[DeviceAddress]
) -> None:
    """The generator of v0.10.1rc1 slices all cards of the first node into both lists: no
    decoder finds its address, and each is said so.
    """
    findings = check(guide, plan, addresses, all_cards_of_the_first_node)
    assert [(f.id, f.where) for f in findings] == [
        ("ranktable.server-id", Where(host="d1", instance="decode-1")),
        ("ranktable.server-id", Where(host="d2", instance="decode-2")),
    ]


def test_decoders_first_in_ips(
    guide: Cluster, plan: LaunchPlan, addresses: list[DeviceAddress]
) -> None:
    findings = check(guide, plan, addresses, swap_roles)
    assert {f.id for f in findings} == {"ranktable.server-id"}
    assert [f.where.instance for f in findings] == ["prefill-1", "decode-1", "decode-2"]
    assert findings[0].got.endswith("192.0.0.1 is only in the other list")
    assert findings[0].advice == "Generate it again with the prefillers' addresses first."


def test_consequences_stand_under_their_cause(
    guide: Cluster, plan: LaunchPlan, addresses: list[DeviceAddress]
) -> None:
    def loopback(table: Table) -> None:
        set_all(decode(table)[:2], server_id="127.0.0.1")

    findings = check(guide, plan, addresses, loopback)
    by_id = {f.id: f for f in findings}
    assert set(by_id) == {"ranktable.loopback", "ranktable.server-id"}
    cause = by_id["ranktable.loopback"].as_cause()
    assert by_id["ranktable.server-id"].because == (cause,)


def test_no_file_on_a_host(
    guide: Cluster, plan: LaunchPlan, addresses: list[DeviceAddress]
) -> None:
    table = render(generate(guide, addresses))
    files = {"p1": table, "d1": None, "d2": table}
    (finding,) = check_rank_tables(guide, plan, files, addresses)
    assert (finding.id, finding.where) == ("ranktable.missing", Where(host="d1", file=PATH))


def test_a_file_that_is_no_json(
    guide: Cluster, plan: LaunchPlan, addresses: list[DeviceAddress]
) -> None:
    table = render(generate(guide, addresses))
    files = {"p1": table, "d1": table, "d2": table[:100]}
    (finding,) = check_rank_tables(guide, plan, files, addresses)
    assert (finding.id, finding.where) == ("ranktable.schema", Where(host="d2", file=PATH))


def test_exchanged_ids_are_outdated_entries_and_no_order_of_their_own(
    guide: Cluster, plan: LaunchPlan, addresses: list[DeviceAddress]
) -> None:
    def exchange(table: Table) -> None:
        one, other = decode(table)[:2]
        one["device_id"], other["device_id"] = other["device_id"], one["device_id"]

    findings = check(guide, plan, addresses, exchange)
    assert [(f.id, f.where.device) for f in root_findings(findings)] == [
        ("ranktable.stale", 6),
        ("ranktable.stale", 7),
    ]
    (order,) = [f for f in findings if f.id == "ranktable.order"]
    assert {cause.id for cause in order.because} == {"ranktable.stale"}


@pytest.mark.parametrize(("key", "value"), [("version", "1.0"), ("status", "initializing")])
def test_what_the_connector_does_not_read_is_a_warning(
    guide: Cluster, plan: LaunchPlan, addresses: list[DeviceAddress], key: str, value: str
) -> None:
    table = {**generate(guide, addresses), key: value}
    findings = check_rank_tables(guide, plan, dict.fromkeys(ALL, render(table)), addresses)
    assert [(f.id, f.severity.value, f.where.host) for f in findings] == [
        ("ranktable.schema", "warn", host) for host in ALL
    ]
    assert findings[0].got.startswith(f"{key} '{value}'")


def test_a_device_that_cannot_be_asked_is_unknown(
    guide: Cluster, plan: LaunchPlan, addresses: list[DeviceAddress]
) -> None:
    table = render(generate(guide, addresses))
    answering = [a for a in addresses if (a.host, a.device_id) != ("d2", 6)]
    (finding,) = check_rank_tables(guide, plan, dict.fromkeys(ALL, table), answering)
    assert (finding.id, finding.severity) == ("ranktable.stale", Severity.UNKNOWN)
    assert finding.where == Where(host="d2", device=6)


def test_two_tables_that_disagree_are_told_apart_by_the_devices(
    guide: Cluster, plan: LaunchPlan, addresses: list[DeviceAddress]
) -> None:
    """Most hosts may be wrong: the table that agrees with the devices is the right one."""
    right = generate(guide, addresses)
    old = copy.deepcopy(right)
    old["decode_device_list"][0]["device_ip"] = "29.9.9.9"
    files = {"p1": render(old), "d1": render(right), "d2": render(old)}
    findings = check_rank_tables(guide, plan, files, addresses)
    assert [(f.id, f.where.host, f.where.peer_host) for f in findings] == [
        ("ranktable.differs", "p1", "d1"),
        ("ranktable.differs", "d2", "d1"),
    ]


def test_a_device_the_machine_has_not(
    guide: Cluster, plan: LaunchPlan, addresses: list[DeviceAddress]
) -> None:
    def extra(table: Table) -> None:
        decode(table).append(
            {"server_id": "192.0.0.3", "device_id": "9", "device_ip": "29.1.3.19",
             "cluster_id": "7"}
        )  # fmt: skip

    (finding,) = check(guide, plan, addresses, extra)
    assert (finding.id, finding.where) == ("ranktable.stale", Where(host="d2", device=9))


@pytest.mark.parametrize(
    ("visible", "id_", "rank"),
    [("6, 7", "ranktable.device", 1), ("7", "ranktable.order", 0), ("7,6", None, None)],
)
def test_visible_devices_of_the_environment_count(
    guide: Cluster,
    plan: LaunchPlan,
    addresses: list[DeviceAddress],
    visible: str,
    id_: str | None,
    rank: int | None,
) -> None:
    launch = plan.instances["decode-1"]
    changed = replace(launch, env={**launch.env, "ASCEND_RT_VISIBLE_DEVICES": visible})
    altered = replace(plan, instances={**plan.instances, "decode-1": changed})
    findings = check(guide, altered, addresses)
    assert [(f.id, f.where.rank) for f in findings] == ([] if id_ is None else [(id_, rank)])


def test_super_pod_ids_are_needed_and_compared_on_a3(a3: Cluster) -> None:
    plan = launch_plan(a3, run_dirs=run_dirs(a3, "r1"))
    addresses = [
        DeviceAddress(name, host.address, d, f"10.{h}.1.{d}", "0", str(h * 1000 + d))
        for h, (name, host) in enumerate(a3.hosts.items(), start=1)
        for d in range(16)
    ]
    sound = generate(a3, addresses)
    assert check_rank_tables(a3, plan, dict.fromkeys(ALL, render(sound)), addresses) == []

    stale = copy.deepcopy(sound)
    stale["decode_device_list"][0]["super_device_id"] = "77"
    (finding,) = check_rank_tables(a3, plan, dict.fromkeys(ALL, render(stale)), addresses)
    assert (finding.id, finding.where) == ("ranktable.stale", Where(host="d1", device=12))
    assert finding.got == "super_device_id 77 in the table"

    lacking = copy.deepcopy(sound)
    del lacking["decode_device_list"][0]["super_device_id"]
    findings = check_rank_tables(a3, plan, dict.fromkeys(ALL, render(lacking)), addresses)
    assert {f.id for f in findings} == {"ranktable.schema"}
    assert "decode_device_list[0].super_device_id: missing" in findings[0].got
