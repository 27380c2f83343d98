"""What a verdict is: `Finding`, where it points, and how verdicts merge.

Pure data. Which ids exist, their layers and their help texts: `catalogue.py`.
Interface: findings.json and scenario files are built on these names
(docs/findings.schema.json); rename nothing in use.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from pd_validate.catalogue import CATALOGUE, Layer


class Severity(StrEnum):
    """How a finding counts. UNKNOWN is "could not measure": never OK, never FAIL."""

    FAIL = "fail"
    UNKNOWN = "unknown"
    WARN = "warn"


class Verdict(StrEnum):
    """Outcome of a check or of a run. Warnings do not make a run red; see `verdict_of`."""

    PASS = "pass"
    FAIL = "fail"
    UNKNOWN = "unknown"


class Where(BaseModel):
    """The place of a fault, as far as it is known. Absent parts are None."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str | None = None
    device: int | None = None  # physical NPU id on `host`
    instance: str | None = None
    rank: int | None = None  # TP rank inside `instance`
    layer: int | None = None  # model layer
    block: int | None = None  # KV block id on `instance`
    request: str | None = None
    peer_host: str | None = None  # the other end, for faults of a path
    peer_device: int | None = None
    peer_instance: str | None = None
    port: int | None = None
    file: str | None = None

    def __str__(self) -> str:
        """Short form for a terminal: ``d1 npu6``, ``p1 npu0 -> d2 npu6``, ``decode-1 rank1``."""
        return " ".join(self._parts()) or "cluster"

    def _parts(self) -> Iterable[str]:
        if self.host is not None:
            yield self.host
        if self.device is not None:
            yield f"npu{self.device}"
        if self.instance is not None:
            yield self.instance
        for name in ("rank", "layer", "block", "port"):
            value = getattr(self, name)
            if value is not None:
                yield f"{name} {value}"
        if self.request is not None:
            yield f"request {self.request}"
        if self.file is not None:
            yield self.file
        peer = [
            self.peer_host or "",
            "" if self.peer_device is None else f"npu{self.peer_device}",
            self.peer_instance or "",
        ]
        if any(peer):
            yield "-> " + " ".join(part for part in peer if part)

    def matches(self, pattern: Where) -> bool:
        """True if every part that `pattern` states is equal here (a scenario's `where`)."""
        return all(
            getattr(self, name) == value
            for name, value in pattern.model_dump(exclude_none=True).items()
        )


class Cause(BaseModel):
    """A reference to another finding that explains this one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    where: Where = Where()


class KnownIssue(BaseModel):
    """The issue that a finding is known under (`--quarantine`, quarantine.py)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    reason: str
    expires: dt.date
    expired: bool  # on the day of the run

    @property
    def state(self) -> str:
        words = "quarantine expired on" if self.expired else "quarantined until"
        return f"{words} {self.expires}"

    def __str__(self) -> str:
        return f"{self.state}: {self.reason} ({self.url})"


class Finding(BaseModel):
    """One fault, at one place, in words for a tired engineer.

    `because` lists the findings that explain this one: such a finding is a
    consequence, shown under its cause, and does not count on its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    severity: Severity = Severity.FAIL
    where: Where = Where()
    expected: str = ""
    got: str = ""
    hint: str = ""
    evidence: tuple[str, ...] = ()  # commands and their answers, log lines, digests
    because: tuple[Cause, ...] = ()
    known: KnownIssue | None = None

    @field_validator("id")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in CATALOGUE:
            raise ValueError(f"unknown finding id {value!r}; known ids are in catalogue.py")
        return value

    @property
    def layer(self) -> Layer:
        return CATALOGUE[self.id].layer

    @property
    def quarantined(self) -> bool:
        """Known, and not counted: see quarantine.py."""
        return self.known is not None and not self.known.expired

    @property
    def advice(self) -> str:
        """What to do next: the finding's own hint, else the catalogue's."""
        return self.hint or CATALOGUE[self.id].fix

    def __str__(self) -> str:
        """One line: id, where, expected, got, next step."""
        text = f"{self.id} at {self.where}"
        if self.expected:
            text += f": expected {self.expected}"
            text += f", got {self.got}" if self.got else ""
        elif self.got:
            text += f": {self.got}"
        if self.because:
            text += " (because of " + ", ".join(f"{c.id} at {c.where}" for c in self.because) + ")"
        known = f" {self.known}." if self.known is not None else ""
        return f"{text}. {self.advice}{known}"

    def as_cause(self) -> Cause:
        return Cause(id=self.id, where=self.where)

    def to_json(self) -> dict[str, Any]:
        """The form in findings.json: absent parts of `where` left out."""
        data = self.model_dump(mode="json")
        data["where"] = self.where.model_dump(mode="json", exclude_none=True)
        data["because"] = [
            {"id": c.id, "where": c.where.model_dump(mode="json", exclude_none=True)}
            for c in self.because
        ]
        data["layer"] = self.layer.label
        data["hint"] = self.advice
        # Under the option's name, and only where it was used: the form without stays as it was.
        known = data.pop("known")
        if known is not None:
            data["quarantine"] = known
        return data


def verdict_of(findings: Iterable[Finding]) -> Verdict:
    """FAIL if anything failed, else UNKNOWN if anything could not be measured, else PASS.

    What is quarantined does not count.
    """
    severities = {finding.severity for finding in findings if not finding.quarantined}
    if Severity.FAIL in severities:
        return Verdict.FAIL
    if Severity.UNKNOWN in severities:
        return Verdict.UNKNOWN
    return Verdict.PASS


def root_findings(findings: Iterable[Finding]) -> list[Finding]:
    """The findings that count: no other explains them, none is quarantined.

    Lowest layer first, in a stable order.
    """
    roots = [finding for finding in findings if not finding.because and not finding.quarantined]
    return sorted(
        roots, key=lambda f: (f.severity is not Severity.FAIL, f.layer, f.id, str(f.where))
    )
