"""The worker half over the twin's `llm_datadist`: processes, sockets and memory are real."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zmq
from rank_process import BLOCK_SIZE, HOST, make_caches
from rank_stand import Start, all_freed, freed, load, plan, until, wait_for_load

from connector import caches
from connector.channel import Caller
from connector.protocol import Hello, HelloReply
from connector.ranktable import Agent


class TestPull:
    @pytest.mark.parametrize(
        "form", ["ascend", "ascend-aligned", "mla", "mla-aligned", "cpu", "stacked"]
    )
    def test_blocks_arrive_where_they_belong(self, start: Start, port: int, form: str) -> None:
        p, d = start("prefill", form=form), start("decode", form=form)
        p.fill(1)
        d.fill(2)
        bystanders = [block for block in range(32) if block not in (20, 18, 16)]
        before = d.content(bystanders)
        p.announce("run", {"p-1": 3})

        assert load(d, plan(port)) == set()
        assert d.content([20, 18, 16]) == p.content([4, 5, 6])
        assert d.content(bystanders) == before
        assert freed(p) == {"p-1"}

    def test_many_requests_at_once(self, start: Start, port: int) -> None:
        p, d = start("prefill"), start("decode")
        p.fill(1)
        ids = [f"p-{i}" for i in range(20)]
        p.announce("run", dict.fromkeys(ids, 1))
        for i in ids:
            d.load(i, plan(port, blocks=1, request=i))
        ended: set[str] = set()
        until(lambda: ended.update(d.results().received) or len(ended) == 20)
        done: set[str] = set()
        until(lambda: done.update(p.results().sent) or len(done) == 20)
        assert d.metrics("pd_kv_pulls_total") == 20

    def test_announcement_may_come_after_the_question(self, start: Start, port: int) -> None:
        p, d = start("prefill"), start("decode")
        d.load("d-1", plan(port))
        time.sleep(0.2)
        p.announce("run", {"p-1": 3})
        assert wait_for_load(d) == set()

    def test_every_rank_of_the_prefiller_is_told(self, start: Start, port: int) -> None:
        """vllm-ascend v0.10.1rc1 told rank 0 only, and every request leaked."""
        ps = [start("prefill", tp_rank=rank, tp_size=2) for rank in (0, 1)]
        ds = [start("decode", tp_rank=rank, tp_size=2) for rank in (0, 1)]
        for seed, p in enumerate(ps):
            p.fill(seed)
            p.announce("run", {"p-1": 3})
        for d in ds:
            assert load(d, plan(port, tp_size=2)) == set()
        for p, d in zip(ps, ds, strict=True):
            assert d.content([20]) == p.content([4])
            assert freed(p) == {"p-1"}

    def test_mla_decoder_with_smaller_tp_releases_idle_ranks(self, start: Start, port: int) -> None:
        ps = [start("prefill", tp_rank=rank, tp_size=2, form="mla") for rank in (0, 1)]
        d = start("decode", form="mla")
        for p in ps:
            p.fill(1)
        ps[0].announce("run", {"p-1": 3})
        assert load(d, plan(port, tp_size=2)) == set()
        ps[1].announce("run", {"p-1": 3})  # told by then: it does not have to be asked
        assert d.content([20, 18, 16]) == ps[0].content([4, 5, 6])
        assert [freed(p) for p in ps] == [{"p-1"}, {"p-1"}]

    def test_mla_decoder_with_larger_tp_waits_for_all_its_ranks(
        self, start: Start, port: int
    ) -> None:
        p = start("prefill", form="mla")
        ds = [start("decode", tp_rank=rank, tp_size=2, form="mla") for rank in (0, 1)]
        p.announce("run", {"p-1": 3})
        assert load(ds[0], plan(port)) == set()
        time.sleep(0.1)
        assert p.results().sent == set(), "rank 1 has not pulled yet"
        assert load(ds[1], plan(port)) == set()
        assert freed(p) == {"p-1"}


class TestRegistration:
    """Each cache: shape, tensors in order (K0, V0, K1, V1, …), tensors in a layer."""

    @pytest.mark.parametrize(
        ("form", "registered"),
        [
            ("ascend", [([32, 16, 2, 8], [0, 1, 2, 3, 4, 5], 2)]),
            ("mla", [([32, 16, 1, 24], [0, 2, 4], 2), ([32, 16, 1, 8], [1, 3, 5], 2)]),
            ("cpu", [([32, 2, 16, 16], [0, 1, 2], 1)]),
            ("stacked", [([32, 256], [0, 1, 2, 3, 4, 5], 2)]),
        ],
    )
    def test_tensors_of_one_shape_are_one_cache(
        self, start: Start, form: str, registered: list[Any]
    ) -> None:
        assert start("prefill", form=form).registered() == registered

    @pytest.mark.parametrize("form", ["ascend", "mla"])
    def test_aligned_tensors_are_registered_where_they_lie(self, start: Start, form: str) -> None:
        """Not where the larger tensor begins that each of them lies in."""
        plain, aligned = start("prefill", form=form), start("decode", form=f"{form}-aligned")
        assert aligned.registered() == plain.registered()
        assert aligned.misaligned() == []


class TestRefusal:
    @pytest.mark.parametrize(
        ("other", "words"),
        [
            ({"model": "another"}, "model differs"),
            ({"block_size": 32}, "block size differs"),
            ({"form": "cpu"}, "tensors and bytes per block differs"),
        ],
    )
    def test_caches_that_do_not_fit(
        self, start: Start, port: int, other: dict[str, Any], words: str
    ) -> None:
        start("prefill")
        d = start("decode", **other)
        assert load(d, plan(port)) == {20, 18, 16}
        assert d.metrics("pd_kv_failures_total") == 1
        assert words in d.log()

    def test_unequal_tp_of_split_heads(self, start: Start, port: int) -> None:
        d = start("decode")
        assert load(d, plan(port, tp_size=2)) == {20, 18, 16}
        assert "Use equal TP sizes" in d.log()


class TestDeath:
    def test_dead_prefiller_fails_at_once(self, start: Start, port: int) -> None:
        d = start("decode", extra={"rpc_timeout": 3})
        began = time.monotonic()
        assert load(d, plan(port)) == {20, 18, 16}
        assert time.monotonic() - began < 2

    def test_silent_prefiller_fails_in_time_and_delays_nobody(
        self, start: Start, port: int
    ) -> None:
        """A host that accepts and never answers blocked all pulls of a v0.10.1rc1 decoder."""
        p, d = start("prefill"), start("decode", extra={"rpc_timeout": 3})
        p.announce("run", {"p-1": 3})
        with socket.create_server((HOST, 0)) as silent:
            d.load("d-silent", plan(silent.getsockname()[1]))
            began = time.monotonic()
            assert load(d, plan(port)) == set()
            assert time.monotonic() - began < 2
            assert wait_for_load(d, "d-silent") == {20, 18, 16}
            assert time.monotonic() - began < 4 + 2

    def test_prefiller_stopped_during_the_pull(self, start: Start, port: int) -> None:
        p, d = start("prefill"), start("decode")
        p.announce("run", {"p-1": 3, "p-2": 3})
        assert load(d, plan(port)) == set()
        os.kill(p.process.pid, signal.SIGSTOP)
        try:
            assert load(d, plan(port, request="p-2"), "d-2") == {20, 18, 16}
        finally:
            os.kill(p.process.pid, signal.SIGCONT)

    def test_restarted_prefiller_is_linked_anew(self, start: Start, port: int) -> None:
        p, d = start("prefill"), start("decode")
        p.announce("run", {"p-1": 3})
        assert load(d, plan(port)) == set()
        p.kill()
        p = start("prefill")
        p.fill(3)
        p.announce("run-2", {"p-2": 3})
        assert load(d, plan(port, request="p-2", run="run-2"), "d-2") == set()
        assert d.content([20]) == p.content([4])

    def test_requests_of_before_the_restart_are_refused_at_once(
        self, start: Start, port: int
    ) -> None:
        p, d = start("prefill"), start("decode", extra={"announce_timeout": 4})
        p.announce("run-2", {})
        began = time.monotonic()
        assert load(d, plan(port, run="run-1")) == {20, 18, 16}
        assert time.monotonic() - began < 2

    def test_restarted_decoder_is_linked_anew(self, start: Start, port: int) -> None:
        p, d = start("prefill"), start("decode")
        p.announce("run", {"p-1": 3, "p-2": 3})
        assert load(d, plan(port)) == set()
        d.kill()
        d = start("decode")
        assert load(d, plan(port, request="p-2"), "d-2") == set()

    def test_link_of_a_silent_decoder_is_dropped_and_made_anew(
        self, start: Start, port: int
    ) -> None:
        p = start("prefill", extra={"silence_timeout": 1})
        d = start("decode", extra={"heartbeat": 60})
        p.announce("run", {"p-1": 3, "p-2": 3})
        assert load(d, plan(port)) == set()
        until(lambda: p.metrics("pd_kv_link_up") == 0)
        assert load(d, plan(port, request="p-2"), "d-2") == set()
        assert p.metrics("pd_kv_link_up") == 1

    def test_decoder_that_dies_during_its_pull_costs_no_more_than_the_lease(
        self, start: Start, port: int, fault: Callable[..., None]
    ) -> None:
        p = start("prefill", extra={"hold_timeout": 1})
        d = start("decode", extra={"pull_timeout": 1, "rpc_timeout": 0.5})  # a lease of 2.5 s
        p.announce("run", {"warm": 1, "p-1": 3})
        assert load(d, plan(port, blocks=1, request="warm"), "warm") == set()
        fault(do="stall")
        p.announce("run", {"p-1": 3})
        began = time.monotonic()
        d.load("d-1", plan(port))
        time.sleep(0.6)  # it pulls
        d.kill()
        all_freed(p, "warm", "p-1")
        assert 2.4 < time.monotonic() - began < 5

    def test_decoder_that_never_asks_costs_the_hold(self, start: Start, port: int) -> None:
        p = start("prefill", extra={"hold_timeout": 0.5})
        p.announce("run", {"p-1": 3})
        began = time.monotonic()
        assert freed(p) == {"p-1"}
        assert 0.4 < time.monotonic() - began < 1.5
        assert p.counts("pd_kv_holds_ended_total", "end") == {"expired": 1}


class TestFaults:
    def test_stall_ends_at_the_deadline_and_the_link_recovers(
        self, start: Start, port: int, fault: Callable[..., None]
    ) -> None:
        p, d = start("prefill"), start("decode")
        p.fill(1)
        p.announce("run", {"p-1": 3, "p-2": 3})
        fault(do="stall")
        began = time.monotonic()
        assert load(d, plan(port)) == {20, 18, 16}
        assert 1.5 < time.monotonic() - began < 4
        assert freed(p) == {"p-1"}, "a failed pull releases the prefiller"
        fault()
        assert load(d, plan(port, request="p-2"), "d-2") == set()
        assert d.content([20]) == p.content([4])

    def test_reset_is_cured_by_a_fresh_link(
        self, start: Start, port: int, fault: Callable[..., None]
    ) -> None:
        p, d = start("prefill"), start("decode")
        p.fill(1)
        p.announce("run", {"p-1": 3})
        fault(do="reset", request=1)
        assert load(d, plan(port)) == set()
        assert d.content([20, 18, 16]) == p.content([4, 5, 6])


class TestRelease:
    def test_expired_blocks_are_not_pulled(self, start: Start, port: int) -> None:
        p, d = start("prefill", extra={"hold_timeout": 0.1}), start("decode")
        p.announce("run", {"p-1": 3})
        freed(p)
        assert load(d, plan(port)) == {20, 18, 16}

    def test_decoder_that_will_not_pull(self, start: Start, port: int) -> None:
        p, d = start("prefill"), start("decode")
        p.announce("run", {"p-1": 3})
        d.refuse(plan(port).remote)
        assert freed(p) == {"p-1"}

    def test_release_from_outside(self, start: Start, port: int) -> None:
        """What a proxy does for a request that no decoder will take."""
        from connector.release import release

        p = start("prefill")
        release(HOST, port, 1, "early")
        p.announce("run", {"p-1": 3, "early": 1})
        assert freed(p) == {"early"}
        release(HOST, port, 1, "p-1")
        assert freed(p) == {"p-1"}

    def test_abort_during_the_pull_lets_it_end(
        self, start: Start, port: int, fault: Callable[..., None]
    ) -> None:
        """Until then it may write: the decoder's blocks must not be given to another request."""
        p, d = start("prefill"), start("decode")
        p.fill(1)
        p.announce("run", {"p-1": 3})
        fault(do="delay", seconds=1.5)
        began = time.monotonic()
        d.load("d-1", plan(port))
        time.sleep(0.7)
        d.cancel("d-1")
        assert wait_for_load(d) == set()
        assert time.monotonic() - began >= 1.5
        assert d.content([20, 18, 16]) == p.content([4, 5, 6])
        assert freed(p) == {"p-1"}

    def test_acknowledgement_twice_and_late(self, start: Start, port: int) -> None:
        p, d = start("prefill"), start("decode")
        p.announce("run", {"p-1": 3})
        assert load(d, plan(port)) == set()
        assert freed(p) == {"p-1"}
        assert load(d, plan(port)) == {20, 18, 16}, "gone"
        time.sleep(0.2)
        assert p.results().sent == set()


