"""Small twins for the tests of their tools."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from twin_under_test import Twin

from twin.fabric import Product, healthy_cluster


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The recordings were made in UTC, and the tools print local time."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def make_twin(tmp_path: Path) -> Callable[[Product], Twin]:
    def make(product: Product) -> Twin:
        hosts = {"p1": "127.0.0.2", "d1": "127.0.0.3", "d2": "127.0.0.4"}
        twin = Twin(healthy_cluster(hosts, product), tmp_path / product)
        twin.store()
        return twin

    return make


@pytest.fixture
def a2(make_twin: Callable[[Product], Twin]) -> Twin:
    """p1, d1, d2 with eight NPUs each; device d of the n-th host is 10.20.<n>.<10 + d>."""
    return make_twin(Product.A2)


@pytest.fixture
def a3(make_twin: Callable[[Product], Twin]) -> Twin:
    """p1, d1, d2 with eight cards of two dies each, servers 0..2 of one superpod."""
    return make_twin(Product.A3)
