"""The test's end of processes with one LLMDataDist each (datadist_actor.py), linked or not."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pd_validate.waiting import wait_for

BLOCKS, BLOCK_BYTES, TENSORS = 16, 1024, 4  # of a pair's caches
ENTITY = "dd._engine._links.entity(1)"  # a consumer's link to cluster 1


class Refused(Exception):
    """A call of the peer raised; `kind` is the status code's name, or the exception's type."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message


def rank_table(*ranks: Mapping[str, Any]) -> str:
    """A rank table with one device in a server for each of `ranks`, in order of rank."""
    servers: dict[str, list[dict[str, str]]] = {}
    for number, rank in enumerate(ranks):
        device = {
            "device_id": str(rank["device"]),
            "device_ip": rank.get("ip", f"10.20.1.{10 + number}"),
            "rank_id": str(number),
        }
        servers.setdefault(rank["server"], []).append(device)
    return json.dumps(
        {
            "version": "1.2",
            "status": "completed",
            "server_count": str(len(servers)),
            "server_list": [{"server_id": s, "device": d} for s, d in servers.items()],
        }
    )


class Nursery:
    """Starts processes for peers. End it with `close`."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        program = Path(__file__).with_name("datadist_actor.py")
        with theirs:
            self._process = subprocess.Popen([sys.executable, str(program)], stdin=theirs)

    def start(self, env: Mapping[str, str]) -> tuple[int, Connection, int]:
        """A process with that environment: its id, our end for calls, and its log to read."""
        ours, theirs = Pipe()
        log, log_in = os.pipe()
        request = json.dumps({"PATH": os.environ["PATH"], **env}).encode()
        socket.send_fds(self._control, [request], [theirs.fileno(), log_in])
        theirs.close()
        os.close(log_in)
        return int.from_bytes(self._control.recv(8), "little"), ours, log

    def close(self) -> None:
        self._control.close()
        self._process.kill()
        self._process.wait()


class Peer:
    """One LLMDataDist in a process of its own. End it with `close`."""

    def __init__(
        self, nursery: Nursery, cluster_id: int, role: str, *, device: int, env: Mapping[str, str]
    ) -> None:
        self.cluster_id = cluster_id
        self.device = device
        self.server = env.get("TWIN_HOST_ADDRESS", "127.0.0.1")
        self._pid, self._calls, self._log = nursery.start(env)
        self.call("create", cluster_id, role)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """What `method` of the Actor returns; Refused for what it raises."""
        self._calls.send((method, args, kwargs))
        kind, value = self._calls.recv()
        if kind == "result":
            return value
        raise Refused(kind, value)

    def rank(self, **more: str) -> dict[str, Any]:
        """This process's line of a rank table."""
        return {"server": self.server, "device": self.device, **more}

    def kill(self) -> None:
        """End it at once, without finalize."""
        os.kill(self._pid, signal.SIGKILL)
        self.close()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        os.kill(self._pid, signal.SIGSTOP)
        try:
            # A thread on another core may answer one request more before it stands still.
            wait_for(lambda: self._stopped() or None, seconds=10, what="all threads stopped")
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):  # the test may have killed it
                os.kill(self._pid, signal.SIGCONT)

    def _stopped(self) -> bool:
        states = Path(f"/proc/{self._pid}/task").glob("*/stat")
        return all(path.read_text().rpartition(") ")[2].startswith("T") for path in states)

    def close(self) -> str:
        """Let the process end; what it logged, the first time. AssertionError if it does not."""
        if self._calls.closed:
            return ""
        self._calls.close()
        text = b""
        with open(self._log, "rb", buffering=0) as log:
            while select.select([log], [], [], 10)[0]:
                piece = log.read(65536)
                if not piece:
                    return text.decode()  # its last descriptor is closed: it is gone
                text += piece
        os.kill(self._pid, signal.SIGKILL)
        raise AssertionError(f"peer {self.cluster_id} did not end within 10 s: {text.decode()}")


def refused(peer: Peer, method: str, *args: Any, **kwargs: Any) -> Refused:
    """The error of a call that must fail."""
    try:
        result = peer.call(method, *args, **kwargs)
    except Refused as error:
        return error
    raise AssertionError(f"{method}{args} was expected to fail and returned {result!r}")


def wait_until(peer: Peer, source: str) -> None:
    """Until an expression of the peer's is true."""
    deadline = time.monotonic() + 5
    while not peer.call("run", source):
        assert time.monotonic() < deadline, f"{source} did not become true"


@dataclass
class Pair:
    """A producer (cluster 1) and a consumer (cluster 2), linked, with a cache each (id 1)."""

    producer: Peer
    consumer: Peer
    producer_link: int
    consumer_link: int

    def block(self, peer: Peer, tensor: int, block: int) -> bytes:
        content: bytes = peer.call("read", 1)[tensor]
        return content[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]

    def wait_until_pulling(self) -> None:
        """Until the consumer has begun to pull from the producer."""
        wait_until(self.consumer, f"{ENTITY}.lock.locked()")

    def both(self, tensor: int, source: int, target: int) -> tuple[bytes, bytes]:
        """A source block of the producer and a target block of the consumer."""
        return (
            self.block(self.producer, tensor, source),
            self.block(self.consumer, tensor, target),
        )


def link_all(*peers: Peer, name: str = "comm", ips: dict[int, str] | None = None) -> list[int]:
    """Every peer calls link, ranks in the given order; their comm ids."""
    ranks = {peer.cluster_id: rank for rank, peer in enumerate(peers)}
    lines = [peer.rank(**({"ip": ips[peer.cluster_id]} if ips else {})) for peer in peers]
    return [peer.call("link", name, ranks, rank_table(*lines)) for peer in peers]


class Peers:
    """Starts initialised peers over one state directory; `close` ends them."""

    def __init__(self, nursery: Nursery, state: Path) -> None:
        self._nursery = nursery
        self._state = state
        self._peers: list[Peer] = []

    def __call__(
        self,
        cluster_id: int,
        *,
        role: str = "PROMPT",
        device: int | None = None,
        connect_timeout: float = 5.0,
        env: dict[str, str] | None = None,
        initialise: bool = True,
        **options: Any,
    ) -> Peer:
        """A peer on physical device `device` (default: its cluster id)."""
        physical = cluster_id if device is None else device
        environment = {
            "TWIN_STATE": str(self._state),
            "HCCL_CONNECT_TIMEOUT": str(connect_timeout),
            **(env or {}),
        }
        peer = Peer(self._nursery, cluster_id, role, device=physical, env=environment)
        self._peers.append(peer)
        if initialise:
            peer.call("init", **{"device": physical, **options})
        return peer

    def pair(self, *, register: bool = True, **options: Any) -> Pair:
        """Cluster 1 and cluster 2, linked; options as for one peer."""
        producer, consumer = self(1, **options), self(2, **options)
        if register:
            for peer in (producer, consumer):
                peer.call("register", BLOCKS, BLOCK_BYTES, TENSORS)
            producer.call("fill", 1)
        ids = link_all(producer, consumer)
        assert producer.call("wait_link", ids[0]) == "OK"
        assert consumer.call("wait_link", ids[1]) == "OK"
        return Pair(producer, consumer, *ids)

    def close(self) -> None:
        for peer in self._peers:
            peer.close()
