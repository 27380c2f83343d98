"""In place of vllm_ascend.utils, which imports torch_npu: what connectors take from it."""

from __future__ import annotations

from enum import Enum


class AscendSocVersion(Enum):
    """Generations of the NPU, as connectors tell them apart."""

    A2 = 0
    A3 = 1
    UNDEFINED = 2


def get_ascend_soc_version() -> AscendSocVersion:
    """The simulated hosts that run v0.10.1rc1 are Atlas 800T A2."""
    return AscendSocVersion.A2
