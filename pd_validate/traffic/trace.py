"""The KV trace that the audit writes on each host, and both sides joined by request.

Format: docs/connector.md. One JSON object a line; the producer writes a record when
its blocks are ready to be pulled, the consumer when they have arrived.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError


class TraceRecord(BaseModel):
    """What one rank of one instance produced or received for one request.

    `digests[layer][i]` are the digests of block `first_block + i` in token order, first K
    then V (one only where a layer has one tensor); "" where none could be taken. A
    received list may start later than the produced one: blocks that the consumer had in
    its own prefix cache are not pulled.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    request: str
    remote_request: str | None = None  # on the consumer: the producer's request id
    instance: str
    rank: int
    phase: Literal["produced", "received", "failed"]  # failed: reported so by the connector
    layers: tuple[str, ...]
    blocks: tuple[int, ...]
    first_block: int = 0
    tokens: int
    digests: dict[str, tuple[tuple[str, ...], ...]]
    # What the same content would be digested to in the place of the partly filled last block,
    # and that block's as a whole: a swap with it is known by these. Producer only.
    other_digests: dict[str, tuple[tuple[str, ...], ...]] = {}
    # Digests that were the same before the pull. Consumer only.
    unchanged: dict[str, tuple[tuple[bool, ...], ...]] = {}
    bytes: int
    seconds: float = 0.0
    time: float = 0.0  # seconds since the epoch, the host's clock

    def digests_of(self, layer: str) -> dict[int, tuple[str, ...]]:
        """Digests of a layer by the block's number in token order."""
        return dict(enumerate(self.digests.get(layer, ()), start=self.first_block))


class Transfer(NamedTuple):
    """One pull: what was produced (None: no record) and what was received, of one rank."""

    produced: TraceRecord | None
    received: TraceRecord


def parse_trace(text: str) -> tuple[list[TraceRecord], int]:
    """Records of one trace file, and how many lines could not be read.

    A last line without its newline is still being written and counts as neither.
    """
    records: list[TraceRecord] = []
    unreadable = 0
    for line in text.splitlines(keepends=True):
        if not line.endswith("\n"):
            continue
        try:
            records.append(TraceRecord.model_validate(json.loads(line)))
        except (ValueError, ValidationError):
            unreadable += 1
    return records, unreadable


def join(records: Iterable[TraceRecord]) -> list[Transfer]:
    """Each received record with the produced one of the same request and rank."""
    all_records = list(records)
    produced = {
        (record.request, record.rank): record
        for record in all_records
        if record.phase == "produced"
    }
    return [
        Transfer(produced.get((record.remote_request or record.request, record.rank)), record)
        for record in all_records
        if record.phase == "received"
    ]


def unclaimed(records: Sequence[TraceRecord], instance: str) -> list[TraceRecord]:
    """What an instance has produced and nobody received, one record a request, oldest first."""
    received = {r.remote_request or r.request for r in records if r.phase == "received"}
    left = {
        record.request: record
        for record in records
        if (record.phase, record.instance) == ("produced", instance)
        and record.request not in received
    }
    return sorted(left.values(), key=lambda record: record.time)


def of_request(records: Sequence[TraceRecord], request_id: str) -> list[TraceRecord]:
    """Records of the request that a client sent with this X-Request-Id.

    vLLM wraps the id (``cmpl-<id>-0`` and, since 0.11, a random suffix of its own on
    each side), so it is looked for inside.
    """
    return [
        record
        for record in records
        if request_id in record.request or request_id in (record.remote_request or "")
    ]
