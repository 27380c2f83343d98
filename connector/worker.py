"""The worker's half: one per TP rank. Registers the KV cache, holds blocks, pulls blocks."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import zmq

from connector import caches, tp
from connector.caches import KVCache, mismatch
from connector.channel import Listener
from connector.config import Environment, Settings, base_port
from connector.datadist import DataDist
from connector.errors import TransferError
from connector.holds import Holds
from connector.links import PrefillLinks
from connector.metrics import Metrics
from connector.peers import Load, Peer
from connector.protocol import (
    PROTOCOL,
    Begin,
    BeginReply,
    BeginStatus,
    Finished,
    Hello,
    HelloReply,
    Message,
    Release,
)
from connector.ranktable import Agent, local_agent, read_agents
from connector.steps import LoadPlan, Remote, Results, Step

logger = logging.getLogger(f"vllm.{__name__}")  # vLLM configures loggers below its own

IDLE_WAIT = 0.005  # seconds; an engine that only waits for transfers steps without a pause
REPORT_HOLDS = 1.0  # seconds


@dataclass(frozen=True)
class Identity:
    """Who this worker is, taken from vLLM's configuration and process groups."""

    role: Literal["prefill", "decode"]
    instance: str
    server_id: str
    tp_rank: int
    tp_size: int
    local_rank: int
    port: int
    """Side channel of this rank."""
    model: str
    kv_heads: int
    mla: bool
    block_size: int
    num_blocks: int | None


class Worker:
    """What both roles share; use `prefill_worker` or `decode_worker` through `make_worker`."""

    def __init__(self, identity: Identity, settings: Settings, environment: Environment) -> None:
        self.identity = identity
        self.settings = settings
        self.environment = environment
        self.tp_rank = identity.tp_rank
        self.tp_size = identity.tp_size
        self.metrics = Metrics(
            settings.metrics_directory, identity.instance, identity.tp_rank, identity.role
        )
        self.agent = local_agent(
            read_agents(environment.rank_table, identity.role),
            identity.server_id,
            environment.visible_devices,
            identity.tp_rank,
        )
        self.zmq: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.stop = threading.Event()

    def register(self, kv_caches: Mapping[str, KVCache]) -> None:
        """Register the KV cache and open for business. Raises ConnectorConfigError."""
        identity = self.identity
        parts = caches.parts(kv_caches, identity.num_blocks)
        self.layout = caches.layout(parts, identity.block_size, identity.model)
        self.datadist = DataDist(
            identity.role, self.agent, identity.local_rank, self.settings.pull_timeout
        )
        self.datadist.register(caches.groups(parts))
        self._open()
        self.metrics.start()
        logger.info(
            "KV connector: %s rank %d/%d is %s device %s (%s), cluster %d",
            identity.role,
            identity.tp_rank,
            identity.tp_size,
            self.agent.server_id,
            self.agent.device_id,
            self.agent.device_ip,
            self.agent.cluster_id,
        )

    def close(self) -> None:
        self.stop.set()
        self._close()
        if hasattr(self, "datadist"):
            self.datadist.close()
        self.metrics.close()
        self.zmq.destroy(linger=0)

    def _open(self) -> None:
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError

    def begin_step(self, metadata: Step) -> None:
        """What must happen before the step computes."""

    def start_loads(self, metadata: Step) -> None:
        """Start pulls; returns at once."""

    def results(self, idle: bool) -> Results:
        """What has ended since the last call; waits a little if the engine is `idle`."""
        raise NotImplementedError


