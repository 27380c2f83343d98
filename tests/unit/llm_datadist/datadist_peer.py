"""A process with one LLMDataDist, driven from a test: there may be only one in a process.

Run as a program it obeys calls that come pickled on stdin and answers on stdout. `Peer` is the
test's end of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BLOCKS, BLOCK_BYTES, TENSORS = 16, 1024, 4  # of a pair's caches

SITE = Path(__file__).parents[3] / "twin" / "site"
if __name__ == "__main__":
    sys.path.insert(0, str(SITE))


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


class Peer:
    """One LLMDataDist in a process of its own. End it with `close`."""

    def __init__(self, cluster_id: int, *, device: int = 0, env: Mapping[str, str]) -> None:
        self.cluster_id = cluster_id
        self.device = device
        self.server = env.get("TWIN_HOST_ADDRESS", "127.0.0.1")
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": os.environ["PATH"], **env},
        )
        self._lock = threading.Lock()
        self.call("create", cluster_id)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """What `method` of the Actor returns; Refused for what it raises."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            pickle.dump((method, args, kwargs), self._process.stdin)
            self._process.stdin.flush()
            kind, value = pickle.load(self._process.stdout)
        if kind == "result":
            return value
        raise Refused(kind, value)

    def rank(self, **more: str) -> dict[str, Any]:
        """This process's line of a rank table."""
        return {"server": self.server, "device": self.device, **more}

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def close(self) -> str:
        """End the process; what it logged, the first time."""
        if self._process.poll() is None and self._process.stdin is not None:
            self._process.stdin.close()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.kill()
        assert self._process.stderr is not None
        assert self._process.stdout is not None
        if self._process.stderr.closed:
            return ""
        with self._process.stderr as stderr, self._process.stdout:
            return stderr.read().decode()


