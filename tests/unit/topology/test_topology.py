"""Bring-up against real processes that behave, die, hang or answer wrongly."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from local import LocalCommands, LocalHost, LocalSupervisor, Told

from pd_validate.findings import Finding, Where
from pd_validate.hosts.api import StoppedProcess
from pd_validate.spec.load import load_cluster
from pd_validate.spec.models import Cluster
from pd_validate.spec.plan import launch_plan, run_dirs
from pd_validate.topology.timeline import Timeline
from pd_validate.topology.topology import BringUpFailed, Topology, _spec, stopped_finding
from pd_validate.traffic.client import RequestFailed

READY = 60.0  # seconds; nothing here may wait that long
SOON = 20.0  # seconds that a crowded machine may need for what takes half a second
ENGINES = ("prefill-1", "decode-1", "decode-2")
PROXY = "proxy"

CLUSTER = """\
nic: lo
hosts:
  p1: {{address: 127.0.0.1, workdir: {work}/p1}}
  d1: {{address: 127.0.0.2, workdir: {work}/d1}}
  d2: {{address: 127.0.0.3, workdir: {work}/d2}}
model: {{path: /model}}
instances:
  prefill-1: {{role: prefill, host: p1, devices: [0, 1], port: {ports[0]}}}
  decode-1: {{role: decode, host: d1, devices: [6, 7], port: {ports[1]}}}
  decode-2: {{role: decode, host: d2, devices: [6, 7], port: {ports[2]}}}