class PrefillWorker(Worker):
    """Holds blocks of finished requests and answers decoders."""

    def _open(self) -> None:
        identity, settings = self.identity, self.settings
        self._incarnation = uuid.uuid4().hex[:12]
        self._listener = Listener(self.zmq, self.environment.rpc_ip, identity.port)
        self._links = PrefillLinks(
            self.datadist, self.metrics, settings.link_timeout, settings.silence_timeout
        )
        self._holds = Holds(settings.hold_timeout, self._informants)
        self._last_step: Step | None = None
        self._reported = 0.0
        self._refused: dict[int, str] = {}  # by cluster; the listener's thread alone
        self._listener.start(self._answer)  # last: a decoder may be waiting at the port

    def _close(self) -> None:
        if hasattr(self, "_listener"):
            self._listener.close()
            self._links.close()

    def _informants(self, decode_tp: int) -> set[int]:
        identity = self.identity
        return tp.informants(self.tp_rank, self.tp_size, decode_tp, identity.kv_heads, identity.mla)

    def _answer(self, message: Message) -> Any:
        if isinstance(message, Hello):
            return self._hello(message)
        if isinstance(message, Begin):
            if not self._links.has(message.cluster_id, message.session):
                return BeginReply(BeginStatus.RELINK)
            return self._holds.begin(
                message.request_id, message.run, message.tp_rank, message.tp_size, message.lease
            )
        if isinstance(message, Finished):
            self._holds.finished(message.request_id, message.tp_rank, message.tp_size)
        else:
            assert isinstance(message, Release)
            self._holds.release(message.request_id)
        return None

    def _hello(self, hello: Hello) -> HelloReply:
        refused = None
        if hello.protocol != PROTOCOL:
            refused = f"protocol differs: decoder {hello.protocol}, prefiller {PROTOCOL}"
        refused = refused or mismatch(self.layout, hello.layout) or self._unequal_tp(hello.tp_size)
        if refused is None:
            if hello.fresh:
                self._links.request(hello.agent, hello.session)
        elif self._refused.get(hello.agent.cluster_id) != refused:  # once: it asks every second
            logger.error(
                "KV link refused to %s device %s: %s",
                hello.agent.server_id,
                hello.agent.device_id,
                refused,
            )
        self._refused[hello.agent.cluster_id] = refused or ""
        linked = refused is None and self._links.has(hello.agent.cluster_id, hello.session)
        return HelloReply(self.agent, self._incarnation, self.tp_size, self.layout, linked, refused)

    def _unequal_tp(self, decode_tp: int) -> str | None:
        try:
            self._informants(decode_tp)
        except TransferError as error:
            return str(error)
        return None

    def begin_step(self, metadata: Step) -> None:
        if metadata is self._last_step:
            return
        self._last_step = metadata
        if metadata.holds:
            _synchronize_device()
        self._holds.announce(metadata.run, metadata.holds)
        for request_id in metadata.releases:
            self._holds.release(request_id)

    def results(self, idle: bool) -> Results:
        if idle and self._holds.totals()[0]:
            self._holds.changed.wait(IDLE_WAIT)
        self._holds.changed.clear()
        ended = self._holds.collect()
        self.metrics.ended(ended)
        for request_id, end in ended.items():
            if end == "expired":
                logger.warning("%s: no decoder was done with it in time: released", request_id)
        now = time.monotonic()
        if ended or now - self._reported > REPORT_HOLDS:
            self._reported = now
            self.metrics.held(*self._holds.totals())
        return Results(sent=set(ended))


