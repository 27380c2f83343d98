"""Prefill, then decode: the course of one request, and what follows when a leg fails.

What is tried again, and what becomes of prefilled KV (docs/proxy.md has the table):
a decoder that cannot have seen the request, or refused it, leaves the KV untouched at
the prefiller, so another decoder may take it, and if none does it is released. After
any other failure it is unknown whether the KV was pulled; it can be pulled only once,
so a new prefill under a new id is made and the old KV is left to the connector.
"""

from __future__ import annotations

import asyncio
from time import perf_counter

from proxy.balancer import Group, Instance
from proxy.codec import loads
from proxy.config import Config
from proxy.errors import ProxyError
from proxy.job import Handoff, Job
from proxy.leftovers import Leftovers
from proxy.leg import Leg
from proxy.metrics import Metrics
from proxy.relay import ClientStream, Written, write_answer
from proxy.rewrite import alone_body, decode_body, prefill_body, with_cached_tokens
from proxy.upstream import Answer, Cause, UpstreamError
from proxy.verdict import Judge, LegFailed, Refused, nobody_serves


class Service:
    """Serves requests with two groups of instances."""

    def __init__(
        self, config: Config, prefillers: Group, decoders: Group, metrics: Metrics
    ) -> None:
        self._config = config
        self._prefillers = prefillers
        self._decoders = decoders
        self._metrics = metrics
        self._judge = Judge(metrics)
        self.leftovers = Leftovers(config, decoders, metrics, self._judge)

    async def serve(self, job: Job) -> Written:
        """Answer a request. Raises ProxyError for answers of our own."""
        self.leftovers.claim_id(job)
        try:
            return await self._serve(job)
        except Refused as refused:
            return self._give(job, refused.answer)
        except LegFailed as failed:
            return self._give(job, failed.result)
        finally:
            self.leftovers.drop_id(job)

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
                self.leftovers.release(job, handoff)
                raise
            except LegFailed as failed:
                failure = failed
                tried.add(decoder)
                if not failed.untouched:
                    broken += 1
                    if handoff is not None:
                        handoff = None
                        self.leftovers.left_to_connector(job, "decoder-failed")
                # A request that broke two engines is not sent to a third.
                if not failed.again or broken > 1:
                    break
        self.leftovers.release(job, handoff)
        if failure is not None:
            raise failure
        raise nobody_serves(self._decoders)

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
        raise failure or nobody_serves(self._prefillers)

    async def _prefill_on(self, job: Job, prefiller: Instance, body: bytes) -> Handoff | None:
        job.prefiller = prefiller
        started = perf_counter()
        leg = Leg(prefiller, job.ask.prompt_tokens)
        request = job.engine_request(prefiller, job.engine_id, body)
        try:
            answer = await leg.run(request, limit=self._config.prefill_seconds)
        except asyncio.CancelledError:
            self.leftovers.prefill_unwanted(job, leg)
            raise
        except UpstreamError as error:
            leg.lease.release()
            if error.cause is not Cause.CONNECT:
                self.leftovers.forget(job, prefiller)
            raise self._judge.broke(prefiller, error) from None
        leg.lease.release()
        job.prefill_seconds = perf_counter() - started
        self._metrics.prefill.observe(job.prefill_seconds)
        self._judge.answered(prefiller, answer)
        try:
            return self._judge.handoff(job, prefiller, answer)
        except LegFailed:
            self.leftovers.forget(job, prefiller)
            raise

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
            self.leftovers.decode_unwanted(job, leg, handoff)
            raise
        except UpstreamError as error:
            leg.lease.release()
            return self._decode_broke(job, decoder, error)
        leg.lease.release()
        if job.stream is not None:
            return self._stream_ended(job, decoder, job.stream, handoff)
        self._judge.answered(decoder, answer)
        if not _is_json_object(answer.body):
            no_json = UpstreamError(Cause.PROTOCOL, "answered 200 with a body that is not JSON")
            raise self._judge.broke(decoder, no_json)
        if handoff is not None:
            self._metrics.kv_taken.add()
            answer.body = with_cached_tokens(answer.body, handoff.cached_tokens)
        return self._give(job, answer)

    def _decode_broke(self, job: Job, decoder: Instance, error: UpstreamError) -> Written:
        failure = self._judge.broke(decoder, error)
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
            raise self._judge.began_with_an_error(decoder, stream)
        if not stream.started:
            error = UpstreamError(Cause.PROTOCOL, "answered 200 with an empty stream")
            raise self._judge.broke(decoder, error)
        if handoff is not None:
            self._metrics.kv_taken.add()
        if not stream.ended_with_done:
            error = UpstreamError(Cause.PROTOCOL, "ended its stream without [DONE]")
            self._judge.broke(decoder, error)
            return self._break_off(job, decoder, stream, str(error))
        decoder.breaker.succeeded()
        return stream.finish()

    def _give(self, job: Job, result: Answer | ProxyError | ClientStream) -> Written:
        if isinstance(result, ProxyError):
            raise result
        if isinstance(result, ClientStream):
            return result.deliver_failure()
        head = result.head
        lines = head.passed + job.own_headers()
        job.bytes_sent = len(result.body)
        return write_answer(job.request, head.status, head.content_type, lines, result.body)


def _is_json_object(body: bytes) -> bool:
    try:
        return isinstance(loads(body), dict)
    except ValueError:
        return False
