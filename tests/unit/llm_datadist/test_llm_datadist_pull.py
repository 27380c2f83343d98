"""pull_blocks: what arrives, and every check in CANN's order."""

from __future__ import annotations

import time

import pytest
from datadist_peer import (
    BLOCK_BYTES,
    BLOCKS,
    ENTITY,
    TENSORS,
    Pair,
    Peers,
    link_all,
    rank_table,
    refused,
    wait_until,
)

KEY = "lib.BlocksCacheKey(1)"


def test_each_block_arrives_in_its_place_in_every_tensor(pair: Pair) -> None:
    source, target = [3, 0, 15, 7], [1, 4, 0, 9]
    before = pair.consumer.call("read", 1)
    pair.consumer.call("pull", 1, 1, source, target)
    for tensor in range(TENSORS):
        for one, other in zip(source, target, strict=True):
            sent, received = pair.both(tensor, one, other)
            assert sent == received != bytes(BLOCK_BYTES)
        for untouched in set(range(BLOCKS)) - set(target):
            start = untouched * BLOCK_BYTES
            expected = before[tensor][start : start + BLOCK_BYTES]
            assert pair.block(pair.consumer, tensor, untouched) == expected


def test_it_returns_nothing_and_tells_the_peer_nothing(shared_pair: Pair) -> None:
    call = f"dd.cache_manager.pull_blocks({KEY}, caches[1], [1], [2])"
    before = shared_pair.producer.call("read", 1)
    assert shared_pair.consumer.call("run", call) is None
    assert shared_pair.producer.call("read", 1) == before


def test_it_is_one_sided_both_sides_may_pull(pair: Pair) -> None:
    pair.consumer.call("fill", 1, seed=77)
    pair.producer.call("pull", 2, 1, [5], [6])
    assert pair.block(pair.producer, 2, 6) == pair.block(pair.consumer, 2, 5)


def test_the_owner_serves_while_its_caller_is_busy(shared_pair: Pair) -> None:
    shared_pair.producer.call("start", "busy", "run", "sum(range(30_000_000))")
    assert shared_pair.consumer.call("pull", 1, 1, [1], [2]) < 2
    shared_pair.producer.call("finish", "busy")


def test_what_the_owner_writes_later_is_what_is_read_later(pair: Pair) -> None:
    pair.consumer.call("pull", 1, 1, [3], [3])
    pair.producer.call("fill", 1, seed=5)
    pair.consumer.call("pull", 1, 1, [3], [3])
    assert len(set(pair.both(1, 3, 3))) == 1


def test_runs_of_consecutive_pairs_are_merged() -> None:
    from llm_datadist.native.transfer import Runs, merge

    assert merge([4, 5, 6], [1, 2, 3]) == Runs(remote=(4,), local=(1,), count=(3,))
    assert merge([4, 5, 6], [1, 2, 9]) == Runs(remote=(4, 6), local=(1, 9), count=(2, 1))
    assert merge([6, 5], [2, 1]) == Runs(remote=(6, 5), local=(2, 1), count=(1, 1))
    assert merge([], []) == Runs((), (), ())
    assert merge([9, 4, 5], [8, 1, 2]).sorted_by_local() == Runs((4, 9), (1, 8), (2, 1))


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ("1, caches[1], [0], [0]", "TypeError"),
        (f"{KEY}, 1, [0], [0]", "TypeError"),
        (f"{KEY}, caches[1], {{0}}, [0]", "TypeError"),
        (f"{KEY}, caches[1], ['0'], [0]", "TypeError"),
        (f"{KEY}, caches[1], [__import__('numpy').int64(0)], [0]", "TypeError"),
        (f"{KEY}, caches[1], [-1], [0]", "TypeError"),
        (f"{KEY}, caches[1], [0], [-1]", "TypeError"),
        (f"{KEY}, caches[1], [0], []", "LLM_PARAM_INVALID"),
        (f"{KEY}, caches[1], [], [0]", "LLM_PARAM_INVALID"),
        ("lib.CacheKeyByIdAndIndex(1, 1), caches[1], [0], [0]", "LLM_PARAM_INVALID"),
        ("lib.CacheKey(1, 2**64 - 1), caches[1], [], [0]", "LLM_PARAM_INVALID"),
        (f"{KEY}, caches[1], [0], [0], tensor_num_per_layer=0", "LLM_PARAM_INVALID"),
        (f"{KEY}, caches[1], [0], [0], tensor_num_per_layer=-1", "ValueError"),
        (f"{KEY}, caches[1], [0], [0], src_layer_range=[0]", "TypeError"),
        (f"{KEY}, caches[1], [0], [0], src_layer_range=range(0, 2, 2)", "LLM_PARAM_INVALID"),
        (f"{KEY}, caches[1], [0], [0], dst_layer_range=range(-1, 1)", "LLM_PARAM_INVALID"),
    ],
)
def test_what_python_checks(shared_pair: Pair, arguments: str, kind: str) -> None:
    call = f"dd.cache_manager.pull_blocks({arguments})"
    assert refused(shared_pair.consumer, "run", call).kind == kind