def refused(peer: Peer, method: str, *args: Any, **kwargs: Any) -> Refused:
    """The error of a call that must fail."""
    try:
        result = peer.call(method, *args, **kwargs)
    except Refused as error:
        return error
    raise AssertionError(f"{method}{args} was expected to fail and returned {result!r}")


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
        """Until a call of the consumer is under way."""
        deadline = time.monotonic() + 5
        while self.consumer.call("run", "dd._engine._lock._holders") == 0:
            assert time.monotonic() < deadline, "no call began"

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

    def __init__(self, state: Path) -> None:
        self._state = state
        self._peers: list[Peer] = []

    def __call__(
        self,
        cluster_id: int,
        *,
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
        peer = Peer(cluster_id, device=physical, env=environment)
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


class Actor:
    """The peer's side: what a test may ask of it."""

    def __init__(self) -> None:
        import llm_datadist

        self.lib = llm_datadist
        self.buffers: dict[int, list[bytearray]] = {}
        self.caches: dict[int, Any] = {}
        self.threads: dict[str, tuple[threading.Thread, list[Any]]] = {}

    def create(self, cluster_id: int) -> None:
        self.dd = self.lib.LLMDataDist(self.lib.LLMRole.PROMPT, cluster_id)

    def init(
        self,
        device: int = 0,
        timeout_ms: int | None = 2000,
        accessible: bool = True,
        listen: str = "",
        more: Mapping[str, str] | None = None,
    ) -> None:
        config = self.lib.LLMConfig()
        config.device_id = device
        if timeout_ms is not None:
            config.sync_kv_timeout = timeout_ms
        config.enable_cache_manager = True
        config.enable_remote_cache_accessible = accessible
        config.listen_ip_info = listen
        self.dd.init(config.generate_options() | dict(more or {}))

    def register(
        self,
        blocks: int,
        block_bytes: int,
        tensors: int = 4,
        model_id: int | None = 0,
        batch: bool = False,
        keys: Sequence[int] = (),
        **kwargs: Any,
    ) -> int:
        """A cache of byte tensors of zeros; its id."""
        lib = self.lib
        buffers = [bytearray(blocks * block_bytes) for _ in range(tensors)]
        addrs = [ctypes.addressof(ctypes.c_char.from_buffer(buffer)) for buffer in buffers]
        desc = lib.CacheDesc(tensors, [blocks, block_bytes], lib.DataType.DT_INT8)
        manager = self.dd.cache_manager
        if batch:
            cache_keys = [lib.CacheKey(self.dd.cluster_id, key) for key in keys]
            cache = manager.register_cache(desc, addrs, cache_keys, **kwargs)
        else:
            key = None if model_id is None else lib.BlocksCacheKey(self.dd.cluster_id, model_id)
            cache = manager.register_blocks_cache(desc, addrs, key, **kwargs)
        self.buffers[cache.cache_id] = buffers
        self.caches[cache.cache_id] = cache
        return int(cache.cache_id)

    def unknown_cache(self) -> Any:
        """A handle of a cache that is not registered."""
        desc = self.lib.CacheDesc(4, [16, 1024], self.lib.DataType.DT_INT8)
        return self.lib.Cache(99, desc, [64] * 4, is_blocks=True)

    def host_cache(self, cache: int, blocks: int = 16, block_bytes: int = 1024) -> None:
        """A cache of zeros in host memory that is not registered, under the given id."""
        lib = self.lib
        buffers = [bytearray(blocks * block_bytes) for _ in range(TENSORS)]
        addrs = [ctypes.addressof(ctypes.c_char.from_buffer(buffer)) for buffer in buffers]
        shape = [blocks, block_bytes]
        desc = lib.CacheDesc(TENSORS, shape, lib.DataType.DT_INT8, lib.Placement.HOST)
        self.buffers[cache] = buffers
        self.caches[cache] = lib.Cache.create_cpu_cache(desc, addrs)

    def clusters(
        self, call: str, cluster_id: int, port: int, *, local: bool = True, **more: Any
    ) -> tuple[str, list[str]]:
        """link_clusters or unlink_clusters with a process that listens at a port."""
        info = self.lib.LLMClusterInfo()
        info.remote_cluster_id = cluster_id
        info.append_remote_ip_info("127.0.0.1", port)
        if local:
            info.append_local_ip_info("127.0.0.1", 1)
        code, codes = getattr(self.dd, call)([info], **more)
        return code.name, [one.name for one in codes]

    def fill(self, cache: int, seed: int = 0) -> None:
        """Every byte of the cache differs from its neighbours in block, tensor and offset."""
        for index, buffer in enumerate(self.buffers[cache]):
            buffer[:] = pattern(len(buffer), seed + index)

    def read(self, cache: int) -> list[bytes]:
        return [bytes(buffer) for buffer in self.buffers[cache]]

    def link(self, name: str, ranks: dict[int, int], table: str) -> int:
        return int(self.dd.link(name, ranks, table))

    def status(self, comm_id: int) -> str:
        return str(self.dd.query_register_mem_status(comm_id).name)

    def wait_link(self, comm_id: int, seconds: float = 10.0) -> str:
        """OK or FAILED; PREPARING if it is still that after so many seconds."""
        deadline = time.monotonic() + seconds
        while self.status(comm_id) == "PREPARING" and time.monotonic() < deadline:
            threading.Event().wait(0.005)
        return self.status(comm_id)

    def pull(
        self,
        cluster_id: int,
        cache: int,
        source: Sequence[int],
        target: Sequence[int],
        model_id: int = 0,
        **kwargs: Any,
    ) -> float:
        """Seconds it took."""
        key = self.lib.BlocksCacheKey(cluster_id, model_id)
        start = time.monotonic()
        self.dd.cache_manager.pull_blocks(key, self.caches[cache], source, target, **kwargs)
        return time.monotonic() - start

    def push(
        self, cluster_id: int, cache: int, source: Sequence[int], target: Sequence[int], **kw: Any
    ) -> None:
        key = self.lib.BlocksCacheKey(cluster_id)
        self.dd.cache_manager.push_blocks(key, self.caches[cache], source, target, **kw)

    def do(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A method of the LLMDataDist itself."""
        return getattr(self.dd, method)(*args, **kwargs)

    def manage(self, method: str, cache: int, *args: Any) -> Any:
        """A method of the cache manager whose first argument is a cache."""
        return getattr(self.dd.cache_manager, method)(self.caches[cache], *args)

    def run(self, source: str, **names: Any) -> Any:
        """The value of a Python expression over `lib`, `dd`, `caches`, and `names`."""
        scope = {"lib": self.lib, "dd": self.dd, "caches": self.caches, "actor": self, **names}
        return eval(source, scope)

    def link_in_forked_child(self) -> str:
        """What `link` says in a forked child of this process."""
        reader, writer = os.pipe()
        if os.fork() == 0:
            kind, _ = answer(self, "link", ("n", {1: 0, 2: 1}, "{}"), {})
            os.write(writer, kind.encode())
            os._exit(0)
        os.wait()
        with os.fdopen(reader, "rb") as pipe, os.fdopen(writer, "wb"):
            return pipe.read1().decode()

    def start(self, thread: str, method: str, *args: Any, **kwargs: Any) -> None:
        """Begin a call of this class in a thread."""
        outcome: list[Any] = []

        def work() -> None:
            outcome.append((answer(self, method, args, kwargs), time.monotonic()))

        self.threads[thread] = (threading.Thread(target=work), outcome)
        self.threads[thread][0].start()

    def finish(self, thread: str) -> tuple[Any, float]:
        """The answer of a call begun with `start` and when it came (monotonic seconds)."""
        worker, outcome = self.threads.pop(thread)
        worker.join(30)
        result: tuple[Any, float] = outcome[0]
        return result


def pattern(size: int, seed: int) -> bytes:
    """Bytes that do not repeat within 64 KiB and differ for each seed."""
    words = (((i * 2654435761) ^ (seed * 40503)) & 0xFFFFFFFF for i in range(-(-size // 4)))
    return b"".join(word.to_bytes(4, "little") for word in words)[:size]


def answer(actor: Actor, method: str, args: Any, kwargs: Any) -> tuple[str, Any]:
    try:
        return "result", getattr(actor, method)(*args, **kwargs)
    except actor.lib.LLMException as error:
        return error.status_code.name, str(error)
    except Exception as error:  # the test judges whatever it is
        return type(error).__name__, str(error)


def main() -> None:
    actor = Actor()
    while True:
        try:
            method, args, kwargs = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(answer(actor, method, args, kwargs), sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
