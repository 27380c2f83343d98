"""Pushes, local copies, and pushes in the background."""

from __future__ import annotations

import pytest
from datadist_peer import BLOCK_BYTES, BLOCKS, TENSORS, Pair, Peers, link_all, refused


def test_push_blocks_writes_every_layer(pair: Pair) -> None:
    pair.consumer.call("fill", 1, seed=50)
    pair.consumer.call("push", 1, 1, [3, 4, 9], [0, 1, 15])
    for tensor in range(TENSORS):
        for local, remote in ((3, 0), (4, 1), (9, 15)):
            sent = pair.block(pair.consumer, tensor, local)
            assert pair.block(pair.producer, tensor, remote) == sent != bytes(BLOCK_BYTES)


def test_push_blocks_of_one_layer_to_another(pair: Pair) -> None:
    before = pair.producer.call("read", 1)
    pair.consumer.call("fill", 1, seed=50)
    layers = {"src_layer_range": range(1, 2), "dst_layer_range": range(0, 1)}
    pair.consumer.call("push", 1, 1, [3], [0], **layers)
    assert pair.block(pair.producer, 1, 0) == pair.block(pair.consumer, 3, 3)
    assert pair.producer.call("read", 1)[2:] == before[2:]


def test_push_needs_remote_accessible_caches(peers: Peers) -> None:
    pair = peers.pair(accessible=False)
    assert refused(pair.consumer, "push", 1, 1, [0], [0]).kind == "LLM_PARAM_INVALID"


@pytest.mark.parametrize(
    ("source", "target", "more", "kind"),
    [
        ([0], [], {}, "LLM_PARAM_INVALID"),
        ([0, 1], [0], {}, "LLM_PARAM_INVALID"),
        ([0], [BLOCKS], {}, "LLM_PARAM_INVALID"),
        ([BLOCKS], [0], {}, "LLM_PARAM_INVALID"),
        ([-1], [0], {}, "TypeError"),
        ([0], [0], {"tensor_num_per_layer": 3}, "LLM_PARAM_INVALID"),
        ([0], [0], {"src_layer_range": range(0, 1)}, "LLM_PARAM_INVALID"),
        ([0], [0], {"src_layer_range": range(2, 2)}, "LLM_PARAM_INVALID"),
        (
            [0],
            [0],
            {"src_layer_range": range(2, 3), "dst_layer_range": range(1)},
            "LLM_PARAM_INVALID",
        ),
        (
            [0],
            [0],
            {"src_layer_range": range(1), "dst_layer_range": range(2, 3)},
            "LLM_PARAM_INVALID",
        ),
    ],
)
def test_bad_pushes(
    shared_pair: Pair, source: list[int], target: list[int], more: dict[str, object], kind: str
) -> None:
    assert refused(shared_pair.consumer, "push", 1, 1, source, target, **more).kind == kind


def test_push_to_a_cluster_that_is_not_linked_or_a_key_that_is_not_there(shared_pair: Pair) -> None:
    assert refused(shared_pair.consumer, "push", 9, 1, [0], [0]).kind == "LLM_NOT_YET_LINK"
    push = "dd.cache_manager.push_blocks(lib.BlocksCacheKey(1, 5), caches[1], [0], [0])"
    assert refused(shared_pair.consumer, "run", push).kind == "LLM_KV_CACHE_NOT_EXIST"


def test_a_push_is_not_atomic_earlier_layers_stay_written(pair: Pair) -> None:
    pair.consumer.call("fill", 1, seed=50)
    layers = {"src_layer_range": range(1, 3), "dst_layer_range": range(0, 2)}  # there is no layer 2
    assert refused(pair.consumer, "push", 1, 1, [3], [0], **layers).kind == "LLM_PARAM_INVALID"
    assert pair.block(pair.producer, 0, 0) == pair.block(pair.consumer, 2, 3)


def test_push_cache_of_one_batch(peers: Peers) -> None:
    producer, consumer = peers(1), peers(2)
    for peer in (producer, consumer):
        peer.call("register", 4, 64, TENSORS, batch=True)
    consumer.call("fill", 1)
    ids = link_all(producer, consumer)
    assert consumer.call("wait_link", ids[1]) == "OK"
    push = "dd.cache_manager.push_cache(lib.CacheKeyByIdAndIndex(1, 1, 3), caches[1], 2{})"
    consumer.call("run", push.format(""))
    assert producer.call("read", 1)[3][192:] == consumer.call("read", 1)[3][128:192]
    assert refused(consumer, "run", push.format(", size=8")).kind == "LLM_PARAM_INVALID"


