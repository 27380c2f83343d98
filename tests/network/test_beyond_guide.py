"""What the guide does not ask and users were bitten by: see docs/checks.md for each."""

from __future__ import annotations

import pytest

from pd_validate.checks.network import CHECKS
from pd_validate.checks.result import Report
from pd_validate.findings import Verdict
from pd_validate.plugin import Judge

pytestmark = pytest.mark.network

_GUIDES = {"lldp", "link", "net-health", "netdetect", "gateway", "hccn-conf", "ip"}
_OTHERS = [check.id for check in CHECKS if check.id not in _GUIDES]


@pytest.mark.parametrize("check", _OTHERS)
def test_check(network: Report, check: str, host: str, judge: Judge) -> None:
    """One check of one host; skipped where it does not apply to this hardware."""
    results = network.of(check, host)
    if not results:
        pytest.skip(f"{check} does not apply to this cluster's hardware or settings")
    judge(network.problems(check, host))
    unmeasured = [result for result in results if result.verdict is Verdict.UNKNOWN]
    for result in unmeasured:
        judge.note(f"{check} at {result.where} not measured: {result.note}")
