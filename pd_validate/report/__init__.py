"""Reports of a run: terminal, findings.json, summary.html, summary.md, Allure.

Everything is drawn from a `RunRecord`, which the plugin or the cli fills. Nothing here
judges: what is wrong was decided in checks/.
"""

from pd_validate.report.record import RunRecord
from pd_validate.report.write import write_reports

__all__ = ["RunRecord", "write_reports"]
