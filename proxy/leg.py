"""One exchange of a request with one engine: its connection, its share of the load."""

from __future__ import annotations

import asyncio

from proxy.balancer import Instance, Lease
from proxy.job import Job
from proxy.upstream import Answer, Cause, Connection, UpstreamError


class Leg:
    """Knows its connection and its answer, so that it can be given up well."""

    __slots__ = ("_answer", "connection", "instance", "lease")

    def __init__(self, instance: Instance, tokens: int) -> None:
        self.instance = instance
        self.connection: Connection | None = None  # None: the engine has seen nothing
        self.lease = Lease(instance, tokens)
        self._answer: asyncio.Future[Answer] | None = None

    async def run(
        self, request: bytes, *, limit: float, gap: float = 0.0, job: Job | None = None
    ) -> Answer:
        """Send and wait; with `job`, an event stream goes to its client. Raises UpstreamError.

        A connection that was idle and closed by the engine meanwhile is replaced once.
        """
        pool = self.instance.pool
        sink_for = job.sink_for if job is not None else None
        connection = await pool.connection()
        while True:
            self.connection = connection
            self._answer = connection.send(request, limit=limit, gap=gap, sink_for=sink_for)
            try:
                answer = await self._answer
            except UpstreamError as error:
                if error.cause is not Cause.RESET or not connection.stale:
                    raise
                self.connection = None
                connection = await pool.connection(fresh=True)
                continue
            pool.give_back(connection)
            return answer

    def rest(self) -> asyncio.Future[Answer]:
        """The answer, after the task that awaited `run()` was cancelled.

        It may have come in the same moment. Call it before anything else can run.
        """
        assert self.connection is not None
        if self._answer is not None and self._answer.done() and not self._answer.cancelled():
            return self._answer
        return self.connection.rest()

    @property
    def complete(self) -> bool:
        """The whole answer is there."""
        answer = self._answer
        return (
            answer is not None
            and answer.done()
            and not answer.cancelled()
            and answer.exception() is None
        )

    def end(self) -> None:
        """Close what is open and give the load back."""
        if self.connection is not None:
            self.connection.close()
        self.lease.release()