def test_lists_and_tuples_are_fine_and_none_fails_where_its_length_is_asked(
    shared_pair: Pair,
) -> None:
    call = "dd.cache_manager.pull_blocks({}, caches[1], {}, (0,))"
    shared_pair.consumer.call("run", call.format(KEY, "(0,)"))
    error = refused(shared_pair.consumer, "run", call.format(KEY, "None"))
    assert (error.kind, error.message) == ("TypeError", "object of type 'NoneType' has no len()")


def test_the_target_must_be_a_blocks_cache(peers: Peers) -> None:
    peer = peers(2)
    peer.call("register", BLOCKS, BLOCK_BYTES, batch=True)
    error = refused(peer, "pull", 1, 1, [0], [0])
    assert error.message == "param check failed, dst_cache should be blocks cache."


def test_a_failure_reads_as_in_cann(shared_pair: Pair) -> None:
    error = refused(shared_pair.consumer, "pull", 9, 1, [0], [0])
    assert error.message == (
        "[pull_blocks] failed, error code is LLMStatusCode.LLM_NOT_YET_LINK, "
        "src_cache_key = BlocksCacheKey(cluster_id=9, model_id=0)."
    )


# Each check of the native order is shown to come before the next: the call violates both.


def pull_with(pair: Pair, cluster: int = 1, **wrong: object) -> str:
    """Kind of the failure of a pull that is right but for `wrong`."""
    arguments = {"source": [0], "target": [0], "model_id": 0} | wrong
    pair.consumer.call("run", "caches.setdefault(99, actor.unknown_cache())")
    cache = arguments.pop("cache", 1)
    return refused(pair.consumer, "pull", cluster, cache, **arguments).kind


def test_check_1_own_cluster_before_2_unknown_target_cache(shared_pair: Pair) -> None:
    assert pull_with(shared_pair, cluster=2, cache=99) == "LLM_PARAM_INVALID"


def test_check_2_unknown_target_cache_before_3_layer_ranges(shared_pair: Pair) -> None:
    wrong = {"cache": 99, "dst_layer_range": range(7, 9)}
    assert pull_with(shared_pair, **wrong) == "LLM_KV_CACHE_NOT_EXIST"


@pytest.mark.parametrize(
    "ranges",
    [
        {"dst_layer_range": range(1, 3)},  # there are two layers
        {"src_layer_range": range(0, 1)},  # and all of the target
        {"src_layer_range": range(0, 2), "dst_layer_range": range(0, 1)},
        {"src_layer_range": range(0, 1), "tensor_num_per_layer": 3},  # 4 is no multiple of 3
    ],
)
def test_check_3_layer_ranges_before_4_not_linked(
    shared_pair: Pair, ranges: dict[str, object]
) -> None:
    assert pull_with(shared_pair, cluster=9, **ranges) == "LLM_PARAM_INVALID"


def test_check_4_not_linked_before_6_lengths(shared_pair: Pair) -> None:
    assert pull_with(shared_pair, cluster=9, source=[0, 1]) == "LLM_NOT_YET_LINK"


def test_check_4_a_link_that_prepares_is_no_link(peers: Peers) -> None:
    peer = peers(2)
    peer.call("register", BLOCKS, BLOCK_BYTES)
    table = rank_table({"server": "127.0.0.1", "device": 1}, peer.rank())
    peer.call("link", "n", {1: 0, 2: 1}, table)
    assert refused(peer, "pull", 1, 1, [0], [0]).kind == "LLM_NOT_YET_LINK"


