"""Collective links: arguments, who must call, how they fail, how they end."""

from __future__ import annotations

import time

import pytest
from datadist_peer import BLOCK_BYTES, BLOCKS, Pair, Peers, link_all, rank_table, refused

LIMIT = 1.0  # seconds of a pull
HOST_A = {"TWIN_HOST": "a", "TWIN_HOST_ADDRESS": "127.0.0.1"}
HOST_B = {"TWIN_HOST": "b", "TWIN_HOST_ADDRESS": "127.0.0.2"}


@pytest.mark.parametrize(
    ("name", "ranks", "kind"),
    [
        ("", {1: 0, 2: 1}, "LLM_PARAM_INVALID"),
        ("n" * 128, {1: 0, 2: 1}, "LLM_PARAM_INVALID"),
        (b"n", {1: 0, 2: 1}, "TypeError"),
        ("n", {1: 0}, "LLM_PARAM_INVALID"),
        ("n", {c: c for c in range(1, 6)}, "LLM_PARAM_INVALID"),
        ("n", {3: 1, 1: 0}, "LLM_PARAM_INVALID"),  # ranks must ascend in the dict's order
        ("n", {"1": 0, 2: 1}, "TypeError"),
        ("n", {1: 0.0, 2: 1}, "TypeError"),
        ("n", {1: -1, 2: 1}, "ValueError"),
        ("n", {1: 0, 2**64: 1}, "ValueError"),
        ("n", {2: 0, 3: 1}, "LLM_PARAM_INVALID"),  # own cluster id is missing
    ],
)
def test_bad_arguments(peers: Peers, name: object, ranks: dict[int, int], kind: str) -> None:
    table = rank_table({"server": "127.0.0.1", "device": 1}, {"server": "127.0.0.1", "device": 2})
    assert refused(peers(1), "link", name, ranks, table).kind == kind


def test_a_name_may_have_127_characters(peers: Peers) -> None:
    one, two = peers(1), peers(2)
    ids = link_all(one, two, name="n" * 127)
    assert one.call("wait_link", ids[0]) == "OK"


@pytest.mark.parametrize(
    "table", ["", "{", "{}", '{"server_list": [{"device": []}]}', rank_table()]
)
def test_a_bad_rank_table_is_link_failed_at_once(peers: Peers, table: str) -> None:
    error = refused(peers(1), "link", "n", {1: 0, 2: 1}, table)
    assert error.kind == "LLM_LINK_FAILED"
    assert error.message == (
        "[link] failed, error code is LLMStatusCode.LLM_LINK_FAILED, "
        "cluster_rank_info = {1: 0, 2: 1}."
    )


def test_link_for_another_device_than_the_processs_own_is_link_failed(peers: Peers) -> None:
    # Without ASCEND_RT_VISIBLE_DEVICES the engine takes devices 0 and 1 whatever the table says.
    peer = peers(1, device=0)
    table = rank_table({"server": "127.0.0.1", "device": 6}, {"server": "127.0.0.1", "device": 2})
    assert refused(peer, "link", "n", {1: 0, 2: 1}, table).kind == "LLM_LINK_FAILED"
    assert "runs on device 0" in peer.close()


def test_visible_devices_say_which_device_a_process_is(peers: Peers) -> None:
    one = peers(1, device=7, env={"ASCEND_RT_VISIBLE_DEVICES": "6,7"}, initialise=False)
    two = peers(2, device=3)
    one.call("init", device=1)
    ids = link_all(one, two)
    assert one.call("wait_link", ids[0]) == "OK"


def test_a_member_that_runs_elsewhere_than_the_table_says_is_never_met(peers: Peers) -> None:
    one, two = peers(1, connect_timeout=0.5), peers(2, connect_timeout=0.5)
    table = rank_table({"server": "127.0.0.1", "device": 5}, two.rank())
    comm = two.call("link", "n", {1: 0, 2: 1}, table)
    refused(one, "link", "n", {1: 0, 2: 1}, table)
    assert two.call("wait_link", comm) == "FAILED"


def test_status_is_preparing_then_ok_and_stays(peers: Peers) -> None:
    one, two = peers(1), peers(2)
    table = rank_table(one.rank(), two.rank())
    first = one.call("link", "n", {1: 0, 2: 1}, table)
    assert one.call("status", first) == "PREPARING"
    second = two.call("link", "n", {1: 0, 2: 1}, table)
    for peer, comm in ((one, first), (two, second)):
        assert peer.call("wait_link", comm) == "OK"
        assert peer.call("status", comm) == "OK"


