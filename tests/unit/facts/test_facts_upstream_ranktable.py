"""vllm-ascend's own rank table generator sees, through the twin's tools, what our readers see.

Restated from examples/disaggregated_prefill_v1/gen_ranktable.py of v0.10.1rc1: which commands
it runs on each node, and how it cuts their answers. It takes every device of every node, in the
order of the nodes, so the cluster here has engines on all of them.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from twin_host import TwinCommands, twin_commands

from pd_validate.facts.addresses import device_addresses
from pd_validate.facts.hosts import read_cluster, requests_of
from pd_validate.ranktable import generate, render
from pd_validate.spec.load import load_cluster
from pd_validate.spec.models import Cluster
from pd_validate.spec.plan import launch_plan, run_dirs
from twin.fabric import FabricState, Product, healthy_cluster

SPEC = """
hardware: atlas-800t-{product}
nic: lo
model: {{path: /m}}
engine: {{tensor_parallel: {count}}}
checks: {{software: false}}
hosts: {{p1: {{address: 127.0.0.1}}, d1: {{address: 127.0.0.2}}, d2: {{address: 127.0.0.3}}}}
instances:
  prefill-1: {{role: prefill, host: p1, devices: {devices}}}
  decode-1: {{role: decode, host: d1, devices: {devices}}}
  decode-2: {{role: decode, host: d2, devices: {devices}}}
proxy: {{host: p1}}
"""


def cluster_of(product: Product, directory: Path) -> Cluster:
    file = directory / "cluster.yaml"
    text = SPEC.format(
        product=product.value.lower(),
        count=product.devices,
        devices=list(range(product.devices)),
    )
    file.write_text(text)
    return load_cluster(file, environ={})


# --- upstream, in our own words ---------------------------------------------------------------


def after_colon(answer: str) -> str:
    """What it keeps of a line: between the first colon and the next, without blanks."""
    return answer.split(":")[1].strip()


def upstream_devices(
    ask: Callable[[str], str], address: str, product: Product
) -> list[dict[str, str]]:
    """The entries of one node. `ask`: the stripped stdout of a shell command line on it."""
    cards = int(after_colon(ask('npu-smi info -l | grep "Total Count"')))
    chip_counts = ask('npu-smi info -l | grep "Chip Count"').split("\n")
    chips = int(after_colon(chip_counts[0]))
    found = []
    for card, chip in ((card, chip) for card in range(cards) for chip in range(chips)):
        device = card * chips + chip
        query = "-vnic" if product is Product.A3 else "-ip"
        entry = {
            "server_id": address,
            "device_id": str(device),
            "device_ip": after_colon(ask(f"hccn_tool -i {device} {query} -g | grep ipaddr")),
        }
        if product is Product.A3:
            spod = f"npu-smi info -t spod-info -i {card} -c {chip}"
            entry["super_pod_id"] = after_colon(ask(f'{spod} | grep "Super Pod ID"'))
            entry["super_device_id"] = after_colon(ask(f"{spod} | grep SDID"))
        found.append(entry)
    return found


def upstream_table(nodes: list[list[dict[str, str]]], prefill: int, decode: int) -> dict[str, Any]:
    """All nodes' devices numbered from 1; the first are for prefill, the next for decode."""
    entries = [entry for node in nodes for entry in node]
    numbered = [entry | {"cluster_id": str(n)} for n, entry in enumerate(entries, start=1)]
    return {
        "version": "1.2",
        "server_count": str(len(nodes)),
        "prefill_device_list": numbered[:prefill],
        "decode_device_list": numbered[prefill : prefill + decode],
        "status": "completed",
    }


def upstream_of(
    cluster: Cluster, commands: Mapping[str, TwinCommands], product: Product
) -> dict[str, Any]:
    def asking(host: str) -> Callable[[str], str]:
        def ask(line: str) -> str:
            done = subprocess.run(
                ["/bin/sh", "-c", line],
                env=dict(commands[host].env),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # it drops what the tools say there
                text=True,
                timeout=30,
                check=False,
            )
            return done.stdout.strip()

        return ask

    nodes = [
        upstream_devices(asking(name), host.address, product)
        for name, host in cluster.hosts.items()
    ]
    return upstream_table(nodes, product.devices, 2 * product.devices)


# --- the same devices, addresses and table ----------------------------------------------------


@pytest.fixture(params=list(Product))
def product(request: pytest.FixtureRequest) -> Product:
    chosen: Product = request.param
    return chosen


def twin(cluster: Cluster, product: Product) -> FabricState:
    return healthy_cluster({n: h.address for n, h in cluster.hosts.items()}, product)


def our_table(cluster: Cluster, commands: Mapping[str, TwinCommands]) -> dict[str, Any]:
    plan = launch_plan(cluster, run_dirs=run_dirs(cluster, "r"))
    facts = read_cluster(commands, requests_of(cluster, plan))  # type: ignore[arg-type]
    assert not facts.failures
    return generate(cluster, device_addresses(cluster, facts))


def test_our_table_is_upstreams(product: Product, tmp_path: Path) -> None:
    cluster = cluster_of(product, tmp_path)
    commands = twin_commands(cluster, twin(cluster, product), tmp_path)
    theirs = upstream_of(cluster, commands, product)
    assert our_table(cluster, commands) == theirs
    assert render(our_table(cluster, commands)) == json.dumps(theirs, indent=4).encode()
    assert len(theirs["decode_device_list"]) == 2 * product.devices


def test_both_take_the_address_that_a_device_has_now(product: Product, tmp_path: Path) -> None:
    cluster = cluster_of(product, tmp_path)
    fabric = twin(cluster, product)
    fabric.device("d1", 6).ip = "10.20.2.99"
    fabric.device("d1", 6).vnic.ip = "192.1.2.99"
    commands = twin_commands(cluster, fabric, tmp_path)
    table = our_table(cluster, commands)
    assert table == upstream_of(cluster, commands, product)
    assert table["decode_device_list"][6]["device_ip"] in ("10.20.2.99", "192.1.2.99")


def test_without_an_address_upstream_ends_with_an_index_error(tmp_path: Path) -> None:
    """A20: the readers say which device has none instead."""
    cluster = cluster_of(Product.A2, tmp_path)
    fabric = twin(cluster, Product.A2)
    fabric.device("d1", 6).ip = None
    commands = twin_commands(cluster, fabric, tmp_path)
    with pytest.raises(IndexError):
        upstream_of(cluster, commands, Product.A2)
    plan = launch_plan(cluster, run_dirs=run_dirs(cluster, "r"))
    facts = read_cluster(commands, requests_of(cluster, plan))  # type: ignore[arg-type]
    device = facts.device("d1", 6)
    assert device is not None
    assert device.ip.value is not None
    assert device.ip.value.first is None
