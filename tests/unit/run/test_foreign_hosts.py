"""A file written for real hosts, run from a directory with nothing else in it."""

from __future__ import annotations

import json
import re

from as_user import run_pytest
from foreign import Foreign

from twin.scenario import DeviceFault, Scenario

NETWORK = ("--cluster", "cluster.yaml", "-m", "network", "-p", "no:allure_pytest")


def test_healthy_hosts_pass_from_an_empty_directory(foreign: Foreign) -> None:
    before = {path.name for path in foreign.directory.iterdir()}
    done = run_pytest([*NETWORK, "--findings", "out/findings.json"], foreign.directory)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 40
    assert not re.search(r"\d+ (failed|errors?)\b", done.stdout)
    findings = json.loads((foreign.directory / "out" / "findings.json").read_text())
    assert findings["verdict"] == "pass"
    assert findings["cluster"] == "strangers"
    assert [f for f in findings["findings"] if f["severity"] != "warn"] == []
    assert foreign.processes() == {}
    # Without Allure's plugin its files have no place either.
    written = {path.name for path in foreign.directory.iterdir()}
    assert written - before <= {"out", "pd-report", ".pytest_cache"}
    assert {"out", "pd-report"} <= written


def test_a_link_that_is_down_is_the_only_root_finding(foreign: Foreign) -> None:
    down = Scenario(faults=(DeviceFault(host="d1", device=6, link="down"),))
    with foreign.changed(down):
        done = run_pytest([*NETWORK, "--findings", "down.json"], foreign.directory)
    assert done.returncode == 1, done.stdout + done.stderr
    told = json.loads((foreign.directory / "down.json").read_text())
    (foreign.directory / "down.json").unlink()
    assert told["verdict"] == "fail"
    failing = [f for f in told["findings"] if f["severity"] == "fail"]
    roots = [(f["id"], f["where"]) for f in failing if not f["because"]]
    assert roots == [("link.down", {"host": "d1", "device": 6})]
    assert "link.down" in done.stdout
    assert "d1" in done.stdout
