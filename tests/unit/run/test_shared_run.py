"""`pytest -n`: one run for all workers, and tests that must be alone are alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import cast

import pytest
from as_user import run_pytest
from foreign import Foreign

from pd_validate.quarantine import load_quarantine
from pd_validate.report.record import RequestTiming, Span
from pd_validate.sharing import Desk, Handle, Owner, WorkersRun
from pd_validate.spec.load import load_cluster
from twin.scenario import DeviceFault, Scenario

pytest_plugins = ("pytester",)

# Two workers at least; what each test did and when goes to a file of its own.
ORDER = """
import os, time
import pytest

def note(name):
    begin = time.monotonic()
    time.sleep(0.3)
    line = f"{name} {begin} {time.monotonic()} {os.environ['PYTEST_XDIST_WORKER']}"
    open(f"{name}.done", "w").write(line)

@pytest.mark.afterwards
def test_last():
    note("last")

@pytest.mark.alone
@pytest.mark.parametrize("number", range(2))
def test_alone(number):
    note(f"alone{number}")

@pytest.mark.parametrize("number", range(6))
def test_with_company(number):
    note(f"company{number}")
    if number == 3 and not os.path.exists("crashed"):
        open("crashed", "w").close()
        os.kill(os.getpid(), 9)
"""
# The scheduler alone, without a cluster.
SCHEDULER = """
import pytest
from pd_validate import plugin
from pd_validate.schedule import OneCluster

def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: ("afterwards" in item.keywords, plugin._is_alone(item)))

def pytest_xdist_make_scheduler(config, log):
    return OneCluster(config, log, lambda: 6)
"""


def counted(foreign: Foreign, report: str) -> dict[str, int]:
    tests = json.loads((foreign.directory / report / "record.json").read_text())["tests"]
    outcomes = [test["outcome"] for test in tests]
    return {outcome: outcomes.count(outcome) for outcome in outcomes}


def run_network(foreign: Foreign, report: str, *options: str) -> tuple[int, str]:
    arguments = ["--cluster", "cluster.yaml", "-m", "network", "-p", "no:allure_pytest"]
    done = run_pytest([*arguments, "--report", report, *options], foreign.directory)
    return done.returncode, done.stdout + done.stderr


def test_hosts_are_read_once_for_all_workers(foreign: Foreign) -> None:
    code, out = run_network(foreign, "shared", "-n", "3", "--reruns", "1")
    assert code == 0, out
    assert out.count("...  reading devices") == len(foreign.hosts.cluster.hosts)
    assert "staging" not in out
    assert run_network(foreign, "single")[0] == 0
    assert counted(foreign, "shared") == counted(foreign, "single")


def test_what_workers_find_is_one_finding_of_the_run(foreign: Foreign) -> None:
    """Also with every test tried twice."""
    down = Scenario(faults=(DeviceFault(host="d1", device=6, link="down"),))
    with foreign.changed(down):
        code, out = run_network(foreign, "down", "-n", "2", "--reruns", "1")
    assert code == 1, out
    findings = json.loads((foreign.directory / "down" / "findings.json").read_text())
    assert [f["id"] for f in findings["findings"] if f["severity"] == "fail"] == ["link.down"]


def test_a_quarantine_holds_in_workers(foreign: Foreign) -> None:
    down = Scenario(faults=(DeviceFault(host="d1", device=6, link="down"),))
    known = Path(__file__).parents[3] / "examples" / "quarantine.yaml"
    with foreign.changed(down):
        code, out = run_network(foreign, "known", "-n", "2", "--quarantine", str(known))
    assert code == 0, out
    findings = json.loads((foreign.directory / "known" / "findings.json").read_text())
    assert [f["id"] for f in findings["quarantined"]] == ["link.down"]
    assert counted(foreign, "known")["quarantined"] == 1


class Measuring:
    """An owner that takes latencies and tells one step, once."""

    def __init__(self) -> None:
        self.got: list[RequestTiming] = []
        self.steps = [Span(host="d1", name="staging", start=1.0, end=2.0)]

    def measured(self, latencies: Sequence[RequestTiming]) -> None:
        self.got += latencies

    def fresh_steps(self) -> list[Span]:
        told, self.steps = self.steps, []
        return told


def test_latencies_reach_the_owner_and_steps_a_worker(
    foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = Measuring()
    desk = Desk(cast(Owner, owner))
    handle = Handle(
        address=desk.address,
        key=desk.key,
        cluster=load_cluster(foreign.directory / "cluster.yaml"),
        run_id="owner",
        audit="off",
        quarantine=load_quarantine(None),
        secrets=(),
    )
    run = WorkersRun(Handle.unpacked(handle.packed()))
    timing = RequestTiming(request="r1", ttft=0.2, tpot=0.01)
    try:
        monkeypatch.setattr(run.session, "latencies", lambda: [timing])
        run.hand_in()
        assert owner.got == [timing]
        told: list[Span] = []
        monkeypatch.setattr(run.story, "tell", told.extend)
        run.tell_steps()
        assert [span.name for span in told] == ["staging"]
    finally:
        run.close()
        desk.close()
    run.hand_in()  # the owner has ended: nothing to draw, and nothing to fail on
    run.tell_steps()
    assert owner.got == [timing]


def test_each_worker_running_everything_is_refused(foreign: Foreign) -> None:
    code, out = run_network(foreign, "each", "-n", "2", "--dist", "each")
    assert code == 4
    assert "--dist each would run every test on every worker" in out


def test_order_and_solitude(pytester: pytest.Pytester) -> None:
    """Company first and spread; then alone, one by one; looking back last; a crash loses none."""
    pytester.makeconftest(SCHEDULER)
    pytester.makepyfile(ORDER)
    off = ("-p", "no:allure_pytest", "-p", "no:cacheprovider")
    result = pytester.runpytest_subprocess("-n", "3", "--reruns", "1", *off)
    assert result.ret == 0, result.outlines
    done = [path.read_text().split() for path in Path(pytester.path).glob("*.done")]
    times = {name: (float(begin), float(end)) for name, begin, end, _ in done}
    assert len(times) == 9
    company = [name for name in times if name.startswith("company")]
    assert len({worker for name, _, _, worker in done if name in company}) > 1
    in_order = ["alone0", "alone1", "last"]
    assert max(times[name][1] for name in company) <= times["alone0"][0]
    for before, after in pairwise(in_order):
        assert times[before][1] <= times[after][0]
