"""Processes with an LLMDataDist each, linked or not, over a state directory of the test's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from datadist_actor import SITE
from datadist_peer import Nursery, Pair, Peers

if str(SITE) not in sys.path:
    sys.path.insert(0, str(SITE))


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    started = Nursery()
    yield started
    started.close()


@pytest.fixture
def peers(nursery: Nursery, tmp_path: Path) -> Iterator[Peers]:
    """Starts initialised peers; all are ended with the test."""
    started = Peers(nursery, tmp_path)
    yield started
    started.close()


@pytest.fixture
def pair(peers: Peers) -> Pair:
    """A linked pair for one test, which may break it."""
    return peers.pair()


@pytest.fixture(scope="module")
def shared_pair(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A linked pair for the tests of a module that leave the link as it is."""
    started = Peers(nursery, tmp_path_factory.mktemp("state"))
    yield started.pair()
    started.close()
