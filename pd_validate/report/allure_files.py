"""The files around Allure's results, and the HTML that Allure 3 makes of them.

Allure 3 comes from npm, pinned in package-lock.json (`npm ci`). It reads categories only
from its configuration and ignores categories.json, which Allure 2 needs; both are made
here, from the layers of the catalogue.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pd_validate.catalogue import CATALOGUE, Layer
from pd_validate.report.allure import FINDING_LABEL, HOST_LABEL, LAYER_LABEL, Kind, Story
from pd_validate.report.allure_page import finish_page
from pd_validate.report.families import families
from pd_validate.report.record import RunRecord, differing_hosts
from pd_validate.report.summary_html import headline, summary_html
from pd_validate.report.terminal import checks_text
from pd_validate.report.words import duration

_PROJECT = Path(__file__).parents[2]
_GENERATE_TIMEOUT = 120.0  # seconds; a run of thousands of tests takes a few
_HISTORY_LIMIT = 100  # runs
_SHOWN_RUNS = 30  # in a trend
# Of Allure's sixteen charts those that a cluster's nights have data for.
_CHARTS = (
    ("statusDynamics", "Status dynamics"),
    ("statusTransitions", "What changed from night to night"),
    ("durationDynamics", "Durations"),
    ("statusAgePyramid", "How long tests have been in their state"),
)

# Who has to act on a red test of a layer.
_OWNER = {
    Layer.LINK: "Lab",
    Layer.NPU_NETWORK: "Lab",
    Layer.HOST: "Lab",
    Layer.PLAN: "Lab",
    Layer.ENGINE: "Product",
    Layer.KV_LINK: "Product",
    Layer.KV_DATA: "Product",
    Layer.PROXY: "Product",
    Layer.SERVICE: "Product",
    Layer.LEFTOVER: "Harness",
}
_LAB_ERRORS = r"LabError|HostUnreachable|HostAuthError|HostKeyChanged|CommandTimeout|ClusterLocked"


def clean_results(results_dir: Path) -> None:
    """Remove what an earlier run left in a results directory, and nothing else.

    To be called in the controller before the first result: --clean-alluredir lets every
    xdist worker wipe what the controller has written meanwhile.
    """
    for pattern in ("*-result.json", "*-container.json", "*-globals.json", "*-attachment*"):
        for path in results_dir.glob(pattern):
            path.unlink()
    for name in ("environment.properties", "executor.json", "categories.json"):
        (results_dir / name).unlink(missing_ok=True)


def write_results_files(
    record: RunRecord, results_dir: Path, environ: Mapping[str, str]
) -> list[Path]:
    """Write environment.properties, executor.json and categories.json.

    `record` must be redacted; `environ` is the process environment, for the CI's names.
    """
    results_dir.mkdir(parents=True, exist_ok=True)
    texts = {
        "environment.properties": environment_properties(record),
        "executor.json": _json(executor(environ)),
        "categories.json": _json(_categories_of_allure_2()),
    }
    paths = []
    for name, text in texts.items():
        path = results_dir / name
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


def attach_run(story: Story, record: RunRecord) -> None:
    """Attach to the run what belongs to no test: all pictures, the findings, what was left.

    In the controller, before `generate`. `record` must be redacted.
    """
    name = "summary: topology, checks, pings, bring-up, KV, latency"
    story.attach_to_run(name, summary_html(record), Kind.HTML)
    if record.checks:
        story.attach_to_run("checks of all hosts", checks_text(record))
    if record.timeline:
        story.attach_to_run("bring-up, step by step", _bring_up(record))
    told = [str(family.root) for family in families(record.findings)]
    story.attach_to_run("findings", "\n\n".join(told) or "none")
    left = [f"{host}: {', '.join(items) or 'nothing'}" for host, items in record.leftovers.items()]
    story.attach_to_run("left behind", "\n".join(left) or "not looked for: nothing was started")


def _bring_up(record: RunRecord) -> str:
    began = min(span.start for span in record.timeline)
    return "\n".join(
        f"{span.start - began:7.1f} s  {span.host}  {span.name}: {span.verdict.value}"
        + (f" in {duration(span.end - span.start)}" if span.end is not None else ", did not end")
        for span in sorted(record.timeline, key=lambda span: span.start)
    )


def environment_properties(record: RunRecord) -> str:
    """Environment of a run as Java properties; hosts that differ are listed with their value."""
    differing: dict[str, str] = {}
    same: dict[str, str] = {}
    for name, value in record.environment.items():
        if isinstance(value, str):
            same[name] = value
        elif differing_hosts(value):
            differing[name] = "DIFFERS: " + ", ".join(f"{h} {v}" for h, v in value.items())
        elif value:
            same[name] = next(iter(value.values()))
    # Allure shows the first few and folds the rest.
    entries = {"cluster": record.cluster, **differing, **same}
    return "".join(
        f"{_property_key(name)}={_property_value(value)}\n" for name, value in entries.items()
    )


def _property_key(name: str) -> str:
    return re.sub(r"([\s:=#!\\])", r"\\\1", name)


def _property_value(value: str) -> str:
    return " ".join(value.replace("\\", "\\\\").split())


def executor(environ: Mapping[str, str]) -> dict[str, Any]:
    """Who ran this: the CI job, with a link back to it, or a person."""
    if environ.get("GITHUB_ACTIONS"):
        server, repository = environ.get("GITHUB_SERVER_URL", ""), environ["GITHUB_REPOSITORY"]
        return {
            "name": "GitHub Actions",
            "type": "github",
            "buildName": f"{environ.get('GITHUB_WORKFLOW', '')} #{environ['GITHUB_RUN_NUMBER']}",
            "buildOrder": int(environ["GITHUB_RUN_NUMBER"]),
            "buildUrl": f"{server}/{repository}/actions/runs/{environ['GITHUB_RUN_ID']}",
        }
    if environ.get("GITLAB_CI"):
        return {
            "name": "GitLab CI",
            "type": "gitlab",
            "buildName": f"{environ['CI_JOB_NAME']} #{environ['CI_PIPELINE_IID']}",
            "buildOrder": int(environ["CI_PIPELINE_IID"]),
            "buildUrl": environ["CI_JOB_URL"],
        }
    if environ.get("JENKINS_URL"):
        return {
            "name": "Jenkins",
            "type": "jenkins",
            "buildName": f"{environ['JOB_NAME']} #{environ['BUILD_NUMBER']}",
            "buildOrder": int(environ["BUILD_NUMBER"]),
            "buildUrl": environ["BUILD_URL"],
        }
    return {"name": "by hand", "type": "local"}


def allurerc(record: RunRecord, report_dir: Path, history_path: Path) -> dict[str, Any]:
    """Configuration of Allure 3: one file of HTML, our categories, history over runs."""
    return {
        # The page's heading, so that the culprit stands there without a click.
        "name": f"{record.verdict.value.upper()} {record.cluster}, {headline(record)}",
        "output": str(report_dir),
        "historyPath": str(history_path),
        "historyLimit": _HISTORY_LIMIT,
        "categories": _categories(),
        "plugins": {
            "awesome": {
                "options": {
                    "singleFile": True,
                    "reportLanguage": "en",
                    "groupBy": [LAYER_LABEL, "suite", "subSuite"],
                    "defaultSortBy": "status,asc",  # red ones first
                    "charts": [
                        {"type": kind, "title": title, "limit": _SHOWN_RUNS}
                        for kind, title in _CHARTS
                    ],
                }
            }
        },
    }


def _categories() -> list[dict[str, Any]]:
    """First match wins: by the finding a test names, then by how it ended."""
    rules: list[dict[str, Any]] = [
        {
            "name": f"{_OWNER[layer]}: {layer.label}",
            "matchers": [
                {"statuses": ["failed", "broken"], "labels": {FINDING_LABEL: f"^(?:{ids})$"}},
                {"statuses": ["failed", "broken"], "message": rf"(?:^|\s)(?:{ids}) at "},
            ],
            "groupBy": [{"label": FINDING_LABEL}, {"label": HOST_LABEL}],
            "expand": True,
        }
        for layer, ids in _ids_of_layers().items()
    ]
    rules += [
        {
            "name": "Blocked by a finding below",
            "matchers": {"statuses": ["skipped"], "message": "^(?:Skipped: )?blocked by "},
            "groupBy": [{"label": FINDING_LABEL}],
        },
        {
            "name": "Lab: host not usable",
            "matchers": [
                {"statuses": ["broken"], "message": _LAB_ERRORS},
                {"statuses": ["broken"], "trace": _LAB_ERRORS},
            ],
        },
        {"name": "Harness: broken test", "matchers": {"statuses": ["broken"]}},
        {"name": "Product: no finding named", "matchers": {"statuses": ["failed"]}},
    ]
    return rules


def _categories_of_allure_2() -> list[dict[str, Any]]:
    """The same for categories.json, whose regular expressions match whole messages."""
    rules: list[dict[str, Any]] = [
        {
            "name": f"{_OWNER[layer]}: {layer.label}",
            "matchedStatuses": ["failed", "broken"],
            "messageRegex": rf"(?s)(?:.*\s)?(?:{ids}) at .*",
        }
        for layer, ids in _ids_of_layers().items()
    ]
    rules += [
        {
            "name": "Blocked by a finding below",
            "matchedStatuses": ["skipped"],
            "messageRegex": "(?s)(?:Skipped: )?blocked by .*",
        },
        {
            "name": "Lab: host not usable",
            "matchedStatuses": ["broken"],
            "traceRegex": f"(?s).*(?:{_LAB_ERRORS}).*",
        },
        {"name": "Harness: broken test", "matchedStatuses": ["broken"]},
        {"name": "Product: no finding named", "matchedStatuses": ["failed"]},
    ]
    return rules


def _ids_of_layers() -> dict[Layer, str]:
    """A regular expression of all finding ids, per layer."""
    return {
        layer: "|".join(
            re.escape(kind.id).replace(r"\-", "-")  # `\-` is an error in JavaScript's u mode
            for kind in CATALOGUE.values()
            if kind.layer is layer
        )
        for layer in Layer
    }


@dataclass(frozen=True)
class Generated:
    """What became of the HTML: `index` is the page, or None, and `message` says it in words."""

    index: Path | None
    message: str


def generate(
    record: RunRecord,
    results_dir: Path,
    report_dir: Path,
    history_path: Path,
    *,
    tool_dir: Path = _PROJECT,
) -> Generated:
    """Let Allure 3 make its HTML of the results; never raises for a missing or failing tool.

    `history_path` (one line a run) makes trends; keep it between runs. `tool_dir` holds
    node_modules. The configuration is left beside the report, as allurerc.json.
    """
    # Allure runs beside the report: a path of our own working directory would lead elsewhere.
    results_dir, report_dir = results_dir.absolute(), report_dir.absolute()
    history_path = history_path.absolute()
    report_dir.parent.mkdir(parents=True, exist_ok=True)
    config = report_dir.parent / "allurerc.json"
    config.write_text(_json(allurerc(record, report_dir, history_path)), encoding="utf-8")
    tool = tool_dir / "node_modules" / ".bin" / "allure"
    command = [str(tool), "generate", "--config", str(config), str(results_dir)]
    by_hand = f"npm ci --prefix {tool_dir} && {' '.join(command)}"
    if not tool.exists():
        return Generated(None, f"Allure 3 is not installed; for its HTML (Node 20+): {by_hand}")
    try:
        done = subprocess.run(
            command,
            cwd=report_dir.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=_GENERATE_TIMEOUT,
            check=False,
        )
    except FileNotFoundError:  # the script is there and its interpreter is not
        return Generated(None, f"Node is not installed; with Node 20+: {by_hand}")
    except subprocess.TimeoutExpired:
        return Generated(
            None, f"Allure made no HTML within {_GENERATE_TIMEOUT:.0f} s; by hand: {by_hand}"
        )
    index = report_dir / "index.html"
    if done.returncode != 0 or not index.is_file():
        last = "\n".join(done.stdout.splitlines()[-8:])
        return Generated(
            None, f"Allure made no HTML (exit {done.returncode}); by hand: {by_hand}\n{last}"
        )
    finish_page(index)
    return Generated(index, f"Allure report: {index}")


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
