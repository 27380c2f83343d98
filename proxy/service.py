"""Prefill, then decode: the course of one request, and what follows when a leg fails.

What is tried again, and what becomes of prefilled KV (docs/proxy.md has the table):
a decoder that cannot have seen the request, or refused it, leaves the KV untouched at
the prefiller, so another decoder may take it, and if none does it is released. After
any other failure it is unknown whether the KV was pulled; it can be pulled only once,
so a new prefill under a new id is made and the old KV is left to the connector.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from time import perf_counter

from proxy.balancer import Group, Instance
from proxy.breaker import State
from proxy.codec import loads
from proxy.config import Config
from proxy.errors import ProxyError
from proxy.job import Handoff, Job
from proxy.leg import Leg
from proxy.metrics import Metrics
from proxy.relay import ClientStream, Written, write_answer
from proxy.rewrite import (
    alone_body,
    cached_tokens,
    decode_body,
    forget_body,
    prefill_body,
    release_body,
    with_cached_tokens,
)
from proxy.upstream import Answer, Cause, UpstreamError

# An unwanted stream is left with its decoder until the first event, at most this long.
FIRST_EVENT_SECONDS = 10.0
# For the one token that names a given-up request; its prefiller may be busy.
FORGET_SECONDS = 10.0
# Longer than connectors hold KV that nobody pulls.
LEFT_SECONDS = 600.0


class LegFailed(Exception):
    """A leg gave no usable answer, and the client has not seen a byte.

    `result` is what the client gets if nothing else helps: the engine's own answer, or
    ours. `again`: another instance may be tried. `untouched`: the KV was certainly not
    pulled.
    """

    def __init__(
        self, result: Answer | ProxyError | ClientStream, *, again: bool, untouched: bool = False
    ) -> None:
        super().__init__()
        self.result = result
        self.again = again
        self.untouched = untouched


class Refused(Exception):
    """An engine's answer 4xx: the client's to mend, given to it unchanged."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer


