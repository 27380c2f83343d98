"""Our code on a host: by content, so that the same code is copied once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from local import LocalCommands

from pd_validate.errors import LabError
from pd_validate.topology.staging import Bundle, pack, stage

RUNS = ("run-1", "run-2")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A project with something to stage, and something not to."""
    root = tmp_path / "project"
    for file, text in {
        "connector/__init__.py": "",
        "connector/links.py": "LINKS = 1\n",
        "connector/notes.txt": "not code",
        "proxy/__init__.py": "",
        "pd_validate/run.py": "not for hosts",
    }.items():
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def staged(host: LocalCommands, bundle: Bundle, work: Path, run: str = "run-1") -> bool:
    return stage(host, bundle, workdir=str(work), run_dir=str(work / "runs" / run), timeout=30)


def test_equal_files_have_equal_digests(tree: Path) -> None:
    before = pack(tree).digest
    (tree / "connector" / "links.py").touch()
    assert pack(tree).digest == before
    (tree / "connector" / "links.py").write_text("LINKS = 2\n")
    assert pack(tree).digest != before


def test_a_file_that_moves_changes_the_digest(tree: Path) -> None:
    before = pack(tree).digest
    (tree / "connector" / "links.py").rename(tree / "proxy" / "links.py")
    assert pack(tree).digest != before


def test_code_is_copied_once(tree: Path, tmp_path: Path) -> None:
    host, work, bundle = LocalCommands("d1"), tmp_path / "work", pack(tree)
    assert staged(host, bundle, work)
    assert len(host.copied) == 1
    assert not staged(host, bundle, work, "run-2"), "the second run copied again"
    assert len(host.copied) == 1
    for run in RUNS:
        code = work / "runs" / run / "code"
        found = sorted(str(path.relative_to(code)) for path in code.rglob("*.py"))
        assert found == ["connector/__init__.py", "connector/links.py", "proxy/__init__.py"]
    assert list((work / "code").glob("*.tar.gz")) == []


def test_changed_code_is_copied_and_leaves_the_other_runs_alone(tree: Path, tmp_path: Path) -> None:
    host, work = LocalCommands("d1"), tmp_path / "work"
    staged(host, pack(tree), work)
    (tree / "connector" / "links.py").write_text("LINKS = 2\n")
    assert staged(host, pack(tree), work, "run-2")
    links = [(work / "runs" / run / "code/connector/links.py").read_text() for run in RUNS]
    assert links == ["LINKS = 1\n", "LINKS = 2\n"]


def test_a_copy_that_was_cut_off_is_made_again(tree: Path, tmp_path: Path) -> None:
    host, work, bundle = LocalCommands("d1"), tmp_path / "work", pack(tree)
    staged(host, bundle, work)
    (work / "code" / bundle.digest / ".complete").unlink()
    assert staged(host, bundle, work)


def test_a_directory_with_blanks_and_quotes(tree: Path, tmp_path: Path) -> None:
    work = tmp_path / "it's a work dir"
    assert staged(LocalCommands("d1"), pack(tree), work)
    assert (work / "runs" / "run-1" / "code" / "proxy" / "__init__.py").exists()


def test_a_host_that_cannot_unpack_says_why(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"(?s)d1: cannot unpack our code .*workdir"):
        staged(LocalCommands("d1"), Bundle("abc", b"no archive"), tmp_path / "work")


def test_what_is_staged_is_all_that_the_packages_need(tmp_path: Path) -> None:
    """The proxy runs from the staged code alone; the project is not on its path."""
    work = tmp_path / "work"
    staged(LocalCommands("d1"), pack(), work)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "proxy", "--help"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(work / "runs" / "run-1" / "code")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
