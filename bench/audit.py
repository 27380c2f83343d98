"""What `audit=sample` adds to a request: measured end to end, and by clocks inside.

    python bench/audit.py [--requests 150]

`sample` takes one request in 16, chosen by its id, so one running pair of engines serves both
kinds: the same processes, the same minute. Requests go in pairs of one that the audit leaves out
and one that it takes, in changing order, and

end to end  is the median of the pairs' differences, with a 95 % interval from resampling; a
            request pays a sixteenth of it on average
clock       is what must be waited for: at a decoder a taken request waits for its digests (the
            audit writes down how long they took); a sixteenth of that; and the few calls that
            the audit adds to every step of both engines, taken or not, timed here on its own
            classes. The prefiller's digests run beside the transfer and delay no answer, but
            they need a core: column `P digests`

The figure to hold against 3 % is the larger of both `added`.
"""

from __future__ import annotations

import argparse
import json
import pickle
import random
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from connector.audit import SAMPLED_OF, AuditMetadata, AuditSettings, AuditWorker
from connector.scheduler import StepMetadata
from pd_validate.session import Session
from twin.cluster import TwinCluster

CLUSTER = Path(__file__).parent / "twin-audit.yaml"
SAMPLE = AuditSettings("sample", tempfile.gettempdir(), "bench")
LENGTHS = (200, 600, 1500)  # prompt tokens
TOKENS = 16  # generated
STEPS = TOKENS + 8  # of both engines for one request: prefill, waiting for the load, one a token
WARM = 3  # pairs that do not count: they fill caches


class Silent:
    """No progress: the table is all."""

    def start(self, host: str, what: str) -> None: ...

    def done(self, host: str, note: str = "") -> None: ...

    def fail(self, host: str, why: str) -> None: ...


def request_ids(*, taken: bool) -> Iterator[str]:
    """Ids of requests that the audit takes, or leaves out."""
    while True:
        name = f"bench-{uuid.uuid4().hex[:12]}"
        if SAMPLE.covers(engine_id(name)) == taken:
            yield name


def engine_id(name: str) -> str:
    """What vLLM makes of X-Request-Id, and the audit goes by."""
    return f"cmpl-{name}-0"


def measure(
    session: Session, length: int, requests: int
) -> tuple[list[tuple[float, float]], set[str]]:
    """Seconds of a request that is left out and one that is taken, pair by pair; ids of these."""
    service = session.topology().service
    chance = random.Random(length)
    names = {taken: request_ids(taken=taken) for taken in (False, True)}
    pairs: list[tuple[float, float]] = []
    counted: set[str] = set()
    for number in range(requests + WARM):
        seconds: dict[bool, float] = {}
        for taken in (False, True) if number % 2 else (True, False):
            name = next(names[taken])
            prompt = [chance.randint(33, 90) for _ in range(length)]
            started = time.perf_counter()
            answer = service.disaggregate(
                "prefill-1",
                "decode-1",
                prompt,
                request_id=name,
                max_tokens=TOKENS,
                ignore_eos=True,
            )
            seconds[taken] = time.perf_counter() - started
            if not answer.ok:
                raise RuntimeError(f"status {answer.status}: {answer.error[:200]}")
            if taken and number >= WARM:
                counted.add(engine_id(name))
        if number >= WARM:
            pairs.append((seconds[False], seconds[True]))
    return pairs, counted


def digest_seconds(session: Session, counted: set[str], phase: str) -> float:
    """Median of what the digests of these requests took at one side, by the audit's clock."""
    records = [json.loads(line) for line in session.topology().traces().splitlines()]
    found = [
        float(record["digest_seconds"])
        for record in records
        if record["remote_request"] in counted and record["phase"] == phase
    ]
    if len(found) != len(counted):
        raise RuntimeError(f"{len(counted)} requests were taken, {len(found)} were {phase}")
    return statistics.median(found)


def step_seconds(rounds: int = 2000) -> float:
    """What the audit adds to an engine's step in which it has nothing to do.

    Its metadata travels around the connector's own, and its worker is asked twice.
    """
    plain = StepMetadata("run", idle=False)
    with tempfile.TemporaryDirectory() as directory:
        worker = AuditWorker(AuditSettings("sample", directory, "bench"), [], 16, 0)
        spent: list[float] = []
        for _ in range(rounds):
            started = time.perf_counter()
            pickle.loads(pickle.dumps(plain))
            base = time.perf_counter() - started
            started = time.perf_counter()
            metadata = pickle.loads(pickle.dumps(AuditMetadata(plain)))
            worker.begin_step(metadata)
            worker.results(set(), set(), set(), set())
            spent.append(time.perf_counter() - started - base)
        worker.close()
    return statistics.median(spent)


def difference(pairs: list[tuple[float, float]]) -> float:
    """Median of what a taken request took longer, in seconds."""
    return statistics.median(taken - left for left, taken in pairs)


def interval(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """95 % of `difference`, by resampling."""
    chance = random.Random(1)
    drawn = sorted(difference(chance.choices(pairs, k=len(pairs))) for _ in range(1000))
    return drawn[25], drawn[974]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=150, help="pairs for each length")
    arguments = parser.parse_args()
    steps = STEPS * step_seconds()
    print(f"Calls of the audit in {STEPS} steps of both engines: {1e3 * steps:.2f} ms a request\n")
    with TwinCluster.start(CLUSTER) as twin:
        session = Session(twin.cluster, audit="sample", progress=Silent())
        try:
            print(
                "| prompt tokens | pairs | left out, ms | taken: end to end, ms | 95 % "
                "| D digests, ms | P digests, ms | added, end to end | added, clock |"
            )
            print("|---|---|---|---|---|---|---|---|---|")
            for length in LENGTHS:
                pairs, counted = measure(session, length, arguments.requests)
                base = statistics.median(left for left, _ in pairs)
                longer, (low, high) = difference(pairs), interval(pairs)
                decoder = digest_seconds(session, counted, "received")
                prefiller = digest_seconds(session, counted, "produced")
                shares = [(steps + part / SAMPLED_OF) / base for part in (longer, decoder)]
                print(
                    f"| {length} | {len(pairs)} | {1e3 * base:.1f} | {1e3 * longer:+.2f} "
                    f"| {1e3 * low:+.2f} … {1e3 * high:+.2f} | {1e3 * decoder:.2f} "
                    f"| {1e3 * prefiller:.2f} "
                    f"| {100 * shares[0]:+.2f} % | {100 * shares[1]:+.2f} % |",
                    flush=True,
                )
        finally:
            session.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
