"""One line per request, written in batches by a thread, off the requests' path."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sys
import threading

FLUSH_SECONDS = 0.25
CLOSE_SECONDS = 5.0
# Lines that wait for a slow disk, or for a reader of standard output; more are not kept.
MOST_LINES = 100_000


class AccessLog:
    """Collects lines and writes them soon. `target`: "-" (standard output), "off", or a file.

    Raises OSError when the file cannot be opened.
    """

    def __init__(self, target: str, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lines: list[str] = []
        self._dropped = 0
        self._timer: asyncio.TimerHandle | None = None
        self._batches: queue.Queue[bytes | None] = queue.Queue(maxsize=1)
        self.enabled = target != "off"
        if not self.enabled:
            return
        # Unbuffered: a writer that hangs for ever must hold no lock that the process's end takes.
        file = sys.stdout.fileno() if target == "-" else target
        self._file = open(file, "ab", buffering=0, closefd=target != "-")  # noqa: SIM115
        # Not the loop's executor: the loop's end would wait for a writer that hangs.
        self._writer = threading.Thread(target=self._write_all, name="access-log", daemon=True)
        self._writer.start()

    def add(self, line: str) -> None:
        """Take a line with its newline; `enabled` must hold."""
        if len(self._lines) >= MOST_LINES:
            self._dropped += 1
            return
        self._lines.append(line)
        if self._timer is None:
            self._timer = self._loop.call_later(FLUSH_SECONDS, self._flush)

    def _flush(self) -> None:
        self._timer = None
        if self._batches.full():
            self._timer = self._loop.call_later(FLUSH_SECONDS, self._flush)
            return
        self._batches.put_nowait(self._take())

    def _take(self) -> bytes:
        lines, self._lines = self._lines, []
        if self._dropped:
            print(f"access log: too slow, {self._dropped} lines are missing", file=sys.stderr)
            self._dropped = 0
        return "".join(lines).encode(errors="replace")

    def _write_all(self) -> None:
        while (batch := self._batches.get()) is not None:
            left = memoryview(batch)
            try:
                while left:
                    left = left[self._file.write(left) :]
            except OSError as error:  # a full disk must not end the service
                print(f"access log: {error.strerror or error}", file=sys.stderr)
        self._file.close()

    def close(self) -> None:
        """Write what is left; gives up after a few seconds if nobody takes it."""
        if self._timer is not None:
            self._timer.cancel()
        if self.enabled:
            with contextlib.suppress(queue.Full):
                self._batches.put(self._take(), timeout=CLOSE_SECONDS)
                self._batches.put(None, timeout=CLOSE_SECONDS)
                self._writer.join(CLOSE_SECONDS)
