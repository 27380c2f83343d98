"""The decoder's view of one prefiller rank: link, pulls, acknowledgements.

Each peer has one thread, so a prefiller that does not answer delays nobody but those who
want something from it. Everything a thread does is bounded by a deadline.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import zmq

from connector.caches import mismatch
from connector.channel import Caller
from connector.config import Settings
from connector.datadist import DataDist
from connector.errors import TransferError
from connector.metrics import Metrics
from connector.protocol import (
    PROTOCOL,
    Begin,
    BeginReply,
    BeginStatus,
    Finished,
    Hello,
    HelloReply,
    Layout,
    Release,
)
from connector.ranktable import Agent
from connector.waiting import poll

logger = logging.getLogger(f"vllm.{__name__}")  # vLLM configures loggers below its own

RETRY = 1.0  # seconds between attempts at a link that is to be there before any request
LINK_IS_FINE = {"gone", "cancelled"}  # causes of failures in which the prefiller has answered


@dataclass
class Load:
    """Blocks of one request to be pulled from one prefiller rank."""

    request_id: str
    remote_request_id: str
    run: str | None
    local_blocks: list[int]
    remote_blocks: list[int]
    deadline: float
    """time.monotonic() value."""
    done: Callable[[TransferError | None], None]
    """Called once, from any thread, when the blocks are valid or never will be."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    _taken: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> bool:
        """Whether the caller is the first: the peer's thread, or who ends the load unbegun."""
        return self._taken.acquire(blocking=False)

    def unwanted(self) -> TransferError | None:
        """Why nothing should be begun for it any more."""
        if self.cancelled.is_set():
            return TransferError("cancelled", "the request was aborted before its pull began")
        if time.monotonic() >= self.deadline:
            return TransferError("timeout", "its pull could not begin before load_timeout")
        return None


class Context(Protocol):
    """What a peer needs of its worker."""

    datadist: DataDist
    metrics: Metrics
    settings: Settings
    layout: Layout
    tp_rank: int
    tp_size: int
    zmq: zmq.Context[zmq.Socket[bytes]]
    stop: threading.Event


