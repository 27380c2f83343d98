"""Write all reports of a run into one directory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pd_validate.report.findings_json import findings_json
from pd_validate.report.record import RunRecord
from pd_validate.report.redact import Redactor
from pd_validate.report.reference import reference_html
from pd_validate.report.summary_html import summary_html
from pd_validate.report.summary_md import summary_md


def write_reports(record: RunRecord, out_dir: Path, *, secrets: Iterable[str] = ()) -> list[Path]:
    """Write record.json, findings.json, summary.html, summary.md, checks.html; returns their paths.

    All of them are redacted: `secrets` are values known to be secret, and what has the shape
    of a secret goes too. `out_dir` is made if it is missing. Raises OSError.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    safe = Redactor(secrets).record(record)
    texts = {
        "summary.html": summary_html(safe),
        "summary.md": summary_md(safe),
        "findings.json": findings_json(safe),
        "checks.html": reference_html(),
        "record.json": safe.to_json(),
    }
    paths = []
    for name, text in texts.items():
        path = out_dir / name
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths
