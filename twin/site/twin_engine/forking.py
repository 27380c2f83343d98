"""An engine imports vLLM once and forks its processes, instead of importing it in each of them.

Three engines of four processes would import vLLM twelve times on two cores, most of a bring-up.
Fork is vLLM's default and what vllm-ascend advises for PD; only the CPU platform overrules what
the environment says. With VLLM_WORKER_MULTIPROC_METHOD=spawn in the cluster file it is spawn.
"""

from __future__ import annotations

import functools
import os
import signal
import socket
import stat
from typing import Any

METHOD = "VLLM_WORKER_MULTIPROC_METHOD"


def keep_start_method() -> None:
    """Let vLLM start its processes as the environment says. Idempotent."""
    from vllm.platforms.cpu import CpuPlatform

    original = CpuPlatform.check_and_update_config.__func__
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def check(cls: type, *args: Any, **kwargs: Any) -> None:
        method = os.environ.get(METHOD)
        original(cls, *args, **kwargs)
        if method is not None:
            os.environ[METHOD] = method

    CpuPlatform.check_and_update_config = classmethod(check)
    os.register_at_fork(after_in_child=leave_to_the_parent)


def leave_to_the_parent() -> None:
    """In a forked process: let go of what a spawned one would not have.

    A listening socket kept open here would go on taking connections when the API server is
    dead, and a signal to this process would be told to the event loop of that one.
    """
    signal.set_wakeup_fd(-1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if _listens(descriptor):
            # Its number stays taken: the parent's object here may yet close it.
            os.dup2(nothing, descriptor)
    os.close(nothing)


def _listens(descriptor: int) -> bool:
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return False
        with socket.socket(fileno=os.dup(descriptor)) as copy:
            return bool(copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:  # the listing's own descriptor, gone by now
        return False
