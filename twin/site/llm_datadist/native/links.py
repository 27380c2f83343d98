"""Who is linked with whom.

A collective `link` is called by every member. Of two members the one of higher rank looks the
other up, goes to it and waits until it has called `link` too; both then know the other's address
and a token for its memory. That runs in background threads; `status` tells how far it got.

`link_clusters` is one-sided: the caller goes to a process that listens for it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from socket import socket
from typing import Any

from llm_datadist.native import ranktable, wire
from llm_datadist.native.caches import RemoteTable
from llm_datadist.native.errors import NativeError, refuse_if
from llm_datadist.native.fabric import Fabric
from llm_datadist.native.place import Endpoint, Place, Registry
from llm_datadist.native.ranktable import Rank
from llm_datadist.native.server import Server
from llm_datadist.native.waiting import poll
from llm_datadist.native.wire import Operation
from llm_datadist.status import LLMStatusCode, code_2_status, log

OK, PREPARING, FAILED = 0, 1, 2  # of a link; the values of RegisterMemStatus

LINK_LIMIT = 512  # links of a process
LINK_THREADS = 16
DEFAULT_TIMEOUT = 120.0  # seconds, HCCL's
LOOK_EVERY = 0.05  # seconds between looks at a peer that is not there, or at a broken fabric
PARK = 0.5  # seconds a member waits at another's door before it asks anew


class Entity:
    """The link to one remote cluster, as far as transfers use it.

    `lock` is held by the pull or push that runs; everything below it belongs to its holder.
    """

    def __init__(self, peer: Endpoint, peer_token: str, own_token: str, *, over_roce: bool) -> None:
        self.peer = peer
        self.peer_token = peer_token
        self.own_token = own_token
        self.over_roce = over_roce
        self.lock = threading.Lock()
        self.destroyed = False
        self.broken = ""  # why it can carry nothing any more
        self.table: RemoteTable | None = None
        self.connection: socket | None = None

    @property
    def cluster_id(self) -> int:
        return self.peer.place.cluster_id

    def connected(self, deadline: float) -> socket:
        """The connection to the peer, opened when first needed; OSError."""
        if self.connection is None:
            connection = wire.connect((self.peer.place.address, self.peer.port), deadline)
            self.connection = connection
            wire.ask(connection, Operation.OPEN, self.peer_token.encode())
        wire.set_deadline(self.connection, deadline)
        return self.connection

    def break_off(self, reason: str) -> None:
        """Give up for good, as a queue pair in error state does: only a new link helps."""
        self.broken = reason
        if self.connection is not None:
            self.connection.close()
            self.connection = None


@dataclass
class Link:
    """A collective link of this process."""

    comm_id: int
    name: str
    own: int  # our cluster id
    ranks: dict[int, int]  # cluster id -> rank
    table: dict[int, Rank]
    over_roce: bool
    deadline: float = 0.0  # of time.monotonic, set when the work on it begins
    status: int = PREPARING
    cancelled: threading.Event = field(default_factory=threading.Event)
    entities: dict[int, Entity] = field(default_factory=dict)  # by cluster id; complete when OK
    begun: bool = False  # its thread works on it; False: it waits for its turn
    thread: threading.Thread | None = None

    def members(self) -> dict[int, int]:
        """The others, with their ranks."""
        return {cluster_id: r for cluster_id, r in self.ranks.items() if cluster_id != self.own}

    def __str__(self) -> str:
        return f"link {self.comm_id} ({self.name})"


class Links:
    """All links of this process. Thread-safe."""

    def __init__(
        self,
        place: Place,
        fabric: Fabric,
        registry: Registry,
        *,
        remote_accessible: bool,
        timeout: float,
    ) -> None:
        """`timeout`: seconds a collective link may take to come up."""
        self.place = place
        self._fabric = fabric
        self._registry = registry
        self._remote_accessible = remote_accessible
        self._timeout = timeout
        self._changed = threading.Condition()  # guards what follows
        self._links: dict[int, Link] = {}
        self._entities: dict[int, Entity] = {}  # by cluster id: the newest
        self._next_id = 1
        self._closed = False
        self._linking = threading.Lock()  # link and unlink are serialised among themselves
        # Daemon threads of our own: those of concurrent.futures are joined at interpreter exit
        # before anyone could cancel a link that still waits for its peer.
        self._turns = threading.Semaphore(LINK_THREADS)
        self._server: Server | None = None
        self._endpoint: Endpoint | None = None

    def handlers(self) -> dict[Operation, Any]:
        """What the server is to do when another process comes to link."""
        return {
            Operation.JOIN: self._on_join,
            Operation.CONNECT: self._on_connect,
            Operation.DISCONNECT: self._on_disconnect,
        }

    def start(self, server: Server, endpoint: Endpoint) -> None:
        """Links are possible from now on: `server` serves, peers find us at `endpoint`."""
        self._server, self._endpoint = server, endpoint
        self._registry.publish(endpoint)

    def close(self) -> None:
        """Unlink everything and end the background threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for comm_id in list(self._links):
            self.unlink(comm_id)
        for cluster_id in list(self._entities):
            self._destroy(cluster_id)
        if self._endpoint is not None:
            self._registry.withdraw(self._endpoint)

    def entity(self, cluster_id: int) -> Entity:
        """The link to a cluster; LLM_NOT_YET_LINK if there is none, or it still prepares."""
        entity = self._entities.get(cluster_id)
        if entity is None:
            raise NativeError(LLMStatusCode.LLM_NOT_YET_LINK, f"no link to cluster {cluster_id}")
        return entity

    def exist(self) -> bool:
        return bool(self._links or self._entities)

    # Collective links

    def link(self, name: str, ranks: Mapping[int, int], rank_table: str) -> int:
        """Start a collective link; its id. What is wrong with ourselves is said at once
        (LLM_LINK_FAILED), the rest by `status`.
        """
        refuse_if(
            self.place.cluster_id not in ranks,
            f"own cluster id {self.place.cluster_id} is not in cluster_rank_info {dict(ranks)}",
        )
        with self._linking:
            refuse_if(len(self._links) >= LINK_LIMIT, f"more than {LINK_LIMIT} links")
            try:
                table = ranktable.parse(rank_table)
                over_roce = self._check_own_rank(ranks, table)
            except ValueError as error:
                raise NativeError(LLMStatusCode.LLM_LINK_FAILED, str(error)) from error
            link = Link(
                comm_id=self._next_id,
                name=name,
                own=self.place.cluster_id,
                ranks=dict(ranks),
                table=table,
                over_roce=over_roce,
            )
            self._next_id += 1
            with self._changed:
                self._links[link.comm_id] = link
                self._changed.notify_all()
            link.thread = threading.Thread(
                target=self._work, args=(link,), name=f"llm_datadist-link-{name}", daemon=True
            )
            link.thread.start()
            return link.comm_id

    def _check_own_rank(self, ranks: Mapping[int, int], table: Mapping[int, Rank]) -> bool:
        """Whether the link goes over RoCE. ValueError if this process is not what the rank
        table says of its rank.
        """
        missing = sorted(set(ranks.values()) - set(table))
        if missing:
            raise ValueError(f"rank table: no entry for rank(s) {missing}")
        own = table[ranks[self.place.cluster_id]]
        if own.device != self.place.device:
            raise ValueError(
                f"rank table: rank {own.rank} is device {own.device}, but this process runs on "
                f"device {self.place.device} of {self.place.host}"
            )
        if self._fabric.knows(self.place) and own.server != self.place.address:
            raise ValueError(
                f"rank table: rank {own.rank} is in server {own.server}, but this process runs "
                f"on {self.place.host}, {self.place.address}"
            )
        intra_server = len({table[rank].server for rank in ranks.values()}) == 1
        over_roce = not intra_server or os.environ.get("HCCL_INTRA_ROCE_ENABLE") == "1"
        fault = self._fabric.own_fault(self.place, own.device_ip, over_roce=over_roce)
        if fault:
            raise ValueError(fault)
        return over_roce

    def status(self, comm_id: int) -> int:
        """OK, PREPARING or FAILED; LLM_NOT_YET_LINK for an id that is unknown."""
        return self._link(comm_id).status

    def _link(self, comm_id: int) -> Link:
        link = self._links.get(comm_id)
        if link is None:
            raise NativeError(LLMStatusCode.LLM_NOT_YET_LINK, f"no link {comm_id}")
        return link

    def unlink(self, comm_id: int) -> None:
        """Give a link up, on this side only. Waits for a running transfer over it."""
        with self._linking:
            link = self._link(comm_id)
            with self._changed:
                link.cancelled.set()
                self._changed.notify_all()
            if link.begun and link.thread is not None:
                link.thread.join()
            for cluster_id, entity in link.entities.items():
                self._end(entity)
                # By cluster id, whoever is registered under it: CANN forgets a newer link to
                # the same cluster with the old one.
                with self._changed:
                    self._entities.pop(cluster_id, None)
            with self._changed:
                del self._links[comm_id]

    def _end(self, entity: Entity) -> None:
        with entity.lock:
            entity.destroyed = True
            entity.break_off("unlinked")
        self._serving().revoke(entity.own_token)

    def _serving(self) -> Server:
        assert self._server is not None, "start() comes first"
        return self._server

    def _work(self, link: Link) -> None:
        """The link's own thread."""
        with self._turns:
            with self._changed:
                if link.cancelled.is_set():
                    return
                link.begun = True
                link.deadline = time.monotonic() + self._timeout
            self._prepare(link)

    def _prepare(self, link: Link) -> None:
        """Meet every member, then the link is OK; else FAILED."""
        try:
            for cluster_id, rank in link.members().items():
                if rank > link.ranks[link.own]:
                    self._await_member(link, cluster_id)
                else:
                    self._go_to_member(link, cluster_id, link.table[rank])
            with self._changed:
                if not link.cancelled.is_set():
                    self._entities |= link.entities
                    link.status = OK
            log.info("%s is up", link)
        except NativeError as error:
            link.status = FAILED
            if not link.cancelled.is_set():
                log.error("%s failed: %s", link, error)

    def _await_member(self, link: Link, cluster_id: int) -> None:
        """Until a member of higher rank has joined."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    cluster_id in link.entities or link.cancelled.is_set() or link.status == FAILED
                ),
                timeout=max(link.deadline - time.monotonic(), 0),
            )
            if cluster_id not in link.entities:
                raise NativeError(
                    LLMStatusCode.LLM_LINK_FAILED,
                    f"cluster {cluster_id} did not come within {self._timeout:g} s",
                )

    def _go_to_member(self, link: Link, cluster_id: int, rank: Rank) -> None:
        """Find a member of lower rank, wait until it links too, and join it."""
        obstacle = f"cluster {cluster_id} runs on no device {rank.device} of {rank.server}"

        def attempt() -> Entity | None:
            nonlocal obstacle
            peer = self._find(cluster_id, rank)
            if peer is None:
                return None
            obstacle = self._fabric.obstacle(self.place, peer.place, over_roce=link.over_roce)
            if obstacle:
                return None
            obstacle = f"{peer.place} has not called link"
            return self._join(link, peer)

        entity = poll(attempt, link.deadline, every=LOOK_EVERY, cancelled=link.cancelled)
        if entity is None:
            raise NativeError(
                LLMStatusCode.LLM_LINK_FAILED,
                f"to cluster {cluster_id} within {self._timeout:g} s: {obstacle}",
            )
        link.entities[cluster_id] = entity

    def _find(self, cluster_id: int, rank: Rank) -> Endpoint | None:
        """The member's process, if it runs where the rank table says."""
        found = self._registry.find(cluster_id, rank.device)
        there = [
            one
            for one in found
            if one.place.address == rank.server or not self._fabric.knows(one.place)
        ]
        return there[0] if there else None

    def _join(self, link: Link, peer: Endpoint) -> Entity | None:
        """Ask `peer` to complete the link; None if it cannot yet."""
        token = self._serving().grant()
        try:
            deadline = min(link.deadline, time.monotonic() + 2 * PARK)
            answer = self._call(
                peer,
                Operation.JOIN,
                {"name": link.name, "ranks": list(link.ranks.items()), "token": token},
                deadline,
            )
        except OSError:
            answer = {}
        if "token" in answer:
            return Entity(peer, answer["token"], token, over_roce=link.over_roce)
        self._serving().revoke(token)
        if "refused" in answer:
            raise NativeError(LLMStatusCode.LLM_LINK_FAILED, answer["refused"])
        return None

    def _call(
        self, peer: Endpoint, operation: Operation, body: dict[str, Any], deadline: float
    ) -> dict[str, Any]:
        """Ask a process we are not linked with; OSError."""
        assert self._endpoint is not None, "start() comes first"
        own = {"from": self._endpoint.to_json(), "remote_accessible": self._remote_accessible}
        with wire.connect((peer.place.address, peer.port), deadline) as connection:
            return wire.from_json(wire.ask(connection, operation, wire.to_json(body | own))[1])

    def _on_join(self, request: dict[str, Any]) -> dict[str, Any]:
        """Server: a member of higher rank came. Waits a while for our own `link`."""
        peer = Endpoint.from_json(request["from"])
        ranks = dict(request["ranks"])

        def wanted() -> Link | None:
            return next(
                (
                    link
                    for link in self._links.values()
                    if link.status == PREPARING
                    and not link.cancelled.is_set()
                    and link.name == request["name"]
                    and link.ranks == ranks
                    and peer.place.cluster_id not in link.entities
                ),
                None,
            )

        with self._changed:
            self._changed.wait_for(lambda: self._closed or wanted() is not None, timeout=PARK)
            link = wanted()
            if link is None:
                return {"wait": True}
            refusal = self._flag_mismatch(request, peer)
            if refusal:
                link.status = FAILED
                self._changed.notify_all()
                return {"refused": refusal}
            token = self._serving().grant()
            link.entities[peer.place.cluster_id] = Entity(
                peer, request["token"], token, over_roce=link.over_roce
            )
            self._changed.notify_all()
            return {"token": token}

    def _flag_mismatch(self, request: dict[str, Any], peer: Endpoint) -> str:
        if request["remote_accessible"] == self._remote_accessible:
            return ""
        return (
            f"EnableRemoteCacheAccessible differs: {self.place} has {self._remote_accessible}, "
            f"{peer.place} has {request['remote_accessible']}"
        )

    # One-sided links

    def link_clusters(
        self, clusters: Sequence[tuple[int, Sequence[tuple[str, int]]]], timeout: float
    ) -> list[LLMStatusCode]:
        """Link with processes that listen at the given addresses; a code for each cluster."""
        return [self._one(self._connect, *cluster, timeout) for cluster in clusters]

    def unlink_clusters(
        self,
        clusters: Sequence[tuple[int, Sequence[tuple[str, int]]]],
        timeout: float,
        *,
        force: bool,
    ) -> list[LLMStatusCode]:
        """Unlink on both sides; with `force` on this side only, without telling the other."""
        act = self._forget if force else self._disconnect
        return [self._one(act, *cluster, timeout) for cluster in clusters]

    def _one(self, act: Any, cluster_id: int, remote: Any, timeout: float) -> LLMStatusCode:
        with self._linking:
            try:
                act(cluster_id, remote, time.monotonic() + timeout)
            except NativeError as error:
                log.error("cluster %d: %s", cluster_id, error)
                return error.code
        return LLMStatusCode.LLM_SUCCESS

    def _connect(self, cluster_id: int, remote: Sequence[tuple[str, int]], deadline: float) -> None:
        refuse_if(len(remote) != 1, f"{len(remote)} remote addresses: expected 1")
        if cluster_id in self._entities:
            raise NativeError(
                LLMStatusCode.LLM_ALREADY_LINK, f"cluster {cluster_id} is linked already"
            )
        token = self._serving().grant()
        try:
            door = Endpoint(_somebody(remote[0][0]), remote[0][1])
            answer = self._call(door, Operation.CONNECT, {"token": token}, deadline)
            if "code" in answer:
                raise NativeError(code_2_status(answer["code"]), answer["reason"])
            peer = Endpoint.from_json(answer["from"])
            over_roce = peer.place.host != self.place.host
            obstacle = self._fabric.obstacle(self.place, peer.place, over_roce=over_roce)
            if obstacle:
                raise NativeError(LLMStatusCode.LLM_LINK_FAILED, obstacle)
        except (OSError, NativeError) as error:
            self._serving().revoke(token)
            if isinstance(error, NativeError):
                raise
            raise NativeError(LLMStatusCode.LLM_LINK_FAILED, f"{remote[0]}: {error}") from error
        with self._changed:
            self._entities[cluster_id] = Entity(peer, answer["token"], token, over_roce=over_roce)

    def _on_connect(self, request: dict[str, Any]) -> dict[str, Any]:
        """Server: another process links with us, one-sided."""
        assert self._endpoint is not None, "start() comes first"
        peer = Endpoint.from_json(request["from"])
        refusal = self._flag_mismatch(request, peer)
        if refusal:
            return {"code": LLMStatusCode.LLM_LINK_FAILED, "reason": refusal}
        # The other knows of no link, so one that we still have is a leftover of its past.
        self._destroy(peer.place.cluster_id)
        token = self._serving().grant()
        over_roce = peer.place.host != self.place.host
        with self._changed:
            self._entities[peer.place.cluster_id] = Entity(
                peer, request["token"], token, over_roce=over_roce
            )
        return {"token": token, "from": self._endpoint.to_json()}

    def _disconnect(
        self, cluster_id: int, remote: Sequence[tuple[str, int]], deadline: float
    ) -> None:
        refuse_if(len(remote) != 1, f"{len(remote)} remote addresses: expected 1")
        door = Endpoint(_somebody(remote[0][0]), remote[0][1])
        try:
            self._call(door, Operation.DISCONNECT, {}, deadline)
        except OSError as error:
            raise NativeError(LLMStatusCode.LLM_UNLINK_FAILED, f"{remote[0]}: {error}") from error
        self._destroy(cluster_id)

    def _forget(self, cluster_id: int, _remote: object, _deadline: float) -> None:
        self._destroy(cluster_id)

    def _on_disconnect(self, request: dict[str, Any]) -> dict[str, Any]:
        """Server: another process unlinks, one-sided."""
        self._destroy(Endpoint.from_json(request["from"]).place.cluster_id)
        return {}

    def _destroy(self, cluster_id: int) -> None:
        with self._changed:
            entity = self._entities.pop(cluster_id, None)
        if entity is not None:
            self._end(entity)


def _somebody(address: str) -> Place:
    """Who listens at an address, before it has said so."""
    return Place(0, "", address, 0, 0, "")


def link_timeout(option: str | None, env: Mapping[str, str]) -> float:
    """Seconds a link may take: llm.LinkTotalTime, else HCCL_CONNECT_TIMEOUT, else 120."""
    for value in (option, env.get("HCCL_CONNECT_TIMEOUT")):
        if value and float(value) > 0:
            return float(value)
    return DEFAULT_TIMEOUT