@pytest.mark.parametrize("caller", [0, 1])
def test_link_is_collective(peers: Peers, caller: int) -> None:
    both = peers(1, connect_timeout=0.3), peers(2, connect_timeout=0.3)
    table = rank_table(*(peer.rank() for peer in both))
    started = time.monotonic()
    comm = both[caller].call("link", "n", {1: 0, 2: 1}, table)
    assert both[caller].call("wait_link", comm) == "FAILED"
    assert time.monotonic() - started >= 0.3
    assert both[caller].call("status", comm) == "FAILED"  # sticky


def test_members_need_the_same_name(peers: Peers) -> None:
    one, two = peers(1, connect_timeout=0.4), peers(2, connect_timeout=0.4)
    table = rank_table(one.rank(), two.rank())
    ids = [peer.call("link", f"n{peer.device}", {1: 0, 2: 1}, table) for peer in (one, two)]
    assert one.call("wait_link", ids[0]) == two.call("wait_link", ids[1]) == "FAILED"


def test_link_total_time_is_the_limit_before_hccl_connect_timeout(peers: Peers) -> None:
    one = peers(1, connect_timeout=60, more={"llm.LinkTotalTime": "1"})
    comm = one.call("link", "n", {1: 0, 2: 1}, rank_table(one.rank(), {"server": "x", "device": 2}))
    assert one.call("wait_link", comm, 3) == "FAILED"


def test_link_total_time_0_means_hccl_connect_timeout(peers: Peers) -> None:
    one = peers(1, connect_timeout=0.2, more={"llm.LinkTotalTime": "0"})
    comm = one.call("link", "n", {1: 0, 2: 1}, rank_table(one.rank(), {"server": "x", "device": 2}))
    assert one.call("wait_link", comm, 3) == "FAILED"


def test_the_default_limit_is_120_s() -> None:
    from llm_datadist.native.links import link_timeout

    assert link_timeout(None, {}) == 120
    assert link_timeout("0", {"HCCL_CONNECT_TIMEOUT": "600"}) == 600
    assert link_timeout("7", {"HCCL_CONNECT_TIMEOUT": "600"}) == 7


def test_a_late_member_is_waited_for(peers: Peers) -> None:
    two = peers(2)
    table = rank_table({"server": "127.0.0.1", "device": 1}, two.rank())
    second = two.call("link", "n", {1: 0, 2: 1}, table)
    one = peers(1)  # starts only now
    first = one.call("link", "n", {1: 0, 2: 1}, table)
    assert one.call("wait_link", first) == two.call("wait_link", second) == "OK"


def test_different_remote_accessible_flags_fail_at_both(peers: Peers) -> None:
    one, two = peers(1, accessible=True), peers(2, accessible=False)
    ids = link_all(one, two)
    assert one.call("wait_link", ids[0], 2) == two.call("wait_link", ids[1], 2) == "FAILED"


def test_four_members(peers: Peers) -> None:
    members = [peers(cluster_id) for cluster_id in (1, 2, 3, 4)]
    for member in members:
        member.call("register", BLOCKS, BLOCK_BYTES)
    ids = link_all(*members)
    for member, comm in zip(members, ids, strict=True):
        assert member.call("wait_link", comm) == "OK"
    members[3].call("pull", 2, 1, [0], [1])


def test_comm_ids_are_local_and_count_from_1(peers: Peers) -> None:
    one, two, three = peers(1), peers(2), peers(3)
    assert link_all(one, two, name="12") == [1, 1]
    assert link_all(one, three, name="13") == [2, 1]


def test_unknown_links_are_not_yet_linked(peers: Peers) -> None:
    peer = peers(1)
    assert refused(peer, "status", 5).kind == "LLM_NOT_YET_LINK"
    assert refused(peer, "do", "unlink", 5).kind == "LLM_NOT_YET_LINK"
    assert refused(peer, "do", "unlink", "5").kind == "TypeError"


def test_512_links_failed_ones_included(peers: Peers) -> None:
    peer = peers(1, connect_timeout=0.01)
    arguments = "n", {1: 0, 2: 1}, rank_table(peer.rank(), {"server": "x", "device": 2})
    peer.call("run", "[dd.link(*a) for _ in range(512)]", a=arguments)
    assert refused(peer, "link", *arguments).kind == "LLM_PARAM_INVALID"
    peer.call("do", "unlink", 1)
    assert peer.call("link", *arguments) == 513


def test_16_links_prepare_at_a_time_the_others_queue(peers: Peers) -> None:
    one, two = peers(1, connect_timeout=0.6), peers(2)
    table = rank_table(one.rank(), two.rank())
    absent = rank_table(one.rank(), {"server": "x", "device": 3})
    for number in range(16):
        one.call("link", f"n{number}", {1: 0, 3: 1}, absent)
    comm = one.call("link", "last", {1: 0, 2: 1}, table)
    two.call("link", "last", {1: 0, 2: 1}, table)
    assert one.call("wait_link", comm, 0.3) == "PREPARING"
    assert one.call("wait_link", comm) == "OK"


