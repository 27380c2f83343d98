"""Allure: the story of a test, the files around the results, and the HTML Allure 3 makes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from examples import dead_link, empty, failed_bringup, green

from pd_validate.catalogue import CATALOGUE, Layer
from pd_validate.report import allure as story_module
from pd_validate.report.allure import Kind, Story
from pd_validate.report.allure_files import (
    allurerc,
    attach_run,
    clean_results,
    environment_properties,
    executor,
    generate,
    write_results_files,
)
from pd_validate.report.redact import Redactor
from pd_validate.report.reference import reference_html

PROJECT = Path(__file__).parents[3]

# Tests as the validation suites write them, run by a pytest of their own.
INNER = """
import pytest
from pd_validate.catalogue import Layer
from pd_validate.errors import HostUnreachable
from pd_validate.findings import Finding, Where
from pd_validate.report.allure import Story
from pd_validate.report.redact import Redactor

story = Story(Redactor(["rosebud"]))
DOWN = Finding(id="link.down", where=Where(host="d1", device=6), expected="UP", got="DOWN",
               evidence=("$ hccn_tool -i 6 -link -g",))


@pytest.mark.parametrize("host", ["p1", "d1"])
def test_link_is_up(host):
    story.place(Layer.LINK, host=host)
    with story.step(f"links of {host}"):
        with story.step("login with rosebud"):
            story.attach("answer", "password=hunter22 " + "x" * 300_000)
    if host == "d1":
        story.finding(DOWN)
        raise AssertionError(str(DOWN))


def test_parity():
    story.place(Layer.SERVICE, instance="decode-1")
    pytest.skip("blocked by link.down at d1 npu6")


def test_lab():
    story.place(Layer.HOST, host="d2", device=3)
    raise HostUnreachable("d2: connection refused")


def test_harness():
    raise ValueError("our own mistake")
"""
INNER_CONFTEST = """
from pd_validate.report.allure import Story, begin_results
from pd_validate.report.redact import Redactor


def pytest_sessionstart():
    begin_results()


def pytest_sessionfinish():
    story = Story(Redactor(["rosebud"]))
    story.attach_to_run("leak report", "nothing left behind by rosebud")
    story.error_of_run("bring-up failed: rosebud")
"""


FIXTURES = """
import time

import pytest


@pytest.fixture
def silent():
    pass


@pytest.fixture
def slow():
    time.sleep(0.15)


@pytest.fixture
def broken():
    raise ValueError("no such host")


def test_both(silent, slow):
    pass


def test_neither(broken):
    pass
"""
# Two hosts that started a container each; the second of three engines does not come up.
STEPS = """
import pytest
from pd_validate.findings import Verdict
from pd_validate.report.allure import Story
from pd_validate.report.record import Span
from pd_validate.report.redact import Redactor


@pytest.fixture
def topology():
    story = Story(Redactor(["rosebud"]))
    story.tell([])
    story.tell([
        Span(host="p1", name="staging", start=100.25, end=101.5, note="code copied by rosebud"),
        Span(host="d1", name="staging", start=100.0, end=103.0),
        Span(host="d1", name="load (decode-1)", start=103.0, end=110.0, verdict=Verdict.FAIL,
             note="exit code 1"),
        Span(host="d1", name="load (decode-2)", start=103.0, verdict=Verdict.UNKNOWN),
        Span(host="p1", name="completion (proxy)", start=110.0, end=111.0),
    ])


def test_topology(topology):
    pass
