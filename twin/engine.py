"""The `vllm` command of a simulated host: the guide's command line, made to run on CPU.

The harness launches `vllm serve …` exactly as on real hardware and must not know
that this stands on the host's PATH. It changes only what a CPU cannot do (memory by
fraction of an NPU, graph capture, ten threads a worker) and what three hosts on one
machine need (each binds its own loopback address), then becomes stock vLLM.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

# 256 blocks of 128 tokens at the tiny model's sizes; memory is touched, so it costs real RAM.
KV_CACHE_BYTES = "64M"
SITE = Path(__file__).parent / "site"
ENGINE_FAULTS = "engine_faults.json"  # in TWIN_STATE; written by twin/faults.py


def adapt(argv: Sequence[str], address: str, middleware: Sequence[str] = ()) -> list[str]:
    """The arguments of `vllm` with what a CPU host at `address` cannot do replaced.

    `argv` excludes the program name. Only `serve` is changed. `middleware`: classes that
    stand before the API, for a scenario's faults.
    """
    arguments = list(argv)
    if arguments[:1] != ["serve"]:
        return arguments
    _drop(arguments, "--gpu-memory-utilization")
    _replace(arguments, "--host", {"0.0.0.0": address, "::": address})
    _default(arguments, "--kv-cache-memory-bytes", KV_CACHE_BYTES)
    if "--enforce-eager" not in arguments:
        arguments.append("--enforce-eager")
    for name in middleware:
        arguments += ["--middleware", name]
    return arguments


def middleware(env: Mapping[str, str]) -> list[str]:
    """What answers in place of the API, if the scenario has such a fault for this instance."""
    try:
        faults = json.loads((Path(env["TWIN_STATE"]) / ENGINE_FAULTS).read_text(encoding="utf-8"))
        instance = env["PD_INSTANCE"]
    except (KeyError, FileNotFoundError):
        return []  # started by hand, without a scenario
    broken = any(fault["instance"] == instance for fault in faults["http"])
    return ["twin_engine.http_faults.HttpFaults"] if broken else []


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """The engine's environment: the host's, with one thread a worker and nothing from the net."""
    paths = [str(SITE), *env.get("PYTHONPATH", "").split(os.pathsep)]
    return {
        **env,
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }


def _drop(arguments: list[str], flag: str) -> None:
    while flag in arguments:
        index = arguments.index(flag)
        del arguments[index : index + 2]


def _replace(arguments: list[str], flag: str, values: Mapping[str, str]) -> None:
    if flag in arguments:
        index = arguments.index(flag) + 1
        arguments[index] = values.get(arguments[index], arguments[index])


def _default(arguments: list[str], flag: str, value: str) -> None:
    if flag not in arguments:
        arguments += [flag, value]


def main() -> None:
    """Become vLLM, in this process: who looks at it sees what was launched, and with what.

    Runs at a lower priority, so that SSH and the harness stay responsive.
    """
    os.nice(5)
    address = os.environ.get("TWIN_HOST_ADDRESS", "127.0.0.1")
    os.environ.update(environment(os.environ))
    sys.path.insert(0, str(SITE))
    sys.argv = ["vllm", *adapt(sys.argv[1:], address, middleware(os.environ))]
    from vllm.entrypoints.cli.main import main as vllm  # after the environment is set

    vllm()


if __name__ == "__main__":
    main()
