"""What a reading is: a typed value with the command and output it came from, or why there is none.

The vendor's tools use their exit codes twice and three times over, so the text
decides. A state that a tool states clearly ("no gateway was preset") is a value;
only an answer that does not tell the state has no value and a `Reason` instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

T = TypeVar("T")
U = TypeVar("U")


class Reason(StrEnum):
    """Why a reading has no value."""

    BUSY = "busy"  # the device or tool served somebody else, through all retries
    PERMISSION = "permission"
    UNSUPPORTED = "not supported"  # by this product or by this version of the tool
    REFUSED = "refused"  # the tool did not accept our arguments
    NO_DEVICE = "no such device"
    NOT_READY = "not ready"  # the device's own system is not up
    TIMEOUT = "timeout"
    LINK_DOWN = "link down"
    MISSING = "missing"  # no such command or file on the host
    HELD = "held"  # another container holds the device
    DRIVER = "driver"  # the driver does not answer
    FAILED = "failed"  # the tool says that it failed, and not why
    UNPARSABLE = "unparsable"
    NOT_READ = "not read"  # left out on purpose; the detail says why


@dataclass(frozen=True)
class Output:
    """One command as it ran on a host.

    `exit_code` is None if it never ended (`timed_out`) or was never run. `seconds` is
    the last attempt's; `attempts` counts those before it that met a busy device, too.
    """

    command: str
    stdout: str = ""
    stderr: str = ""
    exit_code: int | None = None
    seconds: float = 0.0
    attempts: int = 1
    timed_out: bool = False
    skipped: str = ""  # why it was not run

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Output:
        """From the collector's document; see `collector.run`."""
        return cls(
            command=data["command"],
            stdout=data.get("stdout", ""),
            stderr=data.get("stderr", ""),
            exit_code=data.get("exit"),
            seconds=data.get("seconds", 0.0),
            attempts=data.get("attempts", 1),
            timed_out=data.get("timed_out", False),
            skipped=data.get("skipped", ""),
        )

    @property
    def text(self) -> str:
        """Both streams: the tools put the deciding line on either."""
        if self.stdout and not self.stdout.endswith("\n"):
            return f"{self.stdout}\n{self.stderr}"
        return self.stdout + self.stderr

    @property
    def evidence(self) -> str:
        """Command, exit code and answer, as shown in a finding."""
        if self.skipped:
            return f"$ {self.command}\n(not run: {self.skipped})"
        state = "timed out" if self.timed_out else f"exit {self.exit_code}"
        return f"$ {self.command}\n{self.text.strip() or '(no output)'}\n[{state}]"


@dataclass(frozen=True)
class Reading(Generic[T]):
    """A value, or the reason why there is none. `value` is None exactly if `reason` is set."""

    value: T | None
    output: Output
    reason: Reason | None = None
    detail: str = ""  # the line that told the reason

    @property
    def ok(self) -> bool:
        return self.reason is None

    def map(self, function: Callable[[T], U]) -> Reading[U]:
        """The same reading with another view of its value; a missing value stays missing."""
        value = None if self.value is None else function(self.value)
        return Reading(value, self.output, self.reason, self.detail)


def measured(value: T, output: Output) -> Reading[T]:
    return Reading(value, output)


def failed(reason: Reason, output: Output, detail: str = "") -> Reading[Any]:
    return Reading(None, output, reason, (detail or first_line(output.text)).rstrip("."))


def not_read(command: str, why: str) -> Reading[Any]:
    """A command that was left out on purpose."""
    return Reading(None, Output(command, skipped=why), Reason.NOT_READ, why)


def first_line(text: str) -> str:
    """The first line that is not blank, without surrounding space."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def refusal(output: Output, table: Iterable[tuple[str, Reason]]) -> Reading[Any] | None:
    """The reason why `output` is no answer, by the first text of `table` that occurs in it.

    What happened to the command itself (left out, timed out, not found) comes before
    anything that it printed.
    """
    if output.skipped:
        return failed(Reason.NOT_READ, output, output.skipped)
    if output.timed_out:
        return failed(Reason.TIMEOUT, output, f"no answer within {output.seconds:.0f} s")
    said = output.text
    for text, reason in (*_SHELL, *table):
        if text in said:
            line = next(line for line in said.splitlines() if text in line)
            return failed(reason, output, line.strip())
    return None


# What the shell, sudo and the loader say instead of the tool.
_SHELL: tuple[tuple[str, Reason], ...] = (
    ("error while loading shared libraries", Reason.DRIVER),  # ends in "No such file …", too
    ("command not found", Reason.MISSING),
    ("Exec format error", Reason.MISSING),
    ("No such file or directory", Reason.MISSING),
    (": not found", Reason.MISSING),
    ("a password is required", Reason.PERMISSION),
    ("a terminal is required", Reason.PERMISSION),
    ("Permission denied", Reason.PERMISSION),
)
