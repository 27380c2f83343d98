"""What the engines' and our proxy's own access logs say of the requests they got. Pure.

A proxy that asks somebody else after a failure hides it from its clients, as it should; it
is a failure all the same. Every request of this harness is one that an engine can serve, or
one that it must refuse with 4xx: a 5xx is never right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from pd_validate.findings import Finding, Where

# uvicorn: `INFO:     127.0.0.1:40532 - "POST /v1/completions HTTP/1.1" 500 Internal Server Error`
_SERVER_ERROR = re.compile(r'"POST /v1/(chat/)?completions HTTP/[\d.]+" (?P<status>5\d\d)')


def check_access_logs(logs: Mapping[str, Sequence[str]], hosts: Mapping[str, str]) -> list[Finding]:
    """A finding for each instance that answered a completion with 5xx.

    `logs` maps instances to the lines of their logs, `hosts` to their hosts.
    """
    findings = []
    for instance, lines in logs.items():
        hits = [(match, line) for line in lines if (match := _SERVER_ERROR.search(line))]
        if hits and instance in hosts:
            statuses = sorted({match["status"] for match, _ in hits})
            findings.append(
                Finding(
                    id="service.error",
                    where=Where(host=hosts[instance], instance=instance),
                    expected="no answer 5xx to a completion",
                    got=f"{len(hits)} ({', '.join(statuses)}), says its log",
                    evidence=tuple(line.strip() for _, line in hits[:3]),
                )
            )
    return findings


def waited_for(lines: Sequence[str], request: str) -> str | None:
    """The instance that our proxy waited for when a client gave its request up.

    `lines` are those of the proxy's log. None if they say nothing of the request (yet).
    """
    for line in reversed(lines):
        if request not in line or not line.startswith("{"):
            continue
        try:
            told = json.loads(line)
        except ValueError:
            continue
        if told.get("id") == request:
            phase = str(told.get("outcome", "")).removeprefix("client-gone-in-")
            return told.get(phase) if phase in ("prefill", "decode") else None
    return None
