"""The answer through PD is the answer of one engine alone: tokens, and logprobs bit by bit.

In float32 the engines are bitwise repeatable, so nothing is allowed to differ; other
dtypes have a stated tolerance (pd_validate/traffic/compare.py).
"""

from __future__ import annotations

import pytest
from prompts import LENGTHS, prompt_of

from pd_validate.checks.answers import check_parity
from pd_validate.plugin import Judge
from pd_validate.session import Session
from pd_validate.topology.service import Service

pytestmark = pytest.mark.determinism


@pytest.mark.parametrize("length", LENGTHS)
def test_pd_equals_prefiller_alone(
    pd: Session, service: Service, decoder: str, length: str, judge: Judge
) -> None:
    """Same prompt to the prefiller alone, and prefilled there and decoded here."""
    prompt = prompt_of(length, service.block_size(), seed=2)
    prefiller = service.prefillers[0]
    alone = service.instances[prefiller].complete(prompt, max_tokens=24, ignore_eos=True)
    assert alone.ok, f"the prefiller alone answered {alone.status}: {alone.error[:300]}"
    through = service.disaggregate(prefiller, decoder, prompt, max_tokens=24, ignore_eos=True)
    where = service.where(decoder, prefiller)
    judge(check_parity(alone, through, where, tolerance=pd.tolerance))


def test_proxy_equals_prefiller_alone(pd: Session, service: Service, judge: Judge) -> None:
    """The guide's question through the proxy, until every decoder has served it."""
    alone = service.instances[service.prefillers[0]].complete("Who are you?", max_tokens=100)
    served: set[str] = set()
    for _ in range(4 * len(service.decoders)):
        through = service.proxy.complete("Who are you?", max_tokens=100)
        served.add(through.headers.get("x-pd-decode", "unknown"))
        where = service.where(service.proxy.name)
        judge(check_parity(alone, through, where, tolerance=pd.tolerance))
        if len(served) == len(service.decoders):
            break
    judge.note(f"decoders that served: {', '.join(sorted(served))}")
    assert "unknown" in served or len(served) == len(service.decoders), served


def test_streaming_equals_not_streaming(pd: Session, service: Service, judge: Judge) -> None:
    """The same text and tokens, in pieces."""
    whole = service.proxy.complete("Tell me a story.", max_tokens=40)
    pieces = service.proxy.complete("Tell me a story.", max_tokens=40, stream=True)
    where = service.where(service.proxy.name)
    judge(check_parity(whole, pieces, where, tolerance=pd.tolerance))
    assert pieces.done
