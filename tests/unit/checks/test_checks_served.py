"""What access logs say of requests."""

from __future__ import annotations

import json

import pytest

from pd_validate.checks.served import waited_for


def line(request: str, outcome: str) -> str:
    """As our proxy writes it (proxy/job.py)."""
    told = {"id": request, "outcome": outcome, "prefill": "prefill-1", "decode": "decode-2"}
    return json.dumps(told, separators=(",", ":"))


@pytest.mark.parametrize(
    ("outcome", "name"),
    [
        ("client-gone-in-decode", "decode-2"),
        ("client-gone-in-prefill", "prefill-1"),
        ("client-gone-in-queue", None),
        ("ok", None),
    ],
)
def test_for_whom_the_proxy_waited_when_the_client_left(outcome: str, name: str | None) -> None:
    lines = ["INFO: started", line("pd-1", "ok"), line("pd-2", outcome), line("pd-21", "ok")]
    assert waited_for(lines, "pd-2") == name


def test_a_log_that_says_nothing_of_the_request() -> None:
    assert waited_for([], "pd-2") is None
    assert waited_for(["another proxy's words about pd-2", '{"id": "pd-2', "{}"], "pd-2") is None
