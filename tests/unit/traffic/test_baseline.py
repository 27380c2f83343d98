"""Golden answers and figures: recorded once, held against later, and judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from pd_validate.checks.answers import check_company, check_golden, check_parity
from pd_validate.checks.figures import check_drift, check_figures, check_pulls
from pd_validate.errors import SpecError
from pd_validate.findings import Severity, Where
from pd_validate.traffic.baseline import (
    Golden,
    Limit,
    golden_key,
    load_figures,
    load_goldens,
    save_figures,
    save_goldens,
)
from pd_validate.traffic.client import Answer
from pd_validate.traffic.trace import TraceRecord, Transfer

PROXY = Where(host="p1", instance="proxy")
I_AM = Answer("r", 200, "I am", token_ids=(7, 8), logprobs=(-0.1, -0.2))
GOLDEN = Golden(prompt="Who?", token_ids=(7, 8), text="I am")


# --- golden answers


def test_the_key_depends_on_model_and_versions_and_on_nothing_else() -> None:
    key = golden_key({"files": "ab", "dtype": None}, {"vllm": "0.10.1"})
    assert key == golden_key({"dtype": None, "files": "ab"}, {"vllm": "0.10.1"})
    assert key != golden_key({"files": "ab", "dtype": None}, {"vllm": "0.10.2"})
    assert key != golden_key({"files": "ac", "dtype": None}, {"vllm": "0.10.1"})


def test_goldens_are_kept_as_they_are(tmp_path: Path) -> None:
    assert load_goldens(tmp_path, "k") == {}
    golden = Golden(prompt="你是谁？", token_ids=(1,), text="青\u2028")
    save_goldens(tmp_path, "k", {golden.prompt: golden}, {"vllm": "0.10.1"})
    assert load_goldens(tmp_path, "k") == {golden.prompt: golden}


def test_a_file_that_is_no_golden_is_named(tmp_path: Path) -> None:
    (tmp_path / "golden-k.json").write_text('{"answers": [{"prompt": 1}]}')
    with pytest.raises(SpecError, match=r"golden-k\.json: is no file of golden answers"):
        load_goldens(tmp_path, "k")


def test_the_recorded_answer_passes() -> None:
    assert check_golden(GOLDEN, I_AM, PROXY) == []


def test_another_answer_than_the_recorded_one() -> None:
    got = Answer("r", 200, "I was", token_ids=(7, 5))
    (finding,) = check_golden(GOLDEN, got, PROXY)
    assert finding.id == "golden.diverged"
    assert (finding.expected, finding.got) == ("'I am' to 'Who?'", "'I was'")
    assert finding.evidence == ("recorded [7, 8]", "got [7, 5]")


def test_an_engine_without_token_ids_is_held_against_the_text() -> None:
    assert check_golden(GOLDEN, Answer("r", 200, "I am"), PROXY) == []
    assert check_golden(GOLDEN, Answer("r", 200, "I was"), PROXY)


# --- company


def test_company_must_change_nothing_where_the_engine_is_repeatable() -> None:
    other = Answer("r", 200, "I was", token_ids=(7, 5), logprobs=(-0.1, -0.2))
    (finding,) = check_company(I_AM, other, PROXY, tolerance=0)
    assert (finding.id, finding.severity) == ("determinism.diverged", Severity.FAIL)
    assert check_company(I_AM, I_AM, PROXY, tolerance=0) == []


def test_batch_variance_is_told_apart_from_faults() -> None:
    other = Answer("r", 200, "I was", token_ids=(7, 5), logprobs=(-0.1, -0.2))
    (finding,) = check_company(I_AM, other, PROXY, tolerance=0.15)
    assert finding.severity is Severity.WARN
    assert "HCCL_DETERMINISTIC=true" in finding.hint
    (failed,) = check_company(I_AM, Answer("r", 500, ""), PROXY, tolerance=0.15)
    assert (failed.id, failed.severity) == ("service.error", Severity.FAIL)


def test_a_text_that_came_twice() -> None:
    twice = Answer("r", 200, "I amI am", token_ids=(7, 8, 7, 8))
    (finding,) = check_parity(I_AM, twice, PROXY, tolerance=0)
    assert finding.id == "proxy.duplicate"
    engine = Where(host="d1", instance="decode-1")
    (finding,) = check_parity(I_AM, twice, engine, tolerance=0)
    assert finding.id == "parity.diverged"


# --- figures


def test_figures_that_have_no_limit_are_recorded_as_targets(tmp_path: Path) -> None:
    none = load_figures(tmp_path, "lab")
    assert none.limits == {}
    save_figures(none, {"ttft_seconds": 0.25}, "run 7")
    (name, limit), *others = load_figures(tmp_path, "lab").limits.items()
    assert not others
    assert (name, limit.target, limit.source) == ("ttft_seconds", 0.25, "run 7")
    assert (limit.min, limit.max) == (None, None)


def test_what_people_wrote_into_the_file_stays(tmp_path: Path) -> None:
    (tmp_path / "perf-lab.yaml").write_text("ttft_seconds: {max: 0.5, source: the vendor}\n")
    known = load_figures(tmp_path, "lab")
    save_figures(known, {"ttft_seconds": 0.25, "tpot_seconds": 0.01}, "run 7")
    limits = load_figures(tmp_path, "lab").limits
    assert limits["ttft_seconds"] == Limit(max=0.5, source="the vendor")
    assert limits["tpot_seconds"].target == 0.01


def test_a_file_that_is_no_file_of_figures_is_named(tmp_path: Path) -> None:
    (tmp_path / "perf-lab.yaml").write_text("ttft_seconds: {maximum: 0.5}\n")
    with pytest.raises(SpecError, match=r"perf-lab\.yaml: is no file of figures"):
        load_figures(tmp_path, "lab")


@pytest.mark.parametrize(
    ("value", "limit", "severity"),
    [
        (0.6, Limit(max=0.5), Severity.FAIL),
        (0.4, Limit(max=0.5), None),
        (90.0, Limit(min=100), Severity.FAIL),
        (110.0, Limit(min=100, target=200, tolerance=0.1), Severity.WARN),
        (190.0, Limit(min=100, target=200, tolerance=0.1), None),
        (500.0, Limit(min=100, target=200, tolerance=0.1), None),  # better than wanted
        (0.01, Limit(max=0.5, target=0.1), None),
        (0.2, Limit(target=0.1, tolerance=0.5), Severity.WARN),
    ],
)
def test_a_figure_against_its_limit(value: float, limit: Limit, severity: Severity | None) -> None:
    found = check_figures({"x": value}, {"x": limit}, Where())
    assert [(f.id, f.severity) for f in found] == [("perf.outside", severity)] * bool(severity)


def test_a_figure_without_a_limit_is_not_judged() -> None:
    assert check_figures({"x": 1.0}, {}, Where()) == []


# --- pulls and drift


def pull(decoder: str, seconds: float, rank: int = 0) -> Transfer:
    def record(instance: str, phase: str) -> TraceRecord:
        return TraceRecord.model_validate(
            {
                "request": "r",
                "instance": instance,
                "rank": rank,
                "phase": phase,
                "layers": [],
                "blocks": [],
                "tokens": 1,
                "digests": {},
                "bytes": 1,
                "seconds": seconds,
            }
        )

    return Transfer(record("prefill-1", "produced"), record(decoder, "received"))


def test_a_slow_pair_is_named() -> None:
    pulls = [pull("decode-1", 0.004)] * 4 + [pull("decode-2", 0.093)] * 4
    (finding,) = check_pulls(pulls, {"decode-2": "d2", "prefill-1": "p1"})
    assert (finding.id, finding.severity) == ("kv.slow", Severity.WARN)
    assert finding.where.instance == "decode-2"
    assert finding.where.peer_instance == "prefill-1"
    assert finding.got == "93.0 ms (medians)"


def test_pairs_alike_are_no_finding() -> None:
    assert check_pulls([pull("decode-1", 0.004)] * 4 + [pull("decode-2", 0.006)] * 4, {}) == []
    few = [pull("decode-1", 0.004)] * 4 + [pull("decode-2", 0.093)] * 2
    assert check_pulls(few, {}) == [], "two pulls say nothing of a pair"


def test_drift() -> None:
    rising = [1.0, 1.1, 1.0, 1.2, 1.3, 1.4, 2.0, 2.1, 2.2]
    (finding,) = check_drift("latency", rising, PROXY, share=0.5, least=0.1, unit="s")
    assert (finding.id, finding.where) == ("drift.rising", PROXY)
    steady = [1.0, 1.1, 1.0, 1.2, 1.0, 1.1, 1.0, 1.1, 9.0]
    assert check_drift("latency", steady, PROXY, share=0.5, least=0.1, unit="s") == []
    assert check_drift("latency", rising, PROXY, share=0.5, least=2.0, unit="s") == []
    assert check_drift("latency", [1.0, 9.0], PROXY, share=0.5, least=0.1, unit="s") == []
