"""200 requests through prefill and decode: every answer, every byte, and back to zero.

    make prove-kv        # prefix caching off, then on; prints the table of docs/proof-kv.md

Each prompt is answered once by a prefiller alone, one after the other: the reference. Then
all of them go through the proxy, four times: one at a time and sixteen at a time, streamed
and whole. Tokens must be equal. Logprobs must be equal up to the noise of another batch shape:
the reference computes the last token of a prompt in one product with all others, a decoder
alone, and the order of additions differs. Where the shapes are the same, one request at a
time without a prefix cache, streamed against whole, they must be equal bit by bit. All KV of
the run is digested on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from kv_prompts import Case, cases

from pd_validate.checks.answers import check_parity
from pd_validate.checks.drain import check_idle
from pd_validate.checks.kv import check_transfers, compared_blocks
from pd_validate.findings import Finding, Where
from pd_validate.plugin import Judge
from pd_validate.session import Session
from pd_validate.topology.service import Service
from pd_validate.traffic.client import Answer
from pd_validate.traffic.trace import join

pytestmark = pytest.mark.kv

PROMPTS = 50  # each of them in four modes
MODES = [(1, False), (1, True), (16, False), (16, True)]
# Largest difference of a logprob between two batch shapes in float32 that was seen here, with
# a margin; one flipped bit of KV moves tens of logprobs by more.
BATCH_NOISE = 1e-4
ZERO_WITHIN = 5.0  # seconds until no instance holds a KV block


@dataclass
class Proof:
    """What the tests of this module share: the prompts, and the answers they must get."""

    prompts: list[Case]
    references: list[Answer]
    alone: list[Answer] = field(default_factory=list)
    """Those of the first mode with one request at a time."""


@pytest.fixture(scope="module")
def proof() -> dict[str, Proof]:
    return {}


@pytest.fixture
def references(pd: Session, service: Service, proof: dict[str, Proof]) -> Proof:
    """The answers of a prefiller alone, asked for once."""
    if "all" not in proof:
        prompts = cases(
            PROMPTS,
            block_size=service.block_size(),
            max_model_len=pd.cluster.engine.max_model_len,
        )
        alone = service.instances[service.prefillers[0]]
        answers = [
            alone.complete(list(c.prompt), max_tokens=c.max_tokens, ignore_eos=True)
            for c in prompts
        ]
        refused = [answer.error[:200] for answer in answers if not answer.ok]
        assert not refused, f"the prefiller alone refused {len(refused)}: {refused[0]}"
        proof["all"] = Proof(prompts, answers)
    return proof["all"]


@contextmanager
def told(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    with capsys.disabled():
        yield


@pytest.mark.parametrize(("concurrency", "stream"), MODES)
def test_answers_equal_the_reference(
    pd: Session,
    service: Service,
    references: Proof,
    concurrency: int,
    stream: bool,
    judge: Judge,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def ask(case: Case) -> Answer:
        return service.proxy.complete(
            list(case.prompt), max_tokens=case.max_tokens, ignore_eos=True, stream=stream
        )

    with ThreadPoolExecutor(concurrency) as pool:
        answers = list(pool.map(ask, references.prompts))

    caching = pd.cluster.engine.prefix_caching
    where = [Where(instance=service.proxy.name, request=answer.request_id) for answer in answers]
    noise = max(pd.tolerance, BATCH_NOISE)
    findings: list[Finding] = []
    for want, got, place in zip(references.references, answers, where, strict=True):
        findings += check_parity(want, got, place, tolerance=noise)
    if concurrency == 1 and not caching:
        for want, got, place in zip(references.alone, answers, where, strict=False):
            findings += check_parity(want, got, place, tolerance=pd.tolerance)
        references.alone = references.alone or answers
    with told(capsys):
        print("\n" + _row(caching, concurrency, stream, references.references, answers))
    judge(findings)


def _row(
    caching: bool, concurrency: int, stream: bool, wanted: list[Answer], answers: list[Answer]
) -> str:
    """A line of the table of docs/proof-kv.md."""
    pairs = list(zip(wanted, answers, strict=True))
    largest = max(
        abs(a - b) for want, got in pairs for a, b in zip(want.logprobs, got.logprobs, strict=False)
    )
    cells = (
        "on" if caching else "off",
        str(concurrency),
        "yes" if stream else "no",
        str(len(answers)),
        str(sum(want.token_ids == got.token_ids for want, got in pairs)),
        str(sum(want.logprobs == got.logprobs for want, got in pairs)),
        f"{largest:.1e}",
        f"{max(answer.seconds for answer in answers):.2f}",
    )
    return f"| {' | '.join(cells)} |"


def test_instances_return_to_zero(
    pd: Session, service: Service, references: Proof, judge: Judge
) -> None:
    """Blocks that a prefiller holds for a decoder included."""
    for instance in service.cluster.instances:
        metrics, waited = pd.wait_idle(instance)
        where = Where(host=service.host_of(instance), instance=instance)
        judge(check_idle(metrics, where, waited=waited))
        assert waited <= ZERO_WITHIN, f"{instance} held KV for {waited:.1f} s"


def test_every_digest_is_equal(
    pd: Session,
    service: Service,
    references: Proof,
    judge: Judge,
    capsys: pytest.CaptureFixture[str],
) -> None:
    records = pd.settled_traces()
    transfers = join(records)
    judge(check_transfers(transfers, records, pd.hosts_of_instances()))
    requests = {transfer.received.remote_request for transfer in transfers}
    count = compared_blocks(transfers)
    failed = [record for record in records if record.phase == "failed"]
    with told(capsys):
        print(
            f"\n{len(requests)} requests pulled KV in {len(transfers)} transfers "
            f"({sum(t.received.bytes for t in transfers) / 1e6:.0f} MB), {count} digests equal"
        )
    assert not failed, f"{len(failed)} loads failed: {failed[0]}"
    # A prompt of one token has no KV to pull, and a decoder's prefix cache spares whole pulls.
    expected = sum(len(c.prompt) > 1 for c in references.prompts)
    assert len(requests) >= (expected if pd.cluster.engine.prefix_caching else 4 * expected)
    assert count > 0
