"""Which calls run at the same time."""

from __future__ import annotations

import time

from datadist_peer import (
    BLOCK_BYTES,
    BLOCKS,
    ENTITY,
    TENSORS,
    Pair,
    Peer,
    Peers,
    link_all,
    rank_table,
    refused,
    wait_until,
)

SLOW = 0.8  # seconds a pull from a paused peer takes: its time limit


def three(peers: Peers) -> tuple[Peer, Peer, Peer]:
    """Two producers (1 and 2) linked with a consumer (3)."""
    members = (peers(1), peers(2), peers(3, timeout_ms=int(SLOW * 1000)))
    for member in members:
        member.call("register", BLOCKS, BLOCK_BYTES, TENSORS)
        member.call("fill", 1, seed=member.cluster_id)
    for producer in members[:2]:
        ids = link_all(producer, members[2], name=f"{producer.cluster_id}")
        assert members[2].call("wait_link", ids[1]) == "OK"
    return members


def test_a_slow_peer_does_not_delay_pulls_from_another(peers: Peers) -> None:
    one, _, consumer = three(peers)
    consumer.call("pull", 2, 1, [0], [0])
    with one.paused():
        consumer.call("start", "slow", "pull", 1, 1, [0], [0])
        seconds = [consumer.call("pull", 2, 1, [i], [i]) for i in range(5)]
    _, ended = consumer.call("finish", "slow")
    assert max(seconds) < SLOW
    assert ended is not None


def test_pulls_from_one_peer_are_serialised(peers: Peers) -> None:
    one, _, consumer = three(peers)
    with one.paused():
        started = time.monotonic()
        for name in ("a", "b"):
            consumer.call("start", name, "pull", 1, 1, [0], [0])
        outcomes = [consumer.call("finish", name) for name in ("a", "b")]
    # The first waits out its limit; the second gets the lock then and finds the link dead.
    assert {kind for (kind, _), _ in outcomes} == {"LLM_TIMEOUT", "LLM_FAILED"}
    assert all(ended - started >= SLOW * 0.9 for _, ended in outcomes)


def test_a_push_waits_for_the_peers_running_pull(peers: Peers) -> None:
    one, _, consumer = three(peers)
    consumer.call("pull", 1, 1, [0], [0])
    with one.paused():
        started = time.monotonic()
        consumer.call("start", "slow", "pull", 1, 1, [0], [0])
        wait_until(consumer, f"{ENTITY}.lock.locked()")
        assert refused(consumer, "push", 1, 1, [0], [0]).kind == "LLM_FAILED"  # the link is dead
        assert time.monotonic() - started > SLOW / 2
    assert consumer.call("finish", "slow")[0][0] == "LLM_TIMEOUT"


def test_link_and_unlink_are_serialised(peers: Peers) -> None:
    """Unlink waits for a running pull, and whoever links with another meanwhile waits for it."""
    one, two, consumer = three(peers)
    table = rank_table(two.rank(), consumer.rank())
    with one.paused():
        started = time.monotonic()
        consumer.call("start", "slow", "pull", 1, 1, [0], [0])
        wait_until(consumer, f"{ENTITY}.lock.locked()")
        consumer.call("start", "unlink", "do", "unlink", 1)
        wait_until(consumer, "dd._engine._links._linking.locked()")
        consumer.call("link", "again", {2: 0, 3: 1}, table)
        assert time.monotonic() - started > SLOW / 2
    assert consumer.call("finish", "slow")[0][0] == "LLM_TIMEOUT"
    assert consumer.call("finish", "unlink")[0][0] == "result"


def test_pushes_are_serialised_over_all_peers(peers: Peers) -> None:
    one, _, consumer = three(peers)
    with one.paused():
        started = time.monotonic()
        consumer.call("start", "slow", "push", 1, 1, [0], [0])
        wait_until(consumer, "dd._engine._pushing.locked()")
        consumer.call("push", 2, 1, [0], [0])
        assert time.monotonic() - started > SLOW / 2
    assert consumer.call("finish", "slow")[0][0] == "LLM_TIMEOUT"


def test_waiting_for_a_peer_does_not_hold_the_gil(peers: Peers) -> None:
    one, _, consumer = three(peers)
    with one.paused():
        consumer.call("start", "slow", "pull", 1, 1, [0], [0])
        started = time.monotonic()
        for _ in range(20):
            consumer.call("run", "1 + 1")
        assert time.monotonic() - started < SLOW
    consumer.call("finish", "slow")


def test_status_may_be_asked_while_a_pull_runs(pair: Pair) -> None:
    with pair.producer.paused():
        pair.consumer.call("start", "t", "pull", 1, 1, [0], [0])
        pair.wait_until_pulling()
        assert pair.consumer.call("status", pair.consumer_link) == "OK"
    assert pair.consumer.call("finish", "t")[0][0] == "result"


def test_many_pulls_at_the_same_time_bring_the_right_bytes(peers: Peers) -> None:
    one, two, consumer = three(peers)
    for block in range(BLOCKS):
        source = 1 + block % 2
        consumer.call("start", f"{block}", "pull", source, 1, [block], [BLOCKS - 1 - block])
    for block in range(BLOCKS):
        assert consumer.call("finish", f"{block}")[0][0] == "result"
    contents = [one.call("read", 1), two.call("read", 1)]
    received = consumer.call("read", 1)
    for block in range(BLOCKS):
        start, target = block * BLOCK_BYTES, (BLOCKS - 1 - block) * BLOCK_BYTES
        for tensor in range(TENSORS):
            sent = contents[block % 2][tensor][start : start + BLOCK_BYTES]
            assert received[tensor][target : target + BLOCK_BYTES] == sent
