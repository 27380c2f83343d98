"""Every KV fault in every phase, on one live twin: what the client got, what leaked, how long.

    make prove-kv-faults        # prints the table of docs/proof-kv.md

Each row sends one request by hand, prefill and then decode, and strikes before the pull,
during it, or after it. Then, whatever happened: the request ended within its deadline; a 200
had the right answer, or the audit names the wrong bytes; every instance that lives holds no
KV block within the connector's own deadlines; and after the fault is gone the next request
gets the right answer.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pd_validate.checks.kv import check_transfers
from pd_validate.session import Session
from pd_validate.topology.service import Service
from pd_validate.topology.topology import Topology
from pd_validate.traffic.client import Answer, RequestFailed
from pd_validate.traffic.trace import join, of_request
from pd_validate.waiting import wait_for
from twin.cluster import TwinCluster
from twin.fabric import FabricState

pytestmark = [pytest.mark.kv, pytest.mark.fault]

CLUSTER = Path(__file__).parent / "clusters" / "twin-kv-faults.yaml"
P, D, OTHER = "prefill-1", "decode-1", "decode-2"
HOST = {P: "p1", D: "d1", OTHER: "d2"}
DEVICE = {P: 0, D: 6, OTHER: 6}
# load_timeout, a pull that was running then, a lost answer of the side channel, and decoding.
ENDS_WITHIN = 8.0 + 4.0 + 2.0 + 16.0  # seconds; 400 tokens take up to 16 s on a busy machine
ZERO_WITHIN = 12.0 + 3.0  # hold_timeout, and a look at the gauges
PULL_LASTS = 2.5  # seconds, where something strikes during the pull
LONG, SHORT = 300, 8  # tokens; long enough to strike while they are decoded


class Silent:
    """No progress: rows are printed instead."""

    def start(self, host: str, what: str) -> None: ...

    def done(self, host: str, note: str = "") -> None: ...

    def fail(self, host: str, why: str) -> None: ...


@dataclass
class Stand:
    """The twin, the service on it, and what is broken now."""

    twin: TwinCluster
    session: Session
    topology: Topology
    dead: set[str] = field(default_factory=set)

    @property
    def service(self) -> Service:
        return self.topology.service

    def fabric(self, change: Callable[[FabricState], None]) -> None:
        state = FabricState.read(self.twin.state)
        change(state)
        state.write(self.twin.state)

    def kv(self, *faults: dict[str, Any]) -> None:
        def change(state: FabricState) -> None:
            state.kv_faults = [{"to": D, **fault} for fault in faults]

        self.fabric(change)

    def link(self, instance: str, link: str) -> None:
        self.fabric(
            lambda state: setattr(state.device(HOST[instance], DEVICE[instance]), "link", link)
        )

    def kill(self, instance: str) -> None:
        self.dead.add(instance)
        self.topology.kill(instance)
        wait_for(
            lambda: None if self.topology.status()[instance].alive else True,
            seconds=10,
            what=f"the end of {instance}",
        )

    def heal(self) -> None:
        """Everything as it was; dead instances run again."""
        self.kv()
        for instance in HOST:
            self.link(instance, "up")
        for instance in sorted(self.dead):
            self.topology.restart(instance)
        self.dead.clear()


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    with TwinCluster.start(CLUSTER) as twin:
        session = Session(twin.cluster, audit="full", progress=Silent())
        try:
            made = Stand(twin, session, session.topology())
            yield made
        finally:
            leftovers = session.close()
        assert not leftovers, leftovers


@dataclass(frozen=True)
class Fault:
    """One row. `strike` breaks something at its phase; `answer` is what the client must get.

    `named` are findings that the audit must have, and no others.
    """

    name: str
    phase: str  # before, during, after
    strike: Callable[[Stand], None]
    answer: str
    named: frozenset[str] = frozenset()
    tokens: int = SHORT
    in_pull: bool = False
    """llm_datadist strikes by itself, in the pull."""


def kv(do: str, answer: str, *named: str, name: str = "", **where: Any) -> Fault:
    """A fault that llm_datadist itself knows: it strikes in the pull."""
    return Fault(
        name or do,
        "during",
        lambda stand: stand.kv({"do": do, **where}),
        answer,
        frozenset(named),
        in_pull=True,
    )


def link(instance: str, phase: str, answer: str, *, tokens: int = SHORT) -> Fault:
    return Fault(
        f"link of {instance} down",
        phase,
        lambda stand: stand.link(instance, "down"),
        answer,
        tokens=tokens,
    )


def dead(instance: str, phase: str, answer: str, *, tokens: int = SHORT) -> Fault:
    return Fault(
        f"{instance} dead", phase, lambda stand: stand.kill(instance), answer, tokens=tokens
    )


RIGHT, WRONG, ERROR, CUT = "200, right", "200, wrong", "500", "broken off"
ONE = {"to": f"{D}/0"}
FAULTS = [
    kv("corrupt", WRONG, "kv.corrupt", layer=1, block="last", **ONE),
    kv("corrupt", WRONG, "kv.corrupt", name="corrupt, first block of every layer", block="first"),
    kv("zero", WRONG, "kv.missing", layer=2, tensor="v", **ONE),
    kv("drop", WRONG, "kv.missing", layer=0, block=1, **ONE),
    kv("swap", WRONG, "kv.swapped", layer=3, block=0, **ONE),
    kv("swap", WRONG, "kv.swapped", name="swap, last block", layer=3, block="last", **ONE),
    kv("delay", RIGHT, seconds=2.0, **ONE),
    kv("delay", ERROR, name="delay beyond pull_timeout", seconds=6.0, **ONE),
    kv("stall", ERROR, **ONE),
    kv("stall", ERROR, name="stall, both ranks"),
    kv("reset", ERROR, name="reset, every time", **ONE),
    link(D, "before", ERROR),
    link(P, "before", ERROR),
    link(D, "during", ERROR),
    link(P, "during", ERROR),
    link(D, "after", RIGHT, tokens=LONG),
    link(P, "after", RIGHT, tokens=LONG),
    dead(D, "before", CUT),
    dead(D, "during", CUT),
    dead(D, "after", CUT, tokens=LONG),
    dead(P, "before", ERROR),
    dead(P, "during", ERROR),
    dead(P, "after", RIGHT, tokens=LONG),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.name}, {f.phase}".replace(" ", "-"))
def test_fault(stand: Stand, fault: Fault, capsys: pytest.CaptureFixture[str]) -> None:
    service = stand.service
    prompt = _prompt(3 * service.block_size() + 5)
    reference = service.instances[P].complete(prompt, max_tokens=fault.tokens, ignore_eos=True)
    request = f"pd-fault-{uuid.uuid4().hex[:8]}"
    try:
        answer, seconds = _ask(stand, fault, prompt, request)
        got = _got(answer, reference)
        named = _named(stand, request)
        living = [instance for instance in HOST if instance not in stand.dead]
        zero = max(stand.session.wait_idle(instance)[1] for instance in living)
        left = [i for i in living if not service.metrics(i).idle]
    finally:
        stand.heal()
    after = service.disaggregate(P, D, prompt, max_tokens=fault.tokens, ignore_eos=True)
    with capsys.disabled():
        names = ", ".join(sorted(named)) or "nothing"
        print(
            f"\n| {fault.name} | {fault.phase} | {got} | {seconds:.1f} | {names} "
            f"| {'leak at ' + ', '.join(left) if left else 'none'} | {zero:.1f} |"
        )
    assert got == fault.answer or (got == RIGHT and fault.answer == WRONG)
    assert seconds <= ENDS_WITHIN, "the request outlasted its deadline"
    assert named or got != WRONG, "a wrong answer with 200 that nobody names"
    assert fault.named <= named
    assert not left, f"{left} hold KV"
    assert zero <= ZERO_WITHIN
    assert _got(after, reference) == RIGHT, "the service did not recover"


def _ask(
    stand: Stand, fault: Fault, prompt: list[int], request: str
) -> tuple[Answer | None, float]:
    """Prefill, strike at the right moment, decode. None: the connection broke."""
    service = stand.service
    prefilled = service.instances[P].complete(
        prompt,
        request_id=request,
        max_tokens=1,
        kv_transfer_params={"do_remote_decode": True, "do_remote_prefill": False},
    )
    assert prefilled.ok, prefilled.error

    def decode() -> Answer | None:
        with contextlib.suppress(RequestFailed):
            return service.instances[D].complete(
                prompt,
                request_id=request,
                max_tokens=fault.tokens,
                ignore_eos=True,
                timeout=ENDS_WITHIN + 5,
                kv_transfer_params=prefilled.kv_transfer_params,
            )
        return None

    if fault.phase == "before" or fault.in_pull:
        fault.strike(stand)
    elif fault.phase == "during":
        stand.kv({"do": "delay", "seconds": PULL_LASTS})
    started = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        answering = pool.submit(decode)
        if fault.phase == "after":
            stand.session.trace(request, received=2)
        elif fault.phase == "during" and not fault.in_pull:
            threading.Event().wait(PULL_LASTS / 2)
        if fault.phase != "before" and not fault.in_pull:
            assert not answering.done(), "the answer came before the strike"
            fault.strike(stand)
        answer = answering.result()
    return answer, time.monotonic() - started


def _got(answer: Answer | None, reference: Answer) -> str:
    if answer is None:
        return CUT
    if not answer.ok:
        return str(answer.status)
    near = all(abs(a - b) < 1e-5 for a, b in zip(answer.logprobs, reference.logprobs, strict=False))
    return RIGHT if answer.token_ids == reference.token_ids and near else WRONG


def _named(stand: Stand, request: str) -> set[str]:
    """Ids of the audit's findings on this request."""
    records = stand.session.settled_traces()
    transfers = [t for t in join(records) if of_request([t.received], request)]
    found = check_transfers(transfers, records, stand.session.hosts_of_instances())
    ids = {finding.id for finding in found}
    failed = [r for r in of_request(records, request) if r.phase == "failed"]
    return ids | ({"load failed"} if failed else set())


def _prompt(length: int) -> list[int]:
    chance = random.SystemRandom()  # no two rows share a prefix
    return [chance.randint(33, 90) for _ in range(length)]
