"""The proof of the proof: the harness is broken on purpose, and a test of it must go red.

Each mutation is one line of the product, changed in a copy of the sources; the tests that
are named run there, in a pytest of their own. A mutation that no test notices is a check
that could stop working without anybody knowing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[3]
PACKAGES = ("pd_validate", "connector", "proxy", "twin")
DEADLINE = 120.0  # seconds; a few each on an idle machine
TESTS_FAILED = 1  # pytest's exit code


@dataclass(frozen=True)
class Mutation:
    """`old` occurs once in `file`; with `new` in its place a test of `tests` must fail."""

    meaning: str
    file: str
    old: str
    new: str
    tests: str


MUTATIONS = (
    Mutation(
        "digests of KV are always equal",
        "pd_validate/checks/kv.py",
        "and want != digest",
        "and False",
        "tests/unit/traffic/test_kv_trace.py",
    ),
    Mutation(
        "the audit digests nothing",
        "connector/digest.py",
        "hashlib.blake2b(raw.data, digest_size=DIGEST_BYTES)",
        "hashlib.blake2b(b'', digest_size=DIGEST_BYTES)",
        "tests/unit/connector/test_digest.py",
    ),
    Mutation(
        "KV of all ranks is taken for one",
        "pd_validate/traffic/trace.py",
        "(record.request, record.rank): record",
        "(record.request, 0): record",
        "tests/unit/traffic/test_kv_trace.py",
    ),
    Mutation(
        "a ping that nobody answers counts as answered",
        "pd_validate/checks/reachability.py",
        'yield from _folded(view, small, "ping.unreachable", _dead, known)',
        "yield from ()",
        "tests/unit/checks/test_checks_reachability.py",
    ),
    Mutation(
        "held KV blocks are not looked at",
        "pd_validate/checks/drain.py",
        "if metrics.kv_usage > 0:",
        "if False:",
        "tests/unit/traffic/test_metrics.py",
    ),
    Mutation(
        "parity compares the reference with itself",
        "pd_validate/traffic/compare.py",
        "got.token_ids[position : position + 1]",
        "want.token_ids[position : position + 1]",
        "tests/unit/traffic/test_compare.py",
    ),
    Mutation(
        "logprobs are not compared",
        "pd_validate/traffic/compare.py",
        "difference is None or difference <= tolerance",
        "True",
        "tests/unit/traffic/test_compare.py",
    ),
    Mutation(
        "a dead link is only noted",
        "pd_validate/checks/links.py",
        "if device.link.value is False:",
        "if False:",
        "tests/unit/checks/test_checks_links.py",
    ),
    Mutation(
        "a failing finding does not fail the test",
        "pd_validate/plugin.py",
        "        if failing:\n",
        "        if False:\n",
        "tests/unit/run/test_verdicts.py",
    ),
    Mutation(
        "what was left behind is somebody else's",
        "pd_validate/checks/leftovers.py",
        "if process.run_id == run_id:",
        "if process.run_id != run_id:",
        "tests/unit/topology/test_leftovers.py",
    ),
    Mutation(
        "everything is explained by something else",
        "pd_validate/findings.py",
        "if not finding.because and",
        "if finding.because and",
        "tests/unit/run/test_findings.py",
    ),
    Mutation(
        "a scenario that misses its finding counts as caught",
        "twin/trial.py",
        "return [wanted for wanted, found in self._pairs() if found is None]",
        "return []",
        "tests/unit/scenarios/test_scenario_trial.py",
    ),
    Mutation(
        "a 200 without a text is an answer",
        "pd_validate/checks/answers.py",
        "if not (answer.token_ids or answer.text or answer.completion_tokens):",
        "if False:",
        "tests/unit/traffic/test_compare.py",
    ),
    Mutation(
        "a decoder may compute the prompt itself",
        "pd_validate/checks/drain.py",
        "if computed > requests:",
        "if False:",
        "tests/unit/traffic/test_metrics.py",
    ),
)


@pytest.fixture(scope="session")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The sources and their unit tests, to be broken."""
    directory = tmp_path_factory.mktemp("mutated")
    skipped = shutil.ignore_patterns("__pycache__", "mutation")
    for package in PACKAGES:
        shutil.copytree(PROJECT / package, directory / package, ignore=skipped)
    shutil.copytree(PROJECT / "tests" / "unit", directory / "tests" / "unit", ignore=skipped)
    for name in ("clusters", "tests/data"):
        (directory / name).symlink_to(PROJECT / name)
    for name in ("pytest.ini", "conftest.py"):
        shutil.copy(PROJECT / name, directory / name)
    yield directory
    shutil.rmtree(directory)


def run(directory: Path, tests: str) -> tuple[int, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    options = ("-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:allure_pytest")
    done = subprocess.run(
        [sys.executable, "-B", "-m", "pytest", *options, tests],
        cwd=directory,
        env={**env, "PYTHONPATH": str(directory)},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    return done.returncode, done.stdout[-1500:] + done.stderr[-500:]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.meaning)
def test_a_broken_harness_is_noticed(mutation: Mutation, copy: Path) -> None:
    file = copy / mutation.file
    source = file.read_text()
    assert source.count(mutation.old) == 1, f"{mutation.file} has changed: mend this mutation"
    file.write_text(source.replace(mutation.old, mutation.new))
    try:
        code, output = run(copy, mutation.tests)
    finally:
        file.write_text(source)
    assert code == TESTS_FAILED, (
        f"{mutation.tests} did not notice that {mutation.meaning}\n{output}"
    )
