"""Which device a rank is, by the rank table, and what `link` is told of a pair of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from connector.errors import ConnectorConfigError
from connector.ranktable import Agent, link_rank_table, local_agent, read_agents

HERE, THERE = "127.0.0.1", "127.0.0.2"


def agent(server: str, device: int, pod: str | None = None) -> Agent:
    on_a3 = None if pod is None else str(100 + device)
    return Agent(server, str(device), f"10.0.0.{device}", device + 1, pod, on_a3)


def table(prefill: Agent, decode: Agent) -> dict[str, Any]:
    return dict(json.loads(link_rank_table(prefill, decode)))


def test_a_rank_is_a_visible_device_of_its_server() -> None:
    """So that several instances on one host take devices of their own."""
    agents = [agent(THERE, 0), *(agent(HERE, device) for device in (1, 2, 3, 4))]
    assert [local_agent(agents, HERE, ("3", "4"), rank).device_id for rank in (0, 1)] == ["3", "4"]
    assert local_agent(agents, HERE, (), 0).device_id == "1"


@pytest.mark.parametrize(("server", "rank"), [(HERE, 2), ("127.0.0.9", 0)])
def test_a_rank_that_the_table_does_not_have(server: str, rank: int) -> None:
    agents = [agent(HERE, 0), agent(HERE, 1)]
    with pytest.raises(ConnectorConfigError, match=f"TP rank {rank} of server {server}"):
        local_agent(agents, server, (), rank)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"decode_device_list": [{}]}'])
def test_a_file_that_is_no_rank_table(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ranktable.json"
    with pytest.raises(ConnectorConfigError, match=r"ranktable\.json: No such file"):
        read_agents(str(path), "decode")
    path.write_text(text)
    with pytest.raises(ConnectorConfigError, match="decode_device_list is not readable"):
        read_agents(str(path), "decode")


def test_a_link_between_servers_has_an_entry_for_each() -> None:
    servers = table(agent(HERE, 0), agent(THERE, 6))["server_list"]
    assert [server["server_id"] for server in servers] == [HERE, THERE]
    assert [server["device"][0]["rank_id"] for server in servers] == ["0", "1"]


def test_a_link_inside_a_server_has_one_entry_with_two_devices() -> None:
    (server,) = table(agent(HERE, 0), agent(HERE, 6))["server_list"]
    assert [device["device_id"] for device in server["device"]] == ["0", "6"]
    assert [device["rank_id"] for device in server["device"]] == ["0", "1"]


@pytest.mark.parametrize(
    ("pods", "listed"),
    [
        (
            ("0", "0"),
            [{"super_pod_id": "0", "server_list": [{"server_id": HERE}, {"server_id": THERE}]}],
        ),
        (
            ("0", "1"),
            [
                {"super_pod_id": "0", "server_list": [{"server_id": HERE}]},
                {"super_pod_id": "1", "server_list": [{"server_id": THERE}]},
            ],
        ),
        ((None, None), None),
    ],
)
def test_superpods_are_listed_on_an_a3_only(pods: tuple[Any, Any], listed: Any) -> None:
    found = table(agent(HERE, 0, pods[0]), agent(THERE, 6, pods[1]))
    assert found.get("super_pod_list") == listed
