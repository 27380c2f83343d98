"""One JSON line per request, written in batches by a thread, off the requests' path."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, BinaryIO

from proxy.codec import dumps

FLUSH_SECONDS = 0.25


class AccessLog:
    """Collects records and writes them soon. `target`: "-" (standard output), "off", or a file."""

    def __init__(self, target: str, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._records: list[dict[str, Any]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._file: BinaryIO | None = None
        if target == "-":
            self._file = sys.stdout.buffer
        elif target != "off":
            self._file = open(target, "ab")  # noqa: SIM115  closed by close()
        self._writing: asyncio.Future[None] | None = None

    @property
    def enabled(self) -> bool:
        return self._file is not None

    def add(self, record: dict[str, Any]) -> None:
        """Take a record; `enabled` must hold."""
        self._records.append(record)
        if self._timer is None:
            self._timer = self._loop.call_later(FLUSH_SECONDS, self._flush)

    def _flush(self) -> None:
        self._timer = None
        if self._writing is not None and not self._writing.done():
            self._timer = self._loop.call_later(FLUSH_SECONDS, self._flush)  # a slow disk
            return
        records, self._records = self._records, []
        self._writing = self._loop.run_in_executor(None, self._write, records)

    def _write(self, records: list[dict[str, Any]]) -> None:
        assert self._file is not None
        try:
            self._file.write(b"".join(dumps(record) + b"\n" for record in records))
            self._file.flush()
        except OSError as error:  # a full disk must not end the service
            print(f"access log: {error.strerror or error}", file=sys.stderr)

    async def close(self) -> None:
        """Write what is left."""
        if self._timer is not None:
            self._timer.cancel()
        if self._writing is not None:
            await self._writing
        if self._file is not None:
            self._write(self._records)
            self._records = []
            if self._file is not sys.stdout.buffer:
                self._file.close()