proxy: {{host: p1, port: {ports[3]}}}
timeouts: {{ready: {ready}, request: 20}}
"""

Make = Callable[..., Topology]


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def make(tmp_path: Path, told: Told) -> Iterator[Make]:
    """A topology whose processes behave as told by keyword (`_` for `-`), closed at the end."""
    with ExitStack() as undo:

        def one(*, ready: float = READY, **behaviours: str) -> Topology:
            cluster = described(tmp_path, ready)
            dirs = run_dirs(cluster, "run-1")
            plan = launch_plan(cluster, run_dirs=dirs)
            urls = {process.name: process.url for process in (*plan.instances.values(), plan.proxy)}
            behaves = {name.replace("_", "-"): how for name, how in behaviours.items()}
            hosts = {}
            for name in cluster.hosts:
                supervisor = LocalSupervisor(Path(dirs[name]), urls, behaves)
                undo.callback(supervisor.close)
                hosts[name] = LocalHost(LocalCommands(name), supervisor)
            topology = Topology(cluster, plan, hosts, ranktable=b"{}", timeline=Timeline(told))
            undo.callback(topology.close)
            return topology

        yield one


def described(tmp_path: Path, ready: float) -> Cluster:
    file = tmp_path / "cluster.yaml"
    addresses = ("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.1")
    with ExitStack() as held:
        probes = [held.enter_context(socket.create_server((each, 0))) for each in addresses]
        ports = [probe.getsockname()[1] for probe in probes]
    file.write_text(CLUSTER.format(work=tmp_path, ports=ports, ready=ready))
    return load_cluster(file)


def failure_of(topology: Topology) -> tuple[list[Finding], float]:
    """What bring-up ends with, and after how many seconds."""
    started = time.monotonic()
    with pytest.raises(BringUpFailed) as failed:
        topology.up()
    return list(failed.value.findings), time.monotonic() - started


def test_bring_up_ends_with_a_service_that_answers(make: Make, told: Told) -> None:
    topology = make()
    topology.stage()
    topology.up()
    assert set(topology.status()) == {*ENGINES, PROXY}
    assert topology.check_alive() == []
    assert topology.service.proxy.complete("hello").text == "hi"
    answer = topology.service.disaggregate("prefill-1", "decode-2", "hello")
    assert answer.kv_transfer_params == {"of": "hello"}
    assert set(topology.logs()) == {*ENGINES, PROXY}
    assert b"serving" in topology.logs()["decode-1"]
    for what in ("staging", "starting", "engines load", "KV links (decode-2)", "first completion"):
        assert any(what in line for line in told.lines), what
    steps = {(step.host, step.what): step.note for step in topology.timeline.steps}
    assert steps["d1", "staging code and rank table"] == "code copied, rank table placed"
    assert ("d2", "first token, alone (decode-2)") in steps
    assert steps["p1", f"first completion through the proxy ({PROXY})"] == PROXY
    assert all(step.ok and step.end and step.end >= step.start for step in topology.timeline.steps)


def test_everything_lies_on_the_hosts_before_anything_starts(make: Make, tmp_path: Path) -> None:
    topology = make()
    topology.stage()
    assert topology.status() == {}
    for host, launch in zip(("p1", "d1", "d2"), topology.plan.instances.values(), strict=True):
        assert Path(launch.ranktable_path).read_bytes() == b"{}"
        assert (tmp_path / host / "run-1" / "code" / "connector").is_dir()


def test_a_second_call_starts_nothing(make: Make) -> None:
    topology = make()
    topology.up()
    pids = {name: status.pid for name, status in topology.status().items()}
    topology.up()
    assert {name: status.pid for name, status in topology.status().items()} == pids


def test_a_process_knows_whose_it_is(make: Make) -> None:
    topology = make()
    topology.up()
    host = topology._hosts["d1"]
    assert isinstance(host, LocalHost)
    env = host.supervisor.specs["decode-1"].env
    assert env["PD_INSTANCE"] == "decode-1"


def test_what_vllm_leaves_lying_about_goes_with_the_run(tmp_path: Path) -> None:
    """Its sockets and its rendezvous file: unless their names would become too long there."""
    cluster = described(tmp_path, READY)
    process = launch_plan(cluster, run_dirs=run_dirs(cluster, "run-1")).instances["decode-1"]
    for name in ("VLLM_RPC_BASE_PATH", "TMPDIR"):
        assert _spec(process, "/home/pd/run-1").env[name] == "/home/pd/run-1"
        assert _spec(process, "/home/" + "pd" * 50).env.get(name) is None


def test_a_dead_engine_ends_the_wait_at_once(make: Make) -> None:
    """Although the others never become healthy and the deadline is far."""
    topology = make(decode_1="dies", prefill_1="silent", decode_2="silent")
    findings, seconds = failure_of(topology)
    (finding,) = findings
    assert finding.id == "engine.exited"
    assert (finding.where.host, finding.where.instance) == ("d1", "decode-1")
    assert finding.got == "it ended with exit code 3"
    assert finding.evidence[-1] == "ModuleNotFoundError: No module named 'llm_datadist'"
    assert "Likely cause (software.missing)" in finding.hint
    assert seconds < SOON


def test_a_dead_proxy_is_seen_while_engines_load(make: Make) -> None:
    findings, seconds = failure_of(make(proxy="dies", prefill_1="silent"))
    assert [(f.id, f.where.instance) for f in findings] == [("engine.exited", PROXY)]
    assert seconds < SOON


def test_engines_that_never_get_healthy(make: Make, told: Told) -> None:
    findings, seconds = failure_of(make(ready=1.5, decode_2="silent"))
    (finding,) = findings
    assert finding.id == "engine.timeout"
    assert (finding.where.host, finding.where.instance) == ("d2", "decode-2")
    assert "decode-2 on d2 healthy: not within" in finding.got
    assert finding.evidence == ("INFO serving",)
    assert seconds < SOON
    assert any(line.startswith("d2: failed engine.timeout at d2 decode-2") for line in told.lines)


def test_an_engine_that_serves_another_model_is_not_ready(make: Make) -> None:
    findings, _ = failure_of(make(ready=1.5, decode_1="other"))
    assert [(f.id, f.where.instance) for f in findings] == [("engine.timeout", "decode-1")]


def test_an_engine_that_answers_late_is_waited_for(make: Make) -> None:
    """One question that breaks off is no reason to give up before the deadline."""
    topology = make(decode_1="late", prefill_1="late")
    topology.up()
    assert topology.check_alive() == []


def test_a_link_that_does_not_carry_names_both_ends(make: Make) -> None:
    (finding,), _ = failure_of(make(decode_2="unlinked"))
    assert finding.id == "kvlink.failed"
    where = finding.where
    assert (where.host, where.instance) == ("d2", "decode-2")
    assert (where.peer_host, where.peer_instance) == ("p1", "prefill-1")
    assert "KV transfer failed" in finding.got


def test_an_engine_that_fails_alone_is_no_link_that_failed(make: Make) -> None:
    (finding,), _ = failure_of(make(decode_2="refuses"))
    assert (finding.id, finding.where) == ("service.error", Where(host="d2", instance="decode-2"))


def test_a_proxy_that_answers_wrongly(make: Make) -> None:
    (finding,), _ = failure_of(make(proxy="refuses"))
    assert (finding.id, finding.where.instance) == ("service.error", PROXY)


def test_an_engine_that_cuts_its_streams(make: Make) -> None:
    """Whole answers are well: only the stream shows it."""
    (finding,), seconds = failure_of(make(decode_1="cuts"))
    assert (finding.id, finding.where) == ("service.error", Where(host="d1", instance="decode-1"))
    assert seconds < SOON


def test_a_prefiller_that_refuses_is_named_and_not_the_link(make: Make) -> None:
    (finding,), _ = failure_of(make(prefill_1="refuses"))
    assert (finding.id, finding.where) == ("service.error", Where(host="p1", instance="prefill-1"))


def test_an_engine_that_stops_is_not_waited_for(make: Make) -> None:
    """Its deadline for an answer is 20 s away; that it stands still is seen at once."""
    topology = make(decode_1="stops")
    (finding,), seconds = failure_of(topology)
    assert (finding.id, finding.where) == ("engine.hung", Where(host="d1", instance="decode-1"))
    assert "1 stopped by a signal" in finding.got
    assert seconds < SOON


def test_an_engine_that_stops_while_it_loads(make: Make) -> None:
    (finding,), seconds = failure_of(make(decode_1="stops-at-start"))
    assert (finding.id, finding.where) == ("engine.hung", Where(host="d1", instance="decode-1"))
    assert seconds < SOON


def test_an_engine_that_hangs_is_found_by_asking_it(make: Make) -> None:
    """It lives, its port is open, nothing stands still: it only does no work."""
    topology = make(decode_2="hangs-later")
    topology.up()
    assert topology.check_sick() == []
    (finding,) = topology.check_work(seconds=1)
    assert (finding.id, finding.where) == ("engine.hung", Where(host="d2", instance="decode-2"))
    assert finding.expected == "an answer within 1 s, without any PD"
    assert finding.evidence == ("INFO serving",)


def test_an_engine_that_was_killed_is_started_again(make: Make) -> None:
    """As the suite's faults on purpose do."""
    topology = make()
    topology.up()
    topology.kill("decode-1")
    (finding,) = topology.check_sick(seconds=SOON)
    assert (finding.id, finding.got) == ("engine.exited", "signal 9 (SIGKILL) ended it")
    assert "OOM killer" in finding.hint
    topology.restart("decode-1")
    assert topology.check_sick() == []
    answer = topology.service.disaggregate("prefill-1", "decode-1", "hello")
    assert answer.text == "hi"