def test_unlink_is_local_and_pulls_are_not_linked_afterwards(pair: Pair) -> None:
    pair.consumer.call("do", "unlink", pair.consumer_link)
    assert refused(pair.consumer, "pull", 1, 1, [0], [0]).kind == "LLM_NOT_YET_LINK"
    assert refused(pair.consumer, "status", pair.consumer_link).kind == "LLM_NOT_YET_LINK"
    assert pair.producer.call("status", pair.producer_link) == "OK"


@pytest.mark.parametrize("pulled_before", [False, True])
def test_a_peer_that_still_pulls_from_one_that_unlinked_fails(
    pair: Pair, pulled_before: bool
) -> None:
    if pulled_before:
        pair.consumer.call("pull", 1, 1, [0], [0])
    pair.producer.call("do", "unlink", pair.producer_link)
    assert refused(pair.consumer, "pull", 1, 1, [0], [0]).kind == "LLM_FAILED"


def test_unlink_aborts_a_link_that_prepares(peers: Peers) -> None:
    peer = peers(1, connect_timeout=60)
    comm = peer.call(
        "link", "n", {1: 0, 2: 1}, rank_table(peer.rank(), {"server": "x", "device": 2})
    )
    started = time.monotonic()
    peer.call("do", "unlink", comm)
    assert time.monotonic() - started < 5
    assert refused(peer, "status", comm).kind == "LLM_NOT_YET_LINK"


def test_unlink_waits_for_a_running_pull(peers: Peers) -> None:
    pair = peers.pair(timeout_ms=int(LIMIT * 1000))
    with pair.producer.paused():
        pair.consumer.call("start", "t", "pull", 1, 1, [0], [0])
        pair.wait_until_pulling()
        started = time.monotonic()
        pair.consumer.call("do", "unlink", pair.consumer_link)
        waited = time.monotonic() - started
    (kind, _), _ = pair.consumer.call("finish", "t")
    assert kind == "LLM_TIMEOUT"
    assert waited > LIMIT / 2


def test_relinking_works_while_the_old_link_is_there_and_the_newest_wins(pair: Pair) -> None:
    ids = link_all(pair.producer, pair.consumer, name="again")
    assert pair.consumer.call("wait_link", ids[1]) == "OK"
    pair.producer.call("do", "unlink", pair.producer_link)  # old link: dead at the producer
    producer_entity = refused(pair.producer, "pull", 2, 1, [0], [0])
    assert producer_entity.kind == "LLM_NOT_YET_LINK"
    pair.consumer.call("pull", 1, 1, [0], [0])


def test_unlinking_the_old_link_after_relinking_forgets_the_new_one_too(pair: Pair) -> None:
    ids = link_all(pair.producer, pair.consumer, name="again")
    assert pair.consumer.call("wait_link", ids[1]) == "OK"
    pair.consumer.call("do", "unlink", pair.consumer_link)
    assert pair.consumer.call("status", ids[1]) == "OK"
    assert refused(pair.consumer, "pull", 1, 1, [0], [0]).kind == "LLM_NOT_YET_LINK"


def test_unlinking_first_and_relinking_then_works(pair: Pair) -> None:
    pair.producer.call("do", "unlink", pair.producer_link)
    pair.consumer.call("do", "unlink", pair.consumer_link)
    ids = link_all(pair.producer, pair.consumer)
    assert pair.consumer.call("wait_link", ids[1]) == "OK"
    pair.consumer.call("pull", 1, 1, [0], [0])


def test_a_restarted_process_with_the_same_cluster_id_links_after_the_survivor_unlinked(
    peers: Peers,
) -> None:
    pair = peers.pair()
    pair.consumer.kill()
    again = peers(2, connect_timeout=0.5)
    again.call("register", BLOCKS, BLOCK_BYTES)
    table = rank_table(pair.producer.rank(), again.rank())
    comm = again.call("link", "comm", {1: 0, 2: 1}, table)
    assert again.call("wait_link", comm) == "FAILED"  # the survivor thinks it is linked
    again.call("do", "unlink", comm)
    pair.producer.call("do", "unlink", pair.producer_link)
    ids = link_all(pair.producer, again)
    assert again.call("wait_link", ids[1]) == "OK"
    again.call("pull", 1, 1, [0], [0])


def test_hosts_of_a_twin_have_addresses_of_their_own(peers: Peers) -> None:
    one, two = peers(1, device=0, env=HOST_A), peers(2, device=0, env=HOST_B)
    ids = link_all(one, two)
    assert two.call("wait_link", ids[1]) == "OK"
