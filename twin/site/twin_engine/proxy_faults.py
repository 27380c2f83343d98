"""A scenario's faults of the proxy's process: killed or paused when it starts or serves.

Armed by sitecustomize in the process whose PD_INSTANCE is the proxy. Counting requests needs
this project's proxy; of any other only its start can be struck.
"""

from __future__ import annotations

import functools
from typing import Any

from .faults import Counter, faults_of_this_instance


def arm() -> None:
    """Set up this process's faults. Without any nothing is imported and nothing patched."""
    faults = faults_of_this_instance()
    for fault in faults:
        if fault.at == "starting":
            fault.strike()
    serving = Counter([fault for fault in faults if fault.at == "serving"])
    if any(fault.at == "serving" for fault in faults):
        _count_requests(serving)


def _count_requests(serving: Counter) -> None:
    try:
        from proxy.server import Proxy
    except ImportError:
        return  # somebody else's proxy
    original = Proxy._generate

    @functools.wraps(original)
    async def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        serving.happened(rank=0)
        return await original(self, *args, **kwargs)

    Proxy._generate = generate
