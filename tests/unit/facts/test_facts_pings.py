"""Schedules of the ping matrix: who pings whom, and that rounds never overlap."""

from __future__ import annotations

import pytest

from pd_validate.facts.pings import Npu, PingTask, Schedule, choose, pairs, rounds


def group(hosts: int, devices: int) -> dict[str, list[int]]:
    return {f"h{number}": list(range(devices)) for number in range(hosts)}


def test_full_has_every_ordered_pair_between_hosts_once() -> None:
    found = list(pairs("full", group(3, 8)))
    assert len(found) == len(set(found)) == 24 * 16
    assert all(source.host != target.host for source, target in found)


def test_full_with_hosts_of_different_size() -> None:
    uneven = {"p1": [0, 1], "d1": [6, 7, 5], "d2": [3]}
    assert len(set(pairs("full", uneven))) == 2 * 4 + 3 * 3 + 1 * 5


def test_rail_pairs_the_same_place_on_all_other_hosts() -> None:
    found = set(pairs("rail", {"p1": [0, 1], "d1": [6, 7], "d2": [6, 7]}))
    assert (Npu("p1", 0), Npu("d2", 6)) in found
    assert (Npu("p1", 0), Npu("d2", 7)) not in found
    assert len(found) == 2 * 2 * 3


def test_ring_reaches_and_leaves_every_device() -> None:
    found = list(pairs("ring", group(32, 8)))
    everyone = {Npu(host, device) for host, devices in group(32, 8).items() for device in devices}
    assert {source for source, _ in found} == everyone == {target for _, target in found}
    assert len(found) == 2 * 256


def test_sampled_adds_to_the_ring_and_is_repeatable() -> None:
    found = list(pairs("sampled", group(32, 8), seed="a"))
    assert len(set(found)) == len(found) == 4 * 256
    assert set(pairs("ring", group(32, 8))) < set(found)
    assert found == list(pairs("sampled", group(32, 8), seed="a"))
    assert found != list(pairs("sampled", group(32, 8), seed="b"))


@pytest.mark.parametrize("schedule", ["full", "rail", "ring", "sampled"])
def test_one_host_has_nobody_to_ping(schedule: Schedule) -> None:
    assert list(pairs(schedule, group(1, 8))) == []


@pytest.mark.parametrize(
    ("hosts", "devices", "schedule"),
    [(3, 2, "full"), (3, 8, "full"), (4, 8, "rail"), (17, 8, "rail"), (32, 8, "sampled")],
)
def test_default_by_size(hosts: int, devices: int, schedule: Schedule) -> None:
    chosen, why = choose("auto", group(hosts, devices))
    assert chosen == schedule
    assert "pings per host" in why


def test_the_cluster_file_decides() -> None:
    assert choose("ring", group(3, 2)) == ("ring", "as checks.ping says")


@pytest.mark.parametrize(
    ("schedule", "hosts", "devices"), [("full", 3, 8), ("rail", 17, 8), ("sampled", 32, 8)]
)
def test_rounds_are_disjoint_and_dense(schedule: Schedule, hosts: int, devices: int) -> None:
    tasks = [
        PingTask(source, target, "10.0.0.1", hccs=False)
        for source, target in pairs(schedule, group(hosts, devices))
    ]
    packed = rounds(tasks)
    assert sorted(map(str, (t.argv for r in packed for t in r))) == sorted(
        map(str, (task.argv for task in tasks))
    )
    for one_round in packed:
        npus = [npu for task in one_round for npu in (task.source, task.target)]
        senders = [task.source.host for task in one_round]
        assert len(npus) == len(set(npus))
        assert len(senders) == len(set(senders))
    busiest = max(sum(t.source.host == host for t in tasks) for host in group(hosts, devices))
    assert len(packed) <= busiest * 1.1


@pytest.mark.parametrize(
    ("task", "command"),
    [
        (
            PingTask(Npu("a", 0), Npu("b", 1), "10.0.0.1", hccs=False),
            "hccn_tool -i 0 -ping -g address 10.0.0.1",
        ),
        (
            PingTask(Npu("a", 0), Npu("b", 1), "10.0.0.1", hccs=False, size=8164),
            "hccn_tool -i 0 -ping -g address 10.0.0.1 pkt 8164",
        ),
        (
            PingTask(Npu("a", 0), Npu("b", 1), "fd00::1", hccs=False),
            "hccn_tool -i 0 -ping -inet6 -g ipv6_address fd00::1",
        ),
        (
            PingTask(Npu("a", 3), Npu("b", 1), "192.0.2.199", hccs=True, size=3000),
            "hccn_tool -i 3 -hccs_ping -g address 192.0.2.199 pkt 3000",
        ),
    ],
)
def test_command_of_a_ping(task: PingTask, command: str) -> None:
    assert " ".join(task.argv) == command
