"""Reading a healthy twin starts no Python in its tools: that keeps 32 hosts on one machine quick.

All that the readers ask is written ahead (twin/tools/ahead.py); a query that is added to them
and not there would cost ten times as much, and this test.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from test_facts_upstream_ranktable import cluster_of, twin
from twin_host import twin_commands

from pd_validate.facts.hosts import read_cluster, requests_of
from pd_validate.facts.pings import ping_plan, run_pings
from pd_validate.spec.plan import launch_plan, run_dirs
from twin.fabric import Product

STARTED_PYTHON = 99


@pytest.mark.parametrize("product", list(Product))
def test_the_readers_ask_only_what_is_written_ahead(product: Product, tmp_path: Path) -> None:
    cluster = cluster_of(product, tmp_path)
    state = twin(cluster, product)
    state.wait_scale = 0.0
    commands = twin_commands(cluster, state, tmp_path)
    for tool in ("hccn_tool", "npu-smi"):
        program = tmp_path / "bin" / tool
        lines = program.read_text().splitlines()
        assert lines[-1].startswith("exec ")
        program.write_text("\n".join([*lines[:-1], f"exit {STARTED_PYTHON}\n"]))
    plan = launch_plan(cluster, run_dirs=run_dirs(cluster, "r"))
    facts = read_cluster(commands, requests_of(cluster, plan))  # type: ignore[arg-type]
    pings = run_pings(commands, cluster, ping_plan(cluster, facts))  # type: ignore[arg-type]
    outputs = [r.output for h in facts.hosts.values() for d in h.devices.values() for r in d.asked]
    outputs += [read.output for h in facts.hosts.values() for read in (h.mapping, h.table)]
    outputs += [result.reading.output for result in pings.results]
    assert len(outputs) > 500
    assert [o.command for o in outputs if o.exit_code == STARTED_PYTHON] == []