def test_a_push_to_a_peer_that_does_not_answer_is_a_timeout(peers: Peers) -> None:
    pair = peers.pair(timeout_ms=200)
    with pair.producer.paused():
        assert refused(pair.consumer, "push", 1, 1, [0], [0]).kind == "LLM_TIMEOUT"
    assert refused(pair.consumer, "push", 1, 1, [0], [0]).kind == "LLM_FAILED"  # as with pulls


TRANSFER = """dd.cache_manager.transfer_cache_async(
    caches[1],
    type("Computed", (lib.LayerSynchronizer,), {"synchronize_layer": lambda *_: computed})(),
    [lib.TransferWithCacheKeyConfig(lib.BlocksCacheKey(cluster), range(2), range(2))],
    [3], [0])"""


def test_transfer_cache_async_pushes_every_layer_that_is_computed(pair: Pair) -> None:
    pair.consumer.call("fill", 1, seed=50)
    task = f"[t.synchronize(5000).name for t in [{TRANSFER}]]"
    assert pair.consumer.call("run", task, computed=True, cluster=1) == ["LLM_SUCCESS"]
    assert pair.block(pair.producer, 3, 0) == pair.block(pair.consumer, 3, 3)


def test_transfer_cache_async_reports_what_failed(shared_pair: Pair) -> None:
    run = f"[[code.name for code in t.get_results(5000)] for t in [{TRANSFER}]]"
    failed = shared_pair.consumer.call("run", run, computed=True, cluster=9)
    assert failed == [["LLM_NOT_YET_LINK"]]
    not_computed = shared_pair.consumer.call("run", run, computed=False, cluster=1)
    assert not_computed == [["LLM_PARAM_INVALID"]]


def test_transfer_cache_async_waits_for_each_layer_and_then_pushes_it(pair: Pair) -> None:
    pair.consumer.call("fill", 1, seed=50)
    pair.consumer.call("run", "actor.__setattr__('asked', [])")
    arrived = "actor.asked.append(asked[1:]) or len(actor.asked) < 2"  # the second layer fails
    task = TRANSFER.replace("lambda *_: computed", f"lambda *asked: {arrived}")
    codes = pair.consumer.call("run", f"[t.synchronize(5000).name for t in [{task}]]", cluster=1)
    assert codes == ["LLM_PARAM_INVALID"]
    assert pair.consumer.call("run", "actor.asked") == [(0, None), (1, None)]
    assert pair.block(pair.producer, 0, 0) == pair.block(pair.consumer, 0, 3)
    assert pair.block(pair.producer, 2, 0) != pair.block(pair.consumer, 2, 3)


def test_transfer_cache_async_has_no_result_of_what_was_not_started(shared_pair: Pair) -> None:
    later = "lib.TransferWithCacheKeyConfig(lib.BlocksCacheKey(1), range(1, 2), range(1, 2))"
    task = TRANSFER.replace("range(2))]", f"range(2)), {later}]")
    run = f"[[code and code.name for code in t.get_results(5000)] for t in [{task}]]"
    codes = shared_pair.consumer.call("run", run, computed=True, cluster=9)
    assert codes == [["LLM_NOT_YET_LINK", None]]


def test_transfer_cache_async_takes_only_configs_with_a_key(peers: Peers) -> None:
    """Those with raw addresses, which go where caches are not accessible, are not here."""
    pair = peers.pair(accessible=False)
    more = {"computed": True, "cluster": 1}
    assert refused(pair.consumer, "run", TRANSFER, **more).kind == "TypeError"
    other = TRANSFER.replace("lib.TransferWithCacheKeyConfig(", "('no config', ")
    assert refused(peers.pair().consumer, "run", other, **more).kind == "TypeError"


def test_transfer_cache_async_that_still_runs_is_a_timeout(peers: Peers) -> None:
    pair = peers.pair(timeout_ms=500)
    with pair.producer.paused():
        task = f"[(t.synchronize(1).name, t.synchronize().name) for t in [{TRANSFER}]]"
        codes = pair.consumer.call("run", task, computed=True, cluster=1)
    assert codes == [("LLM_TIMEOUT", "LLM_TIMEOUT")]


