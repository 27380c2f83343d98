"""init, finalize, and what may be called between."""

from __future__ import annotations

import time
from pathlib import Path

import numpy
import pytest
from datadist_peer import BLOCK_BYTES, BLOCKS, TENSORS, Pair, Peers, link_all, refused

UNINITIALISED = "llm datadist is not initialized"
SAID = {"remote_accessible": True}


@pytest.mark.parametrize(
    "call",
    [
        ("do", "link", "n", {1: 0, 2: 1}, "{}"),
        ("do", "unlink", 1),
        ("do", "query_register_mem_status", 1),
        ("do", "link_clusters", []),
        ("do", "unlink_clusters", []),
        ("run", "dd.cache_manager"),
        ("run", "dd.kv_cache_manager"),
        ("run", "dd.switch_role(lib.LLMRole.MIX)"),
    ],
)
def test_before_init_and_after_finalize_everything_is_a_runtime_error(
    peers: Peers, call: tuple[object, ...]
) -> None:
    peer = peers(1, initialise=False)
    assert refused(peer, *call).message == UNINITIALISED
    peer.call("init", device=1)
    peer.call("do", "finalize")
    error = refused(peer, *call)
    assert (error.kind, error.message) == ("RuntimeError", UNINITIALISED)


def test_a_second_init_on_the_same_object_is_nothing(peers: Peers) -> None:
    peer = peers(1)
    peer.call("init", device=1)


def test_a_second_object_in_a_process_is_refused_until_the_first_is_finalized(
    peers: Peers,
) -> None:
    peer = peers(1)
    another = "actor.__setattr__('other', lib.LLMDataDist(lib.LLMRole.MIX, 9))"
    peer.call("run", another)
    init = "actor.other.init({'llm.EnableCacheManager': '1'})"
    error = refused(peer, "run", init)
    assert (error.kind, error.message) == ("LLM_FAILED", "Cannot init multiple LLMDataDists")
    peer.call("do", "finalize")
    peer.call("run", init)


def test_the_callers_options_stay_as_they_are(peers: Peers) -> None:
    peer = peers(1, initialise=False)
    options = {"llm.EnableCacheManager": "1"}
    assert peer.call("run", "[dd.init(o), o][1]", o=options) == options


def test_without_cache_manager_mode_there_is_nothing_here(peers: Peers) -> None:
    peer = peers(1, initialise=False)
    assert refused(peer, "run", "dd.init({})").kind == "LLM_PARAM_INVALID"


def test_with_cache_manager_mode_the_calls_of_version_1_are_refused(peers: Peers) -> None:
    peer = peers(1)
    for call in ("dd.kv_cache_manager", "dd.check_link_status(2)"):
        assert refused(peer, "run", call).kind == "LLM_PARAM_INVALID"


def test_local_comm_res_implies_cache_manager_mode(peers: Peers) -> None:
    peer = peers(1, initialise=False)
    peer.call("run", "dd.init({'llm.LocalCommRes': ''})")
    assert peer.call("run", "dd.cache_manager is not None")


def test_the_roles_label_does_not_matter_and_can_be_switched(peers: Peers) -> None:
    peers(1).call("run", "dd.switch_role(lib.LLMRole.DECODER, {})")


@pytest.mark.parametrize("role", ["DECODER", "MIX"])
def test_whatever_the_role_both_sides_may_pull_and_push(peers: Peers, role: str) -> None:
    pair = peers.pair(role=role)
    for peer, other in ((pair.consumer, 1), (pair.producer, 2)):
        peer.call("pull", other, 1, [3], [4])
        peer.call("push", other, 1, [3], [4])


@pytest.mark.parametrize(
    ("role", "text"), [("PROMPT", "Prompt"), ("DECODER", "Decoder"), ("MIX", "Mix")]
)
def test_the_engine_is_told_the_role_in_its_options(peers: Peers, role: str, text: str) -> None:
    assert peers(1, role=role).call("run", "dd._options['llm.Role']") == text


def test_finalize_is_idempotent_and_leaves_no_file(peers: Peers, tmp_path: Path) -> None:
    peer = peers(1)
    assert [file.name for file in (tmp_path / "datadist").iterdir()] == ["1@localhost.1.json"]
    peer.call("do", "finalize")
    peer.call("do", "finalize")
    assert list((tmp_path / "datadist").iterdir()) == []


def test_an_exiting_process_finalizes_itself(peers: Peers, tmp_path: Path) -> None:
    peers(1).close()
    assert list((tmp_path / "datadist").iterdir()) == []


def test_finalize_leaves_the_file_of_a_successor(peers: Peers, tmp_path: Path) -> None:
    old = peers(1)
    peers(1)
    old.call("do", "finalize")
    assert len(list((tmp_path / "datadist").iterdir())) == 1