def test_an_engine_that_was_paused_goes_on(make: Make) -> None:
    topology = make()
    topology.up()
    assert topology.pause("decode-2", match="") == 1
    (finding,) = topology.check_sick(seconds=SOON)
    assert (finding.id, finding.where.instance) == ("engine.hung", "decode-2")
    topology.resume("decode-2")
    assert topology.check_sick() == []
    assert topology.service.instances["decode-2"].complete("hello").text == "hi"


def test_engines_that_work(make: Make) -> None:
    topology = make()
    topology.up()
    assert topology.check_sick() == []
    assert topology.check_work() == []


def test_a_stopped_worker_names_its_rank() -> None:
    worker = StoppedProcess(7, "VLLM::Worker_TP1_EP1")
    one = stopped_finding("d1", "decode-1", [worker])
    assert (one.id, one.where.rank) == ("engine.hung", 1)
    both = stopped_finding("d1", "decode-1", [worker, StoppedProcess(8, "VLLM::Worker_TP0_EP0")])
    assert both.where.rank is None
    alone = stopped_finding("d1", "decode-1", [StoppedProcess(6, "VLLM::EngineCore")])
    assert alone.where.rank is None


def test_a_topology_that_failed_stays_failed(make: Make) -> None:
    """One sick engine is one failure, not one bring-up per test."""
    topology = make(decode_1="dies")
    first, _ = failure_of(topology)
    pids = {name: status.pid for name, status in topology.status().items()}
    again, seconds = failure_of(topology)
    assert again == first
    assert seconds < 1
    assert {name: status.pid for name, status in topology.status().items()} == pids


