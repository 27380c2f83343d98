"""Back to zero: after the requests ended nothing runs, nothing waits, no KV block is held."""

from __future__ import annotations

import pytest

from pd_validate.checks.drain import check_idle
from pd_validate.findings import Where
from pd_validate.plugin import Judge
from pd_validate.session import Session
from pd_validate.topology.service import Service

pytestmark = pytest.mark.kv


def test_instance_returns_to_zero(
    pd: Session, service: Service, instance: str, judge: Judge
) -> None:
    metrics, waited = pd.wait_idle(instance)
    judge(check_idle(metrics, Where(host=pd.host_of(instance), instance=instance), waited=waited))