def test_finalize_leaves_no_thread(pair: Pair) -> None:
    pair.consumer.call("pull", 1, 1, [0], [0])
    threads = "[t.name for t in __import__('threading').enumerate() if 'datadist' in t.name]"
    assert pair.producer.call("run", threads) != []
    for peer in (pair.producer, pair.consumer):
        peer.call("do", "finalize")
        assert peer.call("run", threads) == []


def test_finalize_unlinks_everything(pair: Pair) -> None:
    pair.producer.call("do", "finalize")
    assert refused(pair.consumer, "pull", 1, 1, [0], [0]).kind == "LLM_FAILED"
    pair.producer.call("init", device=1)
    assert refused(pair.producer, "status", pair.producer_link).kind == "LLM_NOT_YET_LINK"
    assert pair.producer.call("register", BLOCKS, BLOCK_BYTES) == 1
    assert refused(pair.producer, "push", 2, 1, [0], [0]).kind == "LLM_NOT_YET_LINK"


def test_finalize_waits_for_a_running_pull(peers: Peers) -> None:
    pair = peers.pair(timeout_ms=1000)
    with pair.producer.paused():
        pair.consumer.call("start", "t", "pull", 1, 1, [0], [0])
        pair.wait_until_pulling()
        started = time.monotonic()
        pair.consumer.call("do", "finalize")
        waited = time.monotonic() - started
    assert pair.consumer.call("finish", "t")[0][0] == "LLM_TIMEOUT"
    assert waited > 0.5


def test_a_cache_manager_kept_beyond_finalize_is_refused(peers: Peers) -> None:
    peer = peers(1)
    peer.call("run", "actor.__setattr__('manager', dd.cache_manager)")
    peer.call("do", "finalize")
    assert refused(peer, "run", "actor.manager.unregister_cache(1)").kind == "LLM_FAILED"


def test_a_forked_child_cannot_link(peers: Peers) -> None:
    assert peers(1).call("link_in_forked_child") == "LLM_FAILED"


def test_a_device_that_is_not_visible_is_refused(peers: Peers) -> None:
    peer = peers(1, initialise=False, env={"ASCEND_RT_VISIBLE_DEVICES": "6,7"})
    assert refused(peer, "init", device=2).kind == "LLM_FAILED"


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ([0, 4], "LLM_PARAM_INVALID"),
        ([4, -1], "LLM_PARAM_INVALID"),
        ([1] * 32, "LLM_PARAM_INVALID"),
        ([1] * 31, "result"),
    ],
)
def test_registering_takes_1_to_31_dimensions_above_zero(
    peers: Peers, shape: list[int], kind: str
) -> None:
    call = "dd.cache_manager.register_blocks_cache(lib.CacheDesc(1, s, lib.DataType.DT_INT8), [64])"
    peer = peers(1)
    if kind == "result":
        assert peer.call("run", f"{call}.cache_id", s=shape) == 1
    else:
        assert refused(peer, "run", call, s=shape).kind == kind


@pytest.mark.parametrize(
    ("num_tensors", "addrs", "kind"),
    [
        (1, (64,), "TypeError"),
        (1, ["64"], "TypeError"),
        (1, [numpy.int64(64)], "TypeError"),
        (1, [], "LLM_PARAM_INVALID"),
        (2, [64], "LLM_PARAM_INVALID"),
        (1, [0], "LLM_PARAM_INVALID"),
    ],
)
def test_bad_addresses(peers: Peers, num_tensors: int, addrs: object, kind: str) -> None:
    peer = peers(1)
    for call in ("register_blocks_cache", "register_cache"):
        desc = f"lib.CacheDesc({num_tensors}, [2, 2], lib.DataType.DT_INT8)"
        source = f"dd.cache_manager.{call}({desc}, a)"
        assert refused(peer, "run", source, a=addrs).kind == kind


