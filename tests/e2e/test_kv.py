"""KV transfer: the prompt was prefilled on P, pulled by D, and every byte of it is right."""

from __future__ import annotations

import uuid

import pytest
from prompts import LENGTHS, prompt_of, tokens

from pd_validate.checks.answers import check_served
from pd_validate.checks.drain import check_path
from pd_validate.checks.kv import check_received, check_transfers, compared_blocks
from pd_validate.findings import Where
from pd_validate.plugin import Judge
from pd_validate.session import Session
from pd_validate.topology.service import Service
from pd_validate.traffic.trace import join, of_request

pytestmark = pytest.mark.kv


@pytest.mark.parametrize("length", [length for length in LENGTHS if length != "1"])
def test_every_byte_arrives(
    pd: Session, service: Service, prefiller: str, decoder: str, length: str, judge: Judge
) -> None:
    """Digests of every (layer, K/V, block, rank) on both sides are equal.

    Not for a prompt of one token: the decoder computes the last prompt token itself, so
    such a prompt has no KV to pull.
    """
    prompt = prompt_of(length, service.block_size())
    request = f"pd-kv-{uuid.uuid4().hex[:8]}"
    answer = service.disaggregate(prefiller, decoder, prompt, request_id=request, max_tokens=2)
    where = Where(host=service.host_of(decoder), instance=decoder, request=request)
    judge(check_served(answer, where))

    ranks = len(pd.plan.instances[decoder].devices)
    records = pd.trace(request, received=ranks)
    received = [record for record in of_request(records, request) if record.phase == "received"]
    judge(
        check_received(
            received, request=request, instance=decoder, host=service.host_of(decoder), ranks=ranks
        )
    )
    transfers = [transfer for transfer in join(records) if transfer.received in received]
    judge(check_transfers(transfers, records, pd.hosts_of_instances()))
    count = compared_blocks(transfers)
    judge.note(f"{count} digests compared, {sum(r.bytes for r in received)} bytes pulled")
    assert count > 0, "no block was compared: the audit is off or its trace is empty"


@pytest.mark.alone  # counts tokens of the engines
def test_decoder_does_not_prefill(
    pd: Session, service: Service, decoder: str, judge: Judge
) -> None:
    """The prompt's tokens are computed on the prefiller, and received, not computed, here."""
    prompt = tokens(3 * service.block_size() + 5, seed=1)
    prefiller = service.prefillers[0]
    before = {name: service.metrics(name) for name in (prefiller, decoder)}
    answer = service.disaggregate(prefiller, decoder, prompt, max_tokens=2)
    where = Where(host=service.host_of(decoder), instance=decoder)
    judge(check_served(answer, where))
    after = {name: service.metrics(name) for name in (prefiller, decoder)}
    judge(check_path(before[decoder], after[decoder], where, prompt_tokens=len(prompt)))
    assert after[prefiller].prompt_tokens - before[prefiller].prompt_tokens == len(prompt)