def test_copy_blocks_to_several(peers: Peers) -> None:
    peer = peers(1)
    peer.call("register", BLOCKS, BLOCK_BYTES, TENSORS)
    peer.call("fill", 1)
    before = peer.call("read", 1)
    peer.call("manage", "copy_blocks", 1, {0: [3, 5], 1: [4]})
    for old, new in zip(before, peer.call("read", 1), strict=True):
        blocks = [new[b * BLOCK_BYTES : (b + 1) * BLOCK_BYTES] for b in range(BLOCKS)]
        assert blocks[3] == blocks[5] == old[:BLOCK_BYTES]
        assert blocks[4] == old[BLOCK_BYTES : 2 * BLOCK_BYTES]
        assert blocks[6] == old[6 * BLOCK_BYTES : 7 * BLOCK_BYTES]


@pytest.mark.parametrize(
    ("blocks", "kind"),
    [
        ({0: [BLOCKS]}, "LLM_PARAM_INVALID"),
        ({BLOCKS: [0]}, "LLM_PARAM_INVALID"),
        ({0: 1}, "TypeError"),
        ({0: ["1"]}, "TypeError"),
        ([0], "TypeError"),
    ],
)
def test_bad_copies(peers: Peers, blocks: object, kind: str) -> None:
    peer = peers(1)
    peer.call("register", BLOCKS, BLOCK_BYTES, TENSORS)
    assert refused(peer, "manage", "copy_blocks", 1, blocks).kind == kind


def test_copy_cache(peers: Peers) -> None:
    peer = peers(1)
    for _ in range(2):
        peer.call("register", 4, 64, TENSORS, batch=True)
    peer.call("fill", 1)
    copy = "dd.cache_manager.copy_cache(caches[2], caches[1], {})"
    peer.call("run", copy.format("1, 2, 8, 16"))
    source, target = peer.call("read", 1)[0], peer.call("read", 2)[0]
    assert target[64 + 8 : 64 + 24] == source[128 + 8 : 128 + 24]
    assert target[:72] + target[88:] == bytes(256 - 16)
    for bad in ("4, 0", "0, 4", "0, 0, 64", "0, 0, 60, 8", "0, 0, 0, 0"):
        assert refused(peer, "run", copy.format(bad)).kind == "LLM_PARAM_INVALID"


def test_swap_blocks_is_between_host_and_device(peers: Peers) -> None:
    peer = peers(1)
    peer.call("register", BLOCKS, BLOCK_BYTES, TENSORS)
    peer.call("fill", 1)
    peer.call("host_cache", 2)
    swap = "dd.cache_manager.swap_blocks(caches[{}], caches[{}], {})"
    peer.call("run", swap.format(1, 2, {3: 5}))
    for device, host in zip(peer.call("read", 1), peer.call("read", 2), strict=True):
        block = host[5 * BLOCK_BYTES : 6 * BLOCK_BYTES]
        assert block == device[3 * BLOCK_BYTES : 4 * BLOCK_BYTES] != bytes(BLOCK_BYTES)
    peer.call("run", swap.format(2, 1, {5: 0}))
    assert peer.call("read", 1)[0][:BLOCK_BYTES] == peer.call("read", 2)[0][5 * 1024 : 6 * 1024]
    for bad in ((1, 1, {0: 1}), (1, 2, {BLOCKS: 0}), (1, 2, {0: BLOCKS})):
        assert refused(peer, "run", swap.format(*bad)).kind == "LLM_PARAM_INVALID"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"block_bytes": 2 * BLOCK_BYTES}, "block size:1024 and dst block size:2048 must be equal"),
        ({"block_bytes": BLOCK_BYTES, "tensors": 6}, "num_tensors:6 and dst num_tensors:4 must be"),
    ],
)
def test_swap_blocks_needs_equal_block_sizes_and_numbers_of_tensors(
    peers: Peers, other: dict[str, int], said: str
) -> None:
    peer = peers(1)
    peer.call("register", BLOCKS, BLOCK_BYTES, other.get("tensors", TENSORS))
    peer.call("host_cache", 2, BLOCKS, other["block_bytes"])
    error = refused(peer, "run", "dd.cache_manager.swap_blocks(caches[1], caches[2], {0: 0})")
    assert error.kind == "LLM_PARAM_INVALID"
    assert said in error.message
