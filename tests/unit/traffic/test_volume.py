"""All of the KV moved, and between all ranks."""

from __future__ import annotations

import pytest

from pd_validate.checks.volume import KvShape, check_pairs, check_volume
from pd_validate.findings import Severity, Where
from pd_validate.traffic.trace import TraceRecord, Transfer

CONFIG = {
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "torch_dtype": "bfloat16",
}
HOSTS = {"prefill-1": "p1", "decode-1": "d1", "decode-2": "d2"}
# One block of 128 tokens on one of two ranks: 4 layers, K and V, 2 heads of 32, 4 bytes.
BLOCK = 4 * 2 * 2 * 128 * 32 * 4


def record(instance: str, rank: int = 0, *, size: int = 3 * BLOCK, layers: int = 4) -> TraceRecord:
    return TraceRecord.model_validate(
        {
            "request": "r",
            "instance": instance,
            "rank": rank,
            "phase": "received",
            "layers": [f"layer.{n}" for n in range(layers)],
            "blocks": [1, 2, 3],
            "tokens": 300,
            "digests": {},
            "bytes": size,
        }
    )


def test_what_a_block_weighs() -> None:
    shape = KvShape.of_config(CONFIG, "float32")
    assert shape is not None
    assert shape.block_bytes(128, 2) == BLOCK
    stored = KvShape.of_config(CONFIG, None)
    assert stored is not None
    assert stored.block_bytes(128, 2) == BLOCK // 2, "the model's own dtype"


@pytest.mark.parametrize(
    "change",
    [
        {"kv_lora_rank": 512},
        {"torch_dtype": "fp8"},
        {"num_hidden_layers": None},
        {"head_dim": None},
    ],
)
def test_a_model_that_says_too_little_is_not_judged(change: dict[str, object]) -> None:
    assert KvShape.of_config(CONFIG | change, None) is None


def volume(record: TraceRecord) -> list[str]:
    shape = KvShape.of_config(CONFIG, "float32")
    assert shape is not None
    found = check_volume([record], shape, HOSTS, block_size=128, tensor_parallel=2)
    return [f"{f.id} at {f.where}: {f.got}" for f in found]


def test_all_blocks_of_all_layers() -> None:
    assert volume(record("decode-1")) == []


def test_a_block_too_few() -> None:
    (told,) = volume(record("decode-1", 1, size=2 * BLOCK))
    assert told.startswith("kv.missing at d1 decode-1 rank 1 request r")
    assert told.endswith(f"{2 * BLOCK} bytes in 4 layers")


def test_a_layer_too_few() -> None:
    assert volume(record("decode-1", layers=3))


def test_pairs_between_which_nothing_moved_are_not_measured() -> None:
    produced = record("prefill-1")
    transfers = [Transfer(produced, record("decode-1", rank)) for rank in (0, 1)]
    transfers += [Transfer(produced, record("decode-2", 1)), Transfer(None, record("decode-2", 0))]
    ranks = {("prefill-1", "decode-1"): 2, ("prefill-1", "decode-2"): 2}
    (finding,) = check_pairs(transfers, ranks, HOSTS)
    assert (finding.id, finding.severity) == ("kv.missing", Severity.UNKNOWN)
    assert finding.where == Where(
        host="d2", instance="decode-2", rank=0, peer_host="p1", peer_instance="prefill-1"
    )
    assert check_pairs([*transfers, Transfer(produced, record("decode-2", 0))], ranks, HOSTS) == []
