"""How fast the twin's KV transport is: pull_blocks against a bare socket copy of the same bytes.

    python bench/pull.py [--rounds 9] [--mooncake PYTHON]

Two processes on this machine's loopback. For each case three (with --mooncake, four) ways to
bring the same number of bytes from one process's memory into the other's are measured in turn,
round after round, so that other load strikes all of them alike:

bare     sendall of one contiguous piece, recv_into with MSG_WAITALL; the kernel's own socket
         buffers, and once more with the transport's size of them
pieces   the same pieces as pull, over a bare socket: sendmsg and recvmsg_into of lists that were
         cut before, so nothing but the kernel's work
pull     pull_blocks of our llm_datadist
mooncake batch_transfer_sync_read of mooncake-transfer-engine over its TCP transport, with the
         same pieces; PYTHON is an interpreter that can import it

A figure is the median of all rounds but the first, in GB/s (1e9 bytes). `ratio` is the median of
the rounds' own ratios, pull against the better of the two bare copies of one contiguous piece;
`of pieces` the same against the bare copy of the same pieces.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SITE = Path(__file__).parents[1] / "twin" / "site"
TENSORS = 8  # four layers, K and V
IOV_MAX = os.sysconf("SC_IOV_MAX")  # pieces in one system call
MOONCAKE_QUEUE = 2048  # pieces in one call: its TCP transport refused 3200


@dataclass(frozen=True)
class Case:
    """What is moved: `count` blocks of each tensor of a cache of `blocks`."""

    name: str
    blocks: int
    block_bytes: int
    count: int
    scattered: bool

    @property
    def size(self) -> int:
        """Bytes in all."""
        return TENSORS * self.count * self.block_bytes

    def lists(self) -> tuple[list[int], list[int]]:
        """Source and target blocks."""
        if not self.scattered:
            first = self.blocks - self.count
            return list(range(self.count)), list(range(first, self.blocks))
        chance = random.Random(1)
        return (
            chance.sample(range(self.blocks), self.count),
            chance.sample(range(self.blocks), self.count),
        )

    def pieces(self) -> list[tuple[int, int, int]]:
        """(source, target, length) in bytes within a tensor: what is left after merging."""
        sys.path.insert(0, str(SITE))
        from llm_datadist.native.transfer import merge

        size = self.block_bytes
        runs = merge(*self.lists()).sorted_by_local()
        columns = zip(runs.remote, runs.local, runs.count, strict=True)
        return [(remote * size, local * size, count * size) for remote, local, count in columns]

    def cut(self, memory: Memory, column: int) -> list[list[memoryview]]:
        """The pieces in `memory`, of the owner (column 0) or the puller (1), in lists to move."""
        tensor = self.blocks * self.block_bytes
        views = [
            memory.view[base + piece[column] : base + piece[column] + piece[2]]
            for base in range(0, TENSORS * tensor, tensor)
            for piece in self.pieces()
        ]
        return [views[first : first + IOV_MAX] for first in range(0, len(views), IOV_MAX)]


KIB, MIB = 1024, 1024 * 1024
BUFFER = 256 * KIB  # of sockets, as the transport has them
CASES = [
    Case("contiguous 256 MiB", 64, MIB, 32, False),
    Case("scattered 1 MiB", 64, MIB, 32, True),
    Case("scattered 64 KiB", 1024, 64 * KIB, 400, True),
    Case("scattered 32 KiB", 1600, 32 * KIB, 800, True),
    Case("scattered 16 KiB", 1600, 16 * KIB, 800, True),
    Case("scattered 8 KiB", 1600, 8 * KIB, 800, True),
    Case("one prompt: 48 x 32 KiB", 256, 32 * KIB, 48, True),
]


class Memory:
    """Zeroed pages, touched, on a 2 MiB boundary as vllm-ascend's KV caches are."""

    def __init__(self, size: int) -> None:
        self._pages = mmap.mmap(-1, size + 2 * MIB)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._pages))
        self.address = -(-start // (2 * MIB)) * 2 * MIB
        self.view = memoryview((ctypes.c_char * size).from_address(self.address)).cast("B")
        for offset in range(0, size, 4096):
            self.view[offset] = offset // 4096 % 251


class Way:
    """One way to move a case's bytes, at the puller's side."""

    name: str

    def move(self) -> None:
        raise NotImplementedError


def connected(port: int, buffer: int) -> socket.socket:
    """A connection with a receive buffer of so many bytes; 0: the kernel's own."""
    connection = socket.socket()
    if buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.connect(("127.0.0.1", port))
    return connection


def serve(answer: Callable[[socket.socket], None], buffer: int) -> int:
    """Let `answer` have the one connection that comes; the port. `buffer` as in `connected`."""
    listener = socket.socket()
    if buffer:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    threading.Thread(target=lambda: answer(listener.accept()[0]), daemon=True).start()
    return int(listener.getsockname()[1])


class Bare(Way):
    """One contiguous piece over a plain connection."""

    def __init__(self, port: int, memory: Memory, size: int, buffer: int) -> None:
        self.name = "bare, kernel's buffers" if buffer == 0 else f"bare, {buffer // KIB} KiB"
        self._socket = connected(port, buffer)
        self._target = memory.view[:size]
        self._request = size.to_bytes(8, "little")

    def move(self) -> None:
        self._socket.sendall(self._request)
        got = 0
        while got < len(self._target):
            got += self._socket.recv_into(self._target[got:], 0, socket.MSG_WAITALL)


def serve_bare(memory: Memory, buffer: int) -> int:
    """Answer each request of a size with so many bytes; the port."""

    def answer(connection: socket.socket) -> None:
        while size := int.from_bytes(connection.recv(8), "little"):
            connection.sendall(memory.view[:size])

    return serve(answer, buffer)


class Pieces(Way):
    """The same pieces as a pull, cut beforehand, over a plain connection."""

    name = "bare, same pieces"

    def __init__(self, port: int, lists: Sequence[Sequence[memoryview]]) -> None:
        self._socket = connected(port, BUFFER)
        self._lists = lists

    def move(self) -> None:
        from llm_datadist.native.wire import receive_pieces

        self._socket.sendall(b".")
        for pieces in self._lists:
            receive_pieces(self._socket, pieces)


def serve_pieces(lists: Sequence[Sequence[memoryview]]) -> int:
    """Answer each byte with all of the lists; the port."""
    from llm_datadist.native.wire import send_pieces

    def answer(connection: socket.socket) -> None:
        while connection.recv(1):
            for pieces in lists:
                send_pieces(connection, pieces)

    return serve(answer, BUFFER)


class Pull(Way):
    """pull_blocks."""

    name = "pull_blocks"

    def __init__(self, manager: Any, cache: Any, key: Any, case: Case) -> None:
        self._arguments = key, cache, *case.lists()
        self._manager = manager

    def move(self) -> None:
        self._manager.pull_blocks(*self._arguments)


class Mooncake(Way):
    """batch_transfer_sync_read."""

    name = "mooncake"

    def __init__(self, engine: Any, target: str, remote: int, local: int, case: Case) -> None:
        self._engine = engine
        self._target = target
        tensor = case.blocks * case.block_bytes
        bases = range(0, TENSORS * tensor, tensor)
        pieces = case.pieces()
        self._local = [local + base + to for base in bases for _, to, _ in pieces]
        self._remote = [remote + base + source for base in bases for source, _, _ in pieces]
        self._lengths = [length for _ in bases for _, _, length in pieces]

    def move(self) -> None:
        for start in range(0, len(self._lengths), MOONCAKE_QUEUE):
            part = slice(start, start + MOONCAKE_QUEUE)
            code = self._engine.batch_transfer_sync_read(
                self._target, self._local[part], self._remote[part], self._lengths[part]
            )
            if code:
                raise RuntimeError(f"mooncake: batch_transfer_sync_read returned {code}")


def datadist(cluster_id: int, case: Case, memory: Memory) -> tuple[Any, Any]:
    """An initialised LLMDataDist and its cache, tensor after tensor in `memory`."""
    sys.path.insert(0, str(SITE))
    from llm_datadist import BlocksCacheKey, CacheDesc, DataType, LLMConfig, LLMDataDist, LLMRole

    config = LLMConfig()
    config.device_id = cluster_id
    config.sync_kv_timeout = 60000
    config.enable_cache_manager = True
    config.enable_remote_cache_accessible = True
    instance = LLMDataDist(LLMRole.MIX, cluster_id)
    instance.init(config.generate_options())
    tensor = case.blocks * case.block_bytes
    cache = instance.cache_manager.register_blocks_cache(
        CacheDesc(TENSORS, [case.blocks, case.block_bytes], DataType.DT_INT8),
        [memory.address + index * tensor for index in range(TENSORS)],
        BlocksCacheKey(cluster_id),
    )
    return instance, cache


def link(instance: Any) -> None:
    devices = [
        {"device_id": str(i), "device_ip": f"10.0.0.{i}", "rank_id": str(i - 1)} for i in (1, 2)
    ]
    table = {"version": "1.2", "server_list": [{"server_id": "127.0.0.1", "device": devices}]}
    comm = instance.link("bench", {1: 0, 2: 1}, json.dumps(table))
    deadline = time.monotonic() + 30
    while (status := instance.query_register_mem_status(comm).name) == "PREPARING":
        if time.monotonic() > deadline:
            break
        threading.Event().wait(0.01)
    if status != "OK":
        raise RuntimeError(f"the link is {status}")


def mooncake_engine(memory: Memory, size: int) -> tuple[Any, str]:
    """A TransferEngine over TCP with `memory` registered, and the name peers call it by."""
    from mooncake.engine import TransferEngine

    engine = TransferEngine()
    if engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", ""):
        raise RuntimeError("mooncake: initialize failed")
    if engine.register_memory(memory.address, size):
        raise RuntimeError("mooncake: register_memory failed")
    return engine, f"127.0.0.1:{engine.get_rpc_port()}"


def own(case: Case, *, mooncake: bool) -> None:
    """The owner's process: serves until its stdin is closed."""
    size = TENSORS * case.blocks * case.block_bytes
    memory = Memory(size)
    doors: dict[str, Any] = {"address": memory.address}
    keep: list[Any] = []
    if mooncake:
        engine, doors["mooncake"] = mooncake_engine(memory, size)
        keep.append(engine)
    else:
        instance, _ = datadist(1, case, memory)
        doors |= {f"bare{n}": serve_bare(memory, n) for n in (0, BUFFER)}
        doors["pieces"] = serve_pieces(case.cut(memory, 0))
    print(json.dumps(doors), flush=True)
    if not mooncake:
        link(instance)
    sys.stdin.read()


def pull(case: Case, doors: dict[str, Any], rounds: int) -> list[list[float]]:
    """The puller: seconds of each way (bare, bare, pieces, pull) in each round but the first."""
    size = TENSORS * case.blocks * case.block_bytes
    memory = Memory(size)
    instance, cache = datadist(2, case, memory)
    link(instance)
    from llm_datadist import BlocksCacheKey

    ways: list[Way] = [Bare(doors[f"bare{n}"], memory, case.size, n) for n in (0, BUFFER)]
    ways.append(Pieces(doors["pieces"], case.cut(memory, 1)))
    ways.append(Pull(instance.cache_manager, cache, BlocksCacheKey(1), case))
    times = measure(ways, rounds)
    instance.finalize()
    return times


def measure(ways: Sequence[Way], rounds: int) -> list[list[float]]:
    times: list[list[float]] = [[] for _ in ways]
    for number in range(rounds + 1):
        for way, seconds in zip(ways, times, strict=True):
            start = time.perf_counter()
            way.move()
            if number:  # the first round opens connections and touches pages
                seconds.append(time.perf_counter() - start)
    return times


def run(case: Case, rounds: int, python: str, *, mooncake: bool) -> list[list[float]]:
    """Owner and puller in processes of their own; seconds by way and round."""
    command = [python, __file__, "--case", str(CASES.index(case)), "--rounds", str(rounds)]
    command += ["--with-mooncake"] * mooncake
    with tempfile.TemporaryDirectory() as state:
        env = os.environ | {"TWIN_STATE": state}
        owner = subprocess.Popen(
            [*command, "--own"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if not mooncake else subprocess.DEVNULL,
            env=env,
        )
        try:
            assert owner.stdout is not None
            doors = next(line for line in owner.stdout if line.startswith(b"{")).decode()
            done = subprocess.run(
                [*command, "--pull", doors],
                stdout=subprocess.PIPE,
                stderr=None if not mooncake else subprocess.DEVNULL,
                env=env,
                check=True,
                timeout=300,
            )
        finally:
            assert owner.stdin is not None
            owner.stdin.close()
            try:
                owner.wait(timeout=10)
            except subprocess.TimeoutExpired:
                owner.kill()
                owner.wait()
    answer = next(line for line in done.stdout.splitlines() if line.startswith(b"[["))
    times: list[list[float]] = json.loads(answer)
    return times


def rate(case: Case, seconds: Sequence[float]) -> float:
    return case.size / statistics.median(seconds) / 1e9


def report(rounds: int, mooncake: str | None) -> None:
    head = ["case", "MiB", "pieces", "bare", "bare 256 KiB", "bare pieces", "pull_blocks"]
    head += ["ratio", "of pieces"]
    head += ["mooncake"] if mooncake else []
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for case in CASES:
        bare, tuned, pieces, pulled = run(case, rounds, sys.executable, mooncake=False)
        best = map(min, bare, tuned)
        ratios = [whole / ours for whole, ours in zip(best, pulled, strict=True)]
        of_pieces = [theirs / ours for theirs, ours in zip(pieces, pulled, strict=True)]
        row = [
            case.name,
            f"{case.size / MIB:.0f}",
            f"{TENSORS * len(case.pieces())}",
            *(f"{rate(case, seconds):.2f}" for seconds in (bare, tuned, pieces, pulled)),
            f"{statistics.median(ratios):.2f}",
            f"{statistics.median(of_pieces):.2f}",
        ]
        if mooncake:
            row.append(f"{rate(case, run(case, rounds, mooncake, mooncake=True)[0]):.2f}")
        print("| " + " | ".join(row) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--mooncake", metavar="PYTHON", help="interpreter that has mooncake")
    for name in ("--case", "--own", "--pull", "--with-mooncake"):  # of the processes we start
        action = {"--case": {"type": int}, "--pull": {}}.get(name, {"action": "store_true"})
        parser.add_argument(name, help=argparse.SUPPRESS, **action)
    arguments = parser.parse_args()
    if arguments.case is None:
        report(arguments.rounds, arguments.mooncake)
        return
    case = CASES[arguments.case]
    if arguments.own:
        own(case, mooncake=arguments.with_mooncake)
        return
    doors = json.loads(arguments.pull)
    if arguments.with_mooncake:
        size = TENSORS * case.blocks * case.block_bytes
        memory = Memory(size)
        engine, _ = mooncake_engine(memory, size)
        way = Mooncake(engine, doors["mooncake"], doors["address"], memory.address, case)
        print(json.dumps(measure([way], arguments.rounds)))
    else:
        print(json.dumps(pull(case, doors, arguments.rounds)))


if __name__ == "__main__":
    main()
