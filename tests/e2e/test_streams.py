"""Streams through the proxy, several at once: each comes whole, and its latency is recorded.

There is no verdict on speed here: figures of one cluster say nothing of another's. The
report shows their distribution.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from prompts import tokens

from pd_validate.checks.proxying import check_event_stream
from pd_validate.findings import Where
from pd_validate.plugin import Judge
from pd_validate.topology.service import Service
from pd_validate.traffic.client import Answer

pytestmark = pytest.mark.proxy

STREAMS = 24
AT_ONCE = 4
OUTPUT = 16  # tokens


def test_streams_at_once(service: Service, judge: Judge) -> None:
    """24 prompts of different lengths, 4 at a time: every stream ends, with every token."""

    def one(number: int) -> Answer:
        prompt = tokens(20 + 25 * number, seed=100 + number)
        return service.proxy.complete(prompt, max_tokens=OUTPUT, ignore_eos=True, stream=True)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(one, range(STREAMS)))
    where = Where(host=service.cluster.proxy.host, instance=service.proxy.name)
    judge([finding for answer in answers for finding in check_event_stream(answer, where)])
    assert [answer.completion_tokens for answer in answers] == [OUTPUT] * STREAMS
    assert all(answer.ttft is not None and answer.ttft <= answer.seconds for answer in answers)
