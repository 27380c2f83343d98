"""KV transfer: the prompt was prefilled on P, pulled by D, and every byte of it is right."""

from __future__ import annotations

import uuid

import pytest
from prompts import LENGTHS, longest, prompt_of, tokens

from pd_validate.checks.answers import check_served
from pd_validate.checks.drain import check_path
from pd_validate.checks.kv import check_received, check_transfers, compared_blocks
from pd_validate.checks.volume import check_volume
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
    prove(pd, service, prefiller, decoder, prompt_of(length, service.block_size()), judge)


def test_the_longest_prompt_arrives(
    pd: Session, service: Service, prefiller: str, decoder: str, judge: Judge
) -> None:
    """As many tokens as max_model_len leaves room for."""
    limit = min(pd.cluster.engine_of(name).max_model_len for name in (prefiller, decoder))
    prove(pd, service, prefiller, decoder, longest(limit, answer=2, seed=7), judge)


def prove(
    pd: Session, service: Service, prefiller: str, decoder: str, prompt: list[int], judge: Judge
) -> None:
    """One request over one pair: every rank received all of it, and every byte is right."""
    request = f"pd-kv-{uuid.uuid4().hex[:8]}"
    answer = service.disaggregate(prefiller, decoder, prompt, request_id=request, max_tokens=2)
    judge(check_served(answer, service.where(decoder, prefiller, request=request)))

    ranks = len(pd.plan.instances[decoder].devices)
    records = pd.trace(request, received=ranks)
    received = [record for record in of_request(records, request) if record.phase == "received"]
    hosts = pd.hosts_of_instances()
    judge(
        check_received(
            received, request=request, instance=decoder, host=hosts[decoder], ranks=ranks
        )
    )
    transfers = [transfer for transfer in join(records) if transfer.received in received]
    judge(check_transfers(transfers, records, hosts))
    shape, block_size = pd.kv_shape(), service.block_size()
    if shape is not None:  # else the model keeps its KV in a form of its own
        tp = pd.cluster.engine_of(decoder).tensor_parallel
        judge(check_volume(received, shape, hosts, block_size=block_size, tensor_parallel=tp))
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
    where = service.where(decoder, prefiller)
    judge(check_served(answer, where))
    after = {name: service.metrics(name) for name in (prefiller, decoder)}
    judge(check_path(before[decoder], after[decoder], where, prompt_tokens=len(prompt)))
    assert after[prefiller].prompt_tokens - before[prefiller].prompt_tokens == len(prompt)


@pytest.mark.alone  # counts tokens of the engines
def test_proxy_hands_the_kv_over(pd: Session, service: Service, judge: Judge) -> None:
    """Through the proxy, too, decoders receive the prompt instead of computing it.

    A proxy that loses `kv_transfer_params` gives right answers, slowly.
    """
    prompts = [tokens(2 * service.block_size() + 9, seed=30 + n) for n in range(4)]
    before = {name: service.metrics(name) for name in service.decoders}
    for prompt in prompts:
        answer = service.proxy.complete(prompt, max_tokens=2)
        judge(check_served(answer, service.where(service.proxy.name)))
    # Which decoder served how many, a proxy need not say: one computed token for each.
    judge(
        finding
        for name in service.decoders
        for finding in check_path(
            before[name],
            service.metrics(name),
            service.where(name),
            prompt_tokens=sum(map(len, prompts)),
            requests=len(prompts),
        )
    )