"""


NAMES = ("inner", "steps", "fixtures")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """An allure-results directory of a real run."""
    directory = tmp_path_factory.mktemp("inner")
    (directory / "test_inner.py").write_text(INNER)
    (directory / "test_steps.py").write_text(STEPS)
    (directory / "test_fixtures.py").write_text(FIXTURES)
    (directory / "conftest.py").write_text(INNER_CONFTEST)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:pd_validate",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [*command, "--alluredir", "allure-results", *(f"test_{n}.py" for n in NAMES)],
        cwd=directory,
        env={"PYTHONPATH": str(PROJECT), "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "3 failed, 3 passed, 1 skipped, 1 error" in done.stdout, done.stdout + done.stderr
    return directory / "allure-results"


@pytest.fixture(scope="module")
def by_name(results):
    tests = [json.loads(path.read_text()) for path in results.glob("*-result.json")]
    return {test["name"]: test for test in tests}


def labels(test, name):
    return [label["value"] for label in test["labels"] if label["name"] == name]


def test_labels_say_what_a_test_is_about(by_name):
    test = by_name["test_link_is_up[d1]"]
    assert labels(test, "pd_layer") == ["physical link"]
    assert labels(test, "parentSuite") == ["physical link"]
    assert labels(test, "subSuite") == ["d1"]
    assert set(labels(test, "pd_host")) == {"d1"}
    assert labels(test, "pd_finding") == ["link.down"]
    assert labels(test, "pd_device") == ["d1 npu6"]
    assert labels(test, "severity") == ["critical"]
    assert labels(by_name["test_parity"], "pd_instance") == ["decode-1"]
    assert labels(by_name["test_lab"], "pd_device") == ["d2 npu3"]


def test_findings_link_to_their_documentation(by_name):
    (link,) = by_name["test_link_is_up[d1]"]["links"]
    assert (link["url"], link["name"]) == (
        "../checks.html#link.down",
        "about link.down",
    )


def test_product_fails_and_lab_breaks(by_name):
    outcomes = {name: test["status"] for name, test in by_name.items()}
    assert outcomes == {
        "test_link_is_up[p1]": "passed",
        "test_link_is_up[d1]": "failed",
        "test_parity": "skipped",
        "test_lab": "broken",
        "test_harness": "broken",
        "test_topology": "passed",
        "test_both": "passed",
        "test_neither": "broken",
    }


def test_steps_nest_and_attachments_are_capped_and_redacted(by_name, results):
    (outer,) = by_name["test_link_is_up[p1]"]["steps"]
    (inner,) = outer["steps"]
    assert (outer["name"], inner["name"]) == ("links of p1", "login with [secret]")
    (attachment,) = inner["attachments"]
    text = (results / attachment["source"]).read_text()
    assert text.startswith("password=[secret]")
    assert len(text) < 201_000
    assert "characters left out" in text


def fixtures_told(results):
    containers = [json.loads(path.read_text()) for path in results.glob("*-container.json")]
    return {before["name"]: before for told in containers for before in told["befores"]}


def test_fixtures_are_told_that_failed_took_long_or_did_something(results):
    """Not those that only hand something over, nor a test's parameters."""
    assert fixtures_told(results).keys() == {"slow", "broken", "topology"}


def test_bring_up_is_told_below_its_fixture_with_its_own_times(results):
    staging, load, completion = fixtures_told(results)["topology"]["steps"]

    def told(step):
        return step["name"], step["status"], step["start"], step.get("stop")

    assert told(staging) == ("staging", "passed", 100_000, 103_000)
    assert [told(step) for step in staging["steps"]] == [
        ("p1: code copied by [secret]", "passed", 100_250, 101_500),
        ("d1", "passed", 100_000, 103_000),
    ]
    assert told(load) == ("load", "failed", 103_000, 110_000)
    failed, unended = load["steps"]
    assert told(failed) == ("d1 (decode-1): exit code 1", "failed", 103_000, 110_000)
    assert failed["statusDetails"]["message"] == "exit code 1"
    assert told(unended) == ("d1 (decode-2)", "broken", 103_000, None)
    assert unended["statusDetails"]["message"] == "it had not ended"
    assert told(completion) == ("completion: p1 (proxy)", "passed", 110_000, 111_000)


def test_finding_is_attached_with_its_evidence(by_name, results):
    (attachment,) = by_name["test_link_is_up[d1]"]["attachments"]
    assert attachment["name"] == "link.down at d1 npu6"
    assert "$ hccn_tool -i 6 -link -g" in (results / attachment["source"]).read_text()


def test_run_level_attachment_and_error(results):
    found = [json.loads(path.read_text()) for path in results.glob("*-globals.json")]
    names = [item["name"] for part in found for item in part.get("attachments") or []]
    errors = [item["message"] for part in found for item in part.get("errors") or []]
    assert names == ["leak report"]
    assert errors == ["bring-up failed: [secret]"]


class Told(Story):
    """Keeps what is attached to the run."""

    def __init__(self):
        super().__init__(Redactor())
        self.texts = {}

    def attach_to_run(self, name, content, kind=Kind.TEXT):
        self.texts[name] = content


def test_what_hangs_on_the_run():
    story = Told()
    attach_run(story, failed_bringup())
    (summary,) = [text for name, text in story.texts.items() if name.startswith("summary")]
    assert summary.startswith("<!doctype html>")
    assert "device.in-use at d1 npu6" in story.texts["findings"]
    assert "FAIL npu6" in story.texts["checks of all hosts"]
    steps = story.texts["bring-up, step by step"].splitlines()
    assert len(steps) == len(failed_bringup().timeline)
    assert steps[0].startswith("    0.0 s  ")
    assert any(": fail" in step for step in steps)


