"""Directories to run in."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """The directory in which the user stands: nothing of the project is in it."""
    directory = tmp_path / "empty"
    directory.mkdir()
    return directory