class DecodeWorker(Worker):
    """Pulls blocks from prefillers."""

    def _open(self) -> None:
        self._lock = threading.Lock()
        self._peers: dict[tuple[str, int], Peer] = {}
        self._running: dict[str, Load] = {}
        self._results = Results()
        self._changed = threading.Event()
        if self.settings.prelink:
            for host, port in self._prelink_peers():
                self._peer(host, port + self.tp_rank, keep_linked=True)

    def _close(self) -> None:
        for peer in getattr(self, "_peers", {}).values():
            peer.join(timeout=self.settings.pull_timeout)

    def _prelink_peers(self) -> Iterable[tuple[str, int]]:
        """Side channels (of TP rank 0) of prefillers that are known before any request.

        The rank table names devices, not ports: a server that holds exactly one instance of
        our TP size is taken to use our port base.
        """
        if self.settings.prelink_peers:
            for peer in self.settings.prelink_peers:
                host, _, port = peer.rpartition(":")
                yield host, int(port)
            return
        servers: dict[str, list[Agent]] = {}
        for agent in read_agents(self.environment.rank_table, "prefill"):
            servers.setdefault(agent.server_id, []).append(agent)
        for server, agents in servers.items():
            if len(agents) == self.tp_size:
                yield server, self.environment.rpc_port + self.tp_size
            else:
                logger.info(
                    "%s has %d prefill devices: linked at the first request", server, len(agents)
                )

    def _peer(self, host: str, port: int, *, keep_linked: bool = False) -> Peer:
        peer = self._peers.get((host, port))
        if peer is None:
            peer = self._peers[host, port] = Peer(self, host, port, keep_linked=keep_linked)
        return peer

    def start_loads(self, metadata: Step) -> None:
        for request_id in metadata.cancelled:
            with self._lock:
                load = self._running.get(request_id)
            if load is not None:
                load.cancelled.set()
        for remote in metadata.refused:
            self._release(remote)
        for request_id, plan in metadata.loads.items():
            self._start(request_id, plan)

    def _start(self, request_id: str, plan: LoadPlan) -> None:
        remote = plan.remote
        load = Load(
            request_id=request_id,
            remote_request_id=remote.request_id,
            run=remote.run,
            local_blocks=plan.local_blocks,
            remote_blocks=plan.remote_blocks,
            deadline=time.monotonic() + self.settings.load_timeout,
            done=lambda error: self._done(load, error),
        )
        try:
            source, others = self._ranks(remote)
        except TransferError as error:
            self._done(load, error)
            self._release(remote)
            return
        with self._lock:
            self._running[request_id] = load
        self._peer(remote.host, remote.port + source).pull(load)
        for rank in others:
            self._peer(remote.host, remote.port + rank).acknowledge(remote.request_id)

    def _release(self, remote: Remote) -> None:
        """Tell the prefiller, together with our other ranks, that we will not pull."""
        for rank in range(self.tp_rank, remote.tp_size, self.tp_size):
            self._peer(remote.host, remote.port + rank).release(remote.request_id)

    def _ranks(self, remote: Remote) -> tuple[int, list[int]]:
        """The prefiller rank to pull from, and the other ranks to report to."""
        heads, mla = self.identity.kv_heads, self.identity.mla
        source = tp.source_rank(self.tp_rank, self.tp_size, remote.tp_size, heads, mla)
        informed = tp.ranks_to_inform(self.tp_rank, self.tp_size, remote.tp_size, heads, mla)
        return source, [rank for rank in informed if rank != source]

    def _done(self, load: Load, error: TransferError | None) -> None:
        if error is not None:
            self.metrics.failed(error.cause)
            logger.error("KV pull of %s failed (%s): %s", load.request_id, error.cause, error)
        with self._lock:
            self._running.pop(load.request_id, None)
            self._results.received.add(load.request_id)
            if error is not None:
                self._results.failed.add(load.request_id)
                self._results.invalid_blocks.update(load.local_blocks)
        self._changed.set()

    def results(self, idle: bool) -> Results:
        if idle and self._running:
            self._changed.wait(IDLE_WAIT)
        self._changed.clear()
        self._end_unwanted()
        with self._lock:
            results, self._results = self._results, Results()
        return results

    def _end_unwanted(self) -> None:
        """End aborted and overdue loads that still wait for their peer's thread.

        The loads before them may take long, or the prefiller be silent.
        """
        with self._lock:
            running = list(self._running.values())
        for load in running:
            error = load.unwanted()
            if error is not None and load.take():
                self._done(load, error)


def _synchronize_device() -> None:
    """Wait until the device has written what the host already knows to be computed."""
    if hasattr(torch, "npu"):  # torch_npu adds it
        torch.npu.synchronize()


def make_worker(
    vllm_config: Any, kv_cache_config: Any | None, settings: Settings, environment: Environment
) -> Worker:
    """The worker half for this process, from vLLM's configuration and process groups."""
    from connector import compat

    transfer, parallel = vllm_config.kv_transfer_config, vllm_config.parallel_config
    model = vllm_config.model_config
    rank = compat.tp_rank()
    identity = Identity(
        role="prefill" if transfer.kv_role == "kv_producer" else "decode",
        instance=settings.instance or f"engine-{transfer.engine_id}",
        server_id=compat.get_ip(),
        tp_rank=rank,
        tp_size=int(parallel.tensor_parallel_size),
        local_rank=compat.local_rank(),
        port=base_port(parallel, environment.rpc_port) + rank,
        model=caches.model_digest(model),
        kv_heads=int(model.get_total_num_kv_heads()),
        mla=bool(model.use_mla),
        block_size=int(vllm_config.cache_config.block_size),
        num_blocks=None if kv_cache_config is None else int(kv_cache_config.num_blocks),
    )
    kind = PrefillWorker if identity.role == "prefill" else DecodeWorker
    return kind(identity, settings, environment)
