"""The same request gives the same answer: repeated, on every decoder, alone and among others."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from prompts import tokens

from pd_validate.checks.answers import check_determinism
from pd_validate.findings import Where
from pd_validate.plugin import Judge
from pd_validate.session import Session
from pd_validate.topology.service import Service

pytestmark = pytest.mark.determinism

REPETITIONS = 20


def test_same_request_repeated(pd: Session, service: Service, judge: Judge) -> None:
    """20 times through the proxy, over all decoders."""
    answers = [service.proxy.complete("Who are you?", max_tokens=16) for _ in range(REPETITIONS)]
    judge(check_determinism(answers, service.where(service.proxy.name), tolerance=pd.tolerance))


def test_same_request_on_every_decoder(pd: Session, service: Service, judge: Judge) -> None:
    prompt = tokens(200, seed=3)
    answers = [
        service.disaggregate(service.prefillers[0], decoder, prompt, max_tokens=24)
        for decoder in service.decoders
    ]
    judge(check_determinism(answers, Where(), tolerance=pd.tolerance))


def test_seeded_sampling_repeats(pd: Session, service: Service, judge: Judge) -> None:
    """Temperature 1 with a seed is as repeatable as temperature 0."""
    answers = [
        service.proxy.complete("Roll the dice:", max_tokens=16, temperature=1.0, seed=7)
        for _ in range(4)
    ]
    judge(check_determinism(answers, service.where(service.proxy.name), tolerance=pd.tolerance))


def test_among_others(pd: Session, service: Service, judge: Judge) -> None:
    """Alone first, then while other requests run: the company must not change the answer."""
    canary = tokens(150, seed=4)
    alone = service.proxy.complete(canary, max_tokens=16)
    with ThreadPoolExecutor(8) as pool:
        others = [
            pool.submit(service.proxy.complete, tokens(50 + 40 * n, seed=5), max_tokens=24)
            for n in range(8)
        ]
        among = service.proxy.complete(canary, max_tokens=16)
        for other in others:
            assert other.result().ok, other.result().error[:300]
    where = service.where(service.proxy.name)
    judge(check_determinism([alone, among], where, tolerance=pd.tolerance))