def test_check_4_a_link_that_is_given_up_while_a_pull_waits_for_its_turn(pair: Pair) -> None:
    consumer = pair.consumer
    consumer.call("run", f"{ENTITY}.lock.acquire()")
    consumer.call("start", "t", "pull", 1, 1, [0], [0])
    wait_until(consumer, "dd._engine._lock._holders")
    consumer.call("run", f"setattr({ENTITY}, 'destroyed', True)")
    consumer.call("run", f"{ENTITY}.lock.release()")
    assert consumer.call("finish", "t")[0][0] == "LLM_NOT_YET_LINK"


def test_check_5_waits_for_the_peers_running_pull_after_4_and_before_6_lengths(
    peers: Peers,
) -> None:
    pair = peers.pair(timeout_ms=600)
    with pair.producer.paused():
        pair.consumer.call("start", "t", "pull", 1, 1, [0], [0])
        pair.wait_until_pulling()
        assert pull_with(pair, cluster=9, source=[0, 1]) == "LLM_NOT_YET_LINK"
        assert pair.consumer.call("run", "dd._engine._lock._holders") == 1, "it did not wait"
        assert pull_with(pair, source=[0, 1]) == "LLM_PARAM_INVALID"
        assert pair.consumer.call("run", "dd._engine._lock._holders") == 0, "it waited"
    assert pair.consumer.call("finish", "t")[0][0] == "LLM_TIMEOUT"


def test_check_6_lengths_before_9_unknown_source_cache(shared_pair: Pair) -> None:
    assert pull_with(shared_pair, source=[0, 1], model_id=5) == "LLM_PARAM_INVALID"


def test_check_7_target_block_in_range_before_9_unknown_source_cache(shared_pair: Pair) -> None:
    assert pull_with(shared_pair, target=[BLOCKS], model_id=5) == "LLM_PARAM_INVALID"
    end = {"source": [0, 1], "target": [BLOCKS - 1, BLOCKS]}  # the run's end counts
    assert pull_with(shared_pair, model_id=5, **end) == "LLM_PARAM_INVALID"


def test_check_8_size_of_the_request_before_9_unknown_source_cache(peers: Peers) -> None:
    pair = peers.pair(register=False)
    count = (7160 - TENSORS) // 2
    for peer in (pair.producer, pair.consumer):
        peer.call("register", 2 * count + 2, 4, TENSORS, remote_accessible=False)
    scattered = [2 * i for i in range(count + 1)]
    assert pull_with(pair, source=scattered, target=scattered, model_id=5) == "LLM_PARAM_INVALID"
    fits = scattered[:-1]
    assert pull_with(pair, source=fits, target=fits, model_id=5) == "LLM_KV_CACHE_NOT_EXIST"


def test_check_8_counts_runs_not_blocks(peers: Peers) -> None:
    pair = peers.pair(register=False)
    for peer in (pair.producer, pair.consumer):
        peer.call("register", 8000, 4, TENSORS)
    every = list(range(8000))
    kind = pull_with(pair, source=every, target=every)
    assert kind == "LLM_PARAM_INVALID"  # check 10: registered after link; not check 8, see below
    assert pull_with(pair, source=every, target=every, model_id=5) == "LLM_KV_CACHE_NOT_EXIST"


def test_check_9_an_unknown_source_cache(shared_pair: Pair) -> None:
    assert pull_with(shared_pair, model_id=5) == "LLM_KV_CACHE_NOT_EXIST"


def test_check_9_the_peers_table_is_read_once_per_link(pair: Pair) -> None:
    pair.consumer.call("pull", 1, 1, [0], [0])
    pair.producer.call("register", BLOCKS, BLOCK_BYTES, TENSORS, model_id=5)
    assert pull_with(pair, model_id=5) == "LLM_KV_CACHE_NOT_EXIST"
    pair.producer.call("do", "unlink", pair.producer_link)
    pair.consumer.call("do", "unlink", pair.consumer_link)
    ids = link_all(pair.producer, pair.consumer)
    assert pair.consumer.call("wait_link", ids[1]) == "OK"
    assert pull_with(pair, model_id=5) == "LLM_PARAM_INVALID"  # known now, but not accessible


def test_check_9_what_the_peer_unregisters_stays_in_the_table(pair: Pair) -> None:
    pair.consumer.call("pull", 1, 1, [0], [0])
    pair.producer.call("run", "dd.cache_manager.unregister_cache(1)")
    assert pull_with(pair) == "LLM_FAILED"  # its memory is not served any more


