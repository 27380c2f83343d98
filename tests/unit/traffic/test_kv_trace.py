"""Both sides' digests of KV: read, joined by request, compared block by block."""

from __future__ import annotations

import json
from typing import Any

import pytest

from connector.digest import ZERO as AUDITS_ZERO
from pd_validate.checks.kv import (
    ZERO,
    check_received,
    check_trace,
    check_transfers,
    compared_blocks,
)
from pd_validate.findings import Finding, Severity
from pd_validate.traffic.trace import TraceRecord, join, of_request, parse_trace

HOSTS = {"prefill-1": "p1", "decode-1": "d1"}
LAYERS = ("model.layers.0.attn", "model.layers.1.attn")
Digests = dict[str, tuple[tuple[str, ...], ...]]


def digests(request: str, rank: int = 0, blocks: int = 3) -> Digests:
    """As produced: each one says where it belongs."""
    return {
        layer: tuple(
            tuple(f"{request}/{rank}/{index}{tensor}{block}" for tensor in "KV")
            for block in range(blocks)
        )
        for index, layer in enumerate(LAYERS)
    }


def produced(request: str = "req-1", rank: int = 0, **changes: Any) -> TraceRecord:
    record = {
        "request": request,
        "instance": "prefill-1",
        "rank": rank,
        "phase": "produced",
        "layers": LAYERS,
        "blocks": (10, 11, 12),
        "tokens": 300,
        "digests": digests(request, rank),
        "bytes": 4096,
    }
    return TraceRecord.model_validate(record | changes)


def received(request: str = "req-1", rank: int = 0, **changes: Any) -> TraceRecord:
    record = produced(request, rank).model_dump() | {
        "request": f"{request}-decode",
        "remote_request": request,
        "instance": "decode-1",
        "phase": "received",
        "blocks": (20, 21, 22),
        "seconds": 0.01,
    }
    return TraceRecord.model_validate(record | changes)


def changed(record: TraceRecord, layer: int, block: int, tensor: int, digest: str) -> TraceRecord:
    """The record with one digest replaced."""
    rows = [list(pair) for pair in record.digests[LAYERS[layer]]]
    rows[block][tensor] = digest
    table = record.digests | {LAYERS[layer]: tuple(tuple(row) for row in rows)}
    return record.model_copy(update={"digests": table})


def judged(*records: TraceRecord) -> list[Finding]:
    sent = [record for record in records if record.phase == "produced"]
    return check_transfers(join(records), sent, HOSTS)


# --- verdicts -------------------------------------------------------------------------------------


def test_equal_digests_are_counted_and_right() -> None:
    records = [produced(), received(), produced(rank=1), received(rank=1)]
    assert judged(*records) == []
    assert compared_blocks(join(records)) == 2 * 2 * 2 * 3  # ranks x layers x K and V x blocks


def test_one_byte_of_one_block() -> None:
    (finding,) = judged(produced(), changed(received(), 1, 2, 0, "f00"))
    assert finding.id == "kv.corrupt"
    where = finding.where
    assert (where.host, where.instance, where.rank) == ("d1", "decode-1", 0)
    assert (where.layer, where.block, where.request) == (1, 22, "req-1")
    assert (where.peer_host, where.peer_instance) == ("p1", "prefill-1")
    assert "block 2 of req-1" in finding.expected
    assert finding.got == "f00, which nobody produced"


@pytest.mark.parametrize(
    ("place", "belongs"),
    [
        ((0, 0, 0), "block 0 of req-1"),  # another block of the same layer
        ((1, 1, 0), "model.layers.1.attn K, prompt block 1"),  # another layer
        ((0, 1, 1), "model.layers.0.attn V, prompt block 1"),  # V in place of K
    ],
)
def test_content_of_another_place_of_the_request(place: tuple[int, int, int], belongs: str) -> None:
    layer, block, tensor = place
    content = produced().digests[LAYERS[layer]][block][tensor]
    (finding,) = judged(produced(), changed(received(), 0, 1, 0, content))
    assert finding.id == "kv.swapped"
    assert belongs in finding.got


def test_content_of_another_rank() -> None:
    mixed = received(digests=digests("req-1", rank=1))
    findings = judged(produced(), produced(rank=1), mixed)
    assert {finding.id for finding in findings} == {"kv.swapped"}
    assert len(findings) == len(LAYERS), "one finding per layer, not one per digest"
    assert "belongs to rank 1" in findings[0].got


def test_content_of_an_earlier_request() -> None:
    old = produced("req-0")
    (finding,) = judged(old, produced(), changed(received(), 0, 0, 0, old.digests[LAYERS[0]][0][0]))
    assert finding.id == "kv.stale"
    assert "left over from" in finding.got
    assert "req-0" in finding.got


def test_a_block_that_kept_what_it_held_did_not_arrive() -> None:
    """Whatever it held: KV of an earlier request, or what nobody knows."""
    old = produced("req-0")
    for content in (old.digests[LAYERS[0]][2][1], "f00"):
        wrong = changed(received(), 0, 2, 1, content)
        kept = wrong.model_copy(
            update={"unchanged": {LAYERS[0]: ((False,) * 2,) * 2 + ((True,) * 2,)}}
        )
        (finding,) = judged(old, produced(), kept)
        assert finding.id == "kv.missing"
        assert "what the block held before" in finding.got


