"""Figures of the service, held against the cluster's own file. Runs with `-m perf`.

What is measured here is the service as a client meets it, and each pair's pulls as the
audit saw them. The audit costs time: for figures to publish use `--audit off`, where the
pulls are missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from statistics import median

import pytest
from prompts import tokens

from pd_validate.checks.figures import check_figures, check_pulls
from pd_validate.findings import Where
from pd_validate.options import Options
from pd_validate.plugin import Judge
from pd_validate.session import Session
from pd_validate.topology.service import Service
from pd_validate.traffic.baseline import load_figures, save_figures
from pd_validate.traffic.client import Answer
from pd_validate.traffic.load import at_once
from pd_validate.traffic.trace import join

pytestmark = [pytest.mark.perf, pytest.mark.alone]

REPETITIONS = 12
PROMPT, ANSWER = 512, 32  # tokens


def test_latency(pd: Session, service: Service, options: Options, judge: Judge) -> None:
    """Time to the first token and per token after it: one at a time, and eight at once."""
    proxy = service.proxy

    def ask(number: int) -> Answer:
        prompt = tokens(min(PROMPT, pd.cluster.engine.max_model_len // 2), seed=100 + number)
        return proxy.complete(prompt, max_tokens=ANSWER, ignore_eos=True, stream=True)

    ask(0)  # the first request of its shape pays for what is compiled or cached
    alone = [ask(1 + n) for n in range(REPETITIONS)]
    sent = at_once([partial(ask, 50 + n) for n in range(8)])
    among = [one.answer for one in sent if one.ok and one.answer is not None]
    assert all(answer.ok and answer.done for answer in alone)
    assert len(among) == len(sent), [one.error for one in sent if not one.ok]
    figures = {
        "ttft_seconds": median(_ttft(a) for a in alone),
        "tpot_seconds": median(_tpot(a) for a in alone),
        "ttft_seconds_at_8": median(_ttft(a) for a in among),
        "tpot_seconds_at_8": median(_tpot(a) for a in among),
    }
    _hold(figures, pd, options, judge, service.where(proxy.name))


def test_pulls(pd: Session, service: Service, options: Options, judge: Judge) -> None:
    """Seconds and bytes per second of the pulls of every pair; outliers are named."""
    size = service.block_size()
    length = min(8 * size, pd.cluster.engine.max_model_len // 2)
    for prefiller in service.prefillers:
        for decoder in service.decoders:
            for number in range(5):
                prompt = tokens(length, seed=200 + number)
                answer = service.disaggregate(prefiller, decoder, prompt, max_tokens=1)
                assert answer.ok, answer.error[:300]
    transfers = [t for t in join(pd.settled_traces()) if t.produced is not None]
    if not transfers:
        pytest.skip("no pull was traced: perf of pulls needs --audit full")
    judge(check_pulls(transfers, pd.hosts_of_instances()))
    pairs: dict[str, list[tuple[float, int]]] = {}
    for produced, received in transfers:
        if produced is not None and received.tokens == length:
            name = f"{produced.instance}>{received.instance}/{received.rank}"
            pairs.setdefault(name, []).append((received.seconds, received.bytes))
    figures = {}
    for name, pulls in pairs.items():
        figures[f"pull_seconds {name}"] = median(seconds for seconds, _ in pulls)
        figures[f"pull_bytes_per_second {name}"] = median(b / s for s, b in pulls if s > 0)
    _hold(figures, pd, options, judge, Where())


def _ttft(answer: Answer) -> float:
    assert answer.ttft is not None
    return answer.ttft


def _tpot(answer: Answer) -> float:
    # vLLM 0.10 gives no token ids; the usage counts in every version.
    return (answer.seconds - _ttft(answer)) / max(1, (answer.completion_tokens or 0) - 1)


def _hold(
    figures: Mapping[str, float], pd: Session, options: Options, judge: Judge, where: Where
) -> None:
    """Judge the figures that have limits; record the others, and say so."""
    for name, value in figures.items():
        judge.note(f"{name}: {value:.4g}")
    known = load_figures(options.baselines, pd.cluster.name)
    judge(check_figures(figures, known.limits, where))
    new = [name for name in figures if name not in known.limits]
    if new:
        save_figures(known, figures, source=f"run {pd.run_id}")
        pytest.skip(f"recorded {len(new)} figures in {known.path}: set min or max there")