class Service:
    """Serves requests with two groups of instances."""

    def __init__(
        self, config: Config, prefillers: Group, decoders: Group, metrics: Metrics
    ) -> None:
        self._config = config
        self._prefillers = prefillers
        self._decoders = decoders
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._background: set[asyncio.Task[None]] = set()
        self._ids: set[str] = set()  # engine ids in use: an engine must not get one twice

    @property
    def cleaning_up(self) -> int:
        """Requests whose client is gone and whose engines are still being freed."""
        return len(self._background)

    async def finish(self, seconds: float) -> None:
        """Wait for the cleaning up, at most `seconds`; then end it."""
        if self._background:
            await asyncio.wait(self._background, timeout=seconds)
        for task in self._background:
            task.cancel()

    async def serve(self, job: Job) -> Written:
        """Answer a request. Raises ProxyError for answers of our own."""
        self._claim_id(job)
        try:
            return await self._serve(job)
        except Refused as refused:
            return self._give(job, refused.answer)
        except LegFailed as failed:
            return self._give(job, failed.result)
        finally:
            if job.owns_id:
                self._ids.discard(job.engine_id)

    def _claim_id(self, job: Job) -> None:
        """An id for the engines that no request under way has; the client's if possible."""
        engine_id = job.request_id
        count = 1
        while engine_id in self._ids:
            count += 1
            engine_id = f"{job.request_id}-{count}"
        self._ids.add(engine_id)
        job.engine_id = engine_id

    async def _serve(self, job: Job) -> Written:
        handoff: Handoff | None = None
        failure: LegFailed | None = None
        tried: set[Instance] = set()
        broken = 0
        while job.attempts < self._config.attempts and self._decoders.can_serve(tried):
            if handoff is None and not job.alone:
                handoff = await self._prefill(job)
            decoder = self._decoders.pick(job.ask.key, tried)
            if decoder is None:
                break
            job.attempts += 1
            if job.attempts > 1:
                self._metrics.retries.add("decode")
            try:
                return await self._decode(job, decoder, handoff)
            except Refused:
                self._release_soon(job, handoff)
                raise
            except LegFailed as failed:
                failure = failed
                tried.add(decoder)
                if not failed.untouched:
                    broken += 1
                    if handoff is not None:
                        self._metrics.kv_left.add("decoder-failed")
                        handoff = None
                        handoff_id = job.engine_id
                        # The old id stays with the old KV until the connector drops both.
                        self._loop.call_later(LEFT_SECONDS, self._ids.discard, handoff_id)
                        self._claim_id(job)
                # A request that broke two engines is not sent to a third.
                if not failed.again or broken > 1:
                    break
        self._release_soon(job, handoff)
        if failure is not None:
            raise failure
        raise self._nobody(self._decoders)

    # -- prefill

    async def _prefill(self, job: Job) -> Handoff | None:
        """The prefiller's KV; None when it has none to hand over (then `job.alone` says so)."""
        job.phase = "prefill"
        body = prefill_body(job.ask)
        tried: set[Instance] = set()
        failure: LegFailed | None = None
        while len(tried) < self._config.attempts:
            prefiller = self._prefillers.pick(job.ask.key, tried)
            if prefiller is None:
                break
            if tried:
                self._metrics.retries.add("prefill")
            try:
                return await self._prefill_on(job, prefiller, body)
            except LegFailed as failed:
                failure = failed
                tried.add(prefiller)
                if not failed.again:
                    break
        raise failure or self._nobody(self._prefillers)

    async def _prefill_on(self, job: Job, prefiller: Instance, body: bytes) -> Handoff | None:
        job.prefiller = prefiller
        started = perf_counter()
        leg = Leg(prefiller, job.ask.prompt_tokens)
        request = job.engine_request(prefiller, job.engine_id, body)
        try:
            answer = await leg.run(request, limit=self._config.prefill_seconds)
        except asyncio.CancelledError:
            self._prefill_unwanted(job, leg)
            raise
        except UpstreamError as error:
            leg.lease.release()
            if error.cause is not Cause.CONNECT:
                self._forget_soon(job, prefiller)
            raise self._broke(prefiller, error) from None
        leg.lease.release()
        job.prefill_seconds = perf_counter() - started
        self._metrics.prefill.observe(job.prefill_seconds)
        self._judge(prefiller, answer)
        try:
            return self._handoff(job, prefiller, answer)
        except LegFailed:
            self._forget_soon(job, prefiller)
            raise

    def _handoff(self, job: Job, prefiller: Instance, answer: Answer) -> Handoff | None:
        try:
            told = loads(answer.body)
            params = told.get("kv_transfer_params")
        except (ValueError, AttributeError):
            error = UpstreamError(Cause.PROTOCOL, "answered 200 with a body that is not JSON")
            raise self._broke(prefiller, error) from None
        if not isinstance(params, dict):
            # Not a fault: connectors hand nothing over when there is nothing worth it.
            job.alone = "no-handover"
            return None
        return Handoff(prefiller, job.engine_id, params, cached_tokens(told))

    def _prefill_unwanted(self, job: Job, leg: Leg) -> None:
        """The client is gone: the prefiller must stop, or, if it is done, be freed."""
        if leg.connection is None:
            leg.lease.release()
            return
        job.owns_id = False
        self._spawn(self._end_prefill(job, leg, leg.rest()), job.engine_id)

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
            handoff = self._handoff(job, leg.instance, answer)
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
            await self._release(job, handoff)

    # -- decode

    async def _decode(self, job: Job, decoder: Instance, handoff: Handoff | None) -> Written:
        config = self._config
        ask = job.ask
        job.phase = "decode"
        job.decoder = decoder
        job.stream = None
        job.cached_tokens = None if handoff is None else handoff.cached_tokens
        body = alone_body(ask) if handoff is None else decode_body(ask, handoff.params)
        request = job.engine_request(decoder, job.engine_id, body)
        limit = config.first_token_seconds if ask.stream else config.answer_seconds
        leg = Leg(decoder, ask.prompt_tokens + ask.output_tokens)
        try:
            answer = await leg.run(request, limit=limit, gap=config.gap_seconds, job=job)
        except asyncio.CancelledError:
            self._decode_unwanted(job, leg, handoff)
            raise
        except UpstreamError as error:
            leg.lease.release()
            return self._decode_broke(job, decoder, error)
        leg.lease.release()
        if job.stream is not None:
            return self._stream_ended(job, decoder, job.stream, handoff)
        self._judge(decoder, answer)
        if not _is_json_object(answer.body):
            no_json = UpstreamError(Cause.PROTOCOL, "answered 200 with a body that is not JSON")
            raise self._broke(decoder, no_json)
        if handoff is not None:
            self._metrics.kv_taken.add()
            answer.body = with_cached_tokens(answer.body, handoff.cached_tokens)
        return self._give(job, answer)

    def _decode_broke(self, job: Job, decoder: Instance, error: UpstreamError) -> Written:
        failure = self._broke(decoder, error)
        stream = job.stream
        if stream is None or not stream.started:
            raise failure
        return self._break_off(job, decoder, stream, str(error))

    def _break_off(self, job: Job, decoder: Instance, stream: ClientStream, what: str) -> Written:
        self._metrics.broken_streams.add(decoder.name)
        job.outcome = "broken-stream"
        message = f"decoder {decoder.name} {what}; the text is not complete, ask again"
        return stream.break_off(502, message)

    def _stream_ended(
        self, job: Job, decoder: Instance, stream: ClientStream, handoff: Handoff | None
    ) -> Written:
        if stream.failed_at_once:
            decoder.breaker.failed(self._loop.time(), "streams that begin with an error")
            self._metrics.failures.add("decode", decoder.name, "error-event")
            raise LegFailed(stream, again=True)
        if not stream.started:
            error = UpstreamError(Cause.PROTOCOL, "answered 200 with an empty stream")
            raise self._broke(decoder, error)
        if handoff is not None:
            self._metrics.kv_taken.add()
        if not stream.ended_with_done:
            error = UpstreamError(Cause.PROTOCOL, "ended its stream without [DONE]")
            self._broke(decoder, error)
            return self._break_off(job, decoder, stream, str(error))
        decoder.breaker.succeeded()
        return stream.finish()

    def _decode_unwanted(self, job: Job, leg: Leg, handoff: Handoff | None) -> None:
        """The client is gone: the decoder must stop, but not before it has taken the KV."""
        connection = leg.connection
        if job.stream is not None:
            job.stream.stop()
        if connection is None:
            leg.lease.release()
            self._release_soon(job, handoff)
        elif handoff is None or (job.stream is not None and job.stream.started):
            leg.end()
        else:
            job.owns_id = False
            self._spawn(self._end_decode(job, leg, leg.rest(), handoff), handoff.request_id)

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
            await self._release(job, handoff)
        elif status != 200 or (job.stream is not None and job.stream.failed_at_once):
            self._metrics.kv_left.add("decoder-failed")
        else:
            self._metrics.kv_released.add("admitted-then-aborted")

    # -- KV that nobody wants any more

    def _release_soon(self, job: Job, handoff: Handoff | None) -> None:
        if handoff is not None:
            job.owns_id = False
            self._spawn(self._release(job, handoff), handoff.request_id)

    async def _release(self, job: Job, handoff: Handoff) -> None:
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
                self._broke(decoder, error)
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

    def _forget_soon(self, job: Job, prefiller: Instance) -> None:
        """It may have finished just when it was given up; another try gets an id of its own."""
        self._spawn(self._ask_to_forget(job, prefiller, job.engine_id), job.engine_id)
        self._claim_id(job)

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

    # -- judging engines

    def _judge(self, instance: Instance, answer: Answer) -> None:
        """Pass a 200; raise Refused for what the client must mend, LegFailed for the rest."""
        status = answer.head.status
        if status < 500:
            if instance.breaker.state is not State.UP:
                print(f"{instance.role.noun} {instance.name} serves again", file=sys.stderr)
            instance.breaker.succeeded()
            if status == 200:
                return
            raise Refused(answer)
        self._count_failure(instance, f"status-{status}", f"answered {status}", refused=False)
        raise LegFailed(answer, again=True, untouched=status == 503)

    def _broke(self, instance: Instance, error: UpstreamError) -> LegFailed:
        """Account for an exchange without a whole answer; what the client gets for it."""
        where = f"{instance.role.noun} {instance.name}"
        if error.cause is Cause.TIMEOUT:
            self._metrics.failures.add(instance.role, instance.name, error.cause)
            message = f"{where} gave {error}; it may be overloaded"
            return LegFailed(ProxyError(504, message), again=False)
        self._count_failure(instance, error.cause, str(error), refused=error.refused)
        unseen = error.cause is Cause.CONNECT
        return LegFailed(ProxyError(502, f"{where}: {error}"), again=True, untouched=unseen)

    def _count_failure(self, instance: Instance, cause: str, what: str, *, refused: bool) -> None:
        self._metrics.failures.add(instance.role, instance.name, cause)
        before = instance.breaker.state
        instance.breaker.failed(self._loop.time(), what, refused=refused)
        if instance.breaker.state is State.OUT and before is not State.OUT:
            print(f"{instance.role.noun} {instance.name} is taken out: {what}", file=sys.stderr)

    def _nobody(self, group: Group) -> LegFailed:
        """No instance of a role takes requests: say which there are and why."""
        reasons = ", ".join(f"{i.name}: {_why_not(i)}" for i in group.instances)
        message = f"no {group.role.noun} takes requests ({reasons or 'none configured'})"
        return LegFailed(ProxyError(503, message, retry_after=2), again=False)

    def _give(self, job: Job, result: Answer | ProxyError | ClientStream) -> Written:
        if isinstance(result, ProxyError):
            raise result
        if isinstance(result, ClientStream):
            return result.deliver_failure()
        head = result.head
        lines = head.passed + job.own_headers()
        job.bytes_sent = len(result.body)
        return write_answer(job.request, head.status, head.content_type, lines, result.body)


def _why_not(instance: Instance) -> str:
    if instance.draining:
        return "draining"
    return instance.breaker.reason or "failed for this request"


def _is_json_object(body: bytes) -> bool:
    try:
        return isinstance(loads(body), dict)
    except ValueError:
        return False