def test_logs_are_there_after_a_failure(make: Make) -> None:
    topology = make(decode_1="dies")
    failure_of(topology)
    assert b"llm_datadist" in topology.logs()["decode-1"]


def test_a_process_that_ends_later_is_found(make: Make) -> None:
    topology = make()
    topology.up()
    host = topology._hosts["d1"]
    host.supervisor.stop("decode-1", timeout=10)
    (finding,) = topology.check_alive()
    assert (finding.id, finding.where.instance) == ("engine.exited", "decode-1")
    assert finding.got == "signal 15 (SIGTERM) ended it"


@pytest.mark.parametrize("says", [True, False])
def test_a_timeout_is_told_of_the_instance_that_the_proxy_waited_for(
    make: Make, says: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another proxy than ours tells nothing: then it stays the proxy's."""
    monkeypatch.setattr("pd_validate.topology.topology._GIVEN_UP_SECONDS", 0.5)
    topology = make()
    topology.up()
    decoder = topology.plan.instances["decode-2"]
    place = f"{decoder.address}:{decoder.port}"  # as the guide's flags name it
    line = f'{{"id":"pd-1","outcome":"client-gone-in-decode","decode":"{place}"}}\n'
    with Path(topology.status()[PROXY].log).open("a") as log:
        log.write(line if says else "somebody left\n")
    error = RequestFailed("no answer within 60 s", server=PROXY, request_id="pd-1", timeout=True)
    finding = topology.symptom(error)
    assert finding.id == "service.timeout"
    assert finding.where.instance == ("decode-2" if says else PROXY)
    assert ("waiting for decode-2" in finding.got) is says


def test_an_agent_that_ends_takes_its_processes_along(make: Make) -> None:
    topology = make()
    topology.up()
    topology._hosts["d1"].supervisor.lost = True
    agent, engine = topology.check_alive()
    assert (agent.id, agent.where) == ("host.agent-lost", Where(host="d1"))
    assert (engine.id, engine.where) == ("engine.exited", Where(host="d1", instance="decode-1"))
    assert [cause.id for cause in engine.because] == ["host.agent-lost"]
    assert topology.check_sick() == [agent, engine]


def test_a_host_that_is_lost_is_not_told_as_its_agent(make: Make) -> None:
    topology = make()
    topology.up()
    topology._hosts["d1"].supervisor.lost = topology._hosts["d1"].commands.lost = True
    (finding,) = topology.check_alive()
    assert (finding.id, finding.where) == ("host.unreachable", Where(host="d1"))


def test_an_agent_that_ends_while_engines_load_ends_the_wait(make: Make) -> None:
    """Also on the other hosts, whose engines would be waited for."""
    topology = make(prefill_1="hangs", decode_1="hangs", decode_2="hangs")
    topology._hosts["d2"].supervisor.lost = True
    findings, seconds = failure_of(topology)
    assert [finding.id for finding in findings] == ["host.agent-lost", "engine.exited"]
    assert seconds < SOON
    assert failure_of(topology)[0] == findings


def test_traces_of_all_hosts(make: Make, tmp_path: Path) -> None:
    topology = make()
    for host in ("p1", "d2"):
        directory = tmp_path / host / "run-1" / "trace"
        directory.mkdir(parents=True)
        (directory / "rank0.jsonl").write_text(f'{{"host": "{host}"}}\n')
    assert topology.traces() == '{"host": "p1"}\n{"host": "d2"}\n'
