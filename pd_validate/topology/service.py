"""The running service as tests see it: one client per instance, one for the proxy.

Also drives disaggregation by hand (`disaggregate`), as the proxy does: to choose the
prefiller and the decoder of a request, and to tell the proxy's faults from the engines'.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from pd_validate.findings import Where
from pd_validate.spec.models import Cluster, Role
from pd_validate.spec.plan import LaunchPlan
from pd_validate.traffic.client import Answer, Client
from pd_validate.traffic.metrics import EngineMetrics, kv_usage, parse_engine_metrics

_PREFILL_REQUEST: Mapping[str, Any] = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
    "aborted_request": [],
}


class Service:
    """Clients for a topology that is up. Closing it closes connections, nothing else."""

    def __init__(self, cluster: Cluster, plan: LaunchPlan) -> None:
        model, timeout = cluster.model.served_name, cluster.timeouts.request
        self.cluster = cluster
        self.instances = {
            name: Client(launch.url, model, timeout=timeout, name=name)
            for name, launch in plan.instances.items()
        }
        # Answers that came through the proxy as streams: what latency is measured from.
        self.streamed: list[Answer] = []
        self.proxy = Client(
            plan.proxy.url,
            model,
            timeout=timeout,
            name=plan.proxy.name,
            observe=self.streamed.append,
        )

    def close(self) -> None:
        for client in (*self.instances.values(), self.proxy):
            client.close()

    @property
    def prefillers(self) -> tuple[str, ...]:
        return tuple(self.cluster.instances_of(Role.PREFILL))

    @property
    def decoders(self) -> tuple[str, ...]:
        return tuple(self.cluster.instances_of(Role.DECODE))

    def host_of(self, instance: str) -> str:
        return self.cluster.instances[instance].host

    def where(self, server: str, peer: str | None = None, *, request: str | None = None) -> Where:
        """The place of an instance or of the proxy; `peer`: the other end of its KV link."""
        hosts = {name: spec.host for name, spec in self.cluster.instances.items()}
        hosts[self.proxy.name] = self.cluster.proxy.host
        return Where(
            host=hosts.get(server),
            instance=server,
            request=request,
            peer_instance=peer,
            peer_host=hosts[peer] if peer is not None else None,
        )

    def metrics(self, instance: str) -> EngineMetrics:
        """A fresh reading of the instance's /metrics. Raises RequestFailed."""
        return parse_engine_metrics(self.instances[instance].metrics())

    def kv_usage(self, instance: str) -> float:
        """Share of the instance's KV blocks in use, 0..1. Raises RequestFailed."""
        return kv_usage(self.instances[instance].metrics())

    def block_size(self) -> int:
        """Tokens per KV block, as the first prefiller says; 128 where it does not."""
        return self.metrics(self.prefillers[0]).block_size or 128

    def disaggregate(
        self,
        prefiller: str,
        decoder: str,
        prompt: str | list[int],
        *,
        request_id: str | None = None,
        **options: Any,
    ) -> Answer:
        """Prefill on one instance, decode on another: the proxy's two calls, made by us.

        Returns the prefiller's answer if that is not 200 (nothing was decoded then).
        Raises RequestFailed.
        """
        request_id = request_id or f"pd-{uuid.uuid4().hex[:12]}"
        prefill_options = {**options, "max_tokens": 1, "stream": False}
        prefill_options.pop("min_tokens", None)
        prefilled = self.instances[prefiller].complete(
            prompt,
            request_id=request_id,
            kv_transfer_params=dict(_PREFILL_REQUEST),
            **prefill_options,
        )
        if not prefilled.ok:
            return prefilled
        return self.instances[decoder].complete(
            prompt,
            request_id=request_id,
            kv_transfer_params=prefilled.kv_transfer_params,
            **options,
        )