def test_check_10_both_caches_must_be_remote_accessible(peers: Peers) -> None:
    for accessible in ((True, False), (False, True)):
        producer, consumer = peers(1), peers(2)
        for peer, flag in zip((producer, consumer), accessible, strict=True):
            peer.call("register", BLOCKS, BLOCK_BYTES, TENSORS, remote_accessible=flag)
        ids = link_all(producer, consumer)
        assert consumer.call("wait_link", ids[1]) == "OK"
        assert refused(consumer, "pull", 1, 1, [0], [0]).kind == "LLM_PARAM_INVALID"
        for peer in (producer, consumer):
            peer.close()


def test_check_11_numbers_of_tensors_must_agree(peers: Peers) -> None:
    producer, consumer = peers(1), peers(2)
    producer.call("register", BLOCKS, BLOCK_BYTES, 6)
    consumer.call("register", BLOCKS, BLOCK_BYTES, 4)
    ids = link_all(producer, consumer)
    assert consumer.call("wait_link", ids[1]) == "OK"
    assert refused(consumer, "pull", 1, 1, [0], [0]).kind == "LLM_PARAM_INVALID"
    layers = {"src_layer_range": range(1, 3), "dst_layer_range": range(0, 2)}
    consumer.call("pull", 1, 1, [0], [0], **layers)


@pytest.mark.parametrize(
    ("source", "target"), [([BLOCKS], [0]), ([BLOCKS + 4, BLOCKS + 5], [0, 1])]
)
def test_check_11_source_blocks_in_range(
    shared_pair: Pair, source: list[int], target: list[int]
) -> None:
    assert pull_with(shared_pair, source=source, target=target) == "LLM_PARAM_INVALID"


def test_check_11_a_run_that_is_longer_than_the_remote_tensor(peers: Peers) -> None:
    producer, consumer = peers(1), peers(2)
    producer.call("register", BLOCKS, BLOCK_BYTES)
    consumer.call("register", 2 * BLOCKS, BLOCK_BYTES)
    ids = link_all(producer, consumer)
    assert consumer.call("wait_link", ids[1]) == "OK"
    blocks = list(range(BLOCKS + 1))
    assert refused(consumer, "pull", 1, 1, blocks, blocks).kind == "LLM_PARAM_INVALID"
    consumer.call("pull", 1, 1, blocks[:-1], blocks[:-1])


def test_check_11_a_run_that_ends_beyond_the_tensor_is_refused_by_the_owners_memory(
    pair: Pair,
) -> None:
    # CANN checks where a run starts; the end meets memory that is not registered.
    wrong = {"source": [BLOCKS - 1, BLOCKS], "target": [0, 1]}
    assert pull_with(pair, **wrong) == "LLM_FAILED"


def test_the_local_block_size_counts_on_both_sides_and_a_difference_is_not_noticed(
    peers: Peers,
) -> None:
    producer, consumer = peers(1), peers(2)
    producer.call("register", 8, 2048, TENSORS)
    consumer.call("register", 16, 1024, TENSORS)
    producer.call("fill", 1)
    ids = link_all(producer, consumer)
    assert consumer.call("wait_link", ids[1]) == "OK"
    consumer.call("pull", 1, 1, [3], [0])
    assert consumer.call("read", 1)[0][:1024] == producer.call("read", 1)[0][3072:4096]


def test_nothing_is_written_before_all_checks_have_passed(pair: Pair) -> None:
    before = pair.consumer.call("read", 1)
    pull_with(pair, source=[0, BLOCKS], target=[0, 1])
    pull_with(pair, source=[0, 1], target=[0, BLOCKS])
    assert pair.consumer.call("read", 1) == before


def test_layer_ranges(pair: Pair) -> None:
    layers = {"src_layer_range": range(1, 2), "dst_layer_range": range(0, 1)}
    pair.consumer.call("pull", 1, 1, [3], [4], **layers)
    for half in (0, 1):
        assert pair.block(pair.consumer, half, 4) == pair.block(pair.producer, 2 + half, 3)
        assert pair.block(pair.consumer, 2 + half, 4) == bytes(BLOCK_BYTES)


