"""One run shared by several pytest processes (`pytest -n 4`): its owner serves, workers ask.

The controller owns the cluster: it alone locks, reads, brings up, judges the whole, tears
down. A worker of pytest-xdist asks it over a Unix socket for what a test needs; what it gets
is what a later step needs to look for itself: facts, or the word that the service is up. A
worker that dies closes its connection and costs the run nothing.

The socket asks for a key that only workers are given, so what comes over it is trusted (it is
pickled).
"""

from __future__ import annotations

import pickle
import secrets
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Client, Connection, Listener
from typing import Any, Protocol, Self

from pd_validate.checks.result import Report
from pd_validate.errors import LabError
from pd_validate.findings import Finding
from pd_validate.quarantine import Quarantine
from pd_validate.report.allure import Story
from pd_validate.report.record import RequestTiming, Span
from pd_validate.report.redact import Redactor
from pd_validate.session import AttachedSession, Known
from pd_validate.spec.models import Cluster
from pd_validate.spec.plan import AuditLevel
from pd_validate.topology.service import Service
from pd_validate.topology.topology import Topology
from pd_validate.traffic.client import RequestFailed


@dataclass(frozen=True)
class Handle:
    """What a worker is given to find the run."""

    address: str
    key: bytes
    cluster: Cluster
    run_id: str
    audit: AuditLevel
    quarantine: Quarantine
    secrets: Sequence[str]  # what must not show in reports

    def packed(self) -> bytes:
        return pickle.dumps(self)

    @classmethod
    def unpacked(cls, data: bytes) -> Self:
        handle = pickle.loads(data)
        assert isinstance(handle, cls)
        return handle


class Owner(Protocol):
    """What workers ask of the run's owner; `test` is the id of the test that needs it.

    Raises Blocked where something has failed before, and the failure itself for the test
    that met it first. Called from several threads.
    """

    def known(self, test: str) -> Known: ...
    def stage(self, test: str) -> None: ...
    def bring_up(self, test: str) -> None: ...
    def found(self, test: str, findings: Sequence[Finding]) -> None: ...
    def diagnosed(self, error: RequestFailed, test: str) -> list[Finding]: ...
    def looked_below(self, findings: Sequence[Finding], test: str) -> list[Finding]: ...
    def fresh_steps(self) -> list[Span]: ...
    def measured(self, latencies: Sequence[RequestTiming]) -> None: ...
    def collected(self, alone_from: int) -> None: ...


_QUESTIONS = (
    *("known", "stage", "bring_up", "found", "diagnosed", "looked_below", "measured"),
    *("fresh_steps", "collected"),
)


class Desk:
    """Where the owner answers, until `close`."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self.key = secrets.token_bytes(16)
        # In the abstract namespace: nothing in the file system that a killed run would leave.
        self.address = f"\0pd-run-{secrets.token_hex(8)}"
        self._listener = Listener(self.address, family="AF_UNIX", backlog=64, authkey=self.key)
        threading.Thread(target=self._accept, name="desk", daemon=True).start()

    def close(self) -> None:
        """Answer nobody any more. Questions under way get no answer."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()
            except OSError:  # closed; a stranger's attempt is an AuthenticationError
                return
            except Exception:  # whoever cannot say the key is not for us
                continue
            answer = partial(self._answer, connection)
            threading.Thread(target=answer, name="desk-worker", daemon=True).start()

    def _answer(self, connection: Connection) -> None:
        with connection, suppress(EOFError, OSError):  # the worker has ended, however
            while True:
                question, arguments = connection.recv()
                assert question in _QUESTIONS
                try:
                    value = getattr(self._owner, question)(*arguments)
                except Exception as error:
                    connection.send((False, error))
                else:
                    connection.send((True, value))


class WorkersRun:
    """A run as tests see it in a worker: the owner's word, and connections of its own."""

    def __init__(self, handle: Handle) -> None:
        self._lock = threading.Lock()  # a test may have threads
        try:
            self._connection = Client(handle.address, family="AF_UNIX", authkey=handle.key)
        except OSError as error:
            raise LabError(f"the pytest that owns this run is gone: {error}") from error
        self.story = Story(Redactor(handle.secrets))
        self._test = ""  # the one that needs to know now
        self.session = AttachedSession(
            handle.cluster,
            audit=handle.audit,
            run_id=handle.run_id,
            quarantine=handle.quarantine,
            ask=lambda: self._ask("known", self._test),
        )

    def network(self, test: str) -> Report:
        self._test = test
        return self.session.network

    def staged(self, test: str) -> Topology:
        self._ask("stage", test)
        return self.session.staged()

    def topology(self, test: str) -> Topology:
        self._ask("bring_up", test)
        return self.session.topology()

    def running_service(self) -> Service | None:
        return self.session.running_service()

    def diagnosed(self, error: RequestFailed, test: str) -> list[Finding]:
        found: list[Finding] = self._ask("diagnosed", error, test)
        return found

    def looked_below(self, findings: Sequence[Finding], test: str) -> list[Finding]:
        below: list[Finding] = self._ask("looked_below", findings, test)
        return below

    def found(self, test: str, findings: Sequence[Finding]) -> None:
        for finding in findings:
            self.story.finding(finding)
        self._ask("found", test, findings)

    def tell_steps(self) -> None:
        with suppress(LabError):  # whoever asked has been told that the owner is gone
            self.story.tell(self._ask("fresh_steps"))

    def hand_in(self) -> None:
        with suppress(LabError):  # without an owner nobody draws them
            if latencies := self.session.latencies():
                self._ask("measured", latencies)

    def collected(self, alone_from: int) -> None:
        """Say from which test on, in the order of the collection, each needs to be alone."""
        self._ask("collected", alone_from)

    def close(self) -> None:
        """Hang up everywhere; the run goes on."""
        self.session.close()
        self._connection.close()

    def _ask(self, question: str, *arguments: object) -> Any:
        with self._lock:
            try:
                self._connection.send((question, arguments))
                good, value = self._connection.recv()
            except (EOFError, OSError) as error:
                raise LabError("the pytest that owns this run has ended") from error
        if not good:
            raise value
        return value
