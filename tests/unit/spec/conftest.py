"""Fixtures for cluster files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pd_validate.spec.load import load_cluster
from pd_validate.spec.models import Cluster

CLUSTERS = Path(__file__).parents[3] / "clusters"

BASE = """\
model: {path: /model/Qwen3-30B-A3B}
hosts:
  p1: {address: 192.0.0.1}
  d1: {address: 192.0.0.2}
  d2: {address: 192.0.0.3}
instances:
  prefill-1: {role: prefill, host: p1, devices: [0, 1]}
  decode-1: {role: decode, host: d1, devices: [6, 7]}
  decode-2: {role: decode, host: d2, devices: [6, 7]}
proxy: {host: p1}
"""


@pytest.fixture
def base() -> str:
    """The guide's topology in as few lines as possible, as text to be changed."""
    return BASE


@pytest.fixture
def clusters() -> Path:
    """The directory of the ready cluster files."""
    return CLUSTERS


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Cluster]:
    """Load a cluster file from text: `load("nic: eth1")` is the base file plus that line."""

    def load(
        extra: str = "", *, base: str = BASE, environ: Mapping[str, str] | None = None
    ) -> Cluster:
        path = tmp_path / "cluster.yaml"
        path.write_text(base + extra)
        return load_cluster(path, environ=environ or {})

    return load
