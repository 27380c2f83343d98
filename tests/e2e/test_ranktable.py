"""The rank table: the guide's gen_ranktable step, proved on every host and for every rank."""

from __future__ import annotations

import pytest

from pd_validate.checks.ranktable import check_rank_tables
from pd_validate.plugin import Judge
from pd_validate.session import Session

pytestmark = [pytest.mark.ranktable, pytest.mark.usefixtures("staged")]


def test_rank_table_fits_devices_and_plan(pd: Session, judge: Judge) -> None:
    """Present and equal on all hosts, live, and each rank picks the device that it runs on."""
    files = pd.rank_tables_on_hosts()
    judge(check_rank_tables(pd.cluster, pd.plan, files, pd.device_addresses()))


def test_each_rank_picks_its_device(pd: Session, instance: str, judge: Judge) -> None:
    """What the connector of each rank will choose, said rank by rank."""
    files = pd.rank_tables_on_hosts()
    findings = check_rank_tables(pd.cluster, pd.plan, files, pd.device_addresses())
    for line in pd.described_ranks(instance):
        judge.note(line)
    judge([finding for finding in findings if finding.where.instance == instance])
