"""Runs that the docs show: they end as printed there, and leave the files that are named."""

from __future__ import annotations

from pathlib import Path

from docs_shell import run
from pages import READMES, ROOT, blocks


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


def test_the_nightly_job_passes_the_exit_code_on(clone: Path) -> None:
    """A cluster file that is not there: 4, as without the script."""
    variables = {"PD_NIGHTLY_CLUSTER": "nowhere.yaml", "PD_NIGHTLY_DIR": str(clone / "nights")}
    assert run("examples/nightly/nightly.sh", clone, **variables).returncode == 4


def _without_margin(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.splitlines())
