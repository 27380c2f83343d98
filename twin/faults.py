"""Faults of running engines: how a scenario reaches into the processes of an instance.

Written once by the twin's start (`engine_faults.json` in TWIN_STATE), read by the
plugin that vLLM loads in every process (twin/site/twin_engine).
"""

from __future__ import annotations

import json
from pathlib import Path

from twin.scenario import HttpFault, InstanceFault, Scenario

ENGINE_FAULTS = "engine_faults.json"


def write_engine_faults(state: Path, scenario: Scenario) -> None:
    """Store the faults of instances; the file is there even if there are none."""
    faults = {
        "http": [fault.model_dump() for fault in scenario.of(HttpFault)],
        "instance": [fault.model_dump() for fault in scenario.of(InstanceFault)],
    }
    (state / ENGINE_FAULTS).write_text(json.dumps(faults, indent=2))
