"""One TP rank in a process of its own: the connector's real worker half, real sockets, and the
twin's `llm_datadist`. Tests drive it by method calls that travel over a pipe.

A process of its own because `llm_datadist` allows one instance per process, and because
death is something to test.
"""

from __future__ import annotations

import hashlib
import logging
import math
import multiprocessing
import os
import socket
import sys
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import pytest

SITE = str(Path(__file__).parents[3] / "twin" / "site")
if SITE not in sys.path:
    sys.path.insert(0, SITE)

import torch  # noqa: E402  after the path, like everything that the fork server preloads

from connector.config import Environment, Settings  # noqa: E402
from connector.steps import LoadPlan, Remote, Results, Step  # noqa: E402
from connector.worker import DecodeWorker, Identity, PrefillWorker  # noqa: E402

# A loopback address of our own per pytest-xdist worker: nobody else's ports are in the way.
HOST = f"127.77.{os.environ.get('PYTEST_XDIST_WORKER', 'gw0').removeprefix('gw')}.1"
BLOCKS = 32
BLOCK_SIZE = 16
LAYERS = 3
ALIGNMENT = 2 * 1024 * 1024  # bytes


def make_caches(form: str, heads: int = 2) -> dict[str, Any]:
    """KV caches as the backends give them, zeroed.

    `…-aligned`: each tensor begins at a multiple of 2 MiB inside a larger one, as vllm-ascend has
    it on NPUs.
    """
    form, _, aligned = form.partition("-")

    def zeros(*shape: int) -> torch.Tensor:
        if not aligned:
            return torch.zeros(*shape, dtype=torch.float32)
        size = math.prod(shape)
        room = torch.zeros(size + ALIGNMENT // 4, dtype=torch.float32)
        start = -room.data_ptr() % ALIGNMENT // 4
        return room[start : start + size].view(shape)

    def layer() -> Any:
        if form == "ascend":
            return (zeros(BLOCKS, BLOCK_SIZE, heads, 8), zeros(BLOCKS, BLOCK_SIZE, heads, 8))
        if form == "mla":
            return (zeros(BLOCKS, BLOCK_SIZE, 1, 24), zeros(BLOCKS, BLOCK_SIZE, 1, 8))
        if form == "cpu":
            return zeros(BLOCKS, heads, BLOCK_SIZE, 16)
        assert form == "stacked"
        return zeros(2, BLOCKS, BLOCK_SIZE * heads * 8)

    return {f"layers.{number}": layer() for number in range(LAYERS)}


@dataclass(frozen=True)
class Setup:
    """What one rank is started with; picklable."""

    role: Literal["prefill", "decode"]
    rank_table: str
    port: int
    env: dict[str, str]
    tp_rank: int = 0
    tp_size: int = 1
    form: str = "ascend"
    kv_heads: int = 2
    model: str = "tiny"
    block_size: int = BLOCK_SIZE
    extra: dict[str, Any] = field(default_factory=dict)


class Rank:
    """Lives in the child; every public method may be called from the test."""

    def __init__(self, setup: Setup) -> None:
        os.environ.update(setup.env)
        self._log: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: self._log.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("vllm.connector").addHandler(handler)
        logging.getLogger("vllm.connector").setLevel(logging.INFO)
        self._caches = make_caches(setup.form)
        self._tensors = [
            tensor
            for cache in self._caches.values()
            for tensor in (cache if isinstance(cache, tuple) else (cache,))
        ]
        if setup.form == "stacked":
            self._tensors = [half for tensor in self._tensors for half in tensor]
        identity = Identity(
            role=setup.role,
            instance=setup.role,
            server_id="127.0.0.1" if setup.role == "prefill" else "127.0.0.2",
            tp_rank=setup.tp_rank,
            tp_size=setup.tp_size,
            local_rank=setup.tp_rank,
            port=setup.port,
            model=setup.model,
            kv_heads=setup.kv_heads,
            mla=setup.form.startswith("mla"),
            block_size=setup.block_size,
            num_blocks=BLOCKS,
        )
        settings = Settings.read(
            {
                "pull_timeout": 2,
                "load_timeout": 4,
                "link_timeout": 3,
                "rpc_timeout": 1,
                "hold_timeout": 30,
                "announce_timeout": 1,
                "heartbeat": 0.2,
                "prelink": False,
                **setup.extra,
            }
        )
        environment = Environment(setup.rank_table, setup.port, HOST, ())
        kind = PrefillWorker if setup.role == "prefill" else DecodeWorker
        self._worker = kind(identity, settings, environment)
        self._worker.register(self._caches)

    def fill(self, seed: int) -> None:
        """Different numbers in every tensor and block."""
        generator = torch.Generator().manual_seed(seed)
        for tensor in self._tensors:
            tensor.copy_(torch.rand(tensor.shape, generator=generator))

    def content(self, blocks: list[int]) -> list[str]:
        """One digest per block over all tensors."""
        return [
            hashlib.blake2b(
                b"".join(tensor[block].contiguous().numpy().tobytes() for tensor in self._tensors)
            ).hexdigest()
            for block in blocks
        ]

    def registered(self) -> list[tuple[list[int], list[int], int]]:
        """Of each registered cache its shape, which of the tensors it has, in order, and how many
        of them a layer has.
        """
        places = {tensor.data_ptr(): place for place, tensor in enumerate(self._tensors)}
        return [
            (
                list(cache.cache_desc.shape),
                [places[address] for address in cache.tensor_addrs],
                options.get("tensor_num_per_layer", 2),
            )
            for cache, options in self._worker.datadist._caches
        ]

    def misaligned(self) -> list[int]:
        """Registered addresses that are no multiples of 2 MiB."""
        caches = [cache for cache, _ in self._worker.datadist._caches]
        addresses = [address for cache in caches for address in cache.tensor_addrs]
        return [address for address in addresses if address % ALIGNMENT]

    def announce(self, run: str, holds: dict[str, int]) -> None:
        self._worker.begin_step(Step(run, idle=True, holds=holds))

    def load(self, request_id: str, plan: LoadPlan) -> None:
        self._worker.start_loads(Step("d", idle=True, loads={request_id: plan}))

    def cancel(self, request_id: str) -> None:
        self._worker.start_loads(Step("d", idle=True, cancelled={request_id}))

    def refuse(self, remote: Remote) -> None:
        self._worker.start_loads(Step("d", idle=True, refused=[remote]))

    def results(self) -> Results:
        return self._worker.results(idle=True)

    def metrics(self, name: str) -> float:
        """Sum of a metric's samples."""
        return sum(sample.value for sample in self._samples(name))

    def counts(self, name: str, label: str) -> dict[str, float]:
        """A metric's samples by one of its labels."""
        return {sample.labels[label]: sample.value for sample in self._samples(name)}

    def _samples(self, name: str) -> list[Any]:
        families = self._worker.metrics.registry.collect()
        return [s for family in families for s in family.samples if s.name == name]

    def log(self) -> str:
        """What the connector has logged."""
        return "\n".join(self._log)

    def close(self) -> None:
        self._worker.close()


def _serve(setup: Setup, pipe: Connection) -> None:
    try:
        rank = Rank(setup)
    except Exception as error:
        pipe.send(error)
        return
    pipe.send(None)
    while True:
        try:
            name, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, getattr(rank, name)(*arguments)))
        except Exception as error:
            pipe.send((False, error))
        if name == "close":
            return