def test_a_run_that_started_nothing_says_so():
    story = Told()
    attach_run(story, empty())
    assert story.texts["findings"] == "none"
    assert story.texts["left behind"] == "not looked for: nothing was started"
    assert "bring-up, step by step" not in story.texts


def test_steps_are_logged_without_allure(monkeypatch, caplog):
    monkeypatch.setattr(story_module, "allure", None)
    caplog.set_level("INFO", logger="pd_validate.step")
    story = Story(Redactor(["rosebud"]))
    story.place(Layer.LINK, host="d1")
    story.attach("answer", "text")
    story.attach_to_run("answer", "text")
    story.error_of_run("error")
    story.tell(green().timeline)
    story.finding(dead_link().findings[0])
    with story.step("first rosebud"):
        pass
    with pytest.raises(ZeroDivisionError), story.step("second"):
        _ = 1 / 0
    assert caplog.messages[0] == "first [secret]"
    assert re.fullmatch(r"first \[secret\]: done in \d+\.\d s", caplog.messages[1])
    assert re.fullmatch(r"second: ZeroDivisionError after \d+\.\d s", caplog.messages[3])


# Files around the results.


def test_environment_puts_differing_hosts_first():
    record = green()
    record.environment["a:key with=signs"] = "C:\\model"
    lines = environment_properties(record).splitlines()
    assert lines[:2] == [
        "cluster=atlas-1p2d",
        "python=DIFFERS: p1 3.11.13, d1 3.11.13, d2 3.11.12",
    ]
    assert "CANN=8.2.RC1" in lines
    assert r"a\:key\ with\=signs=C:\\model" in lines


@pytest.mark.parametrize(
    ("environ", "name", "url"),
    [
        ({}, "by hand", None),
        (
            {
                "GITHUB_ACTIONS": "true",
                "GITHUB_SERVER_URL": "https://git.example",
                "GITHUB_REPOSITORY": "a/b",
                "GITHUB_RUN_NUMBER": "7",
                "GITHUB_RUN_ID": "99",
                "GITHUB_WORKFLOW": "nightly",
            },
            "GitHub Actions",
            "https://git.example/a/b/actions/runs/99",
        ),
        (
            {
                "GITLAB_CI": "true",
                "CI_JOB_NAME": "validate",
                "CI_PIPELINE_IID": "3",
                "CI_JOB_URL": "https://lab.example/1",
            },
            "GitLab CI",
            "https://lab.example/1",
        ),
        (
            {
                "JENKINS_URL": "https://ci.example",
                "JOB_NAME": "pd",
                "BUILD_NUMBER": "12",
                "BUILD_URL": "https://ci.example/12",
            },
            "Jenkins",
            "https://ci.example/12",
        ),
    ],
)
def test_executor_is_the_ci_job(environ, name, url):
    made = executor(environ)
    assert (made["name"], made.get("buildUrl")) == (name, url)


