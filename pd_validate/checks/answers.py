"""Is the answer the right one? Pure verdicts on answers and their reference."""

from __future__ import annotations

from collections.abc import Sequence

from pd_validate.findings import Finding, Severity, Where
from pd_validate.spec.rules import PROXY_NAME
from pd_validate.traffic.baseline import Golden
from pd_validate.traffic.client import Answer
from pd_validate.traffic.compare import first_divergence


def check_served(answer: Answer, where: Where) -> list[Finding]:
    """A request must end in 200 with something in it.

    `where` is the instance that was to answer and, as its peer, the one before it: if the
    answer is the peer's, so is the fault.
    """
    if answer.server and answer.server == where.peer_instance:
        where = where.model_copy(
            update={
                "host": where.peer_host,
                "instance": where.peer_instance,
                "peer_host": None,
                "peer_instance": None,
            }
        )
    if not answer.ok:
        return [
            Finding(
                id="service.error",
                where=where,
                expected="200",
                got=f"{answer.status}: {answer.error[:300]}",
            )
        ]
    of_engine = where.instance not in (None, PROXY_NAME)
    if not answer.done:
        return [
            Finding(
                id="service.error" if of_engine else "proxy.cut",
                where=where,
                expected="a complete answer",
                got=f"it ended after {len(answer.text)} characters {answer.error[:200]}".strip(),
            )
        ]
    # A stop string at once leaves no text: then the count says that something was generated.
    if not (answer.token_ids or answer.text or answer.completion_tokens):
        id_ = "service.error" if of_engine else "proxy.empty"
        return [Finding(id=id_, where=where, expected="text", got="200 and nothing")]
    return []


def check_parity(want: Answer, got: Answer, where: Where, *, tolerance: float) -> list[Finding]:
    """The answer through PD against that of one engine alone; see compare.py on tolerance."""
    problems = check_served(got, where)
    if problems:
        return problems
    divergence = first_divergence(want, got, tolerance=tolerance)
    if divergence is None:
        return []
    if where.instance in (None, PROXY_NAME) and (twice := check_once(want, got, where)):
        return twice
    return [
        Finding(
            id="parity.diverged",
            where=where,
            expected=f"{want.text!r}",
            got=f"{got.text!r}",
            evidence=(str(divergence),),
        )
    ]


def check_determinism(
    answers: Sequence[Answer], where: Where, *, tolerance: float
) -> list[Finding]:
    """The same request, several times: every answer against the first."""
    for number, answer in enumerate(answers, start=1):
        problems = check_served(answer, where)
        if problems:
            return problems
        divergence = first_divergence(answers[0], answer, tolerance=tolerance)
        if divergence is not None:
            return [
                Finding(
                    id="determinism.diverged",
                    where=where,
                    expected=f"{answers[0].text!r} every time",
                    got=f"{answer.text!r} at repetition {number} of {len(answers)}",
                    evidence=(str(divergence),),
                )
            ]
    return []


def check_company(alone: Answer, among: Answer, where: Where, *, tolerance: float) -> list[Finding]:
    """The same request alone and among others.

    Where the engine is bitwise repeatable (tolerance 0) company must change nothing. In
    other dtypes the batch changes the order of additions: that alone is a warning, told
    apart from faults, with the settings that remove it.
    """
    findings = check_determinism([alone, among], where, tolerance=tolerance)
    if tolerance == 0:
        return findings
    return [
        finding.model_copy(update={"severity": Severity.WARN, "hint": _BATCH_VARIANCE})
        if finding.id == "determinism.diverged"
        else finding
        for finding in findings
    ]


_BATCH_VARIANCE = (
    "Alone it repeats: this is batch variance, no fault of KV. dtype float32, "
    "HCCL_DETERMINISTIC=true, LCCL_DETERMINISTIC=1, CLOSE_MATMUL_K_SHIFT=1 and eager mode "
    "narrow it; one request at a time removes it."
)


def check_golden(golden: Golden, got: Answer, where: Where) -> list[Finding]:
    """The recorded answer against today's: tokens where both have them, else the text."""
    problems = check_served(got, where)
    if problems:
        return problems
    same = got.token_ids == golden.token_ids if got.token_ids else got.text == golden.text
    if same:
        return []
    return [
        Finding(
            id="golden.diverged",
            where=where,
            expected=f"{golden.text!r} to {golden.prompt!r}",
            got=repr(got.text),
            evidence=(f"recorded {list(golden.token_ids)}", f"got {list(got.token_ids)}"),
        )
    ]


def check_once(alone: Answer, through: Answer, where: Where) -> list[Finding]:
    """A proxy that sends a request again after the first byte gives its text twice."""
    twice = alone.text and through.text == alone.text * 2
    longer = len(through.token_ids) > len(alone.token_ids) > 0
    if twice or (longer and through.token_ids[len(alone.token_ids) :] == alone.token_ids):
        return [
            Finding(
                id="proxy.duplicate",
                where=where,
                expected=repr(alone.text),
                got=f"the same twice: {through.text!r}",
            )
        ]
    return []
