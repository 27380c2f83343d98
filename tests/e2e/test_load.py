"""Many requests at once, and many that leave: others are unharmed, and nothing stays behind."""

from __future__ import annotations

from functools import partial

import pytest
from prompts import tokens

from pd_validate.checks.answers import check_company, check_determinism, check_served
from pd_validate.plugin import Judge
from pd_validate.session import Session
from pd_validate.topology.service import Service
from pd_validate.traffic.load import Sent, at_once, storm

pytestmark = [pytest.mark.proxy, pytest.mark.alone]

WIDTHS = (2, 8, 16)  # requests at once
BUDGET = 0  # requests of a ramp that may fail


def test_ramp(pd: Session, service: Service, judge: Judge) -> None:
    """2, 8, 16 requests at once, a canary among each: none fails, and the canary is right."""
    proxy, where = service.proxy, service.where(service.proxy.name)
    canary = partial(proxy.complete, tokens(130, seed=20), max_tokens=8)
    alone = canary()
    for width in WIDTHS:
        others = [
            partial(proxy.complete, tokens(20 + 30 * n, seed=21 + width), max_tokens=8)
            for n in range(width - 1)
        ]
        sent = at_once([canary, *others])
        failed = [one for one in sent if not one.ok]
        slowest = max(one.seconds for one in sent)
        judge.note(f"{width} at once: {len(failed)} failed, slowest {slowest:.2f} s")
        assert len(failed) <= BUDGET, f"{width} at once: {_told(failed)}"
        among = sent[0].answer
        assert among is not None
        judge(check_company(alone, among, where, tolerance=pd.tolerance))


def test_storm_of_clients_that_leave(pd: Session, service: Service, judge: Judge) -> None:
    """24 clients hang up in every phase while canaries are served: those are right (A34, A35)."""
    proxy, where = service.proxy, service.where(service.proxy.name)
    canaries = [tokens(140 + 60 * n, seed=22) for n in range(3)]
    alone = [proxy.complete(prompt, max_tokens=10) for prompt in canaries]
    for answer in alone:
        judge(check_served(answer, where))
    for wave in range(2):
        prompts = [tokens(60 + 40 * n, seed=23 + wave) for n in range(12)]
        asks = [partial(proxy.complete, prompt, max_tokens=10) for prompt in canaries]
        leave = partial(storm, proxy, prompts, seed=wave)
        sent = at_once(asks, beside=leave)
        for reference, one in zip(alone, sent, strict=True):
            assert one.answer is not None, f"a canary was not answered: {one.error}"
            found = check_determinism([reference, one.answer], where, tolerance=pd.tolerance)
            judge(found if pd.tolerance == 0 else check_served(one.answer, where))
    for instance in service.instances:
        judge(pd.check_idle(instance))


def _told(failed: list[Sent]) -> str:
    return "; ".join(
        str(one.error) if one.answer is None else f"{one.answer.status}: {one.answer.error[:150]}"
        for one in failed[:3]
    )
