"""What a log line of vLLM, HCCL or the connector tells about the cause.

The upper layers' errors say little; the reason sits in a line that users have
learned to look for. Signatures are those of public reports; each names the issue it
was seen in (VA: vllm-ascend, V: vLLM).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Signature:
    """`pattern` in a log hints at the finding `id`; `meaning` says it in words."""

    pattern: re.Pattern[str]
    id: str
    meaning: str


@dataclass(frozen=True)
class Hit:
    signature: Signature
    line: str


def _signature(pattern: str, id: str, meaning: str) -> Signature:
    return Signature(re.compile(pattern), id, meaning)


# Most specific first: the first that hits is the likely cause.
SIGNATURES = (
    _signature(
        r"RanktablCheck.*device ip",
        "address.conf-missing",
        "HCCL has no device IP: /etc/hccn.conf or hccn_tool is not in the container (VA#7711)",
    ),
    _signature(
        r"Can't read the target server_id",
        "ranktable.server-id",
        "the rank table has no entry for this host's address and device",
    ),
    _signature(
        r"TLS configurations? (are|is) inconsistent",
        "tls.mismatch",
        "the TLS switch differs between NPUs (VA#5638)",
    ),
    _signature(
        r"EI0006|Getting socket times out|wait socket establish timeout",
        "kvlink.timeout",
        "two NPUs did not reach each other: link, address or TLS switch (VA#5461)",
    ),
    _signature(
        r"EJ0003|EI0019|Failed to bind the IP port|nic listen start failed",
        "host.port-taken",
        "HCCL's port is in use: two jobs on the same cards or host (VA#4725)",
    ),
    _signature(
        r"Address already in use|\[Errno 98\]",
        "host.port-taken",
        "a port that the engine needs is in use",
    ),
    _signature(
        r"EI0007.*resource\[qp\]",
        "engine.exited",
        "HCCL ran out of queue pairs or memory (VA#2643)",
    ),
    _signature(
        r"LLM_LINK_FAILED|Linking failed, comm id",
        "kvlink.failed",
        "the KV link between two ranks was refused (VA#2900)",
    ),
    _signature(
        r"HcclCommPrepare fail|(?<!pid=)\b(103900|103902|103905|503900)\b",
        "kvlink.failed",
        "the KV transport could not connect: look for a stale line in /etc/hccn.conf (VA#16847)",
    ),
    _signature(
        r"EI0009|Create Dest error",
        "kvlink.failed",
        "the other end of an HCCL link is gone or ill: see the logs of its rank",
    ),
    _signature(
        r"HcclBatchGet",
        "kvlink.failed",
        "transfers fail and do not heal: HCCL ran out of a resource (VA#13934)",
    ),
    _signature(
        r"LLM_KV_CACHE_NOT_EXIST",
        "kv.missing",
        "the KV blocks were gone when the decoder asked for them (VA#899)",
    ),
    _signature(
        r"Timeout during pull_blocks|KV transfer task failed",
        "kv.missing",
        "a pull failed on the decoder",
    ),
    _signature(
        r"Invalid KVTransferParams",
        "kv.missing",
        "the prefiller's answer had no kv_transfer_params: it ended at its first token (VA#2939)",
    ),
    _signature(
        r"Received duplicate done signal",
        "engine.exited",
        "the prefiller freed KV blocks, then was told again that they were pulled",
    ),
    _signature(
        r"No available shared memory broadcast block found",
        "engine.hung",
        "a worker died or is stuck (VA#16342)",
    ),
    _signature(
        r"max_num_batched_tokens \(\d+\) is smaller than max_model_len",
        "plan.scheduler",
        "max_num_batched_tokens must be at least max_model_len here (VA#4365)",
    ),
    _signature(
        r"dcmi model initialized failed, because the device is used",
        "device.held",
        "another container holds the NPU",
    ),
    _signature(
        r"No space left on device",
        "engine.exited",
        "a file system on the host is full",
    ),
    _signature(
        r"out of memory|OutOfMemory|Cannot allocate memory",
        "engine.exited",
        "the engine ran out of memory",
    ),
    _signature(
        r"(ModuleNotFoundError|ImportError): .*",
        "software.missing",
        "a Python package is not installed on the host",
    ),
    _signature(
        r"Error: .*(not a local folder|does not appear to have a file)",
        "model.mismatch",
        "the model directory is missing or incomplete on the host",
    ),
)


def scan(lines: Iterable[str]) -> list[Hit]:
    """The signatures found in a log, most specific first, each with its first line."""
    first: dict[Signature, str] = {}
    for line in lines:
        for signature in SIGNATURES:
            if signature not in first and signature.pattern.search(line):
                first[signature] = line.strip()
    return [Hit(signature, first[signature]) for signature in SIGNATURES if signature in first]
