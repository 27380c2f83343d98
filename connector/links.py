"""The prefiller's links: established in the background when a decoder asks.

A decoder names each attempt with a fresh session. The newest session wins: an older link
with the same decoder is taken down first, so a restarted decoder (same cluster id) or one
that saw its link break is linked anew. The listener never waits for any of this, nor does
the engine: a thread looks for decoders that have fallen silent, also while the engine sleeps.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field

from connector.datadist import DataDist
from connector.errors import TransferError
from connector.metrics import Metrics
from connector.ranktable import Agent

logger = logging.getLogger(f"vllm.{__name__}")  # vLLM configures loggers below its own

LOOKS = 4  # times within silence_timeout that silent decoders are looked for


@dataclass
class _Link:
    agent: Agent
    session: str
    heard: float
    comm: int | None = None
    alive: bool = True
    """False once the attempt failed or the link was taken down."""
    superseded: threading.Event = field(default_factory=threading.Event)


class PrefillLinks:
    """Links of one prefiller rank, by the decoder's cluster id."""

    def __init__(
        self, datadist: DataDist, metrics: Metrics, link_timeout: float, silence_timeout: float
    ) -> None:
        self._datadist = datadist
        self._metrics = metrics
        self._link_timeout = link_timeout
        self._silence_timeout = silence_timeout
        self._lock = threading.Lock()
        self._links: dict[int, _Link] = {}
        self._threads: dict[int, threading.Thread] = {}
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="kv-links", daemon=True)
        self._watcher.start()

    def request(self, agent: Agent, session: str) -> None:
        """A decoder wants this session's link. Starts it, unless it did so; returns at once."""
        with self._lock:
            current = self._links.get(agent.cluster_id)
            if current is not None and current.session == session:
                return
            if current is not None:
                current.superseded.set()
            link = _Link(agent, session, time.monotonic())
            self._links[agent.cluster_id] = link
            previous = self._threads.get(agent.cluster_id)
            thread = threading.Thread(
                target=self._establish,
                args=(link, current, previous),
                name=f"kv-link-{agent.cluster_id}",
                daemon=True,
            )
            self._threads[agent.cluster_id] = thread
            thread.start()

    def has(self, cluster_id: int, session: str) -> bool:
        """Whether this session's link is up or on its way."""
        with self._lock:
            link = self._links.get(cluster_id)
            if link is None or link.session != session or not link.alive:
                return False
            link.heard = time.monotonic()
            return True

    def _watch(self) -> None:
        while not self._stop.wait(self._silence_timeout / LOOKS):
            self._drop_silent()

    def _drop_silent(self) -> None:
        """Take down links of decoders that have not been heard from for long."""
        oldest = time.monotonic() - self._silence_timeout
        with self._lock:
            silent = [
                link
                for link in self._links.values()
                if link.comm is not None and link.heard < oldest
            ]
            for link in silent:
                link.alive = False
        for link in silent:
            logger.warning(
                "KV link: decoder %s device %s has been silent for %g s: link dropped",
                link.agent.server_id,
                link.agent.device_id,
                self._silence_timeout,
            )
            self._take_down(link)

    def _establish(self, link: _Link, old: _Link | None, previous: threading.Thread | None) -> None:
        if previous is not None:
            previous.join()
        if old is not None:
            self._take_down(old)
        if link.superseded.is_set():
            return
        deadline = time.monotonic() + self._link_timeout
        try:
            comm = self._datadist.link(link.agent, link.session, deadline, link.superseded)
        except Exception as error:
            with self._lock:
                link.alive = False
            if not link.superseded.is_set():
                cause = error.cause if isinstance(error, TransferError) else "internal"
                self._metrics.link_failed(cause)
                logger.error("KV link: %s", error)
            return
        with self._lock:
            link.comm = comm
        if not link.superseded.is_set():
            self._show(link, up=True)

    def _take_down(self, link: _Link) -> None:
        with self._lock:
            comm, link.comm, link.alive = link.comm, None, False
        if comm is not None:
            self._datadist.unlink(comm)
            self._show(link, up=False)

    def _show(self, link: _Link, *, up: bool) -> None:
        agent = link.agent
        self._metrics.link(agent.cluster_id, agent.device_ip, agent.server_id, up=up)

    def close(self) -> None:
        self._stop.set()
        self._watcher.join(timeout=5)
        with self._lock:
            links = list(self._links.values())
            threads = list(self._threads.values())
        for link in links:
            link.superseded.set()
        for thread in threads:
            thread.join(timeout=5)
        for link in links:
            self._take_down(link)