def say_hello(port: int, cluster_id: int) -> None:
    """A decoder rank asks for a link; it fits in all but its end of the link."""
    agent = Agent("127.0.0.2", "7", "10.0.2.7", cluster_id)
    layout = caches.layout(caches.parts(make_caches("ascend"), None), BLOCK_SIZE, "tiny")
    with zmq.Context() as context:
        caller = Caller(context, HOST, port)
        reply = caller.ask(Hello(agent, "session", True, 0, 1, layout), HelloReply, 2)
        caller.close()
    assert reply.refused is None


class TestListener:
    def test_survives_garbage(self, start: Start, port: int) -> None:
        p, d = start("prefill"), start("decode")
        p.announce("run", {"p-1": 3})
        with zmq.Context() as context, context.socket(zmq.REQ) as channel:
            channel.linger = 0
            channel.connect(f"tcp://{HOST}:{port}")
            for garbage in (b"", b"\xc1", b"\x92\x09\xc0", b"\x92\x00\x80"):
                channel.send(garbage)
                assert channel.poll(2000)
                assert b"error" in channel.recv()
        with socket.create_connection((HOST, port)) as raw:
            raw.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert load(d, plan(port)) == set()

    def test_survives_a_link_that_cannot_be_made(self, start: Start, port: int) -> None:
        """v0.10.1rc1's listener ended at the first of them, and every decoder hung."""
        p, d = start("prefill"), start("decode")
        p.announce("run", {"p-1": 3})
        say_hello(port, cluster_id=1)  # the prefiller's own
        until(lambda: p.counts("pd_kv_link_failures_total", "cause") == {"link": 1})
        assert load(d, plan(port)) == set()

    def test_a_decoder_that_never_links_delays_nobody(self, start: Start, port: int) -> None:
        p, d = start("prefill"), start("decode")
        p.announce("run", {"p-1": 3})
        say_hello(port, cluster_id=4)  # and dies
        began = time.monotonic()
        assert load(d, plan(port)) == set()
        assert freed(p) == {"p-1"}
        assert time.monotonic() - began < 2, "link_timeout is 3 s"
        until(lambda: p.counts("pd_kv_link_failures_total", "cause") == {"link": 1})

    def test_port_in_use_is_said_clearly(self, start: Start, port: int) -> None:
        with (
            socket.create_server((HOST, port)),
            pytest.raises(ValueError, match="another instance on this host"),
        ):
            start("prefill")


