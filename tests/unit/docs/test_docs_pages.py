"""What the pages name exists: links, files, options, findings, marks, exit codes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import PAGES, READMES, ROOT, anchors, blocks, code_words, links, prose

from pd_validate.catalogue import CATALOGUE
from pd_validate.options import Options
from pd_validate.plugin import MARKS
from pd_validate.report.record import exit_meaning

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
readmes = pytest.mark.parametrize("page", READMES, ids=lambda page: page.name)
OURS = tuple(f"{path.name}/" for path in ROOT.iterdir() if path.is_dir() and path.name[0] != ".")
MADE_BY_A_RUN = ("pd-report/", "node_modules/")


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: no such heading: {target}"


@pages
def test_files_that_are_named_exist(page: Path) -> None:
    for word in code_words(page):
        path = word.split(" ")[0]
        ours = path.startswith(OURS) and not path.startswith(MADE_BY_A_RUN)
        if ours and not re.search(r"[*<>…{]", path):
            assert (ROOT / path.split("::")[0]).exists(), f"{page.name}: {word}"


def test_pictures_are_small() -> None:
    pictures = list((ROOT / "docs" / "images").iterdir())
    assert pictures
    for picture in pictures:
        assert picture.read_bytes().startswith(b"\x89PNG"), picture
        assert picture.stat().st_size < 300_000, picture


def _options() -> dict[str, str]:
    """Every option of ours with the variable it falls back to."""

    class Group:
        def __init__(self) -> None:
            self.found: dict[str, str] = {}

        def addoption(self, *names: str, **attributes: Any) -> None:
            self.found[names[0]] = attributes["dest"].upper()

    group = Group()
    Options.add_to(group)
    return group.found


@readmes
def test_the_table_of_options_is_complete(page: Path) -> None:
    rows = re.findall(r"^\| `(--[a-z-]+)[^`]*` \| `(\w+)` \|", prose(page), re.MULTILINE)
    assert dict(rows) == _options()


@pages
def test_options_of_pytest_commands_exist(page: Path) -> None:
    text = "\n".join(line for body in blocks(page, "sh") for line in body.splitlines())
    ours = _options()
    for command in re.findall(r"\bpytest\b([^#\n]*)", text):
        for option in re.findall(r"(?<!\S)(--[a-z-]+)", command):
            assert option in ours, f"{page.name}: {option}"


@readmes
def test_marks_and_exit_codes(page: Path) -> None:
    line = next(line for line in prose(page).splitlines() if "`-m`" in line)
    named = [word for word in re.findall(r"`(\w+)`", line) if word in MARKS]
    assert set(named) == set(MARKS) - {"afterwards"}  # orders tests; nobody selects by it
    codes = re.findall(r"^\| (\d+) \| ", prose(page), re.MULTILINE)
    assert codes == [str(code) for code in range(13) if exit_meaning(code)]


@readmes
def test_the_example_is_the_ready_file(page: Path) -> None:
    """Word for word, and as short as promised."""
    (example,) = blocks(page, "yaml")
    file = (ROOT / "clusters" / "atlas-800t-a2-1p2d.yaml").read_text("utf-8")
    assert example == re.sub(r"^#.*\n", "", file, flags=re.MULTILINE)
    assert len(example.splitlines()) <= 25


def test_both_readmes_have_the_same_parts() -> None:
    english, chinese = (page.read_text("utf-8") for page in READMES)
    for part in (r"^#+ ", r"^\|", r"^```\w*$", r"!\[", r"\]\(docs/"):
        count = [len(re.findall(part, text, re.MULTILINE)) for text in (english, chinese)]
        assert count[0] == count[1], part
    assert [blocks(page, "text") for page in READMES[:1]] == [
        blocks(page, "text") for page in READMES[1:]
    ]


def test_troubleshooting_names_every_finding() -> None:
    page = ROOT / "docs" / "troubleshooting.md"
    named = re.findall(r"\[([a-z]+\.[a-z-]+)\]\(checks\.md#", page.read_text("utf-8"))
    assert set(named) == set(CATALOGUE)


@pytest.mark.parametrize("name", ["github-actions.yml", "gitlab-ci.yml"])
def test_nightly_files_are_yaml_that_calls_the_script(name: str) -> None:
    text = (ROOT / "examples" / "nightly" / name).read_text("utf-8")
    assert isinstance(yaml.safe_load(text), dict)
    assert "examples/nightly/nightly.sh" in text
    assert "PD_NIGHTLY_CLUSTER" in text


def test_nothing_of_the_writers_machine_is_in_the_pages() -> None:
    for page in PAGES:
        assert "/work/" not in page.read_text("utf-8"), page