def test_only_results_are_cleaned(tmp_path):
    write_results_files(green(), tmp_path, {})
    for name in ("1-result.json", "2-container.json", "3-globals.json", "4-attachment.txt"):
        (tmp_path / name).touch()
    (tmp_path / "notes.txt").touch()
    clean_results(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def category_of(config, *, status, message="", finding=""):
    """What Allure 3 does: the first rule with a matcher that fits."""
    for rule in config["categories"]:
        matchers = rule["matchers"]
        for matcher in matchers if isinstance(matchers, list) else [matchers]:
            if status not in matcher["statuses"]:
                continue
            if "labels" in matcher and not re.search(matcher["labels"]["pd_finding"], finding):
                continue
            if "message" in matcher and not re.search(matcher["message"], message):
                continue
            if "trace" in matcher:
                continue
            return rule["name"]
    return None


@pytest.mark.parametrize("kind", CATALOGUE.values(), ids=lambda kind: kind.id)
def test_every_finding_has_the_category_of_its_layer(kind, tmp_path):
    config = allurerc(green(), tmp_path, tmp_path / "history.jsonl")
    by_label = category_of(config, status="failed", finding=kind.id)
    by_message = category_of(config, status="failed", message=f"AssertionError: {kind.id} at d1")
    assert by_label == by_message
    assert by_label.partition(": ")[2] == kind.layer.label


def test_other_ends_have_categories_too(tmp_path):
    config = allurerc(green(), tmp_path, tmp_path / "history.jsonl")
    blocked = category_of(config, status="skipped", message="Skipped: blocked by link.down at d1")
    assert blocked == "Blocked by a finding below"
    lab = category_of(config, status="broken", message="HostUnreachable: d2")
    assert lab == "Lab: host not usable"
    assert category_of(config, status="broken", message="KeyError") == "Harness: broken test"
    assert category_of(config, status="failed", message="x") == "Product: no finding named"
    assert category_of(config, status="skipped", message="needs hardware") is None


def test_categories_json_says_the_same_for_allure_2(tmp_path):
    write_results_files(green(), tmp_path, {})
    rules = json.loads((tmp_path / "categories.json").read_text())
    message = "AssertionError: kv.corrupt at d2:\nexpected a"
    matching = [r["name"] for r in rules if re.fullmatch(r.get("messageRegex", ".*"), message)]
    assert matching[0] == "Product: KV data"


# The HTML.


def test_without_allure_the_message_says_how(tmp_path):
    made = generate(
        green(), tmp_path / "results", tmp_path / "html", tmp_path / "h", tool_dir=tmp_path
    )
    assert made.index is None
    assert f"npm ci --prefix {tmp_path} && " in made.message
    assert f"--config {tmp_path / 'allurerc.json'} {tmp_path / 'results'}" in made.message


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("#!/bin/sh\necho 'cannot read results'\nexit 3\n", ["exit 3", "cannot read results"]),
        ("#!/nowhere/node\n", ["Node is not installed"]),
        ("#!/bin/sh\nexit 0\n", ["Allure made no HTML (exit 0)"]),
    ],
)
def test_a_failing_tool_is_told_and_does_not_raise(tmp_path, script, words):
    tool = tmp_path / "node_modules" / ".bin" / "allure"
    tool.parent.mkdir(parents=True)
    tool.write_text(script)
    tool.chmod(0o755)
    made = generate(green(), tmp_path, tmp_path / "html", tmp_path / "h", tool_dir=tmp_path)
    assert made.index is None
    for word in words:
        assert word in made.message


def test_allure_3_makes_a_page_with_the_culprit(browser, results, tmp_path):
    if not (PROJECT / "node_modules" / ".bin" / "allure").exists():
        pytest.skip("Allure 3 is not installed; npm ci")
    record = dead_link()
    write_results_files(record, results, {})
    history = tmp_path / "history.jsonl"
    for runs in (1, 2):
        made = generate(record, results, tmp_path / "html", history)
        assert made.index is not None, made.message
        assert len(history.read_text().splitlines()) == runs
    page = browser.open(made.index)
    page.wait_for("test_link_is_up[d1]")
    text = page.text()
    assert "FAIL atlas-1p2d, d1 npu6: The RoCE port of the NPU has no carrier." in text
    assert "DIFFERS: p1 3.11.13, d1 3.11.13, d2 3.11.12" in text
    # Red tests stand first; one click, and the finding is told in full.
    assert text.index("test_link_is_up[d1]") < text.index("test_lab")
    page.click("test_link_is_up[d1]")
    page.wait_for("link.down at d1 npu6: expected UP, got DOWN")
    # The finding's link leads to its section of the page beside the report, in a new tab.
    (tmp_path / "checks.html").write_text(reference_html(), encoding="utf-8")
    page.wait_for("about link.down")
    page.evaluate("window.open = (address) => { location.href = address }")
    page.click("about link.down")
    page.wait_for("The RoCE port of the NPU has no carrier.\n")
    address = (tmp_path / "checks.html").as_uri() + "#link.down"
    assert page.evaluate("location.href") == address
    assert page.evaluate("document.querySelector('article:target').id") == "link.down"
    page = browser.open(made.index)
    page.wait_for("test_link_is_up[d1]")
    page.evaluate("location.hash = 'categories'")
    page.wait_for("Lab: physical link")
    page.wait_for("link.down at d1 npu6")
    page.screenshot(tmp_path / "allure.png")
    assert page.console == []
    # Nothing is asked of the network: what is not the page itself is inlined in it.
    loaded = {request.partition(":")[0] for request in page.requests}
    assert loaded <= {"file", "data", "blob"}


def test_lock_file_pins_allure_and_names_no_registry():
    lock = json.loads((PROJECT / "package-lock.json").read_text())
    wanted = json.loads((PROJECT / "package.json").read_text())["devDependencies"]
    assert lock["packages"]["node_modules/allure"]["version"] == wanted["allure"]
    for name, package in lock["packages"].items():
        assert "resolved" not in package, name
