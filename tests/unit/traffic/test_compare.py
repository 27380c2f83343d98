"""Where two answers part: token, logprob, text; and how sure the reference was there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pd_validate.checks.answers import check_determinism, check_parity, check_served
from pd_validate.findings import Where
from pd_validate.traffic.client import Answer
from pd_validate.traffic.compare import LOGPROB_TOLERANCE, first_divergence

WHERE = Where(host="d1", instance="decode-1")
AT_PROXY = Where(host="p1", instance="proxy")
REFERENCE = Answer(
    "r1",
    200,
    "I am",
    token_ids=(7, 8, 9),
    logprobs=(-0.1, -0.2, -0.3),
    top_logprobs=({"I": -0.1, "A": -2.1}, {"am": -0.2, "is": -0.21}, {".": -0.3}),
)


def test_equal_answers_do_not_part() -> None:
    assert first_divergence(REFERENCE, replace(REFERENCE, request_id="r2"), tolerance=0) is None


def test_the_first_other_token_is_named_with_the_references_lead() -> None:
    got = replace(REFERENCE, token_ids=(7, 5, 6))
    found = first_divergence(REFERENCE, got, tolerance=0)
    assert found is not None
    assert found.position == 1
    assert found.gap == pytest.approx(0.01)
    assert "[8, 9]" in found.want
    assert "[5, 6]" in found.got
    assert "top-2 gap of the reference 0.01" in str(found)


def test_a_logprob_alone_parts_bit_by_bit() -> None:
    """One flipped bit of KV changes logprobs long before it changes a token."""
    got = replace(REFERENCE, logprobs=(-0.1, -0.2, -0.30000001))
    found = first_divergence(REFERENCE, got, tolerance=LOGPROB_TOLERANCE["float32"])
    assert found is not None
    assert found.position == 2
    assert found.gap is None, "only one candidate was given there"
    assert found.logprob_difference == pytest.approx(1e-8, rel=0.1)


@pytest.mark.parametrize(("difference", "parts"), [(0.04, False), (0.06, True)])
def test_noise_of_half_precision_is_no_difference(difference: float, parts: bool) -> None:
    got = replace(REFERENCE, logprobs=(-0.1 - difference, -0.2, -0.3))
    found = first_divergence(REFERENCE, got, tolerance=LOGPROB_TOLERANCE["float16"])
    assert (found is not None) is parts


@pytest.mark.parametrize(
    ("position", "logprob", "dtype", "parts"),
    [
        (1, -0.21, "bfloat16", False),  # a tie: the order of additions decides it
        (1, -0.21, "float32", True),  # bitwise repeatable: nothing decides but the KV
        (1, -2.5, "bfloat16", True),  # not the other one of the tie
        (0, -0.1, "bfloat16", True),  # no tie: the reference leads by 2
    ],
)
def test_another_token_is_noise_only_where_the_reference_has_a_tie(
    position: int, logprob: float, dtype: str, parts: bool
) -> None:
    ids, logprobs = list(REFERENCE.token_ids), list(REFERENCE.logprobs)
    ids[position:] = [4] * (3 - position)
    logprobs[position:] = [logprob] * (3 - position)
    got = replace(REFERENCE, token_ids=tuple(ids), logprobs=tuple(logprobs), text="I is")
    found = first_divergence(REFERENCE, got, tolerance=LOGPROB_TOLERANCE[dtype])
    assert (found is not None) is parts


def test_a_logprob_that_is_no_number_parts() -> None:
    got = replace(REFERENCE, logprobs=(-0.1, float("nan"), -0.3))
    assert first_divergence(REFERENCE, got, tolerance=1e9) is not None


@pytest.mark.parametrize("length", [0, 2])
def test_a_shorter_answer_parts_at_its_end(length: int) -> None:
    got = replace(REFERENCE, token_ids=(7, 8, 9)[:length], logprobs=(-0.1, -0.2)[:length])
    for pair in ((REFERENCE, got), (got, REFERENCE)):
        found = first_divergence(*pair, tolerance=0)
        assert found is not None
        assert found.position == length
        assert "end of answer" in (found.want, found.got)


def test_without_token_ids_the_text_decides() -> None:
    want = Answer("r", 200, "I am")
    assert first_divergence(want, Answer("r", 200, "I am"), tolerance=0) is None
    assert first_divergence(want, Answer("r", 200, "I was"), tolerance=0) is not None


# --- verdicts -------------------------------------------------------------------------------------


def test_a_good_answer_has_no_finding() -> None:
    assert check_served(REFERENCE, WHERE) == []
    assert check_parity(REFERENCE, REFERENCE, WHERE, tolerance=0) == []
    assert check_determinism([REFERENCE] * 3, WHERE, tolerance=0) == []


@pytest.mark.parametrize(
    ("answer", "id_"),
    [
        (Answer("r", 503, "", error="overloaded"), "service.error"),
        (Answer("r", 200, "ha", token_ids=(1,), done=False), "proxy.cut"),
        (Answer("r", 200, ""), "proxy.empty"),
    ],
)
def test_an_answer_that_is_none(answer: Answer, id_: str) -> None:
    """Of the proxy and of an engine itself: who cuts behind no proxy is no faulty proxy."""
    for where, meant in ((AT_PROXY, id_), (WHERE, "service.error")):
        for found in (
            check_served(answer, where),
            check_parity(REFERENCE, answer, where, tolerance=0),
            check_determinism([REFERENCE, answer], where, tolerance=0),
            check_determinism([answer, answer], where, tolerance=0),
        ):
            assert [finding.id for finding in found] == [meant]
            assert found[0].where == where


def test_a_stop_string_at_once_leaves_no_text() -> None:
    """vLLM 0.10 gives no token ids; the count says that one was generated."""
    assert check_served(Answer("r", 200, "", completion_tokens=1), WHERE) == []


def test_a_refusal_of_the_prefiller_is_the_prefillers() -> None:
    where = Where(host="d1", instance="decode-1", peer_host="p1", peer_instance="prefill-1")
    refused = Answer("r", 500, "", error="no", server="prefill-1")
    (finding,) = check_served(refused, where)
    assert finding.where == Where(host="p1", instance="prefill-1")
    (finding,) = check_served(replace(refused, server="decode-1"), where)
    assert finding.where == where


def test_another_text_than_one_engine_alone() -> None:
    got = replace(REFERENCE, text="I was", token_ids=(7, 5, 9))
    (finding,) = check_parity(REFERENCE, got, WHERE, tolerance=0)
    assert finding.id == "parity.diverged"
    assert (finding.expected, finding.got) == ("'I am'", "'I was'")
    assert "token 1" in finding.evidence[0]


def test_another_text_at_a_repetition() -> None:
    got = replace(REFERENCE, text="I was", token_ids=(7, 5, 9))
    (finding,) = check_determinism([REFERENCE, REFERENCE, got], WHERE, tolerance=0)
    assert finding.id == "determinism.diverged"
    assert finding.got == "'I was' at repetition 3 of 3"


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_empty_answer_among_equal_ones_is_no_other_text(place: int) -> None:
    answers = [REFERENCE] * 3
    answers[place] = Answer("r", 200, "")
    (finding,) = check_determinism(answers, AT_PROXY, tolerance=0)
    assert finding.id == "proxy.empty"
