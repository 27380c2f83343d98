"""Directories to run in, and hosts to run on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from foreign import Foreign, foreign_hosts

from twin.cluster import NETWORK_VARIABLE


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """The directory in which the user stands: nothing of the project is in it."""
    directory = tmp_path / "empty"
    directory.mkdir()
    return directory


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foreign]:
    """Three healthy hosts at addresses that only this process uses."""
    high, low = divmod(os.getpid(), 250)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(NETWORK_VARIABLE, f"127.{2 + high % 250}.{low}")
        with foreign_hosts(tmp_path_factory.mktemp("foreign") / "user") as hosts:
            yield hosts
