"""What an exchange says of an engine, and what its client gets for it."""

from __future__ import annotations

import asyncio
import sys

from proxy.balancer import Group, Instance
from proxy.breaker import State
from proxy.codec import loads
from proxy.errors import ProxyError
from proxy.job import Handoff, Job
from proxy.metrics import Metrics
from proxy.relay import ClientStream
from proxy.rewrite import cached_tokens
from proxy.upstream import Answer, Cause, UpstreamError


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


class Judge:
    """Keeps the accounts of engines' failures, and takes failing engines out."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()

    def answered(self, instance: Instance, answer: Answer) -> None:
        """Pass a 200; raise Refused for what the client must mend, LegFailed for the rest."""
        status = answer.head.status
        if status < 500:
            if instance.breaker.state is not State.UP:
                print(f"{instance.role.noun} {instance.name} serves again", file=sys.stderr)
            instance.breaker.succeeded()
            if status == 200:
                return
            raise Refused(answer)
        self._failed(instance, f"status-{status}", f"answered {status}", refused=False)
        raise LegFailed(answer, again=True, untouched=status == 503)

    def broke(self, instance: Instance, error: UpstreamError) -> LegFailed:
        """Account for an exchange without a whole answer; what the client gets for it."""
        where = f"{instance.role.noun} {instance.name}"
        if error.cause is Cause.TIMEOUT:
            self._metrics.failures.add(instance.role, instance.name, error.cause)
            message = f"{where} gave {error}; it may be overloaded"
            return LegFailed(ProxyError(504, message), again=False)
        self._failed(instance, error.cause, str(error), refused=error.refused)
        unseen = error.cause is Cause.CONNECT
        return LegFailed(ProxyError(502, f"{where}: {error}"), again=True, untouched=unseen)

    def began_with_an_error(self, decoder: Instance, stream: ClientStream) -> LegFailed:
        """A stream whose first event says that the engine failed."""
        self._failed(decoder, "error-event", "streams that begin with an error", refused=False)
        return LegFailed(stream, again=True)

    def handoff(self, job: Job, prefiller: Instance, answer: Answer) -> Handoff | None:
        """The KV in a prefiller's answer; None when there is none (`job.alone` says so)."""
        try:
            told = loads(answer.body)
            params = told.get("kv_transfer_params")
        except (ValueError, AttributeError):
            error = UpstreamError(Cause.PROTOCOL, "answered 200 with a body that is not JSON")
            raise self.broke(prefiller, error) from None
        if not isinstance(params, dict):
            # Not a fault: connectors hand nothing over when there is nothing worth it.
            job.alone = "no-handover"
            return None
        return Handoff(prefiller, job.engine_id, params, cached_tokens(told))

    def _failed(self, instance: Instance, cause: str, what: str, *, refused: bool) -> None:
        self._metrics.failures.add(instance.role, instance.name, cause)
        before = instance.breaker.state
        instance.breaker.failed(self._loop.time(), what, refused=refused)
        if instance.breaker.state is State.OUT and before is not State.OUT:
            print(f"{instance.role.noun} {instance.name} is taken out: {what}", file=sys.stderr)


def nobody_serves(group: Group) -> LegFailed:
    """No instance of a role takes requests: say which there are and why."""
    reasons = ", ".join(f"{i.name}: {_why_not(i)}" for i in group.instances)
    message = f"no {group.role.noun} takes requests ({reasons or 'none configured'})"
    return LegFailed(ProxyError(503, message, retry_after=2), again=False)


def _why_not(instance: Instance) -> str:
    if instance.draining:
        return "draining"
    return instance.breaker.reason or "failed for this request"
