"""No secret leaves in a report: text and whole records with secrets struck out.

Two nets: values that we know to be secret (passwords that came by environment), and
shapes that give themselves away (Authorization headers, private keys, tokens, password=…).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pd_validate.report.record import RunRecord

STRUCK = "[secret]"

# Shorter values are too likely to be an innocent part of a word ("pw" in "npwd").
_SHORTEST_SECRET = 4

# Lengths are bounded everywhere: without that, a log line of a million dots takes hours.
_KEY_NAME = (
    r"[\w.-]{0,60}(?:password|passwd|secret|api[_-]?key|access[_-]?key|auth[_-]?token|token)"
)

_SECRET_NAME = re.compile(_KEY_NAME, re.IGNORECASE)

# Each pattern keeps its group "keep" and strikes the rest of the match.
_SHAPES = tuple(
    re.compile(shape, re.IGNORECASE | re.DOTALL)
    for shape in (
        r"(?P<keep>-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----).*?(?=-----END|\Z)",
        r"(?P<keep>\bauthorization[\"']?\s*[:=]\s*[\"']?(?:bearer|basic)\s+)[^\s\"']+",
        r"(?P<keep>\bbearer\s+)[\w.~+/=-]{8,}",
        rf"(?P<keep>{_KEY_NAME}[\"']?\s*=\s*[\"']?)[^\s\"',;&]+",
        rf"(?P<keep>{_KEY_NAME}[\"']?\s*:\s*[\"'])[^\"']+",
        r"(?P<keep>passw(?:or)?d[ \t]*:[ \t]*)[^\s\"']+",
        rf"(?P<keep>--{_KEY_NAME}[ =])[^\s\"']+",
        r"(?P<keep>\b[a-z][a-z0-9+.-]{0,20}://[^\s:/@]{1,200}:)[^\s@/]{1,200}(?=@)",
        r"(?P<keep>\b(?:sk|hf|ghp|glpat)[-_])[A-Za-z0-9_-]{16,}",
    )
)

# Parts of a record that are names from a closed list, never free text.
_CLOSED_KEYS = frozenset({"id", "severity", "verdict", "outcome", "role", "started", "finished"})


class Redactor:
    """Strikes known secret values and everything that has a secret's shape."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        """`secrets` are values to strike wherever they stand; those under 4 characters are not."""
        known = {secret for secret in secrets if len(secret) >= _SHORTEST_SECRET}
        # Longest first: one secret may be the beginning of another.
        alternatives = "|".join(re.escape(s) for s in sorted(known, key=len, reverse=True))
        self._known = re.compile(alternatives) if alternatives else None

    def text(self, text: str) -> str:
        if self._known is not None:
            text = self._known.sub(STRUCK, text)
        for shape in _SHAPES:
            text = shape.sub(lambda match: match["keep"] + STRUCK, text)
        return text

    def record(self, record: RunRecord) -> RunRecord:
        """A copy of the record with all its free text redacted."""
        return RunRecord.model_validate(self._walk(record.model_dump()))

    def _walk(self, value: Any) -> Any:
        if type(value) is str:  # not the enumerations, which are str too
            return self.text(value)
        if isinstance(value, Mapping):
            return {key: self._entry(key, item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._walk(item) for item in value]
        return value

    def _entry(self, key: Any, value: Any) -> Any:
        if key in _CLOSED_KEYS and not isinstance(value, Mapping):
            return value
        if isinstance(key, str) and _SECRET_NAME.fullmatch(key):
            # The name of an environment entry gives it away, whatever its value looks like.
            return dict.fromkeys(value, STRUCK) if isinstance(value, Mapping) else STRUCK
        return self._walk(value)
