"""Every command of the pages works as printed, unless it is marked `needs hardware`.

Commands run in a directory that looks like a clone. What would start engines is collected
instead of run (`make test` runs it: `pytest --cluster twin`); the network validation is run
for real in test_docs_runs.py, the nightly job in tests/unit/report/test_report_nights.py.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from docs_shell import run
from pages import PAGES, READMES, commands

OWN_PAGES = [page for page in PAGES if commands(page)]


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
