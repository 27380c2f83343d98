"""Errors of the harness, by who has to act on them.

A fault of the *product* under test is not an error of ours: it is a `Finding`,
and the test that meets it raises `AssertionError` (Allure: failed). What stands
here is everything else (Allure: broken): a cluster file that cannot be used, a
lab that is sick, a wait that ran out.

Every message answers: what happened, where, what was expected, what was got,
what to do next.
"""

from __future__ import annotations


class PdValidateError(Exception):
    """Base of all errors that the harness raises on purpose; the message is for a person."""


class SpecError(PdValidateError):
    """A cluster or scenario file that cannot be used. Exit code 4, one line, no traceback.

    `str()` of it is ``file:line:column: message`` as far as the position is known
    (lines and columns count from 1).
    """

    def __init__(
        self, message: str, *, file: str = "", line: int | None = None, column: int | None = None
    ) -> None:
        self.message = message
        self.file = file
        self.line = line
        self.column = column
        place = ":".join(str(part) for part in (file, line, column) if part not in ("", None))
        super().__init__(f"{place}: {message}" if place else message)


class LabError(PdValidateError):
    """A host, its account or its tools are not usable: the lab is sick, not the product."""


class HostUnreachable(LabError):
    """No SSH session to a host: refused, timed out, no route. Finding `host.unreachable`."""


class HostSilent(HostUnreachable):
    """The host takes connections and then says nothing. Finding `host.hang`."""


class HostAuthError(LabError):
    """The host answered and refused our key or user. Finding `host.auth`."""


class HostKeyChanged(LabError):
    """The host's key is not the one in known_hosts. Finding `host.key-changed`."""


class CommandTimeout(LabError):
    """A command on a host did not end within its deadline. Finding `host.hang`."""


class WaitTimeout(PdValidateError):
    """A wait ran out. Says what was awaited, for how long, and the last lines that matter."""


class ClusterLocked(LabError):
    """Another run holds `host`; the message names its owner, run id and age."""

    def __init__(self, message: str, host: str) -> None:
        self.host = host
        super().__init__(message, host)

    def __str__(self) -> str:
        return str(self.args[0])


class Blocked(PdValidateError):
    """What a test needs has failed before, for another test; the message names what."""
