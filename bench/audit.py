"""What the audit adds to a request: two pairs of prefiller and decoder, alternating.

    python bench/audit.py [--level sample] [--requests 200]

One twin with two pairs, equal but for the audit: off at the first, `--level` at the second.
Every prompt goes through both, one right after the other, in changing order, so that other
load strikes both alike. A figure is the median over the prompts of the difference of the two,
against the median time of the pair without audit; its 95 % interval is from resampling.
`own` is the time that the audit itself took for digests, by its own clock, per request: in
threads of their own, so a bound of what it adds where cores are free.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
import sys
import time
from pathlib import Path

from pd_validate.session import Session
from pd_validate.spec.plan import launch_plan
from twin.cluster import TwinCluster

CLUSTER = Path(__file__).parent / "twin-2p2d.yaml"
OFF, ON = ("prefill-1", "decode-1"), ("prefill-2", "decode-2")
LENGTHS = (200, 600, 1500)  # prompt tokens
TOKENS = 16  # generated
WARM = 2  # requests that do not count: they fill caches


class Silent:
    """No progress: the table is all."""

    def start(self, host: str, what: str) -> None: ...

    def done(self, host: str, note: str = "") -> None: ...

    def fail(self, host: str, why: str) -> None: ...


def measure(session: Session, length: int, requests: int) -> list[tuple[float, float]]:
    """Seconds without and with the audit, prompt by prompt."""
    service = session.topology().service
    chance = random.Random(length)
    pairs: list[tuple[float, float]] = []
    for number in range(requests + WARM):
        prompt = [chance.randint(33, 90) for _ in range(length)]
        seconds: dict[tuple[str, str], float] = {}
        for pair in (OFF, ON) if number % 2 else (ON, OFF):
            prefiller, decoder = pair
            started = time.perf_counter()
            answer = service.disaggregate(
                prefiller, decoder, prompt, max_tokens=TOKENS, ignore_eos=True
            )
            seconds[pair] = time.perf_counter() - started
            if not answer.ok:
                raise RuntimeError(f"{decoder} answered {answer.status}: {answer.error[:200]}")
        if number >= WARM:
            pairs.append((seconds[OFF], seconds[ON]))
    return pairs


def own_seconds(session: Session) -> float:
    """What all digests so far took, on both sides."""
    lines = session.topology().traces().splitlines()
    return sum(float(json.loads(line)["digest_seconds"]) for line in lines)


def added(pairs: list[tuple[float, float]]) -> float:
    """Median difference, as a share of the median time without audit."""
    base = statistics.median(off for off, _ in pairs)
    return statistics.median(on - off for off, on in pairs) / base


def interval(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    chance = random.Random(1)
    drawn = sorted(added(chance.choices(pairs, k=len(pairs))) for _ in range(400))
    return drawn[10], drawn[389]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--level", default="sample", choices=["off", "sample", "full"])
    parser.add_argument("--requests", type=int, default=200)
    arguments = parser.parse_args()
    with TwinCluster.start(CLUSTER) as twin:
        session = Session(twin.cluster, audit="off", progress=Silent())
        audited = launch_plan(twin.cluster, run_dirs=session.run_dirs, audit=arguments.level)
        mixed = dict(session.plan.instances) | {name: audited.instances[name] for name in ON}
        session.plan = dataclasses.replace(session.plan, instances=mixed)
        try:
            print("| prompt tokens | requests | off, ms | added, ms | added | 95 % | own, ms |")
            print("|---|---|---|---|---|---|---|")
            for length in LENGTHS:
                before = own_seconds(session)
                pairs = measure(session, length, arguments.requests)
                own = (own_seconds(session) - before) / (arguments.requests + WARM)
                base = statistics.median(off for off, _ in pairs)
                low, high = interval(pairs)
                print(
                    f"| {length} | {len(pairs)} | {1e3 * base:.1f} "
                    f"| {1e3 * base * added(pairs):+.2f} | {100 * added(pairs):+.1f} % "
                    f"| {100 * low:+.1f} … {100 * high:+.1f} % | {1e3 * own:.2f} |",
                    flush=True,
                )
        finally:
            session.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
