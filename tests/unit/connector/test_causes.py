"""The figures of a rank: for each cause of a failure exactly its own counter goes up."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zmq
from rank_process import HOST, RankProcess
from rank_stand import Start, all_freed, freed, load, plan, until, wait_for_load

from connector.datadist import BLOCKS_PER_PULL
from connector.release import release
from twin.fabric import healthy_cluster

LOST = {20, 18, 16}
DOCS = Path(__file__).parents[3] / "docs" / "connector.md"
Fault = Callable[..., None]


def failed_by(d: RankProcess) -> str:
    """The cause of the one load so far; nothing else was counted."""
    causes = d.counts("pd_kv_failures_total", "cause")
    assert d.counts("pd_kv_pulls_total", "outcome") == {"failed": 1}
    assert d.metrics("pd_kv_pulled_bytes_total") == 0
    assert list(causes.values()) == [1]
    return next(iter(causes))


class TestFailures:
    """A test for each cause that docs/connector.md lists."""

    def test_unreachable(self, start: Start, port: int) -> None:
        d = start("decode")
        assert load(d, plan(port)) == LOST
        assert failed_by(d) == "unreachable"

    @pytest.mark.parametrize("address", [("a..b", 5557), (HOST, 99999)], ids=["name", "port"])
    def test_unreachable_is_also_what_is_no_address(
        self, start: Start, address: tuple[str, int]
    ) -> None:
        d = start("decode")
        name, number = address
        assert load(d, plan(number, host=name)) == LOST
        assert failed_by(d) == "unreachable"
        assert load(d, plan(number, host=name), "d-2") == LOST, "its thread still works"

    def test_refused(self, start: Start, port: int) -> None:
        """Something else listens there and answers."""
        with zmq.Context() as context, context.socket(zmq.REP) as stranger:
            stranger.linger = 0
            stranger.bind(f"tcp://{HOST}:{port}")
            d = start("decode")
            d.load("d-1", plan(port))
            assert stranger.poll(5000)
            stranger.recv()
            stranger.send(b"who are you?")
            assert wait_for_load(d) == LOST
        assert failed_by(d) == "refused"

    def test_mismatch_of_caches(self, start: Start, port: int) -> None:
        p, d = start("prefill"), start("decode", model="another")
        p.announce("run", {"p-1": 3})
        assert load(d, plan(port)) == LOST
        assert failed_by(d) == "mismatch"
        assert freed(p) == {"p-1"}, "a decoder that was refused leaves nothing behind"

    def test_mismatch_of_tp_sizes(self, start: Start, port: int) -> None:
        ps = [start("prefill", tp_rank=rank, tp_size=2) for rank in (0, 1)]
        d = start("decode")
        for p in ps:
            p.announce("run", {"p-1": 3})
        assert load(d, plan(port, tp_size=2)) == LOST
        assert failed_by(d) == "mismatch"
        assert [freed(p) for p in ps] == [{"p-1"}, {"p-1"}]

    def test_link(self, start: Start, port: int, tmp_path: Path) -> None:
        """The rank table has addresses that the devices do not have."""
        servers = {"prefill": "127.0.0.1", "decode": "127.0.0.2"}
        (tmp_path / "state").mkdir()
        healthy_cluster(servers).write(tmp_path / "state")
        p, d = start("prefill"), start("decode")
        p.announce("run", {"p-1": 3})
        assert load(d, plan(port)) == LOST
        assert failed_by(d) == "link"
        assert d.counts("pd_kv_link_failures_total", "cause") == {"link": 1}
        until(lambda: p.counts("pd_kv_link_failures_total", "cause") == {"link": 1})
        assert d.metrics("pd_kv_link_up") == 0

    def test_timeout(self, start: Start, port: int, fault: Fault) -> None:
        p, d = start("prefill"), start("decode")
        p.announce("run", {"p-1": 3})
        fault(do="stall")
        assert load(d, plan(port)) == LOST
        assert failed_by(d) == "timeout"

    def test_pull(self, start: Start, port: int) -> None:
        """`llm_datadist` refuses a block that the prefiller does not have."""
        p, d = start("prefill"), start("decode")
        p.announce("run", {"p-1": 3})
        assert load(d, replace(plan(port), remote_blocks=[4, 5, 999])) == LOST
        assert failed_by(d) == "pull"
        assert freed(p) == {"p-1"}

    def test_gone(self, start: Start, port: int) -> None:
        p, d = start("prefill", extra={"hold_timeout": 0.1}), start("decode")
        p.announce("run", {"p-1": 3})
        assert freed(p) == {"p-1"}
        assert load(d, plan(port)) == LOST
        assert failed_by(d) == "gone"
        assert d.metrics("pd_kv_link_up") == 1, "nothing is wrong with the link"

    def test_expired(self, start: Start, port: int, fault: Fault) -> None:
        """Each of several pulls is in time, all of them together outlast the lease of 2.5 s."""
        extra = {"pull_timeout": 1, "rpc_timeout": 0.5, "load_timeout": 30}
        p, d = start("prefill"), start("decode", extra=extra)
        p.announce("run", {"p-1": 3})
        fault(do="delay", seconds=0.4)
        assert load(d, long_plan(port, pulls=8)) == {20, 18}
        assert failed_by(d) == "expired"

    def test_cancelled(self, start: Start, port: int) -> None:
        p, d = start("prefill"), start("decode")
        d.load("d-1", plan(port))
        until(lambda: d.metrics("pd_kv_link_up") == 1)  # now it waits for the announcement
        d.cancel("d-1")
        assert wait_for_load(d) == LOST
        assert failed_by(d) == "cancelled"
        p.announce("run", {"p-1": 3})
        assert freed(p) == {"p-1"}, "the decoder has said that it is done before"
        assert d.metrics("pd_kv_link_up") == 1, "nothing is wrong with the link"

    def test_internal(self, start: Start, port: int) -> None:
        """Whatever else goes wrong, here a block id that no unsigned number holds."""
        p, d = start("prefill"), start("decode")
        p.announce("run", {"p-1": 3, "p-2": 3})
        assert load(d, replace(plan(port), remote_blocks=[4, 5, -1])) == LOST
        assert failed_by(d) == "internal"
        assert freed(p) == {"p-1"}
        assert load(d, plan(port, request="p-2"), "d-2") == set(), "its thread still works"

    def test_there_is_a_test_for_each_cause_in_the_docs(self) -> None:
        text = DOCS.read_text(encoding="utf-8")
        listed = re.search(r"^Causes in `pd_kv_failures_total`: (.*)$", text, re.MULTILINE)
        assert listed is not None
        causes = re.findall(r"`(\w+)` \(|`(\w+)`[,.]", listed.group(1))
        for cause in (first or second for first, second in causes):
            assert any(name.startswith(f"test_{cause}") for name in vars(TestFailures)), cause


def long_plan(port: int, pulls: int) -> Any:
    """Blocks 4 and 5, again and again: so many calls of `pull_blocks`."""
    pairs = pulls * BLOCKS_PER_PULL // 2
    return replace(plan(port), remote_blocks=[4, 5] * pairs, local_blocks=[20, 18] * pairs)


class TestDeadlines:
    def test_no_pull_begins_after_the_loads_deadline(
        self, start: Start, port: int, fault: Fault
    ) -> None:
        p, d = start("prefill"), start("decode", extra={"load_timeout": 0.6})
        p.announce("run", {"p-1": 3})
        fault(do="delay", seconds=0.4)
        assert load(d, long_plan(port, pulls=20), seconds=3) == {20, 18}
        assert failed_by(d) == "timeout"

    def test_a_load_that_waits_behind_a_slow_one_ends_in_time(
        self, start: Start, port: int, fault: Fault
    ) -> None:
        """Not only when its turn comes: by then many more may have waited before it."""
        extra = {"pull_timeout": 5, "load_timeout": 1.5}
        p, d = start("prefill"), start("decode", extra=extra)
        p.announce("run", {"p-1": 3, "p-2": 3})
        fault(do="delay", seconds=4, request=1)
        d.load("d-1", plan(port))
        assert load(d, plan(port, request="p-2"), "d-2", seconds=3) == LOST
        assert failed_by(d) == "timeout"
        assert wait_for_load(d) == set()
        all_freed(p, "p-1", "p-2")

    def test_an_aborted_load_that_waits_behind_a_slow_one_ends_at_once(
        self, start: Start, port: int, fault: Fault
    ) -> None:
        p, d = start("prefill"), start("decode", extra={"pull_timeout": 5})
        p.announce("run", {"p-1": 3, "p-2": 3})
        fault(do="delay", seconds=3, request=1)
        d.load("d-1", plan(port))
        d.load("d-2", plan(port, request="p-2"))
        d.cancel("d-2")
        assert wait_for_load(d, "d-2", seconds=2) == LOST
        assert wait_for_load(d) == set()
        all_freed(p, "p-1", "p-2")

    def test_all_loads_from_a_silent_prefiller_end_in_time(self, start: Start, port: int) -> None:
        """A host that hangs: acknowledgements it does not answer must not add up."""
        p, d = start("prefill"), start("decode", extra={"load_timeout": 2})
        os.kill(p.process.pid, signal.SIGSTOP)
        try:
            ids = [f"d-{number}" for number in range(12)]
            for number in ids:
                d.load(number, plan(port))
            ended: set[str] = set()
            until(lambda: ended.update(d.results().received) or len(ended) == len(ids), 2 + 2)
        finally:
            os.kill(p.process.pid, signal.SIGCONT)
        causes = d.counts("pd_kv_failures_total", "cause")
        assert set(causes) <= {"unreachable", "timeout"}
        assert sum(causes.values()) == len(ids)


class TestLinks:
    def test_up_and_down_by_peer(self, start: Start, port: int) -> None:
        p, d = start("prefill"), start("decode")
        p.announce("run", {"p-1": 3})
        assert d.counts("pd_kv_link_up", "cluster") == {}, "never linked is not down"
        assert load(d, plan(port)) == set()
        assert d.counts("pd_kv_link_up", "cluster") == {"1": 1}
        assert d.counts("pd_kv_link_up", "device_ip") == {"10.0.1.0": 1}
        assert d.counts("pd_kv_link_up", "server") == {"127.0.0.1": 1}
        until(lambda: p.counts("pd_kv_link_up", "cluster") == {"3": 1})
        p.kill()
        until(lambda: d.counts("pd_kv_link_up", "cluster") == {"1": 0})

    def test_prefiller_drops_a_silent_decoder_while_its_engine_sleeps(
        self, start: Start, port: int
    ) -> None:
        p, d = start("prefill", extra={"silence_timeout": 0.4}), start("decode")
        p.announce("run", {"p-1": 3})
        assert load(d, plan(port)) == set()
        d.kill()
        until(lambda: p.counts("pd_kv_link_up", "cluster") == {"3": 0}, seconds=3)

    @pytest.mark.parametrize(("p_tp", "d_tp"), [(2, 1), (1, 2)])
    def test_tp_sizes_that_do_not_fit_are_not_linked(
        self, start: Start, port: int, p_tp: int, d_tp: int
    ) -> None:
        peers = {"prelink": True, "prelink_peers": [f"{HOST}:{port}"]}
        p, d = start("prefill", tp_size=p_tp), start("decode", tp_size=d_tp, extra=peers)
        until(lambda: "Use equal TP sizes" in d.log() and "Use equal TP sizes" in p.log())
        assert p.counts("pd_kv_link_up", "cluster") == {}
        assert d.counts("pd_kv_link_up", "cluster") == {}


class TestHolds:
    def test_requests_and_blocks_held(self, start: Start, port: int) -> None:
        p = start("prefill")
        p.announce("run", {"p-1": 3, "p-2": 5})
        until(lambda: p.results() and p.metrics("pd_kv_held_blocks") == 8, seconds=3)
        assert p.metrics("pd_kv_held_requests") == 2
        release(HOST, port, 1, "p-2")
        assert freed(p) == {"p-2"}
        assert p.metrics("pd_kv_held_requests") == 1
        assert p.metrics("pd_kv_held_blocks") == 3

    def test_how_holds_ended(self, start: Start, port: int) -> None:
        p, d = start("prefill", extra={"hold_timeout": 2}), start("decode")
        p.announce("run", {"p-1": 3, "p-2": 3, "p-3": 3})
        assert load(d, plan(port)) == set()
        d.refuse(plan(port, request="p-2").remote)
        all_freed(p, "p-1", "p-2", "p-3")
        assert p.counts("pd_kv_holds_ended_total", "end") == {
            "acked": 1,
            "released": 1,
            "expired": 1,
        }
        assert p.metrics("pd_kv_held_blocks") == 0


def test_each_rank_of_each_instance_has_a_file(start: Start, port: int, tmp_path: Path) -> None:
    extra = {"metrics_directory": str(tmp_path / "m")}
    ranks = [
        start(role, tp_rank=rank, tp_size=2, extra=extra)
        for role in ("prefill", "decode")
        for rank in (0, 1)
    ]
    threads = [threading.Thread(target=rank.end) for rank in reversed(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for role in ("prefill", "decode"):
        for rank in (0, 1):
            text = (tmp_path / "m" / f"{role}-rank{rank}.prom").read_text()
            labels = f'instance="{role}",rank="{rank}",role="{role}"'
            assert f"pd_kv_held_blocks{{{labels}}} 0.0" in text, "zeros, not gaps"
            assert f"pd_kv_pulled_bytes_total{{{labels}}} 0.0" in text