def test_tensor_num_per_layer(pair: Pair) -> None:
    layers = {"src_layer_range": range(3, 4), "dst_layer_range": range(2, 3)}
    pair.consumer.call("pull", 1, 1, [3], [4], tensor_num_per_layer=1, **layers)
    assert pair.block(pair.consumer, 2, 4) == pair.block(pair.producer, 3, 3)
    assert pair.block(pair.consumer, 3, 4) == bytes(BLOCK_BYTES)


def test_several_caches_by_model_id(peers: Peers) -> None:
    producer, consumer = peers(1), peers(2)
    for peer in (producer, consumer):  # as MLA's two caches of different width
        peer.call("register", BLOCKS, 512, 2, model_id=0)
        peer.call("register", BLOCKS, 64, 2, model_id=1)
    producer.call("fill", 2)
    ids = link_all(producer, consumer)
    assert consumer.call("wait_link", ids[1]) == "OK"
    consumer.call("pull", 1, 2, [1], [2], model_id=1)
    assert consumer.call("read", 2)[0][128:192] == producer.call("read", 2)[0][64:128]


def test_default_time_limit_is_1_s_and_exceeding_it_is_a_timeout(peers: Peers) -> None:
    pair = peers.pair(timeout_ms=None)
    pair.consumer.call("pull", 1, 1, [0], [0])
    with pair.producer.paused():
        started = time.monotonic()
        assert refused(pair.consumer, "pull", 1, 1, [0], [0]).kind == "LLM_TIMEOUT"
        assert 0.9 < time.monotonic() - started < 3


def test_after_a_timeout_the_link_carries_nothing_until_it_is_made_anew(peers: Peers) -> None:
    pair = peers.pair(timeout_ms=200)
    with pair.producer.paused():
        assert refused(pair.consumer, "pull", 1, 1, [0], [0]).kind == "LLM_TIMEOUT"
    assert refused(pair.consumer, "pull", 1, 1, [0], [0]).kind == "LLM_FAILED"
    assert pair.consumer.call("status", pair.consumer_link) == "OK"  # it does not show there
    pair.producer.call("do", "unlink", pair.producer_link)
    pair.consumer.call("do", "unlink", pair.consumer_link)
    ids = link_all(pair.producer, pair.consumer)
    assert pair.consumer.call("wait_link", ids[1]) == "OK"
    pair.consumer.call("pull", 1, 1, [0], [0])


@pytest.mark.parametrize("pulled_before", [False, True])
def test_a_dead_peer_is_a_transport_error(pair: Pair, pulled_before: bool) -> None:
    if pulled_before:
        pair.consumer.call("pull", 1, 1, [0], [0])
    pair.producer.kill()
    assert refused(pair.consumer, "pull", 1, 1, [0], [0]).kind == "LLM_FAILED"


def test_a_peer_that_dies_during_a_pull_is_a_transport_error(pair: Pair) -> None:
    with pair.producer.paused():
        pair.consumer.call("start", "t", "pull", 1, 1, [0], [0])
        pair.wait_until_pulling()
        pair.producer.kill()
    assert pair.consumer.call("finish", "t")[0][0] == "LLM_FAILED"


def test_without_remote_accessible_caches_the_owner_looks_its_table_up_anew(peers: Peers) -> None:
    pair = peers.pair(accessible=False)
    pair.consumer.call("pull", 1, 1, [2], [3])
    assert len(set(pair.both(0, 2, 3))) == 1
    assert pull_with(pair, source=[BLOCKS]) == "LLM_PARAM_INVALID"
    assert pull_with(pair, model_id=5) == "LLM_KV_CACHE_NOT_EXIST"
    for peer in (pair.producer, pair.consumer):
        peer.call("register", BLOCKS, BLOCK_BYTES, TENSORS, model_id=5)
    pair.consumer.call("pull", 1, 2, [2], [3], model_id=5)


# Caches of batches


def linked_batches(peers: Peers, **options: object) -> tuple[object, object]:
    producer, consumer = peers(1, **options), peers(2, **options)
    for peer in (producer, consumer):
        peer.call("register", 4, 64, TENSORS, batch=True, keys=[10, 11])
    consumer.call("register", BLOCKS, 16, TENSORS)
    producer.call("fill", 1)
    ids = link_all(producer, consumer)
    assert consumer.call("wait_link", ids[1]) == "OK"
    return producer, consumer


