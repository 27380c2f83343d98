"""The generated rank table is the upstream generator's, byte for byte; and who picks what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pd_validate.errors import LabError
from pd_validate.ranktable import (
    DeviceAddress,
    Pick,
    describe,
    generate,
    parse,
    picks,
    render,
    seats,
)
from pd_validate.spec.load import load_cluster
from pd_validate.spec.models import Cluster, Role

DATA = Path(__file__).parents[2] / "data" / "ranktables"
CLUSTERS = Path(__file__).parents[3] / "clusters"


def test_guides_table_is_the_upstream_generators(
    guide: Cluster, addresses: list[DeviceAddress]
) -> None:
    assert render(generate(guide, addresses)) == (DATA / "a2-guide.json").read_bytes()


def test_a3_table_is_the_upstream_generators(tmp_path: Path) -> None:
    path = tmp_path / "a3.yaml"
    path.write_text(
        """
hardware: atlas-800t-a3
model: {path: /m}
engine: {tensor_parallel: 16}
hosts:
  p1: {address: 192.0.0.1}
  d1: {address: 192.0.0.2}
  d2: {address: 192.0.0.3}
instances:
  prefill-1: {role: prefill, host: p1, devices: &all [ALL]}
  decode-1: {role: decode, host: d1, devices: *all}
  decode-2: {role: decode, host: d2, devices: *all}
proxy: {host: p1}
""".replace("ALL", ", ".join(map(str, range(16))))
    )
    cluster = load_cluster(path, environ={})
    addresses = [
        DeviceAddress(name, host.address, d, f"10.{h}.1.{100 + d}", "3", str(1000 * h + d))
        for h, (name, host) in enumerate(cluster.hosts.items(), start=1)
        for d in range(16)
    ]
    assert render(generate(cluster, addresses)) == (DATA / "a3-all-devices.json").read_bytes()


def test_prefillers_come_first_whatever_the_order_of_the_file(
    guide: Cluster, addresses: list[DeviceAddress]
) -> None:
    reordered = guide.model_copy(
        update={"instances": dict(reversed(list(guide.instances.items())))}
    )
    table = generate(reordered, addresses)
    assert [e["cluster_id"] for e in table["prefill_device_list"]] == ["1", "2"]
    assert [e["server_id"] for e in table["decode_device_list"]] == [
        *("192.0.0.3", "192.0.0.3"),
        *("192.0.0.2", "192.0.0.2"),
    ]


def test_order_of_devices_is_rank_order(guide: Cluster, addresses: list[DeviceAddress]) -> None:
    instances = dict(guide.instances)
    instances["decode-1"] = instances["decode-1"].model_copy(update={"devices": (7, 6)})
    table = generate(guide.model_copy(update={"instances": instances}), addresses)
    assert [e["device_id"] for e in table["decode_device_list"]] == ["7", "6", "6", "7"]


def test_servers_are_counted_once_with_several_instances_on_one(
    addresses: list[DeviceAddress],
) -> None:
    cluster = load_cluster(CLUSTERS / "one-host-1p1d.yaml", environ={})
    on_node = [
        DeviceAddress("node", "10.20.0.11", address.device_id, address.device_ip)
        for address in addresses
        if address.host == "p1"
    ]
    table = generate(cluster, on_node)
    assert table["server_count"] == "1"
    assert [e["device_id"] for e in table["decode_device_list"]] == ["2", "3"]


@pytest.mark.parametrize("ip", ["", None])
def test_a_device_without_an_address_is_named(
    guide: Cluster, addresses: list[DeviceAddress], ip: str | None
) -> None:
    """Upstream's generator ends in `IndexError: list index out of range` there."""
    left = [a for a in addresses if (a.host, a.device_id) != ("d1", 7)]
    if ip is not None:
        left.append(DeviceAddress("d1", "192.0.0.2", 7, ip))
    with pytest.raises(LabError, match=r"device 7 of d1 \(decode-1 rank 1\) has no IP address"):
        generate(guide, left)


