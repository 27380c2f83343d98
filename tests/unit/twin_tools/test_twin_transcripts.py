"""The twin's tools print what the vendor's printed, for every recorded state and argument list.

Compared: both streams byte for byte, the exit code, the order of the streams in one pipe and on
a terminal, the seconds slept, and what becomes of /etc/hccn.conf.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twin_under_test import Outcome, replay_hccn_tool, replay_npu_smi, transcripts

# Recordings the twin does not reproduce, with the reason; every other one has to be equal.
NOT_MODELLED: dict[str, str] = {}

HCCN_TOOL = transcripts("hccn_tool")
NPU_SMI = transcripts("npu-smi")


def named(records: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(r, id=r["name"]) for r in records if r["name"] not in NOT_MODELLED]


def check(record: dict[str, Any], outcome: Outcome) -> None:
    screen = outcome.screen
    assert screen.stdout == record["stdout"]
    assert screen.stderr == record["stderr"]
    assert outcome.exit == record["exit"]
    assert screen.slept == record.get("slept_s", 0)
    if "merged_2>&1_pipe" in record:
        assert screen.pipe == record["merged_2>&1_pipe"]
    if "merged_tty" in record:
        assert screen.terminal == record["merged_tty"]


@pytest.mark.parametrize("record", named(HCCN_TOOL))
def test_hccn_tool_prints_what_was_recorded(record: dict[str, Any], tmp_path: Path) -> None:
    conf = tmp_path / "hccn.conf"
    check(record, replay_hccn_tool(record, conf))
    if record.get("hccn_conf_after") is not None:
        assert conf.read_text(encoding="utf-8") == record["hccn_conf_after"]


@pytest.mark.parametrize("record", named(NPU_SMI))
def test_npu_smi_prints_what_was_recorded(record: dict[str, Any]) -> None:
    check(record, replay_npu_smi(record))


def test_all_recordings_are_replayed() -> None:
    names = {record["name"] for record in HCCN_TOOL + NPU_SMI}
    assert (len(HCCN_TOOL), len(NPU_SMI)) == (368, 114)
    assert set(NOT_MODELLED) <= names
