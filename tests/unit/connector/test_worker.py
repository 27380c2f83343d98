"""The worker half over the twin's `llm_datadist`: processes, sockets and memory are real."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rank_process import HOST, RankProcess, Setup, free_ports

from connector.steps import LoadPlan, Remote

Start = Callable[..., RankProcess]


@pytest.fixture
def port() -> int:
    return free_ports(4)


@pytest.fixture
def start(rank_table: Path, tmp_path: Path, port: int) -> Iterator[Start]:
    """`start("prefill", …)` starts a rank; all are ended after the test."""
    started: list[RankProcess] = []

    def make(role: Any, **options: Any) -> RankProcess:
        rank = options.get("tp_rank", 0)
        options.setdefault("port", port + rank)
        env = {
            "TWIN_STATE": str(tmp_path / "state"),
            "TWIN_HOST": role,
            "PD_INSTANCE": role,
            "ASCEND_RT_VISIBLE_DEVICES": "0,1" if role == "prefill" else "6,7",
        }
        process = RankProcess(Setup(role=role, rank_table=str(rank_table), env=env, **options))
        started.append(process)
        return process

    yield make
    for process in reversed(started):  # decoders first: they would ask a prefiller that is gone
        process.end()


@pytest.fixture
def fault(tmp_path: Path) -> Callable[..., None]:
    """Damage the transferred KV by the twin's rules (see llm_datadist.native.faults)."""

    def write(**words: Any) -> None:
        state = tmp_path / "state"
        state.mkdir(exist_ok=True)
        layout = {
            "product": "A2",
            "device_defaults": {},
            "hosts": {},
            "paths": [],
            "kv_faults": [words] if words else [],
        }
        beside = state / "fabric.new"
        beside.write_text(json.dumps(layout))
        beside.replace(state / "fabric.json")

    return write


def until(ready: Callable[[], Any], seconds: float = 10) -> Any:
    """The first true answer; fails the test when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (answer := ready()):
        assert time.monotonic() < deadline, f"nothing within {seconds} s"
        time.sleep(0.005)
    return answer


def plan(
    port: int, blocks: int = 3, tp_size: int = 1, request: str = "p-1", **remote: Any
) -> LoadPlan:
    """Remote blocks 4, 5, 6, … to local blocks 20, 18, 16, …"""
    return LoadPlan(
        Remote(
            **{
                "host": HOST,
                "port": port,
                "tp_size": tp_size,
                "request_id": request,
                "run": "run",
                **remote,
            }
        ),
        remote_blocks=list(range(4, 4 + blocks)),
        local_blocks=list(range(20, 20 - 2 * blocks, -2)),
    )


def load(d: RankProcess, plan: LoadPlan, request_id: str = "d-1", seconds: float = 10) -> set[int]:
    """Load and wait; returns the blocks that did not load."""
    d.load(request_id, plan)
    return wait_for_load(d, request_id, seconds)


def wait_for_load(d: RankProcess, request_id: str = "d-1", seconds: float = 10) -> set[int]:
    lost: set[int] = set()

    def ended() -> bool:
        results = d.results()
        assert results.sent == set()
        assert results.failed <= results.received
        lost.update(results.invalid_blocks)
        return request_id in results.received

    until(ended, seconds)
    return lost


def freed(p: RankProcess, seconds: float = 5) -> set[str]:
    return until(lambda: p.results().sent, seconds)


class TestPull:
    @pytest.mark.parametrize("form", ["ascend", "mla", "cpu", "stacked"])
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
            p.announce("run", {"p-1": 3})
        assert load(d, plan(port, tp_size=2)) == set()
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
        p = start("prefill", extra={"silence_timeout": 0.3})
        d = start("decode", extra={"heartbeat": 60})
        p.announce("run", {"p-1": 3, "p-2": 3})
        assert load(d, plan(port)) == set()
        time.sleep(0.4)
        until(lambda: p.results() and p.metrics("pd_kv_link_up") == 0)
        assert load(d, plan(port, request="p-2"), "d-2") == set()
        assert p.metrics("pd_kv_link_up") == 1

    def test_dead_decoder_costs_no_more_than_the_lease(self, start: Start, port: int) -> None:
        p = start("prefill", extra={"hold_timeout": 0.5})
        p.announce("run", {"p-1": 3})
        began = time.monotonic()
        assert freed(p) == {"p-1"}
        assert 0.4 < time.monotonic() - began < 1.5
        assert p.metrics("pd_kv_holds_ended_total") == 1


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

    def test_cancelled_before_its_pull(self, start: Start, port: int) -> None:
        p, d = start("prefill"), start("decode")
        d.load("d-1", plan(port))  # waits for the announcement
        d.cancel("d-1")
        assert wait_for_load(d) == {20, 18, 16}
        p.announce("run", {"p-1": 3})

    def test_acknowledgement_twice_and_late(self, start: Start, port: int) -> None:
        p, d = start("prefill"), start("decode")
        p.announce("run", {"p-1": 3})
        assert load(d, plan(port)) == set()
        assert freed(p) == {"p-1"}
        assert load(d, plan(port)) == {20, 18, 16}, "gone"
        time.sleep(0.2)
        assert p.results().sent == set()


class TestListener:
    def test_survives_garbage(self, start: Start, port: int) -> None:
        import zmq

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


def test_metrics_file(start: Start, port: int, tmp_path: Path) -> None:
    p = start("prefill")
    d = start("decode", extra={"metrics_directory": str(tmp_path / "m"), "instance": "decode-1"})
    p.announce("run", {"p-1": 3})
    load(d, plan(port))
    d.end()
    text = (tmp_path / "m" / "decode-rank0.prom").read_text()
    assert 'pd_kv_pulls_total{instance="decode",outcome="ok",rank="0",role="decode"} 1.0' in text
