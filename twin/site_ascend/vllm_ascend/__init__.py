"""vllm-ascend's connectors, from a checkout of that project, on hosts without an NPU.

`PD_TWIN_VLLM_ASCEND` names the checkout. Its modules are imported from there, unchanged,
except those that cannot be imported without torch_npu: these are found here first.
"""

from __future__ import annotations

import os
from pathlib import Path

__path__ = [*__path__, str(Path(os.environ["PD_TWIN_VLLM_ASCEND"]) / "vllm_ascend")]
