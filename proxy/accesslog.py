"""One line per request, written in batches by a thread, off the requests' path."""

from __future__ import annotations

import asyncio
import sys
from typing import BinaryIO

FLUSH_SECONDS = 0.25


class AccessLog:
    """Collects lines and writes them soon. `target`: "-" (standard output), "off", or a file.

    Raises OSError when the file cannot be opened.
    """

    def __init__(self, target: str, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lines: list[str] = []
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

    def add(self, line: str) -> None:
        """Take a line with its newline; `enabled` must hold."""
        self._lines.append(line)
        if self._timer is None:
            self._timer = self._loop.call_later(FLUSH_SECONDS, self._flush)

    def _flush(self) -> None:
        self._timer = None
        if self._writing is not None and not self._writing.done():
            self._timer = self._loop.call_later(FLUSH_SECONDS, self._flush)  # a slow disk
            return
        # Only the writing is the thread's: Python code there would hold the requests up.
        self._writing = self._loop.run_in_executor(None, self._write, self._take())

    def _take(self) -> bytes:
        lines, self._lines = self._lines, []
        return "".join(lines).encode(errors="replace")

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        try:
            self._file.write(data)
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
            self._write(self._take())
            if self._file is not sys.stdout.buffer:
                self._file.close()