def test_an_a3_device_without_super_pod_is_named() -> None:
    cluster = load_cluster(CLUSTERS / "a3-1p2d.yaml", environ={})
    addresses = [
        DeviceAddress(name, host.address, d, f"10.0.0.{d}")
        for name, host in cluster.hosts.items()
        for d in range(16)
    ]
    with pytest.raises(LabError, match=r"device 0 of p1 .* says no super pod id or SDID"):
        generate(cluster, addresses)


class TestPicks:
    """The connector's selection: server_id, visible as text, then the TP rank's one."""

    @pytest.fixture
    def table(self, guide: Cluster, addresses: list[DeviceAddress]) -> dict[str, Any]:
        return generate(guide, addresses)

    def pick(self, table: dict[str, Any], **changes: Any) -> Pick | None:
        asked: dict[str, Any] = {
            "server_id": "192.0.0.2",
            "visible_devices": "6,7",
            "tp_rank": 1,
        }
        return picks(table, Role.DECODE, **(asked | changes))

    def test_the_ranks_device(self, table: dict[str, Any]) -> None:
        assert self.pick(table) == Pick("192.0.0.2", "7", "29.1.2.17", 4)

    def test_by_the_tables_order_not_the_variables(self, table: dict[str, Any]) -> None:
        assert self.pick(table, visible_devices="7,6") == self.pick(table)

    @pytest.mark.parametrize("visible", [None, ""])
    def test_without_the_variable_all_of_the_server_count(
        self, table: dict[str, Any], visible: str | None
    ) -> None:
        assert self.pick(table, visible_devices=visible) == self.pick(table)

    def test_a_blank_in_the_variable_hides_the_device(self, table: dict[str, Any]) -> None:
        assert self.pick(table, visible_devices="6, 7") is None
        assert self.pick(table, visible_devices="6, 7", tp_rank=0) is not None

    def test_nothing_for_another_address(self, table: dict[str, Any]) -> None:
        assert self.pick(table, server_id="10.0.0.2") is None

    def test_nothing_beyond_the_listed_devices(self, table: dict[str, Any]) -> None:
        assert self.pick(table, tp_rank=2) is None

    def test_said_rank_by_rank(self, guide: Cluster, table: dict[str, Any]) -> None:
        assert describe(guide, table) == [
            "prefill-1 rank 0 on p1 npu0: picks device 0, 29.1.1.10, cluster id 1",
            "prefill-1 rank 1 on p1 npu1: picks device 1, 29.1.1.11, cluster id 2",
            "decode-1 rank 0 on d1 npu6: picks device 6, 29.1.2.16, cluster id 3",
            "decode-1 rank 1 on d1 npu7: picks device 7, 29.1.2.17, cluster id 4",
            "decode-2 rank 0 on d2 npu6: picks device 6, 29.1.3.16, cluster id 5",
            "decode-2 rank 1 on d2 npu7: picks device 7, 29.1.3.17, cluster id 6",
        ]
        table["decode_device_list"].pop()
        assert describe(guide, table)[-1] == "decode-2 rank 1 on d2 npu7: picks nothing"


def test_with_data_parallelism_each_engine_sees_its_own_devices(tmp_path: Path) -> None:
    path = tmp_path / "dp.yaml"
    path.write_text(
        "include: " + str(CLUSTERS / "one-host-1p1d.yaml") + "\n"
        "instances: {prefill-1: {devices: [0, 1, 4, 5], engine: {data_parallel: 2}}}"
    )
    cluster = load_cluster(path, environ={})
    assert [
        (s.rank, s.tp_rank, s.device, s.visible)
        for s in seats(cluster)
        if s.instance == "prefill-1"
    ] == [
        (0, 0, 0, (0, 1)),
        (1, 1, 1, (0, 1)),
        (2, 0, 4, (4, 5)),
        (3, 1, 5, (4, 5)),
    ]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"[1]", "the top is list, not an object"),
        (b"\xff\xfe", "can't decode"),
    ],
)
def test_what_is_no_table_is_refused_when_read(data: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse(data)


def test_a_table_survives_writing_and_reading(
    guide: Cluster, addresses: list[DeviceAddress]
) -> None:
    table = generate(guide, addresses)
    assert parse(render(table)) == table == json.loads(render(table))
