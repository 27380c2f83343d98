"""One thing that a run needs of the controller: is it there, and how to get it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """OK is there; NOTE: a run works without, and somebody should know; MISSING: it does not."""

    OK = "ok"
    NOTE = "note"
    MISSING = "MISSING"


@dataclass(frozen=True)
class Need:
    """`found` says what is there, `get` what to do about it (empty where all is well)."""

    state: State
    what: str
    found: str
    get: str = ""

    def lines(self, width: int) -> list[str]:
        """As told on a terminal; `width` is that of the longest `what`."""
        head = f"{self.state.value:<8}{self.what:<{width}}  {self.found}".rstrip()
        return [head, *([f"{'':8}{'':{width}}  get it: {self.get}"] if self.get else [])]


def ok(what: str, found: str) -> Need:
    return Need(State.OK, what, found)


def told(needs: Iterable[Need]) -> str:
    """All needs as text, and the verdict in the last line."""
    listed = list(needs)
    width = max(len(need.what) for need in listed)
    lines = [line for need in listed for line in need.lines(width)]
    missing = sum(need.state is State.MISSING for need in listed)
    verdict = f"{missing} missing: see above" if missing else "ready to run"
    return "\n".join([*lines, "", verdict])


def is_fit(needs: Iterable[Need]) -> bool:
    return all(need.state is not State.MISSING for need in needs)
