"""Imports go one way (docs/architecture.md): the arrows that there may be, and no others.

Read off the sources, so that imports inside functions count too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[3]
OURS = ("pd_validate", "connector", "proxy", "twin")

# Words that everyone may use: what an error and a verdict are.
WORDS = {"errors", "catalogue", "findings", "waiting"}
# For each part of pd_validate the others that it may import, beside WORDS.
ALLOWED = {
    # What should be.
    "spec": set[str](),
    "ranktable": {"spec"},
    # How to reach a machine.
    "hosts": {"spec"},
    # What is.
    "facts": {"spec", "hosts", "ranktable"},
    # What requests got.
    "traffic": {"spec", "hosts"},
    # What is wrong.
    "checks": {"spec", "facts", "traffic", "ranktable", "hosts"},
    # Bring-up judges readiness with the checks' words.
    "quarantine": {"spec", "checks"},
    "topology": {"spec", "hosts", "facts", "checks", "traffic", "ranktable"},
    # Knows its own record only; `recording` fills it.
    "report": {"spec", "checks", "facts"},
    "recording": {
        *("spec", "checks", "facts", "quarantine", "report", "topology", "traffic"),
    },
    "session": {
        *("spec", "hosts", "facts", "checks", "traffic", "ranktable", "topology", "report"),
        *("recording", "quarantine"),
    },
    # Looks at hosts and cleans them without a run.
    "maintenance": {"spec", "hosts"},
    # Looks at this machine, and logs in to hosts.
    "doctor": {"spec", "hosts"},
    "options": set[str](),
    "dry_run": {"spec"},
    # The run as workers of pytest-xdist see it.
    "sharing": {
        *("spec", "checks", "traffic", "topology", "report", "session", "quarantine"),
    },
    "run": {
        *("spec", "checks", "traffic", "topology", "report", "options", "session"),
        *("recording", "quarantine", "sharing", "interrupts"),
    },
    "interrupts": set[str](),
    # Knows tests by their numbers.
    "schedule": set[str](),
}
# Nothing below knows who drives it; of the two, only the plugin may start a twin.
DRIVERS = {"plugin", "cli"}
WORDS_THEMSELVES = {"errors": set[str](), "catalogue": set[str]()}
WORDS_THEMSELVES |= {"findings": {"catalogue"}, "waiting": {"errors"}}


def modules(package: str) -> Iterator[tuple[str, Path]]:
    """Dotted name and file of every module of a package."""
    for path in sorted((PROJECT / package).rglob("*.py")):
        parts = path.relative_to(PROJECT).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path


def imports(path: Path) -> Iterator[str]:
    """Every module that the file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where they go"
            assert node.module is not None
            bare = node.module == "pd_validate"
            yield from (f"{node.module}.{a.name}" if bare else node.module for a in node.names)


def arrows(package: str) -> list[tuple[str, str]]:
    """(module, what it imports of ours)."""
    return [
        (name, target)
        for name, path in modules(package)
        for target in imports(path)
        if target.partition(".")[0] in OURS
    ]


def part(module: str) -> str:
    """`spec` of `pd_validate.spec.load`."""
    return module.split(".")[1]


def test_there_are_arrows() -> None:
    """A reader that finds nothing would pass everything below."""
    found = arrows("pd_validate")
    assert ("pd_validate.plugin", "twin.cluster") in found
    assert ("pd_validate.facts.hosts", "pd_validate.hosts.fleet") in found


@pytest.mark.parametrize("package", ["connector", "proxy"])
def test_what_is_copied_to_hosts_stands_alone(package: str) -> None:
    assert [each for each in arrows(package) if each[1].partition(".")[0] != package] == []


def test_the_harness_imports_nothing_that_runs_on_hosts() -> None:
    foreign = [each for each in arrows("pd_validate") if each[1].startswith(("connector", "proxy"))]
    assert foreign == []


def test_only_the_plugin_knows_the_twin() -> None:
    knowing = {name for name, target in arrows("pd_validate") if target.startswith("twin")}
    assert knowing == {"pd_validate.plugin"}


def test_every_arrow_inside_the_harness_is_allowed() -> None:
    forbidden = []
    for name, target in arrows("pd_validate"):
        if name == "pd_validate" or target == "pd_validate.__version__":
            continue
        if not target.startswith("pd_validate.") or part(name) in DRIVERS:
            continue
        source, aim = part(name), part(target)
        allowed = WORDS_THEMSELVES.get(source) or ALLOWED.get(source, set()) | WORDS
        if aim != source and aim not in allowed:
            forbidden.append(f"{name} -> {target}")
    assert forbidden == []


def test_allowed_arrows_make_no_circle() -> None:
    below = {name: set(targets) for name, targets in ALLOWED.items()}
    while below:
        free = {name for name, targets in below.items() if not targets & below.keys()}
        assert free, f"a circle among {sorted(below)}"
        below = {name: targets for name, targets in below.items() if name not in free}


@pytest.mark.parametrize("script", ["pd_validate/facts/collector.py", "pd_validate/hosts/agent.py"])
def test_scripts_for_hosts_need_the_standard_library_alone(script: str) -> None:
    """They are sent over stdin to a Python that has nothing else."""
    needed = {target.partition(".")[0] for target in imports(PROJECT / script)}
    assert needed - set(sys.stdlib_module_names) == set()


def test_the_harness_needs_no_engine() -> None:
    """The controller has neither vLLM nor torch."""
    heavy = {"vllm", "torch", "transformers", "llm_datadist"}
    found = [
        f"{name} -> {target}"
        for name, path in modules("pd_validate")
        for target in imports(path)
        if target.partition(".")[0] in heavy
    ]
    assert found == []


def test_only_pytests_own_parts_import_pytest() -> None:
    """All else also works from the command line."""
    users = {name for name, path in modules("pd_validate") if "pytest" in imports(path)}
    parts = {"plugin", "run", "schedule", "report.allure"}
    assert users <= {f"pd_validate.{part}" for part in parts}