class Peer:
    """One prefiller rank. `pull`, `acknowledge` and `release` return at once.

    Loads wait for each other here; one that waits too long is ended by the worker.
    """

    def __init__(self, context: Context, host: str, port: int, *, keep_linked: bool) -> None:
        self._context = context
        self._settings = context.settings
        self._caller = Caller(context.zmq, host, port)
        self._keep_linked = keep_linked
        self._remote: HelloReply | None = None
        self._comm: int | None = None
        self._session = ""
        self._complained = ""
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._work, name=f"kv-peer-{host}:{port}", daemon=True
        )
        self._thread.start()

    def pull(self, load: Load) -> None:
        self._jobs.put(lambda: self._pull(load))

    def acknowledge(self, remote_request_id: str) -> None:
        """Tell a rank that we do not pull from that we are done with the request."""
        self._jobs.put(lambda: self._acknowledge(remote_request_id))

    def release(self, remote_request_id: str) -> None:
        """Tell the rank that no decoder will take the request."""
        self._jobs.put(lambda: self._tell(Release(remote_request_id)))

    def join(self, timeout: float) -> None:
        self._jobs.put(lambda: None)  # wakes the thread
        self._thread.join(timeout)

    # ---- the thread

    def _work(self) -> None:
        if self._keep_linked:
            self._jobs.put(self._heartbeat)
        while not self._context.stop.is_set():
            try:
                job = self._jobs.get(timeout=self._pause())
            except queue.Empty:
                job = self._heartbeat
            try:
                job()
            except Exception:  # the thread must outlive a defect: every later load needs it
                logger.exception("KV peer %s", self._caller.address)
        self._drop_link()
        self._caller.close()

    def _pause(self) -> float:
        """Seconds without work after which the link is looked after."""
        missing = self._keep_linked and self._comm is None
        return min(RETRY, self._settings.heartbeat) if missing else self._settings.heartbeat

    def _heartbeat(self) -> None:
        """Keep the link; notice early that the prefiller died or was restarted."""
        if self._comm is None and not self._keep_linked:
            return
        try:
            self._ensure_link(time.monotonic() + self._settings.link_timeout, verify=True)
            self._complained = ""
        except TransferError as error:
            self._drop_link()
            if str(error) != self._complained:  # once, not at every heartbeat
                logger.warning("KV link: %s", error)
                self._complained = str(error)

    def _pull(self, load: Load) -> None:
        if load.take():
            load.done(self._outcome(load))
        self._acknowledge(load.remote_request_id)

    def _outcome(self, load: Load) -> TransferError | None:
        try:
            self._transfer(load)
        except TransferError as error:
            return error
        except Exception as error:  # whatever happens, the request must end
            logger.exception("KV pull of %s", load.request_id)
            self._drop_link()
            return TransferError("internal", f"{type(error).__name__}: {error}")
        return None

    def _transfer(self, load: Load) -> None:
        for attempt in (1, 2):
            self._check_wanted(load)
            try:
                peer = self._ensure_link(load.deadline)
                valid_until = self._begin(load)
                started = time.monotonic()
                size = self._context.datadist.pull(
                    peer, load.remote_blocks, load.local_blocks, load.deadline
                )
                ended = time.monotonic()
            except TransferError as error:
                # After a failed pull a late write could still reach blocks that vLLM gives
                # to another request: the link is cut before the failure is reported.
                if error.cause not in LINK_IS_FINE:
                    self._drop_link()
                if attempt == 2 or not error.transient:
                    raise
                logger.warning("KV pull of %s: %s; trying a fresh link", load.request_id, error)
                continue
            if ended > valid_until:
                raise TransferError("expired", "the pull outlasted the prefiller's lease")
            self._context.metrics.pulled(size, ended - started)
            return

    @staticmethod
    def _check_wanted(load: Load) -> None:
        if (error := load.unwanted()) is not None:
            raise error

    def _rpc_timeout(self, deadline: float) -> float:
        return max(0.05, min(self._settings.rpc_timeout, deadline - time.monotonic()))

    def _ensure_link(self, deadline: float, *, verify: bool = False) -> Agent:
        """Link up unless we are; `verify` asks the peer even then. Returns the peer's identity."""
        if self._comm is not None and self._remote is not None:
            if not verify:
                return self._remote.agent
            reply = self._hello(self._session, deadline, fresh=False)
            if reply.linked and reply.incarnation == self._remote.incarnation:
                return reply.agent
            self._drop_link()
        session = uuid.uuid4().hex[:12]
        reply = self._hello(session, deadline, fresh=True)
        context = self._context
        limit = min(deadline, time.monotonic() + self._settings.link_timeout)
        try:
            self._comm = context.datadist.link(reply.agent, session, limit, context.stop)
        except TransferError as error:
            context.metrics.link_failed(error.cause)
            raise
        self._session, self._remote = session, reply
        self._show_link(reply.agent, up=True)
        logger.info(
            "KV link to %s (cluster %d) is up", self._caller.address, reply.agent.cluster_id
        )
        return reply.agent

    def _hello(self, session: str, deadline: float, *, fresh: bool) -> HelloReply:
        context = self._context
        hello = Hello(
            context.datadist.me, session, fresh, context.tp_rank, context.tp_size, context.layout
        )
        reply = self._caller.ask(hello, HelloReply, self._rpc_timeout(deadline))
        problem = reply.refused
        if problem is None and reply.protocol != PROTOCOL:
            problem = f"protocol differs: decoder {PROTOCOL}, prefiller {reply.protocol}"
        problem = problem or mismatch(reply.layout, context.layout)
        if problem is not None:
            raise TransferError("mismatch", f"prefiller {self._caller.address}: {problem}")
        return reply

    def _begin(self, load: Load) -> float:
        """Have the blocks kept for us; returns until when (time.monotonic) they surely are."""
        context = self._context
        lease = 2 * self._settings.pull_timeout + self._settings.rpc_timeout
        until = min(load.deadline, time.monotonic() + self._settings.announce_timeout)
        reply = BeginReply(BeginStatus.UNKNOWN)
        asked = 0.0

        def known() -> bool:
            nonlocal reply, asked
            asked = time.monotonic()
            begin = Begin(
                load.remote_request_id,
                context.datadist.me.cluster_id,
                self._session,
                load.run,
                lease,
                context.tp_rank,
                context.tp_size,
            )
            reply = self._caller.ask(begin, BeginReply, self._rpc_timeout(load.deadline))
            return reply.status is not BeginStatus.UNKNOWN or load.cancelled.is_set()

        poll(known, until, stop=context.stop, longest=0.1)
        self._check_wanted(load)
        if reply.status is BeginStatus.OK:
            return asked + lease
        if reply.status is BeginStatus.RELINK:
            raise TransferError("link", f"{self._caller.address} lost the link", transient=True)
        detail = reply.detail or "the prefiller does not know the request"
        raise TransferError("gone", f"blocks of {load.remote_request_id} are gone: {detail}")

    def _acknowledge(self, remote_request_id: str) -> None:
        self._tell(Finished(remote_request_id, self._context.tp_rank, self._context.tp_size))

    def _tell(self, message: Finished | Release) -> None:
        """Best effort, twice; a message that does not arrive is made up for by P's deadline."""
        for attempt in (1, 2):
            try:
                self._caller.tell(message, min(2.0, self._settings.rpc_timeout))
                return
            except TransferError as error:
                if attempt == 2:
                    logger.warning("%s not delivered: %s", type(message).__name__, error)

    def _drop_link(self) -> None:
        comm, self._comm = self._comm, None
        if comm is not None and self._remote is not None:
            self._context.datadist.unlink(comm)
            self._show_link(self._remote.agent, up=False)

    def _show_link(self, agent: Agent, *, up: bool) -> None:
        self._context.metrics.link(agent.cluster_id, agent.device_ip, agent.server_id, up=up)
