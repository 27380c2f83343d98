"""Runs ON a host: packs what the vendor's stack and the kernel have logged during a run.

Standard library only, Python >= 3.8; sent over by `system_logs.py`. Changes nothing. Its one
argument is JSON: `directories` to look through, `seconds` that a file's last change may be
ago, `limit` in bytes for one file and `total` for all. Prints a tar.gz in base64.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from typing import Any

# Drivers of Ascend NPUs and of their network, as they name themselves in kernel messages.
NPU = re.compile(r"davinci|devdrv|hccs|hisi|\b(drv_|ascend\b|hns|roce|npu)", re.IGNORECASE)
KERNEL_SECONDS = 10


def changed_files(directory: str, since: float) -> list[str]:
    """Newest first."""
    found = []
    for parent, _, names in os.walk(os.path.expandvars(os.path.expanduser(directory))):
        for name in names:
            path = os.path.join(parent, name)
            try:
                changed = os.stat(path).st_mtime
            except OSError:
                continue
            if changed >= since:
                found.append((changed, path))
    return [path for _, path in sorted(found, reverse=True)]


def end_of(path: str, limit: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - limit))
        return file.read(limit)


def kernel_messages() -> bytes:
    """Lines about NPUs; or why there are none to be had."""
    try:
        done = subprocess.run(["dmesg"], capture_output=True, timeout=KERNEL_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"(not readable: {error})\n".encode()
    if done.returncode != 0:
        return b"(not readable: " + done.stderr.strip() + b")\n"
    lines = done.stdout.decode("utf-8", "replace").splitlines(True)
    return "".join(line for line in lines if NPU.search(line)).encode()


def gather(request: dict[str, Any]) -> io.BytesIO:
    since = time.time() - request["seconds"]
    directories = list(request["directories"])
    if os.environ.get("ASCEND_PROCESS_LOG_PATH"):
        directories.append(os.environ["ASCEND_PROCESS_LOG_PATH"])
    packed, left = io.BytesIO(), request["total"]
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:

        def add(name: str, content: bytes) -> None:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))

        add("kernel.txt", kernel_messages()[-request["limit"] :])
        for directory in dict.fromkeys(directories):
            for path in changed_files(directory, since):
                try:
                    content = end_of(path, min(request["limit"], left))
                except OSError:
                    continue
                left -= len(content)
                add("plog/" + os.path.abspath(path).lstrip("/"), content)
                if left <= 0:
                    return packed
    return packed


print(base64.b64encode(gather(json.loads(sys.argv[1])).getvalue()).decode())