def test_pull_cache_of_one_batch(peers: Peers) -> None:
    producer, consumer = linked_batches(peers)
    pull = "dd.cache_manager.pull_cache(lib.CacheKeyByIdAndIndex(1, 1, 3), caches[1], {})"
    consumer.call("run", pull.format("2"))
    assert consumer.call("read", 1)[1][128:192] == producer.call("read", 1)[1][192:256]
    consumer.call("run", pull.format("0, 8"))
    assert consumer.call("read", 1)[1][:16] == producer.call("read", 1)[1][192:200] + bytes(8)
    assert refused(consumer, "run", pull.format("4")).kind == "LLM_PARAM_INVALID"
    assert refused(consumer, "run", pull.format("0, 65")).kind == "LLM_PARAM_INVALID"
    assert refused(consumer, "run", pull.format("0, 0")).kind == "LLM_PARAM_INVALID"


def test_pull_cache_with_accessible_caches_takes_only_keys_by_id(peers: Peers) -> None:
    _, consumer = linked_batches(peers)
    pull = "dd.cache_manager.pull_cache(lib.CacheKey(1, 11), caches[1])"
    assert refused(consumer, "run", pull).kind == "TypeError"


def test_pull_cache_by_request_id_if_caches_are_not_accessible(peers: Peers) -> None:
    producer, consumer = linked_batches(peers, accessible=False)
    consumer.call("run", "dd.cache_manager.pull_cache(lib.CacheKey(1, 11), caches[1])")
    assert consumer.call("read", 1)[0][:64] == producer.call("read", 1)[0][64:128]
    unknown = "dd.cache_manager.pull_cache(lib.CacheKey(1, 12), caches[1])"
    assert refused(consumer, "run", unknown).kind == "LLM_KV_CACHE_NOT_EXIST"


def test_remove_cache_key_leaves_a_registered_cache_as_it_is(peers: Peers) -> None:
    producer, consumer = linked_batches(peers, accessible=False)
    producer.call("run", "dd.cache_manager.remove_cache_key(lib.CacheKey(1, 11))")
    consumer.call("run", "dd.cache_manager.pull_cache(lib.CacheKey(1, 11), caches[1])")


def test_a_batchs_key_stays_with_the_cache_that_had_it_first(peers: Peers) -> None:
    producer, consumer = peers(1, accessible=False), peers(2, accessible=False)
    for cache in (1, 2):
        producer.call("register", 4, 64, batch=True, keys=[10])
        producer.call("fill", cache, seed=cache)
    consumer.call("register", 4, 64, batch=True)
    ids = link_all(producer, consumer)
    assert consumer.call("wait_link", ids[1]) == "OK"
    consumer.call("run", "dd.cache_manager.pull_cache(lib.CacheKey(1, 10), caches[1])")
    assert consumer.call("read", 1)[0][:64] == producer.call("read", 1)[0][:64]


def test_a_batch_without_an_id_has_a_place_and_is_no_blocks_cache(peers: Peers) -> None:
    producer, consumer = peers(1, accessible=False), peers(2, accessible=False)
    producer.call("register", 4, 64, batch=True, keys=[2**64 - 1, 11])
    producer.call("fill", 1)
    consumer.call("register", 4, 64, batch=True)
    consumer.call("register", BLOCKS, 64)
    ids = link_all(producer, consumer)
    assert consumer.call("wait_link", ids[1]) == "OK"
    consumer.call("run", "dd.cache_manager.pull_cache(lib.CacheKey(1, 11), caches[1])")
    assert consumer.call("read", 1)[0][:64] == producer.call("read", 1)[0][64:128]
    assert refused(consumer, "pull", 1, 2, [0], [0]).kind == "LLM_KV_CACHE_NOT_EXIST"


def test_pull_blocks_from_a_batch_cuts_it_into_our_blocks(peers: Peers) -> None:
    producer, consumer = linked_batches(peers)
    key = "lib.CacheKeyByIdAndIndex(1, 1, 0)"
    consumer.call("run", f"dd.cache_manager.pull_blocks({key}, caches[2], [], [5, 3])")
    received, sent = consumer.call("read", 2)[0], producer.call("read", 1)[0]
    assert received[5 * 16 : 6 * 16] + received[3 * 16 : 4 * 16] == sent[:32]
