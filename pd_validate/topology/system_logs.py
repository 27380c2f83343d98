"""What CANN, HCCL and the kernel of a host have logged during a run: fetched before it ends.

CANN writes below ~/ascend/log, or where ASCEND_PROCESS_LOG_PATH points (CANN's log guide);
engines may have the variable from the cluster file, or the host from its login environment.
"""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Iterable
from importlib import resources

from pd_validate.errors import LabError
from pd_validate.hosts.api import Commands
from pd_validate.spec.plan import Process

LOG_PATH = "ASCEND_PROCESS_LOG_PATH"
_DIRECTORY = "~/ascend/log"
_FILE_LIMIT = 4 * 1024 * 1024  # bytes of one file: its end
_TOTAL_LIMIT = 32 * 1024 * 1024  # bytes of all files of a host; the newest first


def system_logs(
    host: Commands, processes: Iterable[Process], *, seconds: float, timeout: float
) -> dict[str, bytes]:
    """Files changed in the last `seconds` by name (`plog/…`), and `kernel.txt`; empty ones not.

    Raises LabError if the host cannot be asked.
    """
    stated = [process.env[LOG_PATH] for process in processes if LOG_PATH in process.env]
    request = {
        "directories": [_DIRECTORY, *stated],
        "seconds": seconds,
        "limit": _FILE_LIMIT,
        "total": _TOTAL_LIMIT,
    }
    source = resources.files("pd_validate.topology").joinpath("gather.py").read_text("utf-8")
    done = host.python(source, args=[json.dumps(request)], timeout=timeout)
    lines = done.stdout.splitlines()
    if done.exit_code != 0 or not lines:
        raise LabError(f"{host.name}: the system's logs: {done.stderr.strip()[-300:]}")
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(lines[-1])), mode="r:gz") as archive:
        for entry in archive:
            file = archive.extractfile(entry)
            content = file.read() if file is not None else b""
            if content:
                found[entry.name] = content
    return found
