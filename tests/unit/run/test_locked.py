"""Two runs at once on one cluster: the second says who is there, or waits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from as_user import environment, run_pytest
from foreign import Foreign

from pd_validate.hosts.remote import RemoteHost
from pd_validate.hosts.supervisor import RemoteSupervisor
from pd_validate.run import NOT_FIT
from pd_validate.waiting import wait_for

ARGUMENTS = ("--cluster", "cluster.yaml", "-m", "network", "-p", "no:allure_pytest")


@contextmanager
def other_run(foreign: Foreign) -> Iterator[RemoteSupervisor]:
    """Of somebody else, on one of the hosts."""
    cluster = foreign.hosts.cluster
    with (
        RemoteHost.of_cluster(cluster, "d1", run_id="theirs") as host,
        RemoteSupervisor.open(
            host,
            workdir=str(cluster.workdir_of("d1")),
            run_id="theirs",
            lease=60,
            owner="li@desk",
        ) as run,
    ):
        yield run


def test_the_second_run_says_who_is_there(foreign: Foreign) -> None:
    with other_run(foreign):
        done = run_pytest([*ARGUMENTS, "--report", "locked"], foreign.directory)
    assert done.returncode == NOT_FIT, done.stdout
    document = json.loads((foreign.directory / "locked" / "findings.json").read_text())
    (finding,) = document["findings"]
    assert (finding["id"], finding["where"]) == ("host.locked", {"host": "d1"})
    assert "run theirs of li@desk" in finding["got"]
    assert "started" in finding["got"]
    assert " passed" not in done.stdout


def test_the_second_run_waits_for_the_end_of_the_first(foreign: Foreign) -> None:
    command = [sys.executable, "-m", "pytest", *ARGUMENTS, "--lock-wait", "120"]
    log = foreign.directory / "waiting.txt"
    with other_run(foreign) as theirs, log.open("wb") as output:
        run = subprocess.Popen(
            [*command, "--report", "waited"],
            cwd=foreign.directory,
            env={**environment(), "PYTHONUNBUFFERED": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_for(
                lambda: "in use: run theirs" in log.read_text() or None, seconds=120, what="a wait"
            )
            theirs.close()
            assert run.wait(120) == 0, log.read_text()
        finally:
            run.kill()
            run.wait()


def test_a_wait_that_is_no_number_is_a_usage_error(foreign: Foreign) -> None:
    done = run_pytest([*ARGUMENTS, "--lock-wait", "soon"], foreign.directory)
    assert done.returncode == 4
    assert "--lock-wait is a number of seconds" in done.stderr
