"""A service that does not come up is started once, told once, and not tried again by --reruns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from twin.kills import Hosts, hosts

DEADLINE = 240.0  # seconds
DIES = "#!/bin/sh\necho 'ModuleNotFoundError: No module named llm_datadist'\nexit 3\n"


@pytest.fixture(scope="module")
def place() -> Iterator[Hosts]:
    with hosts(engine="small") as running:
        (running.twin.hosts.hosts["d1"].directory / "bin" / "vllm").write_text(DIES)
        yield running


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "n2"])
def test_one_bring_up_one_failure_one_teardown(place: Hosts, workers: tuple[str, ...]) -> None:
    arguments = ["--cluster", "cluster.yaml", "test_service.py", "--reruns", "1", *workers]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments, "-p", "no:allure_pytest"],
        cwd=place.directory,
        env=env,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    out = done.stdout + done.stderr
    assert done.returncode == 1, out
    many = len(place.twin.cluster.hosts)
    assert out.count("...  starting processes") == many, out
    assert out.count("...  ending what was started") == many, out
    assert "1 skipped, 1 error, 1 rerun in" in out, out
    report = json.loads((place.directory / "pd-report" / "record.json").read_text())
    assert [f["id"] for f in report["findings"]] == ["engine.exited"]
    outcomes = sorted(test["outcome"] for test in report["tests"])
    assert outcomes == ["blocked", "broken"]  # as pytest counts what fails before the test
    assert place.running() == {}
    assert place.files() == []
