"""Errors of the connector: every failed transfer carries a cause that metrics can count."""

from __future__ import annotations


class ConnectorConfigError(ValueError):
    """The launch is wrong (rank table, environment, extra config): the engine must not start."""


class TransferError(Exception):
    """A pull, a link or a message to a peer failed.

    `cause` is one word for the metrics (docs/connector.md lists them); the message is for
    people. `transient` says that a fresh link may cure it, so one more attempt is worth it.
    """

    def __init__(self, cause: str, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.cause = cause
        self.transient = transient
