"""A scenario's faults in the transferred KV (native/faults.py)."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from datadist_peer import BLOCK_BYTES, TENSORS, Pair, Peer, Peers, link_all, refused

from twin.fabric import healthy_cluster

SOURCE, TARGET = [3, 4, 9], [1, 2, 6]  # blocks of every pull here


class Faulty:
    """A linked pair (instances prefill-1 and decode-1) whose pulls meet faults."""

    def __init__(self, peers: Peers, state: Path) -> None:
        self._state = state
        self.set()
        producer = self._peer(peers, 1, "p1", "prefill-1")
        consumer = self._peer(peers, 2, "d1", "decode-1")
        self.pair = Pair(producer, consumer, *self._link(producer, consumer))

    def _peer(self, peers: Peers, cluster_id: int, host: str, instance: str) -> Peer:
        # Logical device 1 of the visible ones, so that rank and physical device differ.
        env = {"TWIN_HOST": host, "PD_INSTANCE": instance, "ASCEND_RT_VISIBLE_DEVICES": "4,5"}
        peer = peers(cluster_id, device=5, env=env, initialise=False)
        peer.call("init", device=1, timeout_ms=1000)
        peer.call("register", 16, BLOCK_BYTES, TENSORS)
        return peer

    def _link(self, producer: Peer, consumer: Peer) -> tuple[int, int]:
        producer.call("fill", 1)
        consumer.call("fill", 1, seed=90)
        ips = {1: "10.20.1.15", 2: "10.20.2.15"}
        one, two = link_all(producer, consumer, ips=ips)
        assert consumer.call("wait_link", two) == "OK"
        return one, two

    def set(self, *faults: dict[str, object]) -> None:
        fabric = healthy_cluster({"p1": "127.0.0.1", "d1": "127.0.0.1"})
        fabric.kv_faults = list(faults)
        fabric.write(self._state)

    def pull(self, **kwargs: object) -> set[tuple[int, int]]:
        """Pull; (tensor, place in the call's list) of the blocks that are not as sent."""
        self.pair.consumer.call("pull", 1, 1, SOURCE, TARGET, **kwargs)
        return {
            (tensor, place)
            for tensor in range(TENSORS)
            for place in range(len(SOURCE))
            if len(set(self.pair.both(tensor, SOURCE[place], TARGET[place]))) > 1
        }


@pytest.fixture
def faulty(peers: Peers, tmp_path: Path) -> Faulty:
    return Faulty(peers, tmp_path)


EVERY = {(tensor, place) for tensor in range(TENSORS) for place in range(3)}


def test_without_faults_everything_is_as_sent(faulty: Faulty) -> None:
    assert faulty.pull() == set()


def test_corrupt_flips_one_bit_of_one_block(faulty: Faulty) -> None:
    faulty.set({"do": "corrupt", "layer": 1, "tensor": "v", "block": "last"})
    assert faulty.pull() == {(3, 2)}
    sent, received = faulty.pair.both(3, SOURCE[2], TARGET[2])
    assert received[0] == sent[0] ^ 1
    assert received[1:] == sent[1:]


def test_corrupt_without_a_place_takes_the_first(faulty: Faulty) -> None:
    faulty.set({"do": "corrupt"})
    assert faulty.pull() == {(0, 0)}


def test_zero(faulty: Faulty) -> None:
    faulty.set({"do": "zero", "tensor": "k", "block": 1})
    assert faulty.pull() == {(0, 1), (2, 1)}
    assert faulty.pair.both(2, SOURCE[1], TARGET[1])[1] == bytes(BLOCK_BYTES)


def test_drop_leaves_what_was_there_and_the_pull_succeeds(faulty: Faulty) -> None:
    before = faulty.pair.block(faulty.pair.consumer, 0, TARGET[0])
    faulty.set({"do": "drop", "block": "first"})
    assert faulty.pull() == {(tensor, 0) for tensor in range(TENSORS)}
    assert faulty.pair.block(faulty.pair.consumer, 0, TARGET[0]) == before


def test_drop_of_everything(faulty: Faulty) -> None:
    faulty.set({"do": "drop"})
    assert faulty.pull() == EVERY


@pytest.mark.parametrize(("block", "places"), [("first", (0, 1)), (1, (1, 2)), ("last", (1, 2))])
def test_swap_with_the_next_block(faulty: Faulty, block: object, places: tuple[int, int]) -> None:
    faulty.set({"do": "swap", "layer": 0, "tensor": "k", "block": block})
    assert faulty.pull() == {(0, place) for place in places}
    one, other = places
    assert len(set(faulty.pair.both(0, SOURCE[one], TARGET[other]))) == 1
    assert len(set(faulty.pair.both(0, SOURCE[other], TARGET[one]))) == 1


def test_delay(faulty: Faulty) -> None:
    faulty.set({"do": "delay", "seconds": 0.3})
    assert faulty.pair.consumer.call("pull", 1, 1, SOURCE, TARGET) >= 0.3


def test_delay_beyond_the_time_limit_is_a_timeout(faulty: Faulty) -> None:
    faulty.set({"do": "delay", "seconds": 30})
    started = time.monotonic()
    assert refused(faulty.pair.consumer, "pull", 1, 1, SOURCE, TARGET).kind == "LLM_TIMEOUT"
    assert 0.9 < time.monotonic() - started < 5


def test_stall_is_a_timeout_and_the_link_is_dead(faulty: Faulty) -> None:
    faulty.set({"do": "stall"})
    consumer = faulty.pair.consumer
    assert refused(consumer, "pull", 1, 1, SOURCE, TARGET).kind == "LLM_TIMEOUT"
    faulty.set()
    assert refused(consumer, "pull", 1, 1, SOURCE, TARGET).kind == "LLM_FAILED"


def test_reset_is_a_transport_error_halfway(faulty: Faulty) -> None:
    faulty.set({"do": "reset"})
    assert refused(faulty.pair.consumer, "pull", 1, 1, SOURCE, TARGET).kind == "LLM_FAILED"
    first, last = (faulty.pair.both(t, SOURCE[0], TARGET[0]) for t in (0, TENSORS - 1))
    assert first[0] == first[1]
    assert last[0] != last[1]


@pytest.mark.parametrize("who", ["prefill-1", "prefill-1/1", "p1", "p1/5"])
def test_from_names_an_instance_and_rank_or_a_host_and_device(faulty: Faulty, who: str) -> None:
    faulty.set({"do": "zero", "from": who})
    assert faulty.pull() == EVERY


@pytest.mark.parametrize("who", ["decode-1", "prefill-1/0", "p1/4", "p", ""])
def test_from_of_others_does_not_strike(faulty: Faulty, who: str) -> None:
    faulty.set({"do": "zero", "from": who})
    assert faulty.pull() == set()


@pytest.mark.parametrize(("who", "strikes"), [("decode-1", True), ("decode-2", False)])
def test_to_names_the_puller(faulty: Faulty, who: str, strikes: bool) -> None:
    faulty.set({"do": "zero", "to": who})
    assert faulty.pull() == (EVERY if strikes else set())


def test_request_counts_the_pulls_that_passed_all_checks(faulty: Faulty) -> None:
    faulty.set({"do": "zero", "request": 2})
    assert faulty.pull() == set()
    refused(faulty.pair.consumer, "pull", 1, 1, [0], [99])  # does not count
    assert faulty.pull() == EVERY
    assert faulty.pull() == set()


@pytest.mark.parametrize("fault", [{"do": "swap"}, {"do": "zero", "block": 1}])
def test_a_pull_of_too_few_blocks_passes_its_fault_on_to_the_next(
    faulty: Faulty, fault: dict[str, object]
) -> None:
    faulty.set(fault | {"request": 1})
    faulty.pair.consumer.call("pull", 1, 1, SOURCE[:1], TARGET[:1])
    assert faulty.pull() != set()
    assert faulty.pull() == set()


def test_layers_are_counted_with_the_calls_tensors_per_layer(faulty: Faulty) -> None:
    faulty.set({"do": "zero", "layer": 3})
    assert faulty.pull() == set()
    assert faulty.pull(tensor_num_per_layer=1) == {(3, place) for place in range(3)}


def test_layers_are_those_of_the_target_cache(faulty: Faulty) -> None:
    faulty.set({"do": "zero", "layer": 1})
    layers = {"src_layer_range": range(1, 2), "dst_layer_range": range(1, 2)}
    assert {tensor for tensor, _ in faulty.pull(**layers)} >= {2, 3}


def test_several_faults_strike_together(faulty: Faulty) -> None:
    faulty.set({"do": "zero", "layer": 0, "block": 0}, {"do": "corrupt", "layer": 1, "block": 1})
    assert faulty.pull() == {(0, 0), (1, 0), (2, 1)}


@pytest.mark.parametrize(
    "fault", [{"do": "burn"}, {"do": "zero", "blok": 1}, {"block": 1}, {"do": "delay"}]
)
def test_a_fault_in_unknown_words_is_an_error_that_names_it(
    faulty: Faulty, fault: dict[str, object]
) -> None:
    faulty.set(fault)
    error = refused(faulty.pair.consumer, "pull", 1, 1, SOURCE, TARGET)
    assert error.kind == "ValueError"
    assert str(fault) in error.message


def test_pushes_meet_no_faults(faulty: Faulty) -> None:
    faulty.set({"do": "zero"})
    faulty.pair.producer.call("push", 2, 1, SOURCE, TARGET)
    assert len(set(faulty.pair.both(0, SOURCE[0], TARGET[0]))) == 1
