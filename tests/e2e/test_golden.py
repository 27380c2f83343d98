"""Today's answers are the recorded ones of this model under these versions.

Parity and repetition compare today with today; what has changed since yesterday only a
record shows. Where there is none it is made, and the test says so instead of passing.
"""

from __future__ import annotations

import pytest

from pd_validate.checks.answers import check_golden, check_served
from pd_validate.options import Options
from pd_validate.plugin import Judge
from pd_validate.session import Session
from pd_validate.topology.service import Service
from pd_validate.traffic.baseline import Golden, golden_key, load_goldens, save_goldens

pytestmark = pytest.mark.determinism

PROMPTS = ("Who are you?", "Tell me a story.", "1, 2, 3, 4,", "你是谁？")
TOKENS = 32


def test_recorded_answers(pd: Session, service: Service, options: Options, judge: Judge) -> None:
    """Through the proxy, at temperature 0, token by token."""
    model, versions = pd.golden_identity()
    key = golden_key(model, versions)
    recorded = load_goldens(options.baselines, key)
    where, missing = service.where(service.proxy.name), dict(recorded)
    for prompt in PROMPTS:
        answer = service.proxy.complete(prompt, max_tokens=TOKENS)
        judge(check_served(answer, where))
        if prompt in recorded:
            judge(check_golden(recorded[prompt], answer, where))
        else:
            missing[prompt] = Golden(prompt=prompt, token_ids=answer.token_ids, text=answer.text)
    new = len(missing) - len(recorded)
    if new:
        file = save_goldens(options.baselines, key, missing, {"model": model, "versions": versions})
        pytest.skip(f"recorded {new} golden answers in {file}: later runs are held against them")
