"""Which scenarios may share a running topology: those whose faults come and go."""

from __future__ import annotations

import pytest

from twin.scenario import Scenario
from twin.shared import can_share

KV = {"kv": {"to": "decode-1", "do": "zero"}}
HTTP = {"instance": "decode-1", "http": {"status": 500}}
PROXY = {"proxy": "empty"}
KILL = {"instance": "decode-1", "at": "pulling", "do": "kill"}
LINK = {"host": "d1", "device": 6, "link": "down"}


@pytest.mark.parametrize(
    ("faults", "shared"),
    [
        ([KV], True),
        ([HTTP, KV], True),
        ([PROXY], True),
        ([KILL], False),  # what is dead stays dead
        ([KV, LINK], False),  # stops before anything is started
        ([], False),  # the control arm: everything of its own
    ],
)
def test_faults_that_come_and_go(faults: list[object], shared: bool) -> None:
    assert can_share(Scenario.model_validate({"faults": faults})) is shared