def test_cache_ids_count_from_1(peers: Peers) -> None:
    peer = peers(1)
    assert [peer.call("register", 2, 8, model_id=m) for m in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("newest_unregistered", [False, True])
def test_registering_a_model_id_again_binds_it_to_the_newest_cache(
    peers: Peers, newest_unregistered: bool
) -> None:
    producer, consumer = peers(1), peers(2)
    consumer.call("register", BLOCKS, BLOCK_BYTES)
    for cache in (1, 2):
        producer.call("register", BLOCKS, BLOCK_BYTES, model_id=5)
        producer.call("fill", cache, seed=cache)
    if newest_unregistered:
        producer.call("run", "dd.cache_manager.unregister_cache(2)")
    ids = link_all(producer, consumer)
    assert consumer.call("wait_link", ids[1]) == "OK"
    if newest_unregistered:  # the older one does not get its key back
        error = refused(consumer, "pull", 1, 1, [0], [0], model_id=5)
        assert error.kind == "LLM_KV_CACHE_NOT_EXIST"
        return
    consumer.call("pull", 1, 1, [0], [0], model_id=5)
    assert consumer.call("read", 1)[0][:BLOCK_BYTES] == producer.call("read", 2)[0][:BLOCK_BYTES]


def test_the_cluster_id_of_a_key_is_ignored_when_registering(peers: Peers) -> None:
    producer, consumer = peers(1), peers(2)
    for peer in (producer, consumer):
        peer.call("register", BLOCKS, BLOCK_BYTES, key_cluster=77)
    ids = link_all(producer, consumer)
    assert consumer.call("wait_link", ids[1]) == "OK"
    consumer.call("pull", 1, 1, [0], [0])


def test_dimension_0_counts_the_blocks_whatever_batch_dim_index_says(peers: Peers) -> None:
    producer, consumer = peers(1), peers(2)
    for peer in (producer, consumer):
        peer.call("register", BLOCKS, BLOCK_BYTES, batch_dim_index=1)
    producer.call("fill", 1)
    ids = link_all(producer, consumer)
    assert consumer.call("wait_link", ids[1]) == "OK"
    consumer.call("pull", 1, 1, [BLOCKS - 1], [0])
    assert consumer.call("read", 1)[0][:BLOCK_BYTES] == producer.call("read", 1)[0][-BLOCK_BYTES:]
    assert refused(consumer, "pull", 1, 1, [0], [BLOCKS]).kind == "LLM_PARAM_INVALID"


def test_a_cache_has_an_id_its_description_and_its_addresses(peers: Peers) -> None:
    peer = peers(1)
    peer.call("register", BLOCKS, BLOCK_BYTES, TENSORS)
    cache = "caches[1].{}"
    assert peer.call("run", cache.format("cache_id")) == 1
    assert peer.call("run", cache.format("cache_desc.shape")) == [BLOCKS, BLOCK_BYTES]
    assert peer.call("run", "len(caches[1].tensor_addrs)") == TENSORS
    assert peer.call("run", cache.format("is_blocks_cache")) is True


def test_unregistering_frees_the_key_and_an_unknown_id_is_no_error(peers: Peers) -> None:
    peer = peers(1)
    peer.call("register", 2, 8)
    peer.call("run", "dd.cache_manager.unregister_cache(1)")
    peer.call("run", "dd.cache_manager.unregister_cache(99)")
    assert peer.call("register", 2, 8) == 2


def test_removing_an_unknown_cache_key_is_no_error(peers: Peers) -> None:
    peers(1).call("run", "dd.cache_manager.remove_cache_key(lib.CacheKey(1, 5))")


@pytest.mark.parametrize("batch", [False, True])
def test_deallocating_takes_the_addresses_from_the_handle_only(peers: Peers, batch: bool) -> None:
    peer = peers(1)
    peer.call("register", 2, 8, batch=batch)
    right, wrong = ("cache", "blocks_cache") if batch else ("blocks_cache", "cache")
    assert refused(peer, "manage", f"deallocate_{wrong}", 1).kind == "LLM_PARAM_INVALID"
    peer.call("manage", f"deallocate_{right}", 1)
    assert peer.call("run", "caches[1].tensor_addrs") == []
    assert peer.call("register", 2, 8, model_id=1) == 2


def test_after_a_link_caches_are_not_remote_accessible(pair: Pair) -> None:
    producer, consumer = pair.producer, pair.consumer
    error = refused(producer, "register", BLOCKS, BLOCK_BYTES, model_id=1, remote_accessible=True)
    assert error.message == "you can not register remote accessible cache after link."
    assert producer.call("register", BLOCKS, BLOCK_BYTES, model_id=1) == 2
    error = refused(consumer, "pull", 1, 1, [0], [0], model_id=1)
    assert error.kind == "LLM_PARAM_INVALID"  # it is in the table, not accessible


def test_caches_in_host_memory_are_not_remote_accessible_unless_that_is_said(peers: Peers) -> None:
    producer, consumer = peers(1), peers(2)
    producer.call("register", BLOCKS, BLOCK_BYTES, placement="HOST")
    producer.call("register", BLOCKS, BLOCK_BYTES, placement="HOST", model_id=1, **SAID)
    consumer.call("register", BLOCKS, BLOCK_BYTES)
    ids = link_all(producer, consumer)
    assert consumer.call("wait_link", ids[1]) == "OK"
    assert refused(consumer, "pull", 1, 1, [0], [0]).kind == "LLM_PARAM_INVALID"
    consumer.call("pull", 1, 1, [0], [0], model_id=1)


def test_the_cache_table_has_a_limit_of_1_mib(peers: Peers) -> None:
    peer = peers(1)
    call = (
        "dd.cache_manager.register_blocks_cache"
        "(lib.CacheDesc(200000, [1], lib.DataType.DT_INT8), list(range(1, 200001)))"
    )
    assert refused(peer, "run", call).kind == "LLM_PARAM_INVALID"


def test_allocating_needs_a_memory_pool(peers: Peers) -> None:
    peer = peers(1)
    for call in ("allocate_blocks_cache", "allocate_cache"):
        source = f"dd.cache_manager.{call}(lib.CacheDesc(1, [2], lib.DataType.DT_INT8))"
        assert refused(peer, "run", source).kind == "LLM_PARAM_INVALID"
