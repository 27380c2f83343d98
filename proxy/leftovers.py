"""What requests leave behind at engines: KV that nobody wants any more, and ids still in use.

A prefiller holds KV until a decoder has pulled it, so what a client that left, a decoder
that refused or a deadline leaves there must be freed by asking an engine once more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

from proxy.balancer import Group, Instance
from proxy.config import Config
from proxy.job import Handoff, Job
from proxy.leg import Leg
from proxy.metrics import Metrics
from proxy.rewrite import forget_body, release_body
from proxy.upstream import Answer, Cause, UpstreamError
from proxy.verdict import Judge, LegFailed

# An unwanted stream is left with its decoder until the first event, at most this long.
FIRST_EVENT_SECONDS = 10.0
# For the one token that names a given-up request; its prefiller may be busy.
FORGET_SECONDS = 10.0
# Longer than connectors hold KV that nobody pulls.
LEFT_SECONDS = 600.0


class Leftovers:
    """Frees in the background, and knows the ids that engines may not be given again yet."""

    def __init__(self, config: Config, decoders: Group, metrics: Metrics, judge: Judge) -> None:
        self._config = config
        self._decoders = decoders
        self._metrics = metrics
        self._judge = judge
        self._loop = asyncio.get_running_loop()
        self._background: set[asyncio.Task[None]] = set()
        self._ids: set[str] = set()

    @property
    def under_way(self) -> int:
        """How many requests are still being freed."""
        return len(self._background)

    async def finish(self, seconds: float) -> None:
        """Wait for the freeing, at most `seconds`; then end it."""
        if self._background:
            await asyncio.wait(self._background, timeout=seconds)
        for task in self._background:
            task.cancel()

    # -- ids

    def claim_id(self, job: Job) -> None:
        """An id for the engines that no request under way has; the client's if possible."""
        engine_id = job.request_id
        count = 1
        while engine_id in self._ids:
            count += 1
            engine_id = f"{job.request_id}-{count}"
        self._ids.add(engine_id)
        job.engine_id = engine_id

    def drop_id(self, job: Job) -> None:
        """A request has ended; its id is free, unless something of it is still being freed."""
        if job.owns_id:
            self._ids.discard(job.engine_id)

    # -- what is left

    def left_to_connector(self, job: Job, why: str) -> None:
        """KV that may have been pulled: only the connector knows. Another try gets a new id."""
        self._metrics.kv_left.add(why)
        # The old id stays with the old KV until the connector drops both.
        self._loop.call_later(LEFT_SECONDS, self._ids.discard, job.engine_id)
        self.claim_id(job)

    def release(self, job: Job, handoff: Handoff | None) -> None:
        """KV that certainly nobody has pulled: hand it to some decoder."""
        if handoff is not None:
            job.owns_id = False
            self._spawn(self._hand_over(job, handoff), handoff.request_id)

    def forget(self, job: Job, prefiller: Instance) -> None:
        """A prefill that failed: it may have finished. Another try gets an id of its own."""
        self._spawn(self._ask_to_forget(job, prefiller, job.engine_id), job.engine_id)
        self.claim_id(job)

    def prefill_unwanted(self, job: Job, leg: Leg) -> None:
        """The client is gone: the prefiller must stop, or, if it is done, be freed."""
        if leg.connection is None:
            leg.lease.release()
            return
        job.owns_id = False
        self._spawn(self._end_prefill(job, leg, leg.rest()), job.engine_id)

    def decode_unwanted(self, job: Job, leg: Leg, handoff: Handoff | None) -> None:
        """The client is gone: the decoder must stop, but not before it has taken the KV."""
        connection = leg.connection
        if job.stream is not None:
            job.stream.stop()
        if connection is None:
            leg.lease.release()
            self.release(job, handoff)
        elif handoff is None or (job.stream is not None and job.stream.started):
            leg.end()
        else:
            job.owns_id = False
            self._spawn(self._end_decode(job, leg, leg.rest(), handoff), handoff.request_id)

    # -- in the background

    async def _end_prefill(self, job: Job, leg: Leg, rest: asyncio.Future[Answer]) -> None:
        # Only our half of the connection is closed: the engine sees that and aborts, but
        # an answer that was already on its way is still read, and its KV released.
        assert leg.connection is not None
        leg.connection.half_close()
        try:
            async with asyncio.timeout(self._config.handover_seconds):
                answer = await rest
            if answer.head.status != 200:
                return
            handoff = self._judge.handoff(job, leg.instance, answer)
        except (UpstreamError, TimeoutError):
            # Its end of the connection is closed, so the engine has aborted before this comes.
            leg.end()
            await self._ask_to_forget(job, leg.instance, job.engine_id)
            return
        except LegFailed:
            return
        finally:
            leg.end()
        if handoff is not None:
            await self._hand_over(job, handoff)

    async def _end_decode(
        self, job: Job, leg: Leg, rest: asyncio.Future[Answer], handoff: Handoff
    ) -> None:
        # A decoder frees the prefiller's KV for requests that its scheduler knows, also
        # when they are aborted. A request that is aborted before that is forgotten
        # together with its KV.
        assert leg.connection is not None
        seconds = FIRST_EVENT_SECONDS if job.ask.stream else self._config.handover_seconds
        try:
            await leg.connection.wait_begun(seconds)
            answer = await rest if rest.done() else None
        except UpstreamError:
            self._metrics.kv_left.add("decoder-failed")
            return
        finally:
            rest.cancel()
            leg.end()
        status = 200 if answer is None else answer.head.status
        if 400 <= status < 500 or status == 503:
            await self._hand_over(job, handoff)
        elif status != 200 or (job.stream is not None and job.stream.failed_at_once):
            self._metrics.kv_left.add("decoder-failed")
        else:
            self._metrics.kv_released.add("admitted-then-aborted")

    async def _hand_over(self, job: Job, handoff: Handoff) -> None:
        """Hand the KV to a decoder for one token; waits for one to come back if all are out."""
        body = release_body(job.ask, handoff.params)
        deadline = self._loop.time() + self._config.release_seconds
        tried: set[Instance] = set()
        while True:
            decoder = self._decoders.pick(job.ask.key, tried)
            if decoder is None:
                left = deadline - self._loop.time()
                if left <= 0:
                    self._metrics.kv_left.add("no-decoder")
                    return
                await self._decoders.wait_up(left)
                tried.clear()
                continue
            leg = Leg(decoder, job.ask.prompt_tokens)
            request = job.engine_request(decoder, handoff.request_id, body)
            try:
                answer = await leg.run(request, limit=self._config.first_token_seconds)
            except UpstreamError as error:
                self._judge.broke(decoder, error)
                if error.cause is not Cause.CONNECT:
                    self._metrics.kv_left.add("release-failed")
                    return
            else:
                if answer.head.status == 200:
                    self._metrics.kv_released.add("handed-over")
                    return
                if answer.head.status != 503:
                    self._metrics.kv_left.add("release-failed")
                    return
            finally:
                leg.lease.release()
            tried.add(decoder)

    async def _ask_to_forget(self, job: Job, prefiller: Instance, engine_id: str) -> None:
        """Name a request whose answer never came, in a shortest possible one.

        A prefiller that had just finished when it saw the client's end holds KV that nobody
        knows of. For one that had not, and for connectors that do not know the key, this is
        one token of work.
        """
        request_id = f"{engine_id}-forget"
        leg = Leg(prefiller, 1)
        body = forget_body(job.ask, engine_id)
        try:
            answer = await leg.run(
                job.engine_request(prefiller, request_id, body), limit=FORGET_SECONDS
            )
        except UpstreamError:
            self._metrics.kv_left.add("prefiller-silent")
        else:
            if answer.head.status == 200:
                self._metrics.kv_released.add("named")
        finally:
            leg.end()

    def _spawn(self, cleaning: Coroutine[None, None, None], engine_id: str) -> None:
        task = self._loop.create_task(cleaning)
        self._background.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._background.discard(task)
            self._ids.discard(engine_id)

        task.add_done_callback(done)
