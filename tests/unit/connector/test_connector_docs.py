"""docs/connector.md names the tests that show what it says."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs" / "connector.md"


def section(heading: str) -> str:
    text = DOCS.read_text(encoding="utf-8")
    return text.partition(f"# {heading}\n")[2].partition("\n#")[0]


def rows(heading: str, of: str = "") -> list[list[str]]:
    """Cells of the section's first table whose head has the words `of`, without the head."""
    tables = re.findall(r"^\|.*(?:\n\|.*)*", section(heading), re.MULTILINE)
    lines = next(table.splitlines() for table in tables if of in table.splitlines()[0])
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_test_that_is_named_exists() -> None:
    text = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    defined = set(re.findall(r"^ *def (test_\w+)\(", text, re.MULTILINE))
    named = set(re.findall(r"`(test_\w+)`", DOCS.read_text(encoding="utf-8")))
    assert len(named) > 40
    assert named <= defined, named - defined


def test_every_known_defect_has_a_test() -> None:
    found = rows("What went wrong with vllm-ascend v0.10.1rc1")
    assert [number for number, _, _ in found] == [str(number) for number in range(1, 19)]
    assert all("`test_" in tests for _, _, tests in found)


def test_every_path_has_a_test_of_the_scheduler_or_of_ranks() -> None:
    found = rows("Blocks are freed on every path")
    assert len(found) >= 18
    for path, scheduler, ranks in found:
        assert "`test_" in scheduler or "`test_" in ranks, path