def _fork_server() -> Any:
    """A context whose children start with torch and this module imported already.

    Python 3.11's fork server ignores sys.path when it preloads; PYTHONPATH it inherits.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rank_process"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        forkserver.ensure_running()
    return context


class RankProcess:
    """The test's end. Attribute access is a call in the child: `p.fill(1)`."""

    def __init__(self, setup: Setup) -> None:
        context = _fork_server()
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(setup, theirs), daemon=True)
        self.process.start()
        theirs.close()
        problem = self._answer()
        if problem is not None:
            self.process.join(5)
            raise problem

    def _answer(self) -> Any:
        if not self._pipe.poll(30):
            raise TimeoutError(f"rank process {self.process.pid} did not answer within 30 s")
        return self._pipe.recv()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            self._pipe.send((name, arguments))
            good, value = self._answer()
            if not good:
                raise value
            return value

        return call

    def kill(self) -> None:
        self.process.kill()
        self.process.join(5)

    def end(self) -> None:
        """Close in good order; kill what does not."""
        if self.process.is_alive():
            try:
                self._pipe.send(("close", ()))
                self.process.join(10)
            finally:
                if self.process.is_alive():
                    self.kill()
                    pytest.fail("a rank did not close within 10 s")


def free_ports(count: int, host: str = HOST) -> int:
    """First of `count` consecutive free ports."""
    while True:
        with socket.socket() as first:
            first.bind((host, 0))
            base = int(first.getsockname()[1])
        if base + count >= 65536:
            continue
        try:
            for port in range(base, base + count):
                with socket.socket() as probe:
                    probe.bind((host, port))
        except OSError:
            continue
        return base