def test_what_went_wrong_before_in_the_same_way_is_not_told_as_missing() -> None:
    """The same prompt, corrupted again in the same block: it holds already what arrives."""
    first = changed(received(), 0, 2, 1, "f00")
    again = first.model_copy(
        update={"unchanged": {LAYERS[0]: ((False,) * 2,) * 2 + ((True,) * 2,)}}
    )
    assert [finding.id for finding in judged(produced(), first, again)] == ["kv.corrupt"] * 2


def test_a_swap_with_the_partly_filled_last_block() -> None:
    """Its digests are of fewer tokens: the producer tells them for every block."""
    first_as_last, last_as_first = ("e0", "e1"), ("e2", "e3")
    rows = digests("req-1")[LAYERS[0]]
    other = {LAYERS[0]: (first_as_last, ("e4", "e5"), last_as_first)}
    told = produced().model_copy(update={"other_digests": other})
    swapped = received(
        digests=digests("req-1") | {LAYERS[0]: (last_as_first, rows[1], first_as_last)}
    )
    (finding,) = judged(told, swapped)
    assert finding.id == "kv.swapped"
    assert finding.where.block == 20
    assert "block 2 of req-1" in finding.got


def test_a_block_that_is_all_zero_did_not_arrive() -> None:
    assert ZERO == AUDITS_ZERO, "the harness and the audit must mean the same word"
    (finding,) = judged(produced(), changed(received(), 0, 2, 1, ZERO))
    assert finding.id == "kv.missing"
    assert "all zero" in finding.got


def test_digests_that_could_not_be_taken_are_not_judged_and_not_counted() -> None:
    records = [changed(produced(), 0, 0, 0, ""), changed(received(), 1, 1, 1, "")]
    assert judged(*records) == []
    assert compared_blocks(join(records)) == 2 * 2 * 3 - 2


def test_received_and_never_produced() -> None:
    (finding,) = judged(received())
    assert finding.id == "kv.missing"
    assert compared_blocks(join([received()])) == 0


def test_fewer_blocks_produced_than_received() -> None:
    short = produced(blocks=(10, 11), digests=digests("req-1", blocks=2))
    findings = judged(short, received())
    assert [(finding.id, finding.where.layer) for finding in findings] == [
        ("kv.missing", 0),
        ("kv.missing", 1),
    ]


def test_blocks_that_the_decoder_had_already_are_not_pulled() -> None:
    """`first_block` aligns the shorter list with the tokens of the longer one."""
    all_digests = digests("req-1")
    tail = received(
        first_block=1,
        blocks=(21, 22),
        digests={layer: rows[1:] for layer, rows in all_digests.items()},
    )
    assert judged(produced(), tail) == []
    assert compared_blocks(join([produced(), tail])) == 2 * 2 * 2
    (finding,) = judged(produced(), changed(tail, 0, 1, 0, "f00"))
    assert finding.where.block == 22
    assert "block 2 of req-1" in finding.expected


def test_each_rank_must_have_received() -> None:
    found = check_received([received()], request="req-1", instance="decode-1", host="d1", ranks=2)
    assert [(finding.id, finding.where.rank) for finding in found] == [("kv.missing", 1)]
    both = [received(), received(rank=1)]
    assert check_received(both, request="req-1", instance="decode-1", host="d1", ranks=2) == []
    # What another instance received says nothing.
    assert len(check_received(both, request="r", instance="decode-2", host="d2", ranks=2)) == 2


# --- the file -------------------------------------------------------------------------------------


def lines(*records: TraceRecord) -> str:
    return "".join(record.model_dump_json() + "\n" for record in records)


def test_what_is_written_is_read() -> None:
    records = [produced(), received()]
    assert parse_trace(lines(*records)) == (records, 0)
    assert parse_trace("") == ([], 0)


def test_a_line_that_is_still_being_written_is_not_read() -> None:
    text = lines(produced(), received())
    assert parse_trace(text[:-20]) == ([produced()], 0)


@pytest.mark.parametrize("line", ["{oops\n", "[]\n", json.dumps({"request": "x"}) + "\n", "\n"])
def test_unreadable_lines_are_counted(line: str) -> None:
    records, unreadable = parse_trace(lines(produced()) + line + lines(received()))
    assert len(records) == 2
    assert unreadable == 1


def test_records_are_joined_by_request_and_rank() -> None:
    records = [produced("a"), produced("b"), produced("b", rank=1), received("b", rank=1)]
    ((sent, got),) = join(records)
    assert sent == records[2]
    assert got == records[3]


def test_records_of_a_request_are_found_inside_vllms_own_id() -> None:
    mine = produced("cmpl-pd-1234-0-abcdef")
    pulled = received(request="cmpl-pd-1234-0-fedcba", remote_request="cmpl-pd-1234-0-abcdef")
    other = produced("cmpl-pd-9999-0-abcdef")
    assert of_request([mine, other, pulled], "pd-1234") == [mine, pulled]


def test_a_trace_that_cannot_be_read_is_no_silent_pass() -> None:
    assert check_trace(0, "") == []
    (lines,) = check_trace(3, "")
    (all_of_it,) = check_trace(0, "d1: `for f in …` printed more than 67108864 bytes")
    assert {f.severity for f in (lines, all_of_it)} == {Severity.UNKNOWN}
    assert "3 lines" in lines.got
    assert "67108864" in all_of_it.got
