"""Marks of the scenario tests; see test_scenarios.py."""

from __future__ import annotations

import pytest

MARKS = {
    "fast": "a scenario that `make test` tries",
    "engine": "a scenario that brings up the whole topology (minutes)",
}


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in MARKS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A plain `pytest` must not start engines for half an hour."""
    if config.option.markexpr:
        return
    for item in items:
        if item.get_closest_marker("engine"):
            item.add_marker(pytest.mark.skip(reason="starts engines: make scenarios, or -m engine"))
