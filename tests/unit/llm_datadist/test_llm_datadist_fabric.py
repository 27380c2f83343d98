"""The twin's fabric state decides what the KV transport can do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from datadist_peer import BLOCK_BYTES, BLOCKS, TENSORS, Pair, Peer, Peers, rank_table, refused

from twin.fabric import Endpoint, FabricState, PathRule, Product, healthy_cluster

P1, D1 = ("p1", "127.0.0.1", 0), ("d1", "127.0.0.2", 6)  # host, its address, physical device


class Twin:
    """Two hosts of a fabric with a process on a device of each."""

    def __init__(self, peers: Peers, state: Path, product: Product = Product.A2) -> None:
        self._peers = peers
        self._state = state
        self.fabric = healthy_cluster({"p1": P1[1], "d1": D1[1]}, product)
        self.write()

    def write(self) -> None:
        self.fabric.write(self._state)

    def disturb(self, **rule: object) -> None:
        """Both directions between the two devices."""
        ends = [Endpoint(host=host, device=device) for host, _, device in (P1, D1)]
        for source, target in (ends, ends[::-1]):
            self.fabric.paths.append(PathRule(source=source, target=target, **rule))
        self.write()

    def peer(self, cluster_id: int, place: tuple[str, str, int], **options: object) -> Peer:
        host, address, device = place
        env = {"TWIN_HOST": host, "TWIN_HOST_ADDRESS": address}
        env |= options.pop("env", {})
        peer = self._peers(cluster_id, device=device, env=env, **options)
        peer.call("register", BLOCKS, BLOCK_BYTES, TENSORS)
        peer.call("fill", 1)
        return peer

    def ip(self, place: tuple[str, str, int]) -> str | None:
        return self.fabric.device(place[0], place[2]).ip

    def pair(self, connect_timeout: float = 5.0, **options: object) -> Pair:
        """Linked; both of them call link."""
        producer = self.peer(1, P1, connect_timeout=connect_timeout, **options)
        consumer = self.peer(2, D1, connect_timeout=connect_timeout, **options)
        table = self.table()
        ids = [peer.call("link", "n", {1: 0, 2: 1}, table) for peer in (producer, consumer)]
        return Pair(producer, consumer, *ids)

    def table(self) -> str:
        ranks = [{"server": p[1], "device": p[2], "ip": self.ip(p)} for p in (P1, D1)]
        return rank_table(*ranks)


@pytest.fixture
def twin(peers: Peers, tmp_path: Path) -> Iterator[Twin]:
    return Twin(peers, tmp_path)


def link_status(pair: Pair) -> tuple[str, str]:
    return (
        pair.producer.call("wait_link", pair.producer_link),
        pair.consumer.call("wait_link", pair.consumer_link),
    )


def break_nothing(fabric: FabricState) -> None:
    pass


def link_down(fabric: FabricState) -> None:
    fabric.device("p1", 0).link = "down"


def tls_differs(fabric: FabricState) -> None:
    fabric.device("d1", 6).tls.enable = 1


def conf_differs(fabric: FabricState) -> None:
    conf = fabric.hosts["d1"].hccn_conf
    assert conf is not None
    fabric.hosts["d1"].hccn_conf = conf.replace("address_6=10.20.2.16", "address_6=10.0.0.99")


def other_subnet(fabric: FabricState) -> None:
    device = fabric.device("d1", 6)
    device.mask, device.gateway = "255.255.255.0", None


def another_device_down(fabric: FabricState) -> None:
    fabric.device("d1", 7).link = "down"


def test_a_healthy_fabric_carries(twin: Twin) -> None:
    pair = twin.pair()
    assert link_status(pair) == ("OK", "OK")
    pair.consumer.call("pull", 1, 1, [3], [4])


@pytest.mark.parametrize("breaks", [link_down, tls_differs, conf_differs, other_subnet])
def test_what_keeps_a_link_from_coming_up(twin: Twin, breaks: object) -> None:
    breaks(twin.fabric)  # type: ignore[operator]  # a list of functions has no better type
    twin.write()
    started = time.monotonic()
    pair = twin.pair(connect_timeout=0.5)
    assert link_status(pair) == ("FAILED", "FAILED")
    assert time.monotonic() - started >= 0.5


def test_another_devices_fault_does_no_harm(twin: Twin) -> None:
    another_device_down(twin.fabric)
    twin.write()
    assert link_status(twin.pair()) == ("OK", "OK")


@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        (link_down, "link-down from d1 device 6 to p1 device 0"),
        (tls_differs, "TLS configurations are inconsistent"),
        (conf_differs, "address_6=10.0.0.99, the device has 10.20.2.16"),
    ],
)
def test_the_log_says_why_a_link_failed(twin: Twin, breaks: object, said: str) -> None:
    breaks(twin.fabric)  # type: ignore[operator]  # a list of functions has no better type
    twin.write()
    pair = twin.pair(connect_timeout=0.3)
    link_status(pair)
    assert said in pair.consumer.close()


def test_a_link_that_comes_back_before_the_time_is_up_is_ok(twin: Twin) -> None:
    link_down(twin.fabric)
    twin.write()
    pair = twin.pair()
    assert pair.consumer.call("wait_link", pair.consumer_link, 0.2) == "PREPARING"
    twin.fabric.device("p1", 0).link = "up"
    twin.write()
    assert link_status(pair) == ("OK", "OK")


def test_a_rank_table_with_an_address_the_device_does_not_have_is_link_failed(twin: Twin) -> None:
    peer = twin.peer(2, D1)
    stale = twin.table().replace("10.20.2.16", "10.20.2.99")
    assert refused(peer, "link", "n", {1: 0, 2: 1}, stale).kind == "LLM_LINK_FAILED"
    assert "EI0014" in peer.close()


def test_a_rank_table_with_another_server_is_link_failed(twin: Twin) -> None:
    peer = twin.peer(2, D1)
    stale = twin.table().replace(D1[1], "127.0.0.9")
    assert refused(peer, "link", "n", {1: 0, 2: 1}, stale).kind == "LLM_LINK_FAILED"


@pytest.mark.parametrize("conf", [None, "", "address_7=10.20.2.17\n", "#address_6=10.20.2.16\n"])
def test_without_the_address_in_hccn_conf_link_fails_at_once(twin: Twin, conf: str | None) -> None:
    twin.fabric.hosts["d1"].hccn_conf = conf
    twin.write()
    peer = twin.peer(2, D1)
    assert refused(peer, "link", "n", {1: 0, 2: 1}, twin.table()).kind == "LLM_LINK_FAILED"
    assert "'device ip' is not set correctly" in peer.close()


@pytest.mark.parametrize("roce", ["0", "1"])
def test_inside_a_server_only_hccl_intra_roce_enable_needs_the_npu_network(
    twin: Twin, roce: str
) -> None:
    here = [("p1", P1[1], 0), ("p1", P1[1], 1)]
    twin.fabric.hosts["p1"].hccn_conf = None
    twin.fabric.device("p1", 0).link = "down"
    twin.write()
    env = {"HCCL_INTRA_ROCE_ENABLE": roce}
    one, two = (twin.peer(c, place, env=env) for c, place in enumerate(here, 1))
    table = rank_table(*({"server": p[1], "device": p[2], "ip": twin.ip(p)} for p in here))
    if roce == "1":
        assert refused(one, "link", "n", {1: 0, 2: 1}, table).kind == "LLM_LINK_FAILED"
        return
    ids = [peer.call("link", "n", {1: 0, 2: 1}, table) for peer in (one, two)]
    assert two.call("wait_link", ids[1]) == "OK"
    two.call("pull", 1, 1, [3], [4])


@pytest.mark.parametrize(
    "rule", [{"unreachable": True}, {"loss": 1.0}, {"max_bytes": 1500}], ids="".join
)
def test_a_path_that_breaks_later_lets_pulls_time_out(twin: Twin, rule: dict[str, object]) -> None:
    pair = twin.pair(timeout_ms=400)
    assert link_status(pair) == ("OK", "OK")
    twin.disturb(**rule)
    started = time.monotonic()
    assert refused(pair.consumer, "pull", 1, 1, [3], [4]).kind == "LLM_TIMEOUT"
    assert time.monotonic() - started >= 0.4
    assert pair.consumer.call("status", pair.consumer_link) == "OK"  # sticky


def test_a_link_that_goes_down_later_lets_pulls_and_pushes_time_out(twin: Twin) -> None:
    pair = twin.pair(timeout_ms=300)
    assert link_status(pair) == ("OK", "OK")
    link_down(twin.fabric)
    twin.write()
    assert refused(pair.consumer, "pull", 1, 1, [3], [4]).kind == "LLM_TIMEOUT"
    assert refused(pair.producer, "push", 2, 1, [3], [4]).kind == "LLM_TIMEOUT"


def test_a_link_that_flaps_within_the_time_limit_only_delays(twin: Twin) -> None:
    pair = twin.pair(timeout_ms=5000)
    assert link_status(pair) == ("OK", "OK")
    link_down(twin.fabric)
    twin.write()
    pair.consumer.call("start", "t", "pull", 1, 1, [3], [4])
    pair.wait_until_pulling()
    twin.fabric.device("p1", 0).link = "up"
    twin.write()
    assert pair.consumer.call("finish", "t")[0][0] == "result"


def test_one_direction_is_enough_to_break_a_pull(twin: Twin) -> None:
    pair = twin.pair(timeout_ms=300)
    assert link_status(pair) == ("OK", "OK")
    source, target = Endpoint(host="p1", device=0), Endpoint(host="d1")
    twin.fabric.paths.append(PathRule(source=source, target=target, unreachable=True))
    twin.write()
    assert refused(pair.consumer, "pull", 1, 1, [3], [4]).kind == "LLM_TIMEOUT"


@pytest.mark.parametrize(("rule", "least"), [({"seconds": 0.15}, 0.3), ({"loss": 0.5}, 0.04)])
def test_a_slow_or_lossy_path_takes_longer(
    twin: Twin, rule: dict[str, object], least: float
) -> None:
    pair = twin.pair()
    assert link_status(pair) == ("OK", "OK")
    twin.disturb(**rule)
    # 4 tensors of 4 KiB: 4 packets, half of them lost, each way, at 10 ms
    assert pair.consumer.call("pull", 1, 1, [3, 4, 5, 6], [4, 5, 6, 7]) >= least


def test_on_an_a3_the_superpods_fabric_carries_not_roce(peers: Peers, tmp_path: Path) -> None:
    twin = Twin(peers, tmp_path, Product.A3)
    link_down(twin.fabric)
    twin.write()
    pair = twin.pair()
    assert link_status(pair) == ("OK", "OK")
    twin.fabric.device("p1", 0).vnic.link = "down"
    twin.write()
    assert refused(pair.consumer, "pull", 1, 1, [3], [4]).kind == "LLM_TIMEOUT"


def test_a_one_sided_link_meets_the_same_fabric(twin: Twin) -> None:
    link_down(twin.fabric)
    twin.write()
    server = twin.peer(1, P1)
    server.call("run", "dd.switch_role(lib.LLMRole.MIX, {'llm.listenIpInfo': '127.0.0.1:0'})")
    port = server.call("run", "dd._engine._door.getsockname()[1]")
    code, _ = twin.peer(2, D1).call("clusters", "link_clusters", 1, port)
    assert code == "LLM_LINK_FAILED"


def test_without_a_fabric_everything_is_healthy(pair: Pair) -> None:
    pair.consumer.call("pull", 1, 1, [3], [4])