def test_links_are_made_before_any_request(start: Start, port: int) -> None:
    peers = {"prelink": True, "prelink_peers": [f"{HOST}:{port}"]}
    d = start("decode", extra=peers)
    p = start("prefill")
    until(lambda: d.metrics("pd_kv_link_up") == 1 and p.metrics("pd_kv_link_up") == 1)
    p.kill()
    until(lambda: d.metrics("pd_kv_link_up") == 0)
    p = start("prefill")
    until(lambda: p.metrics("pd_kv_link_up") == 1)


def test_a_refused_link_is_said_once_and_tried_on(start: Start, port: int) -> None:
    """Neither engine ends, and neither fills its log."""
    peers = {"prelink": True, "prelink_peers": [f"{HOST}:{port}"]}
    p, d = start("prefill", model="another"), start("decode", extra=peers)
    until(lambda: "model differs" in d.log())
    time.sleep(0.7)  # more heartbeats, of 0.2 s each
    assert (p.log().count("model differs"), d.log().count("model differs")) == (1, 1)
    assert d.counts("pd_kv_link_up", "cluster") == {}
    p.kill()
    start("prefill")
    until(lambda: d.metrics("pd_kv_link_up") == 1)


@pytest.mark.parametrize(("tp_size", "words"), [(1, "has 2 prefill devices"), (2, "127.0.0.1:{}")])
def test_without_prelink_peers_a_server_with_as_many_devices_is_taken_for_one_instance(
    start: Start, port: int, tp_size: int, words: str
) -> None:
    """The rank table has two prefill devices at 127.0.0.1; nobody listens there."""
    d = start("decode", tp_size=tp_size, extra={"prelink": True})
    until(lambda: words.format(port + tp_size) in d.log())


def test_metrics_file(start: Start, port: int, tmp_path: Path) -> None:
    p = start("prefill")
    d = start("decode", extra={"metrics_directory": str(tmp_path / "m"), "instance": "decode-1"})
    p.announce("run", {"p-1": 3})
    load(d, plan(port))
    d.end()
    text = (tmp_path / "m" / "decode-rank0.prom").read_text()
    assert 'pd_kv_pulls_total{instance="decode",outcome="ok",rank="0",role="decode"} 1.0' in text
