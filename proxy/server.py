"""The proxy as a server: its endpoints, and its life from start to drained end."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

from aiohttp import hdrs
from aiohttp.http_exceptions import HttpProcessingError

from proxy import admin
from proxy.accesslog import AccessLog
from proxy.admission import Admission
from proxy.balancer import POLICIES, Address, Group, Instance, Role
from proxy.breaker import Breaker
from proxy.codec import dumps
from proxy.config import Config
from proxy.downstream import BodyTooLarge, ClientServer, Request
from proxy.errors import ProxyError
from proxy.health import Prober
from proxy.job import Job, request_id_of
from proxy.leg import Leg
from proxy.metrics import Metrics, gauge
from proxy.relay import Written, head_bytes, write_answer
from proxy.rewrite import BadRequest, read
from proxy.service import Service
from proxy.upstream import Pool, UpstreamError, Watch

JSON = b"application/json"
GENERATE = {"/v1/completions": False, "/v1/chat/completions": True}  # path: is it chat
# Asked of one decoder and passed on: they need no KV.
TO_DECODER = {"/v1/models": "GET", "/version": "GET", "/tokenize": "POST", "/detokenize": "POST"}
OWN_FAULT = "the proxy itself failed; its standard error says how"
LOOKUP_SECONDS = 30.0
LOOKUP_HEADERS = ("authorization", "content-type", "traceparent", "x-request-id")

_LOG = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Written]]


class Proxy:
    """One proxy. `start()`, then `stop()`; both in the same event loop."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._watch = Watch(self._loop)
        policy = POLICIES[config.policy]
        self.prefillers = Group(Role.PREFILL, policy)
        self.decoders = Group(Role.DECODE, policy)
        for address in config.prefillers:
            self.add(Role.PREFILL, address)
        for address in config.decoders:
            self.add(Role.DECODE, address)
        self.metrics = Metrics()
        self._service = Service(config, self.prefillers, self.decoders, self.metrics)
        self._admission = Admission(config.max_concurrent, config.max_queue, config.queue_seconds)
        self._prober = Prober(config, (self.prefillers, self.decoders))
        self._admin = admin.Admin(self, config.admin_key)
        self._access_log = AccessLog(config.access_log, self._loop)
        self._clients = ClientServer(self._handle, _refuse, send_seconds=config.send_seconds)
        self.draining = False
        self._lookups: dict[str, Handler] = {
            "/health": self._health,
            "/healthcheck": self._healthcheck,
            "/metrics": self._metrics,
        }

    # -- life

    async def start(self) -> int:
        """Listen and serve; returns the port. Raises OSError."""
        port = await self._clients.start(self._config.host, self._config.port)
        self._watch.start()
        self._prober.start()
        return port

    async def stop(self) -> None:
        """Take no new requests, let those under way end (at most `drain_seconds`), close."""
        self.draining = True
        deadline = self._loop.time() + self._config.drain_seconds
        await self._clients.stop(self._config.drain_seconds)
        # Even when all the time is used up: what was cut just now is still to be freed.
        left = deadline - self._loop.time()
        await self._service.leftovers.finish(max(left, self._config.handover_seconds))
        await self._prober.stop()
        self._watch.stop()
        for instance in self.instances:
            instance.pool.close()
        self._access_log.close()

    def add(self, role: Role, address: Address) -> Instance:
        """Take an instance into service."""
        config = self._config
        pool = Pool(address.host, address.port, self._watch, connect_seconds=config.connect_seconds)
        instance = Instance(role, address, pool, Breaker(config.failures))
        self.group(role).instances.append(instance)
        return instance

    def remove(self, instance: Instance) -> None:
        """Take an instance out of service for good; it should be drained."""
        self.group(instance.role).instances.remove(instance)
        instance.pool.close()

    @property
    def instances(self) -> list[Instance]:
        return self.prefillers.instances + self.decoders.instances

    @property
    def cleaning_up(self) -> int:
        """Requests whose client is gone and whose engines are still being freed."""
        return self._service.leftovers.under_way

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return self._admission.waiting

    def group(self, role: Role) -> Group:
        return self.prefillers if role is Role.PREFILL else self.decoders

    # -- requests

    async def _handle(self, request: Request) -> bool:
        try:
            written = await self._answer(request)
        except ProxyError as error:
            written = _write_error(request, error)
        except Exception:
            _LOG.exception("%s %s", request.method, request.target)
            written = _write_error(request, ProxyError(500, OWN_FAULT))
        return written.keep_alive

    async def _answer(self, request: Request) -> Written:
        path = request.target
        chat = GENERATE.get(path)
        if chat is None:
            path = request.path
            chat = GENERATE.get(path)
        if chat is not None and request.method == hdrs.METH_POST:
            return await self._generate(request, path, chat)
        lookup = self._lookups.get(path)
        if lookup is not None and request.method in (hdrs.METH_GET, hdrs.METH_HEAD):
            return await lookup(request)
        if path.startswith(admin.PATH):
            answer = await self._admin.answer(request, await self._body(request))
            return _write_json(request, 200, answer)
        method = TO_DECODER.get(path)
        if method is not None and request.method in (method, method.replace("GET", "HEAD")):
            return await self._to_decoder(request, method)
        if chat is not None or lookup is not None or method is not None:
            raise ProxyError(405, f"{path} does not take {request.method}")
        raise ProxyError(404, f"the proxy does not serve {path}")

    async def _generate(self, request: Request, path: str, chat: bool) -> Written:
        arrived = perf_counter()
        if self.draining:
            raise ProxyError(503, "the proxy is shutting down", retry_after=5)
        raw = await self._body(request)
        try:
            ask = read(raw, chat=chat)
        except BadRequest as error:
            self.metrics.rejected.add("bad-request")
            raise ProxyError(400, str(error)) from None
        request_id = request_id_of(request, ask.body)
        job = Job(request, path, ask, request_id, self._loop, arrived)
        entered = False
        try:
            await self._admission.enter()
            entered = True
            written = await self._service.serve(job)
            job.status = written.status
            failed = written.status >= 400 or (job.stream is not None and job.stream.failed_at_once)
            job.outcome = job.outcome or ("engine-error" if failed else "ok")
            return written
        except ProxyError as error:
            if not entered:
                self.metrics.rejected.add("queue")
            return self._answer_error(job, error)
        except asyncio.CancelledError:
            job.outcome = f"client-gone-in-{job.phase}"
            job.status = 499
            self.metrics.aborts.add(job.phase)
            raise
        except Exception:
            job.outcome = "proxy-error"
            job.status = 500
            if job.stream is None or not job.stream.started:
                raise
            _LOG.exception("%s", job.request_id)
            return job.stream.break_off(500, OWN_FAULT)
        finally:
            if entered:
                self._admission.leave()
            self._account(job)

    def _answer_error(self, job: Job, error: ProxyError) -> Written:
        job.status = error.status
        job.outcome = job.outcome or "proxy-error"
        return _write_error(job.request, error, job.own_headers())

    def _account(self, job: Job) -> None:
        now = perf_counter()
        metrics = self.metrics
        metrics.requests.add(job.endpoint, job.path, str(job.status))
        metrics.duration.observe(now - job.arrived)
        stream = job.stream
        if stream is not None and stream.started:
            job.first_at = stream.first_at
            job.bytes_sent = stream.bytes_sent
            metrics.first_token.observe(job.first_at - job.arrived)
        if self._access_log.enabled:
            self._access_log.add(job.access_line(now))

    async def _body(self, request: Request) -> bytes:
        try:
            return await request.body(self._config.max_body)
        except BodyTooLarge:
            self.metrics.rejected.add("too-large")
            limit = self._config.max_body
            raise ProxyError(413, f"the body is larger than {limit} bytes") from None
        except TimeoutError:
            self.metrics.rejected.add("slow-body")
            raise ProxyError(408, "the rest of the body did not come in time") from None
        except HttpProcessingError as error:
            self.metrics.rejected.add("bad-request")
            told = " ".join(error.message.split())
            raise ProxyError(400, f"the body does not come as HTTP says: {told}") from None

    async def _to_decoder(self, request: Request, method: str) -> Written:
        body = await self._body(request)
        decoder = self.decoders.pick(b"")
        if decoder is None:
            raise ProxyError(503, "no decoder takes requests", retry_after=2)
        lines = [f"{method} {request.target} HTTP/1.1"]  # of HEAD's answer the body is left out
        lines += [
            f"{name}: {request.headers[name]}" for name in LOOKUP_HEADERS if name in request.headers
        ]
        lines.append(f"content-length: {len(body)}\r\nhost: ")
        head = "\r\n".join(lines).encode("utf-8", "surrogateescape")
        leg = Leg(decoder, 0)
        try:
            answer = await leg.run(
                b"%b%b\r\n\r\n%b" % (head, decoder.host_header, body), limit=LOOKUP_SECONDS
            )
        except UpstreamError as error:
            raise ProxyError(502, f"decoder {decoder.name}: {error}") from None
        except asyncio.CancelledError:
            leg.end()
            raise
        finally:
            leg.lease.release()
        extra = f"x-pd-decode: {decoder.name}\r\n".encode()
        head_ = answer.head
        return write_answer(
            request, head_.status, head_.content_type, head_.passed + extra, answer.body
        )

    # -- the proxy's own answers

    async def _health(self, request: Request) -> Written:
        """200 when a request could be served now."""
        prefillers, decoders = self.prefillers.available, self.decoders.available
        if self.draining:
            status = "draining"
        elif prefillers and decoders:
            status = "ok"
        else:
            status = "no prefiller" if not prefillers else "no decoder"
        body = {"status": status, "prefillers": prefillers, "decoders": decoders}
        return _write_json(request, 200 if status == "ok" else 503, body)

    async def _healthcheck(self, request: Request) -> Written:
        """The guide's: 200 while the proxy runs, with how many instances it was given."""
        body = {
            "status": "ok",
            "prefill_instances": len(self.prefillers.instances),
            "decode_instances": len(self.decoders.instances),
        }
        return _write_json(request, 200, body)

    async def _metrics(self, request: Request) -> Written:
        lines = self.metrics.render()
        lines += gauge(
            "pd_proxy_in_flight", "Requests being served.", (), [((), self._admission.in_service)]
        )
        lines += gauge("pd_proxy_queued", "Requests waiting.", (), [((), self.waiting)])
        lines += gauge(
            "pd_proxy_cleaning_up",
            "Requests whose client is gone and whose engines are still being freed.",
            (),
            [((), self.cleaning_up)],
        )
        instances = self.instances
        labels = ("role", "instance")
        for name, text, value in (
            ("in_flight", "Requests in flight.", lambda i: i.in_flight),
            ("load_tokens", "Tokens of the requests in flight.", lambda i: i.tokens),
            ("up", "1: takes requests; 0: out or draining.", lambda i: int(i.takes_requests)),
        ):
            rows = [((i.role, i.name), value(i)) for i in instances]
            lines += gauge(f"pd_proxy_instance_{name}", text, labels, rows)
        lines += gauge(
            "pd_proxy_instance_requests",
            "Exchanges begun, ever.",
            labels,
            [((i.role, i.name), i.served) for i in instances],
        )
        body = ("\n".join(lines) + "\n").encode()
        return write_answer(request, 200, b"text/plain; version=0.0.4; charset=utf-8", b"", body)


def _write_json(request: Request, status: int, body: Any) -> Written:
    return write_answer(request, status, JSON, b"", dumps(body))


def _write_error(request: Request, error: ProxyError, lines: bytes = b"") -> Written:
    if error.retry_after is not None:
        lines += b"retry-after: %d\r\n" % error.retry_after
    return write_answer(request, error.status, JSON, lines, error.body)


def _refuse(transport: asyncio.Transport, error: ProxyError) -> None:
    head = head_bytes(error.status, JSON, b"connection: close\r\n", len(error.body))
    transport.write(head + error.body)


async def serve(config: Config, ended: asyncio.Event) -> None:
    """Run a proxy until `ended` is set, then drain it."""
    proxy = Proxy(config)
    port = await proxy.start()
    print(f"proxy listens on {config.host}:{port}", file=sys.stderr, flush=True)
    await ended.wait()
    print("proxy drains", file=sys.stderr, flush=True)
    await proxy.stop()
