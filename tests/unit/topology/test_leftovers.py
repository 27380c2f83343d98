"""What of a run is still on a host, told thing by thing; what belongs to others is not ours."""

from __future__ import annotations

from pd_validate.checks.leftovers import check_leftovers, unknown_leftovers
from pd_validate.errors import HostUnreachable
from pd_validate.findings import Severity, Verdict, verdict_of
from pd_validate.hosts.supervisor import LockFound, PortTaken, ProcessFound, RunInfo, Survey


def survey_with(run_id: str) -> Survey:
    """A host on which everything of one run is left."""
    run = RunInfo("d1", run_id, f"/w/runs/{run_id}", "me@here", 7, 0.0, 60.0, False, False)
    return Survey(
        host="d1",
        runs=(run,),
        processes=(ProcessFound("d1", 4711, run_id, "decode-1", "vllm serve", 0.0),),
        lock=LockFound("d1", "/w/lock", run, held=False),
        ports=(PortTaken("d1", 13700, "0.0.0.0", 4711, "vllm serve", run_id),),
    )


def test_nothing_left() -> None:
    assert check_leftovers(Survey("d1", (), (), None, ()), "run-1") == []


def test_everything_left_is_named() -> None:
    found = {finding.id: finding for finding in check_leftovers(survey_with("run-1"), "run-1")}
    assert list(found) == [
        "leftover.process",
        "leftover.port",
        "leftover.file",
        "leftover.lock",
    ]
    assert all(finding.where.host == "d1" for finding in found.values())
    assert found["leftover.process"].where.instance == "decode-1"
    assert "pid 4711: vllm serve" in found["leftover.process"].got
    assert found["leftover.port"].where.port == 13700
    assert found["leftover.file"].where.file == "/w/runs/run-1"
    assert "run-1" in found["leftover.lock"].got


def test_another_run_is_not_ours_to_tell() -> None:
    assert check_leftovers(survey_with("run-2"), "run-1") == []


def test_a_port_of_a_stranger_is_not_ours() -> None:
    port = PortTaken("d1", 13700, "0.0.0.0", None, "", None)
    assert check_leftovers(Survey("d1", (), (), None, (port,)), "run-1") == []


def test_a_host_that_does_not_answer_is_unknown() -> None:
    """Neither clean nor dirty: its lease ends everything there."""
    finding = unknown_leftovers("d1", HostUnreachable("d1: no route"))
    assert finding.severity is Severity.UNKNOWN
    assert verdict_of([finding]) is Verdict.UNKNOWN
    assert "no route" in finding.got
