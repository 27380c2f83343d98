"""A nursery of processes with one LLMDataDist each, driven from a test (datadist_peer.py).

There may be only one LLMDataDist in a process, and starting Python takes longer than most tests:
this program imports once and forks a process for each environment and pair of descriptors (for
calls, for what it logs) that come over the socket on its stdin.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

TENSORS = 4  # default of a cache
SITE = Path(__file__).parents[3] / "twin" / "site"


class Actor:
    """The peer's side: what a test may ask of it."""

    def __init__(self) -> None:
        import llm_datadist

        self.lib = llm_datadist
        self.buffers: dict[int, list[bytearray]] = {}
        self.caches: dict[int, Any] = {}
        self.threads: dict[str, tuple[threading.Thread, list[Any]]] = {}

    def create(self, cluster_id: int, role: str) -> None:
        self.dd = self.lib.LLMDataDist(self.lib.LLMRole[role], cluster_id)

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
        placement: str = "DEVICE",
        batch_dim_index: int = 0,
        key_cluster: int | None = None,
        **kwargs: Any,
    ) -> int:
        """A cache of byte tensors of zeros; its id. Its blocks' key names the own cluster unless
        `key_cluster` is another.
        """
        lib = self.lib
        buffers = [bytearray(blocks * block_bytes) for _ in range(tensors)]
        addrs = [ctypes.addressof(ctypes.c_char.from_buffer(buffer)) for buffer in buffers]
        shape, where = [blocks, block_bytes], lib.Placement[placement]
        desc = lib.CacheDesc(tensors, shape, lib.DataType.DT_INT8, where, batch_dim_index)
        manager = self.dd.cache_manager
        if batch:
            cache_keys = [lib.CacheKey(self.dd.cluster_id, key) for key in keys]
            cache = manager.register_cache(desc, addrs, cache_keys, **kwargs)
        else:
            owner = self.dd.cluster_id if key_cluster is None else key_cluster
            key = None if model_id is None else lib.BlocksCacheKey(owner, model_id)
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


def serve(calls: Connection) -> None:
    """Obey calls until the test's end is closed."""
    actor = Actor()
    while True:
        try:
            method, args, kwargs = calls.recv()
        except EOFError:
            return
        calls.send(answer(actor, method, args, kwargs))


def main() -> None:
    sys.path.insert(0, str(SITE))
    import llm_datadist  # noqa: F401  # imported before forking, which is what saves the time

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    control = socket.socket(fileno=0)
    while True:
        request, (calls, log), _, _ = socket.recv_fds(control, 65536, 2)
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            control.close()
            os.dup2(log, 2)
            os.close(log)
            os.environ.clear()
            os.environ.update(json.loads(request))
            serve(Connection(calls))
            return  # and exit as any Python program does
        os.close(calls)
        os.close(log)
        control.sendall(child.to_bytes(8, "little"))


if __name__ == "__main__":
    main()
