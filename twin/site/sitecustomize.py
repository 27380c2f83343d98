"""The network of a simulated host, and faults of its proxy. Its wildcard address is its own.

All simulated hosts share this machine's network. Without this, a server of one host would
make `0.0.0.0` taken on every other. Python imports this module by its name at start-up.
"""

from __future__ import annotations

import os
import socket
from typing import Any

_OWN = os.environ.get("TWIN_HOST_ADDRESS")
_bind = socket.socket.bind


def bind(self: socket.socket, address: Any, /) -> None:
    """As socket.bind; a fixed port on all addresses becomes that port on the host's own."""
    wildcard = self.family == socket.AF_INET and address[0] in ("", "0.0.0.0")
    if wildcard and address[1] != 0:
        address = (_OWN, address[1])
    _bind(self, address)


if os.environ.get("PD_INSTANCE") == "proxy" and "TWIN_STATE" in os.environ:
    from twin_engine.proxy_faults import arm

    arm()

if _OWN is not None:
    socket.socket.bind = bind  # type: ignore[assignment, method-assign]  # it takes what bind takes
