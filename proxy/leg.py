"""One exchange of a request with one engine: its connection, its share of the load."""

from __future__ import annotations

import asyncio

from proxy.balancer import Instance, Lease
from proxy.job import Job
from proxy.upstream import Answer, Cause, Connection, UpstreamError


class Leg:
    """Knows its connection, so that it can be given up well."""

    __slots__ = ("connection", "instance", "lease")

    def __init__(self, instance: Instance, tokens: int) -> None:
        self.instance = instance
        self.connection: Connection | None = None  # None: the engine has seen nothing
        self.lease = Lease(instance, tokens)

    async def run(
        self, request: bytes, *, limit: float, gap: float = 0.0, job: Job | None = None
    ) -> Answer:
        """Send and wait; with `job`, an event stream goes to its client. Raises UpstreamError.

        A connection that was idle and closed by the engine meanwhile is replaced once.
        """
        pool = self.instance.pool
        sink_for = job.sink_for if job is not None else None
        connection = pool.idle() or await pool.connect()
        while True:
            self.connection = connection
            try:
                answer = await connection.send(request, limit=limit, gap=gap, sink_for=sink_for)
            except UpstreamError as error:
                if error.cause is not Cause.RESET or not connection.stale:
                    raise
                # Still counts as seen: if no connection can be made now, it was no idle close.
                try:
                    connection = await pool.connect()
                except UpstreamError:
                    raise error from None
                continue
            pool.give_back(connection)
            return answer

    def rest(self) -> asyncio.Future[Answer]:
        """The answer, after the task that awaited `run()` was cancelled.

        Call it before anything else can run.
        """
        assert self.connection is not None
        return self.connection.rest()

    def end(self) -> None:
        """Close what is open and give the load back."""
        if self.connection is not None:
            self.connection.close()
        self.lease.release()
