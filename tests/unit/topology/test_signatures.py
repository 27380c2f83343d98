"""Lines of real logs, each with the cause it must point to; and healthy logs, with none."""

from __future__ import annotations

import pytest

from pd_validate.catalogue import CATALOGUE
from pd_validate.checks.signatures import SIGNATURES, scan

# The lines are those of public reports (named in signatures.py), shortened.
LINES = {
    "[RanktablCheck]'device ip' is not set correctly, must be set when multi Server": (
        "address.conf-missing"
    ),
    "AssertionError: Can't read the target server_id 10.0.0.1 and device_rank 6 from rank table": (
        "ranktable.server-id"
    ),
    "EI0006: Getting socket times out. Reason: TLS configurations are inconsistent": "tls.mismatch",
    "[EI0006] Getting socket times out. Reason: The remote does not initiate a connect request": (
        "kvlink.timeout"
    ),
    "wait socket establish timeout, role[1] rank[1] timeout[120 s]": "kvlink.timeout",
    "EJ0003: Failed to bind the IP port. Reason: The IP address and port have been bound": (
        "host.port-taken"
    ),
    "EI0019: Failed to bind the IP port 16666": "host.port-taken",
    "host nic listen start failed, port[60000]": "host.port-taken",
    "OSError: [Errno 98] Address already in use": "host.port-taken",
    "EI0007: Failed to allocate resource[qp] with info [qp_mode:0]": "engine.exited",
    "LLMException: [link] failed, error code is LLMStatusCode.LLM_LINK_FAILED, {5: 0, 21: 1}": (
        "kvlink.failed"
    ),
    "RuntimeError: Linking failed, comm id: 3": "kvlink.failed",
    "HcclCommPrepare fail": "kvlink.failed",
    "Failed to connect, status: 103900": "kvlink.failed",
    "transfer sync ret=503900": "kvlink.failed",
    "EI0009: Create Dest error": "kvlink.failed",
    "HcclBatchGet failed: AICPU launch failed": "kvlink.failed",
    "LLMStatusCode.LLM_KV_CACHE_NOT_EXIST": "kv.missing",
    "ERROR Timeout during pull_blocks for request cmpl-1": "kv.missing",
    "ERROR KV transfer task failed: [pull_blocks] failed": "kv.missing",
    "Invalid KVTransferParams, got {}. This request will be discard": "kv.missing",
    "Received duplicate done signal for req cmpl-1": "engine.exited",
    "No available shared memory broadcast block found in 60 seconds.": "engine.hung",
    "ValueError: max_num_batched_tokens (2048) is smaller than max_model_len (6144).": (
        "plan.scheduler"
    ),
    "dcmi model initialized failed, because the device is used. ret is -8020": "device.held",
    "OSError: [Errno 28] No space left on device": "engine.exited",
    "RuntimeError: NPU out of memory. Tried to allocate 20.00 GiB": "engine.exited",
    "ModuleNotFoundError: No module named 'llm_datadist'": "software.missing",
    "OSError: Error: /model/x is not a local folder and is not a valid model": "model.mismatch",
}

# A healthy decoder of vLLM 0.32, shortened: warnings, tables of numbers, and pids that look
# like error codes.
HEALTHY = """\
W1122 22:56:24.865000 11072 torch/_library/triton.py:53] Triton not available, kernels = []
(APIServer pid=103900) INFO 11-22 22:56:25 [api_utils.py:286] non-default args: {'port': 13700}
(APIServer pid=103902) WARNING 11-22 [system_utils.py:255] Found ulimit of 20000 and failed to \
automatically increase with error current limit exceeds maximum limit
(APIServer pid=11072) WARNING [interface.py:1457] Unknown vLLM environment variable detected: \
VLLM_ASCEND_LLMDD_RPC_IP
(EngineCore pid=13322) INFO [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: x
(Worker pid=15044) WARNING [cpu_worker.py:114] libtcmalloc is not found in LD_PRELOAD.
(Worker_TP0_EP0 pid=15044) INFO [base_loader.py:82] Initializing model took 0.219332 seconds
Loading safetensors checkpoint shards: 100% Completed | 1/1 [00:00<00:00, 40.36it/s]
(EngineCore pid=13322) INFO [kv_cache_utils.py:2327] CPU KV cache size: 32,768 tokens
(Worker_TP1_EP1 pid=503900) WARNING [base.py:214] Initializing KVConnectorBase_V1. This API is \
experimental
(APIServer pid=11072) INFO:     Application startup complete.
(APIServer pid=11072) INFO [loggers.py:310] Engine 000: Avg prompt throughput: 1.2 tokens/s, \
Running: 0 reqs, Waiting: 0 reqs, GPU KV cache usage: 0.0%
(APIServer pid=11072) INFO:     127.0.0.1:40912 - "GET /health HTTP/1.1" 200 OK
"""


@pytest.mark.parametrize("line", LINES)
def test_a_line_points_to_its_cause(line: str) -> None:
    hits = scan(["INFO all is well", f"(Worker pid=7) ERROR {line} \n", "INFO going on"])
    assert hits
    assert hits[0].signature.id == LINES[line]
    assert hits[0].line == f"(Worker pid=7) ERROR {line}"


def test_every_signature_has_a_line_that_it_is_for() -> None:
    shown = {hits[0].signature for line in LINES if (hits := scan([line]))}
    assert [s.pattern.pattern for s in SIGNATURES if s not in shown] == []


def test_healthy_logs_have_none() -> None:
    assert scan(HEALTHY.splitlines()) == []


def test_the_most_specific_signature_comes_first() -> None:
    """A traceback ends in what is general; the reason stands above it, or far below."""
    log = [
        "RuntimeError: NPU out of memory",
        "LLM_LINK_FAILED",
        "EI0006: Getting socket times out. Reason: TLS configurations are inconsistent",
    ]
    assert [hit.signature.id for hit in scan(log)] == [
        "tls.mismatch",
        "kvlink.timeout",
        "kvlink.failed",
        "engine.exited",
    ]


def test_the_header_of_hccls_table_is_not_a_cause() -> None:
    """It has the column TlsStatus whatever went wrong; which row differs, only a person sees."""
    table = [
        "EI0006 Getting socket times out",
        "| LinkInfo | TlsStatus |",
        "| time out | DISABLE |",
    ]
    assert scan(table)[0].signature.id == "kvlink.timeout"


def test_signatures_point_to_findings_that_exist() -> None:
    assert {signature.id for signature in SIGNATURES} <= set(CATALOGUE)
