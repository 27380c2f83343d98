"""Some cells of the kill matrix, with small engines; `make kill-matrix` tries all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from twin.kills import KILLS, LEASE, Hosts, hosts, try_kill

INTERRUPTED, KILLED, FAILED = 2, -9, 1


@pytest.fixture(scope="module")
def place() -> Iterator[Hosts]:
    with hosts(engine="small") as running:
        yield running


# Who dies, when, with which exit code, and whether a report with logs can be there.
CELLS = [
    ("SIGINT", "bring-up", INTERRUPTED, True),
    ("SIGINT-twice", "tests", INTERRUPTED, False),
    ("SIGKILL", "tests", KILLED, False),
    ("xdist-worker", "tests", FAILED, True),
    ("ssh-server", "bring-up", FAILED, True),
    ("engine-worker", "tests", FAILED, True),
    ("agent", "staging", FAILED, False),
    ("agent", "tests", FAILED, True),
]

FINDINGS = {"ssh-server": "host.unreachable", "agent": "host.agent-lost"}


@pytest.mark.parametrize(("kill", "phase", "exit_code", "logs"), CELLS)
def test_nothing_stays_and_the_report_says_what_happened(
    place: Hosts, kill: str, phase: str, exit_code: int, logs: bool
) -> None:
    trial = try_kill(place, KILLS[kill], phase)
    assert trial.clean, str(trial)
    assert trial.gone < LEASE
    assert trial.exit_code == exit_code, str(trial)
    assert (trial.verdict is None) == (exit_code == KILLED), str(trial)
    if logs:
        assert trial.logs > 0, str(trial)
    if kill in FINDINGS:
        assert FINDINGS[kill] in trial.findings
