"""The launch plan: contradictions that would cost a bring-up, found before anything is started."""

from __future__ import annotations

import pytest

from pd_validate.plugin import Judge
from pd_validate.session import Session

pytestmark = pytest.mark.ranktable


def test_launch_plan_fits(pd: Session, judge: Judge) -> None:
    """Ports, roles, TP sizes, agreement of prefill and decode, scheduler limits, variables."""
    judge(pd.plan_findings)
