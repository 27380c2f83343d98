"""What the scheduler's half tells the workers' halves in one engine step.

Free of vLLM, so that the worker's half can be tried without an engine.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Remote:
    """Where a prefiller keeps a request's blocks, from kv_transfer_params."""

    host: str
    port: int
    tp_size: int
    request_id: str
    run: str | None


@dataclass(frozen=True)
class LoadPlan:
    """One request to load: block ids in token order, position by position."""

    remote: Remote
    remote_blocks: list[int]
    local_blocks: list[int]


@dataclass
class Step:
    """What the workers learn in one engine step."""

    run: str
    idle: bool
    """No token is computed in this step."""
    loads: dict[str, LoadPlan] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    """Aborted loads: pulls that have not begun need not begin."""
    refused: list[Remote] = field(default_factory=list)
    """Blocks of a prefiller that this decoder will not pull."""
    holds: dict[str, int] = field(default_factory=dict)
    """Finished requests to keep for a decoder, with their number of blocks."""
    releases: set[str] = field(default_factory=set)
    """Held requests that no decoder will take."""


@dataclass
class Results:
    """What a worker has to report after a step."""

    sent: set[str] = field(default_factory=set)
    """Held requests whose blocks may be freed."""
    received: set[str] = field(default_factory=set)
    """Loads that have ended, well or not."""
    failed: set[str] = field(default_factory=set)
    """Those of them that failed."""
    invalid_blocks: set[int] = field(default_factory=set)
    """The blocks that these were to fill."""
