"""The `vllm` command of a simulated host: the guide's command line, made to run on CPU.

The harness launches `vllm serve …` exactly as on real hardware and must not know
that this stands on the host's PATH. It changes only what a CPU cannot do (memory by
fraction of an NPU, graph capture, ten threads a worker) and what three hosts on one
machine need (each binds its own loopback address), then becomes stock vLLM.

vLLM before 0.11 is the guide's: the same, in the words of that version, and with a checkout of
vllm-ascend in PD_TWIN_VLLM_ASCEND that project's own connector can be loaded.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

# 256 blocks of 128 tokens at the tiny model's sizes; memory is touched, so it costs real RAM.
KV_CACHE_BYTES = "64M"
KV_CACHE_BLOCKS = "256"  # for versions that cannot be told bytes
# Directory of a checkout of vllm-ascend, whose connectors are to be importable (site_ascend/).
VLLM_ASCEND_VARIABLE = "PD_TWIN_VLLM_ASCEND"
SITE_ASCEND = Path(__file__).parent / "site_ascend"
SITE = Path(__file__).parent / "site"
ENGINE_FAULTS = "engine_faults.json"  # in TWIN_STATE; written by twin/faults.py


def before_0_11(version: str) -> bool:
    """Whether a version of vLLM is of the guide's line."""
    major, minor = (int(number) for number in version.split(".")[:2])
    return (major, minor) < (0, 11)


def adapt(
    argv: Sequence[str], address: str, middleware: Sequence[str] = (), *, old: bool = False
) -> list[str]:
    """The arguments of `vllm` with what a CPU host at `address` cannot do replaced.

    `argv` excludes the program name. Only `serve` is changed. `middleware`: classes that
    stand before the API, for a scenario's faults. `old`: for vLLM before 0.11.
    """
    arguments = list(argv)
    if arguments[:1] != ["serve"]:
        return arguments
    _drop(arguments, "--gpu-memory-utilization")
    _replace(arguments, "--host", {"0.0.0.0": address, "::": address})
    if old:
        _default(arguments, "--num-gpu-blocks-override", KV_CACHE_BLOCKS)
    else:
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
    broken = faults["later"] or any(fault["instance"] == instance for fault in faults["http"])
    return ["twin_engine.http_faults.HttpFaults"] if broken else []


# What the CPU backend of vLLM before 0.11 needs: memory in GiB (mapped, not touched), no
# binding of threads for up to eight ranks, no kernels that want AMX, and workers that sleep
# when there is nothing to do.
_OLD_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "|".join(["all"] * 8),
    "VLLM_CPU_SGL_KERNEL": "0",
    "VLLM_SLEEP_WHEN_IDLE": "1",
}


def environment(env: Mapping[str, str], *, old: bool = False) -> dict[str, str]:
    """The engine's environment: the host's, with one thread a worker and nothing from the net."""
    ours = [str(SITE)]
    if env.get(VLLM_ASCEND_VARIABLE):
        ours.append(str(SITE_ASCEND))
    paths = [*ours, *env.get("PYTHONPATH", "").split(os.pathsep)]
    return {
        **env,
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": env.get("VLLM_WORKER_MULTIPROC_METHOD", "fork"),
        # Some layers compile themselves even with --enforce-eager, in every worker anew.
        "TORCH_COMPILE_DISABLE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        **(_OLD_ENVIRONMENT if old else {}),
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
    old = before_0_11(metadata.version("vllm"))
    for name, value in environment(os.environ, old=old).items():
        # A rewritten variable moves, and vLLM finds the command line, where a forked process
        # writes its title, by the first variables behind it.
        if os.environ.get(name) != value:
            os.environ[name] = value
    sys.path[:0] = [path for path in os.environ["PYTHONPATH"].split(os.pathsep) if path]
    sys.argv = ["vllm", *adapt(sys.argv[1:], address, middleware(os.environ), old=old)]
    from vllm.entrypoints.cli.main import main as vllm  # after the environment is set

    vllm()


if __name__ == "__main__":
    main()
