"""Every command of the pages works as printed, unless it is marked `needs hardware`.

Commands run in a directory that looks like a clone. What would start engines is collected
instead of run (`make test` runs it: `pytest --cluster twin`); the network validation and
the nightly job are run for real.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from pages import PAGES, READMES, ROOT, blocks, commands

OWN_PAGES = [page for page in PAGES if commands(page)]
SECONDS = 120  # for one command, on a busy machine


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A directory like a clone with its environment, in which commands may write."""
    for name in ("clusters", "examples", "tests", "node_modules", "package.json"):
        if (ROOT / name).exists():
            (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "Makefile", tmp_path)
    return tmp_path


def run(line: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell as a user with the environment activated would."""
    return subprocess.run(
        ["sh", "-c", line],
        cwd=cwd,
        env=_environment(variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Ours, without what speaks to the pytest that runs this test."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    high, low = divmod(os.getpid(), 250)  # a loopback network that no other test uses
    return {
        **outside,
        "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
        "PD_TWIN_NETWORK": f"127.{2 + high % 250}.{low}",
        **variables,
    }


def _tried(line: str) -> str:
    """The command as this test runs it: nothing that takes minutes or starts engines."""
    if line.startswith("make"):
        return line.replace("make", "make --dry-run", 1)
    # A validation run, also through the nightly script: select its tests, run none.
    if re.search(r"\bpytest\b|nightly\.sh", line) and "--dry-run" not in line:
        return f"{line} --collect-only -q"
    return line


@pytest.mark.parametrize("page", OWN_PAGES, ids=lambda page: page.name)
def test_commands_of_the_page(page: Path, clone: Path) -> None:
    """In the order of the page: later ones may use files that earlier ones made."""
    tried = 0
    for command in commands(page):
        if command.hardware:
            continue
        done = run(_tried(command.line), clone)
        assert done.returncode == 0, f"{page.name}: {command.line}\n{done.stdout[-2000:]}"
        tried += 1
    assert tried or page.name not in {readme.name for readme in READMES}


def test_a_fault_looks_as_the_readme_says(clone: Path) -> None:
    """The scenario of README's picture: exit 1, and the findings word for word."""
    done = run("pytest --scenario examples/two-faults.yaml -m network", clone, COLUMNS="100")
    assert done.returncode == 1, done.stdout[-3000:]
    printed, _ = blocks(READMES[0], "text")
    assert _without_margin(printed) in _without_margin(done.stdout)
    assert (clone / "pd-report" / "summary.html").is_file()


def test_a_mistake_in_the_file_looks_as_the_readme_says(clone: Path) -> None:
    _, line = blocks(READMES[0], "text")
    text = (ROOT / "clusters" / "atlas-800t-a2-1p2d.yaml").read_text("utf-8")
    wrong = text.replace("192.0.0.2}", "192.0.0.2, adress: x}")
    (clone / "cluster.yaml").write_text(wrong, encoding="utf-8")
    done = run("pytest --cluster cluster.yaml", clone)
    assert (done.returncode, done.stdout.strip()) == (4, line.strip())


def test_two_nights_of_the_nightly_job(clone: Path) -> None:
    """As in CI, twice: every file is there, and the second night knows the first."""
    job = "examples/nightly/nightly.sh -m network -q"
    variables = {"PD_NIGHTLY_CLUSTER": "twin", "PD_NIGHTLY_DIR": str(clone / "nights")}
    for _ in range(2):
        done = run(job, clone, **variables)
        assert done.returncode == 0, done.stdout[-3000:]
    latest = clone / "nights" / "latest"
    for name in ("junit.xml", "findings.json", "summary.md", "summary.html", "archive.tar.gz"):
        assert (latest / name).stat().st_size > 0, name
    if not (ROOT / "node_modules").is_dir():
        pytest.skip("the rest needs Allure (npm ci)")
    assert (latest / "allure-report" / "index.html").is_file()
    history = (clone / "nights" / "allure-history.jsonl").read_text("utf-8")
    assert len(history.splitlines()) == 2


def test_the_nightly_job_passes_the_exit_code_on(clone: Path) -> None:
    """A cluster file that is not there: 4, as without the script."""
    variables = {"PD_NIGHTLY_CLUSTER": "nowhere.yaml", "PD_NIGHTLY_DIR": str(clone / "nights")}
    assert run("examples/nightly/nightly.sh", clone, **variables).returncode == 4


def _without_margin(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.splitlines())
