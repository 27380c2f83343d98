"""Nights, as CI runs them: the script twice on the embedded cluster, and a report with history."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml
from browser import Browser

ROOT = Path(__file__).parents[3]
SECONDS = 240  # for one night's network validation, on a crowded machine
FILES = ("junit.xml", "findings.json", "summary.md", "summary.html", "archive.tar.gz")


def night(clone: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """One run of the job, with nothing but what CI gives it."""
    high, low = divmod(os.getpid(), 250)  # a loopback network that no other test uses
    outside = {n: v for n, v in os.environ.items() if not n.startswith(("PYTEST_", "PD_"))}
    return subprocess.run(
        ["examples/nightly/nightly.sh", *options],
        cwd=clone,
        env={
            **outside,
            "PD_NIGHTLY_CLUSTER": "twin",
            "PD_NIGHTLY_DIR": str(clone / "nights"),
            "PD_TWIN_NETWORK": f"127.{2 + high % 250}.{low}",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of two nights, the second one with a fault that is quarantined."""
    clone = tmp_path_factory.mktemp("clone")
    (clone / "examples").symlink_to(ROOT / "examples")
    (clone / ".venv").symlink_to(sys.prefix)
    scenario = ROOT / "tests" / "scenarios" / "network" / "link-down.yaml"
    known = ROOT / "examples" / "quarantine.yaml"
    runs = (
        ("-m", "network", "-q"),
        ("-m", "network", "-q", "--scenario", str(scenario), "--quarantine", str(known)),
    )
    for options in runs:
        done = night(clone, *options)
        assert done.returncode == 0, done.stdout[-3000:]
    return clone / "nights"


def test_every_file_of_a_night_is_there(nights: Path) -> None:
    latest = nights / "latest"
    for name in FILES:
        assert (latest / name).stat().st_size > 0, name
    with tarfile.open(latest / "archive.tar.gz") as archive:
        inside = {Path(name).name for name in archive.getnames()}
    assert set(FILES) - {"archive.tar.gz"} <= inside
    directories = [p for p in nights.iterdir() if p.is_dir() and not p.is_symlink()]
    assert len(directories) == 2


def in_ci(script: str, nights: Path, workspace: Path) -> None:
    """Run a step of a CI file as its runner would, where the night has already been."""
    variables = {
        "PATH": os.environ["PATH"],
        "PD_NIGHTLY_DIR": str(nights),
        "GITHUB_WORKSPACE": str(workspace),
        "GITHUB_STEP_SUMMARY": str(workspace / "step-summary.md"),
    }
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=workspace, env=variables, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


def test_github_collects_what_it_uploads(nights: Path, tmp_path: Path) -> None:
    text = (ROOT / "examples" / "nightly" / "github-actions.yml").read_text("utf-8")
    steps = {step.get("name"): step for step in yaml.safe_load(text)["jobs"]["validate"]["steps"]}
    for name in ("Summary", "Collect"):
        in_ci(steps[name]["run"], nights, tmp_path)
    assert (tmp_path / "step-summary.md").read_text() == (nights / "latest/summary.md").read_text()
    for name in FILES:
        assert (tmp_path / "pd-report" / name).stat().st_size > 0, name


def test_gitlab_collects_what_it_keeps(nights: Path, tmp_path: Path) -> None:
    text = (ROOT / "examples" / "nightly" / "gitlab-ci.yml").read_text("utf-8")
    job = yaml.safe_load(text)["nightly"]
    in_ci("\n".join(job["after_script"]), nights, tmp_path)
    kept = [path for path in job["artifacts"]["paths"] if "allure" not in path]
    assert {Path(path).name for path in kept} == set(FILES)
    for path in kept:
        assert (tmp_path / path).stat().st_size > 0, path
    assert (tmp_path / job["artifacts"]["reports"]["junit"]).is_file()


def test_a_known_fault_is_in_the_files_that_ci_shows(nights: Path) -> None:
    latest = nights / "latest"
    told = json.loads((latest / "findings.json").read_text())
    assert (told["verdict"], [f["id"] for f in told["quarantined"]]) == ("pass", ["link.down"])
    assert "QUARANTINED FAIL" in (latest / "summary.md").read_text()
    suites = ET.parse(latest / "junit.xml").getroot()
    skipped = [e.get("message", "") for e in suites.iter("skipped")]
    assert any("https://issues.example.org/lab/17" in message for message in skipped)
    assert not list(suites.iter("failure"))


def test_the_summary_of_a_real_run_opens(nights: Path, browser: Browser, tmp_path: Path) -> None:
    """Nothing on the console, nothing loaded; the known fault and its issue on the first screen."""
    summary = (nights / "latest" / "summary.html").resolve()
    page = browser.open(summary, width=1280, height=800)
    page.screenshot(tmp_path / "night.png")
    assert (page.console, page.requests) == ([], [summary.as_uri()])
    card = page.evaluate(
        "(() => { const e = document.querySelector('.finding.quarantined');"
        " return [e.innerText, e.getBoundingClientRect().top] })()"
    )
    for word in ("QUARANTINED FAIL", "link.down", "d1 npu6", "https://issues.example.org/lab/17"):
        assert word in card[0]
    assert 0 < card[1] < 800
    text = page.text()
    assert "tests passed; 1 fails on what is quarantined." in text
    for part in ("Topology", "Checks", "Ping between NPUs", "Environment", "model digest"):
        assert part in text


def test_the_second_report_shows_both_nights(nights: Path, browser: Browser) -> None:
    """Allure's trend has a bar for the earlier night and one for the latest."""
    if not (ROOT / "node_modules" / ".bin" / "allure").exists():
        pytest.skip("Allure 3 is not installed; npm ci")
    lines = (nights / "allure-history.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 2
    page = browser.open((nights / "latest" / "allure-report" / "index.html").resolve())
    page.wait_for("Results")
    page.evaluate("location.hash = 'charts'")
    page.wait_for("Status dynamics")
    page.wait_for("Latest")
    text = page.text()
    dynamics = text.partition("Status dynamics")[2]
    earlier, _, _ = dynamics.partition("Latest")
    assert "/20" in earlier, f"no date of an earlier night in the trend: {dynamics[:300]}"
    assert page.console == []
