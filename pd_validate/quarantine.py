"""`--quarantine FILE`: faults that are known, each with its issue and a date on which that ends.

A finding that an entry matches does not make a run red. It stays in every report with the
issue's address, and counts again from the day after `expires`. Judging is done elsewhere:
this module only reads the file and marks findings (`Finding.known`).
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from pd_validate.catalogue import CATALOGUE
from pd_validate.checks.result import Report
from pd_validate.findings import Finding, KnownIssue, Where
from pd_validate.spec.source import Node, read
from pd_validate.spec.validate import validated
from pd_validate.spec.wording import did_you_mean


def _known_id(value: str) -> str:
    if value not in CATALOGUE:
        advice = did_you_mean(value, CATALOGUE)
        raise ValueError(f"must be a finding's id, one of docs/checks.md{advice}")
    return value


def _as_text(value: object) -> object:
    """`device: 6` and `device: "6"` are the same pattern."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Pattern = Annotated[str, BeforeValidator(_as_text)]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class WherePattern(Model):
    """The parts of a finding's place, each as `*` and `?` match it. Absent: whatever it is."""

    host: Pattern | None = None
    device: Pattern | None = None
    instance: Pattern | None = None
    rank: Pattern | None = None
    layer: Pattern | None = None
    block: Pattern | None = None
    request: Pattern | None = None
    peer_host: Pattern | None = None
    peer_device: Pattern | None = None
    peer_instance: Pattern | None = None
    port: Pattern | None = None
    file: Pattern | None = None

    def matches(self, where: Where) -> bool:
        """A part that is stated here and unknown there does not match."""
        for name, pattern in self.model_dump(exclude_none=True).items():
            value = getattr(where, name)
            if value is None or not fnmatchcase(str(value), pattern):
                return False
        return True

    def __str__(self) -> str:
        stated = self.model_dump(exclude_none=True)
        return ", ".join(f"{name} {pattern}" for name, pattern in stated.items()) or "anywhere"


class Entry(Model):
    """One known fault. All keys are needed: nobody remembers in a year why it was hidden."""

    id: Annotated[str, AfterValidator(_known_id)]
    """The finding's id, such as `link.down`."""
    where: WherePattern
    """Its place; `{}` is anywhere."""
    url: Annotated[str, Field(pattern=r"^https?://\S+$")]
    """The issue in which it is being mended."""
    expires: dt.date
    """Last day on which it is quarantined, as 2026-12-31 (UTC)."""
    reason: Annotated[str, Field(min_length=1)]
    """Why, in one line."""

    def matches(self, finding: Finding) -> bool:
        return finding.id == self.id and self.where.matches(finding.where)

    def __str__(self) -> str:
        return f"{self.id} at {self.where}"


class _File(Model):
    quarantine: tuple[Entry, ...]


@dataclass(frozen=True)
class Placed:
    """An entry, and where it stands (`quarantine.yaml:3`)."""

    entry: Entry
    place: str


class Quarantine:
    """All entries of a file, held against findings on one day."""

    def __init__(self, entries: Sequence[Placed] = (), *, today: dt.date) -> None:
        self.entries = tuple(entries)
        self._today = today

    def expired(self, entry: Entry) -> bool:
        return entry.expires < self._today

    def mark(self, finding: Finding) -> Finding:
        """The finding, with the issue that it is known under, if there is one.

        An entry that holds goes before one that has expired.
        """
        matching = [each.entry for each in self.entries if each.entry.matches(finding)]
        if not matching:
            return finding
        entry = min(matching, key=self.expired)
        known = KnownIssue(
            url=entry.url,
            reason=entry.reason,
            expires=entry.expires,
            expired=self.expired(entry),
        )
        return finding.model_copy(update={"known": known})

    def mark_all(self, findings: Iterable[Finding]) -> list[Finding]:
        return [self.mark(finding) for finding in findings]

    def mark_report(self, report: Report) -> Report:
        """The report with its findings marked, also where its results name them."""
        marked = {id(finding): self.mark(finding) for finding in report.findings}

        def of(findings: Iterable[Finding]) -> tuple[Finding, ...]:
            return tuple(marked.get(id(finding)) or self.mark(finding) for finding in findings)

        results = [replace(result, findings=of(result.findings)) for result in report.results]
        return replace(report, findings=of(report.findings), results=tuple(results))


def load_quarantine(path: Path | None, environ: Mapping[str, str] = os.environ) -> Quarantine:
    """Read a quarantine file; without one nothing is quarantined.

    Raises SpecError with file and line of every mistake.
    """
    today = dt.datetime.now(dt.UTC).date()
    if path is None:
        return Quarantine(today=today)
    root = read(path, environ)
    entries = validated(_File, root).quarantine
    return Quarantine(
        [Placed(entry, _place(root, number)) for number, entry in enumerate(entries)], today=today
    )


def _place(root: Node, number: int) -> str:
    place = root.at(("quarantine", number)).place
    return f"{place.file}:{place.line}"
