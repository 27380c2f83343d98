"""What the connector is told: its settings, the environment, ports; and what it refuses."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
from test_connector_docs import rows

from connector.config import Environment, Settings, base_port
from connector.errors import ConnectorConfigError
from connector.llmdatadist import refuse_unsupported

RANK_TABLE = {"DISAGGREGATED_PREFILL_RANK_TABLE_PATH": "/ranktable.json"}


def test_settings_and_their_defaults_are_those_of_the_docs() -> None:
    stated: dict[str, str] = {}
    for names, _, default in rows("Use", of="kv_connector_extra_config"):
        if "," not in names:  # two share a row, neither with a default of its own
            stated[names.strip("`")] = default
    defaults = {
        name: json.dumps(int(value) if isinstance(value, float) else value)
        for name, value in asdict(Settings()).items()
    }
    assert stated == {name: defaults[name] for name in stated}
    assert defaults.keys() - stated.keys() == {"metrics_directory", "instance"}


@pytest.mark.parametrize(
    "peers",
    [
        "10.0.0.1:5559",  # not a list
        [7],
        [["10.0.0.1", 5559]],
        ["10.0.0.1"],
        [":5559"],
        ["10.0.0.1:"],
        ["10.0.0.1:http"],
        ["10.0.0.1:0"],
        ["10.0.0.1:65536"],
        ["10.0.0.1:5559", "10.0.0.2"],
    ],
    ids=str,
)
def test_prelink_peers_that_are_no_addresses_are_refused(peers: Any) -> None:
    with pytest.raises(ConnectorConfigError) as refusal:
        Settings.read({"prelink_peers": peers})
    assert str(refusal.value) == (
        f'kv_connector_extra_config.prelink_peers must be a list of "host:port", got {peers!r}'
    )


@pytest.mark.parametrize("peers", [[], ["10.0.0.1:1", "node-2:65535"], ["[::1]:5559"]])
def test_prelink_peers(peers: list[str]) -> None:
    assert Settings.read({"prelink_peers": peers}).prelink_peers == tuple(peers)


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("pull_timeout", 0, "a number of seconds above 0"),
        ("load_timeout", -1.5, "a number of seconds above 0"),
        ("hold_timeout", "120", "a number of seconds above 0"),
        ("heartbeat", True, "a number of seconds above 0"),
        ("prelink", 1, "true or false"),
        ("instance", 7, "a string"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_refused(key: str, value: Any, wanted: str) -> None:
    with pytest.raises(ConnectorConfigError, match=f"{key} must be {wanted}, got {value!r}"):
        Settings.read({key: value})


def test_a_time_limit_of_a_pull_may_be_set() -> None:
    """v0.10.1rc1 has 20 s, for good."""
    assert Settings().pull_timeout == 20
    assert Settings.read({"pull_timeout": 7}).pull_timeout == 7


def test_an_unknown_setting_is_only_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be another connector's."""
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    with caplog.at_level(logging.WARNING, "vllm.connector"):
        assert Settings.read({"pul_timeout": 7}) == Settings()
    assert "unknown key 'pul_timeout' is ignored" in caplog.text


def test_the_environment_is_vllm_ascends() -> None:
    assert Environment.read(RANK_TABLE) == Environment("/ranktable.json", 5557, "0.0.0.0", ())
    more = {
        "VLLM_ASCEND_LLMDD_RPC_PORT": "6000",
        "VLLM_ASCEND_LLMDD_RPC_IP": "10.0.0.1",
        "ASCEND_RT_VISIBLE_DEVICES": "6, 7,",
    }
    read = Environment.read(RANK_TABLE | more)
    assert read == Environment("/ranktable.json", 6000, "10.0.0.1", ("6", "7"))


@pytest.mark.parametrize("port", ["", "0", "65536", "-1", "http"])
def test_a_base_port_that_is_none_is_refused(port: str) -> None:
    with pytest.raises(ConnectorConfigError, match="RPC_PORT must be a port number"):
        Environment.read(RANK_TABLE | {"VLLM_ASCEND_LLMDD_RPC_PORT": port})


def test_without_a_rank_table_the_engine_does_not_start() -> None:
    with pytest.raises(ConnectorConfigError, match="RANK_TABLE_PATH is not set"):
        Environment.read({})


@pytest.mark.parametrize(
    ("dp_size", "rank", "local_rank", "external", "port"),
    [
        (1, 0, None, False, 5557 + 2),  # the TP size is added where there is no data parallelism
        (2, 0, 0, False, 5557),
        (2, 1, 1, False, 5557 + 2),
        (4, 3, 1, False, 5557 + 2),  # on the second host
        (4, 3, None, False, 5557 + 6),
        (2, 1, 0, True, 5557 + 2),  # every rank is local rank 0 there
    ],
)
def test_ports_are_vllm_ascends(
    dp_size: int, rank: int, local_rank: int | None, external: bool, port: int
) -> None:
    parallel = SimpleNamespace(
        tensor_parallel_size=2,
        data_parallel_size=dp_size,
        data_parallel_rank=rank,
        data_parallel_rank_local=local_rank,
        data_parallel_external_lb=external,
    )
    assert base_port(parallel, 5557) == port


def test_a_role_that_is_both_prefiller_and_decoder_is_refused(engine: Any) -> None:
    with pytest.raises(ConnectorConfigError, match='kv_role must be "kv_producer"'):
        engine("kv_both")


@pytest.mark.parametrize(
    ("sizes", "refused"),
    [
        ({}, ""),
        ({"pipeline_parallel_size": 2}, "pipeline parallelism"),
        ({"decode_context_parallel_size": 2}, "decode context parallelism"),
    ],
)
def test_kinds_of_parallelism_that_are_not_supported(sizes: dict[str, int], refused: str) -> None:
    parallel = {"pipeline_parallel_size": 1, "decode_context_parallel_size": 1, **sizes}
    config = SimpleNamespace(
        kv_transfer_config=SimpleNamespace(kv_role="kv_producer"),
        parallel_config=SimpleNamespace(**parallel),
    )
    if not refused:
        refuse_unsupported(config)
        return
    with pytest.raises(ConnectorConfigError, match=f"does not support {refused}"):
        refuse_unsupported(config)
