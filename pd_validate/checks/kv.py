"""Did every byte of KV arrive? Pure verdicts on the joined KV trace.

One finding per transfer, layer and kind of fault, at the first block that differs:
the text a tired engineer needs is "which pair, which layer, which block", not one
line per digest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from pd_validate.findings import Finding, Severity, Where
from pd_validate.traffic.trace import TraceRecord, Transfer

_TENSORS = ("K", "V")

Digests = Mapping[int, Sequence[str]]  # of a block's tensors, by its number in the prompt


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


@dataclass(frozen=True)
class _Wrong:
    """A digest that is not the produced one. `kept`: the block held the same before the pull."""

    here: Place
    want: str
    got: str
    kept: bool


def check_transfers(
    transfers: Sequence[Transfer], records: Iterable[TraceRecord], hosts: Mapping[str, str]
) -> list[Finding]:
    """Findings for every transfer whose received digests are not the produced ones.

    `records` are all that is known, also of other requests: a digest that was produced
    elsewhere tells where wrong KV came from. `hosts` maps instances to hosts.
    """
    origins = _origins(record for record in records if record.phase == "produced")
    wrongs = [list(_wrongs(transfer)) for transfer in transfers]
    # The same prompt, pulled again into the same block, meets there what went wrong before.
    arrived = {(w.want, w.got): _classify(w, origins) for ws in wrongs for w in ws if not w.kept}

    def classify(wrong: _Wrong) -> tuple[str, str]:
        before = arrived.get((wrong.want, wrong.got)) if wrong.kept else None
        return before or _classify(wrong, origins)

    findings: list[Finding] = []
    for transfer, its in zip(transfers, wrongs, strict=True):
        findings += _check_transfer(transfer, [(wrong, *classify(wrong)) for wrong in its], hosts)
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


def check_trace(unreadable: int, problem: str) -> list[Finding]:
    """What of the audit's trace nobody could compare: `unreadable` lines, or all of it."""
    if not unreadable and not problem:
        return []
    return [
        Finding(
            id="tool.failed",
            where=Where(file="kv-trace.jsonl"),
            severity=Severity.UNKNOWN,
            expected="the KV audit's trace of all hosts",
            got=problem or f"{unreadable} lines of it that are no records",
            hint="Not all transfers are compared. For long runs use --audit sample.",
        )
    ]


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
    transfer: Transfer, wrongs: Iterable[tuple[_Wrong, str, str]], hosts: Mapping[str, str]
) -> Iterator[Finding]:
    """`wrongs`: its wrong digests, each with the id of its finding and a remark."""
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
    for layer_index, layer in enumerate(received.layers):
        wanted, got = produced.digests_of(layer), received.digests_of(layer)
        if not _comparable(wanted, got):
            yield Finding(
                id="kv.missing",
                where=where.model_copy(update={"layer": layer_index}),
                expected=f"{len(got) or 'some'} blocks of {layer}",
                got=f"the prefiller produced {len(wanted)}",
            )
    reported: set[tuple[str, str]] = set()
    for wrong, id_, story in wrongs:
        if (wrong.here.layer, id_) in reported:
            continue
        reported.add((wrong.here.layer, id_))
        layer_index = received.layers.index(wrong.here.layer)
        block_id = received.blocks[wrong.here.block - received.first_block]
        yield Finding(
            id=id_,
            where=where.model_copy(update={"layer": layer_index, "block": block_id}),
            expected=f"{wrong.want} ({wrong.here})",
            got=f"{wrong.got}{story}",
        )


def _comparable(wanted: Digests, got: Digests) -> bool:
    """Whether something was received, and nothing that was not produced."""
    return bool(got) and got.keys() <= wanted.keys()


def _wrongs(transfer: Transfer) -> Iterator[_Wrong]:
    """Every digest of a transfer that is not the produced one."""
    produced, received = transfer
    if produced is None:
        return
    for layer in received.layers:
        wanted, got = produced.digests_of(layer), received.digests_of(layer)
        if not _comparable(wanted, got):
            continue
        for number, digests in got.items():
            pairs = zip_longest(wanted[number], digests, fillvalue="(no such tensor)")
            for tensor, (want, digest) in enumerate(pairs):
                if want and digest and want != digest:
                    here = Place(produced.request, received.rank, layer, tensor, number)
                    kept = _is_unchanged(received, layer, number, tensor)
                    yield _Wrong(here, want, digest, kept)


def _is_unchanged(received: TraceRecord, layer: str, number: int, tensor: int) -> bool:
    rows = received.unchanged.get(layer, ())
    row = rows[number - received.first_block] if rows else ()
    return row[tensor] if tensor < len(row) else False


def _classify(wrong: _Wrong, origins: Mapping[str, list[Place]]) -> tuple[str, str]:
    """Finding id for a wrong digest, and a remark on where that content belongs."""
    if wrong.got == ZERO:
        return "kv.missing", ", all zero: nothing arrived"
    elsewhere = origins.get(wrong.got, [])
    if wrong.kept:
        of = f" (from {elsewhere[0]})" if elsewhere else ""
        return "kv.missing", f", what the block held before{of}: nothing arrived"
    same_request = [place for place in elsewhere if place.request == wrong.here.request]
    if same_request:
        return "kv.swapped", f", which belongs to {same_request[0]}"
    if elsewhere:
        return "kv.stale", f", left over from {elsewhere[0]}"
    return "kv.corrupt", ", which nobody produced"


ZERO = "zero"  # the audit's digest of a block whose tokens are all zero
