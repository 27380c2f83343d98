"""Did every byte of KV arrive? Pure verdicts on the joined KV trace.

One finding per transfer, layer and kind of fault, at the first block that differs:
the text a tired engineer needs is "which pair, which layer, which block", not one
line per digest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from pd_validate.findings import Finding, Where
from pd_validate.traffic.trace import TraceRecord, Transfer

_TENSORS = ("K", "V")


@dataclass(frozen=True)
class Place:
    """Where a digest was produced: for telling a swap from a corruption."""

    request: str
    rank: int
    layer: str
    tensor: int
    block: int  # index in token order

    def __str__(self) -> str:
        tensor = _TENSORS[self.tensor] if self.tensor < len(_TENSORS) else str(self.tensor)
        block = f"prompt block {self.block} of {self.request}"  # a finding's place has the cache's
        return f"rank {self.rank}, {self.layer} {tensor}, {block}"


def check_transfers(
    transfers: Sequence[Transfer], records: Iterable[TraceRecord], hosts: Mapping[str, str]
) -> list[Finding]:
    """Findings for every transfer whose received digests are not the produced ones.

    `records` are all that is known, also of other requests: a digest that was produced
    elsewhere tells where wrong KV came from. `hosts` maps instances to hosts.
    """
    origins = _origins(record for record in records if record.phase == "produced")
    findings: list[Finding] = []
    for transfer in transfers:
        findings += _check_transfer(transfer, origins, hosts)
    return findings


def compared_blocks(transfers: Iterable[Transfer]) -> int:
    """Number of (layer, K/V, block, rank) digests compared: comparing none proves nothing."""
    return sum(
        bool(want and got)
        for produced, received in transfers
        if produced is not None
        for layer in received.layers
        for number, digests in received.digests_of(layer).items()
        for want, got in zip(produced.digests_of(layer).get(number, ()), digests, strict=False)
    )


def check_received(
    received: Sequence[TraceRecord], *, request: str, instance: str, host: str, ranks: int
) -> list[Finding]:
    """Did each rank of the decoder receive something for this request?"""
    seen = {record.rank for record in received if record.instance == instance}
    return [
        Finding(
            id="kv.missing",
            where=Where(host=host, instance=instance, rank=rank, request=request),
            expected="a record of received KV",
            got="none",
        )
        for rank in range(ranks)
        if rank not in seen
    ]


def _origins(records: Iterable[TraceRecord]) -> dict[str, list[Place]]:
    origins: dict[str, list[Place]] = {}
    for record in records:
        for table in (record.digests, record.other_digests):
            for layer, rows in table.items():
                for number, digests in enumerate(rows, start=record.first_block):
                    for tensor, digest in enumerate(digests):
                        place = Place(record.request, record.rank, layer, tensor, number)
                        origins.setdefault(digest, []).append(place)
    return origins


def _check_transfer(
    transfer: Transfer, origins: Mapping[str, list[Place]], hosts: Mapping[str, str]
) -> Iterator[Finding]:
    produced, received = transfer
    where = Where(
        host=hosts.get(received.instance),
        instance=received.instance,
        rank=received.rank,
        request=received.remote_request or received.request,
        peer_instance=produced.instance if produced else None,
        peer_host=hosts.get(produced.instance) if produced else None,
    )
    if produced is None:
        yield Finding(
            id="kv.missing",
            where=where,
            expected="a producer's record of the same request and rank",
            got="none: the decoder received KV that no prefiller says it produced",
        )
        return
    reported: set[tuple[str, str]] = set()
    for layer_index, layer in enumerate(received.layers):
        want_blocks, got_blocks = produced.digests_of(layer), received.digests_of(layer)
        absent = [number for number in got_blocks if number not in want_blocks]
        if absent or not got_blocks:
            yield Finding(
                id="kv.missing",
                where=where.model_copy(update={"layer": layer_index}),
                expected=f"{len(got_blocks) or 'some'} blocks of {layer}",
                got=f"the prefiller produced {len(want_blocks)}",
            )
            continue
        for number, got in got_blocks.items():
            for tensor, (want_digest, got_digest) in enumerate(
                zip_longest(want_blocks[number], got, fillvalue="(no such tensor)")
            ):
                if not (want_digest and got_digest) or want_digest == got_digest:
                    continue
                here = Place(produced.request, received.rank, layer, tensor, number)
                kept = _is_unchanged(received, layer, number, tensor)
                id_, story = _classify(got_digest, here, origins, kept=kept)
                if (layer, id_) in reported:
                    continue
                reported.add((layer, id_))
                block_id = received.blocks[number - received.first_block]
                yield Finding(
                    id=id_,
                    where=where.model_copy(update={"layer": layer_index, "block": block_id}),
                    expected=f"{want_digest} ({here})",
                    got=f"{got_digest}{story}",
                )


def _is_unchanged(received: TraceRecord, layer: str, number: int, tensor: int) -> bool:
    rows = received.unchanged.get(layer, ())
    row = rows[number - received.first_block] if rows else ()
    return row[tensor] if tensor < len(row) else False


def _classify(
    digest: str, here: Place, origins: Mapping[str, list[Place]], *, kept: bool
) -> tuple[str, str]:
    """Finding id for a wrong digest, and a remark on where that content belongs.

    `kept`: the block held the same before the pull.
    """
    if digest == ZERO:
        return "kv.missing", ", all zero: nothing arrived"
    elsewhere = origins.get(digest, [])
    if kept:
        of = f" (from {elsewhere[0]})" if elsewhere else ""
        return "kv.missing", f", what the block held before{of}: nothing arrived"
    same_request = [place for place in elsewhere if place.request == here.request]
    if same_request:
        return "kv.swapped", f", which belongs to {same_request[0]}"
    if elsewhere:
        return "kv.stale", f", left over from {elsewhere[0]}"
    return "kv.corrupt", ", which nobody produced"


ZERO = "zero"  # the audit's digest of a block whose tokens are all zero
