"""findings.json: the verdict of a run for other programs.

`findings` are the faults; what another finding explains (`because`) is in `consequences`
and does not count; with a quarantine file, what it matches is in `quarantined`, and
`quarantine` lists its entries. The form is an interface; its JSON Schema is
docs/findings.schema.json.
"""

from __future__ import annotations

import json
from typing import Any

from pd_validate.report.record import CheckResult, RunRecord


def findings_json(record: RunRecord) -> str:
    """The text of findings.json, UTF-8, one trailing newline."""
    faults = [f for f in record.findings if not f.because]
    document: dict[str, Any] = {
        "cluster": record.cluster,
        "started": record.started.isoformat(timespec="seconds"),
        "verdict": record.verdict.value,
        "findings": [f.to_json() for f in faults if not f.quarantined],
        "consequences": [f.to_json() for f in record.findings if f.because],
        "checks": [_check(check) for check in record.checks],
    }
    if record.quarantine:
        document["quarantined"] = [f.to_json() for f in faults if f.quarantined]
        document["quarantine"] = [entry.model_dump(mode="json") for entry in record.quarantine]
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _check(check: CheckResult) -> dict[str, Any]:
    return {
        "id": check.id,
        "where": check.where.model_dump(mode="json", exclude_none=True),
        "verdict": check.verdict.value,
        "seconds": round(check.seconds, 3),
    }
