"""`AuditConnector`: wraps any KV connector and writes what KV was produced and received.

    --kv-transfer-config '{"kv_connector": "AuditConnector",
      "kv_connector_module_path": "connector.audit", "kv_role": "kv_producer",
      "kv_connector_extra_config": {
        "audit": {"level": "full", "directory": "/tmp/trace", "instance": "prefill-1"},
        "inner": {"kv_connector": "LLMDataDistConnector",
                  "kv_connector_module_path": "connector.llmdatadist",
                  "kv_connector_extra_config": {}}}}'

Both sides digest the KV of all prompt tokens that were transferred: the prefiller while it
still holds the blocks, the decoder after the load and before the request is scheduled.
The work is done in a thread; only the report that a transfer has ended waits for it.
Records are documented in docs/connector.md.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
import json
import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)

from connector import backport, caches, compat
from connector.caches import KVCache
from connector.digest import (
    Digests,
    Plane,
    digest_blocks,
    measure_cpu_packing,
    planes,
    size_of,
    valid_tokens,
)
from connector.errors import ConnectorConfigError

logger = logging.getLogger(f"vllm.{__name__}")  # vLLM configures loggers below its own

LEVELS = ("off", "sample", "full")
SAMPLED_OF = 16  # level `sample` takes one request in so many


@dataclass(frozen=True)
class AuditSettings:
    """`kv_connector_extra_config["audit"]`."""

    level: str
    directory: str
    instance: str

    @classmethod
    def read(cls, transfer: Any) -> AuditSettings:
        """Raises ConnectorConfigError, naming the key that is wrong."""
        given = transfer.kv_connector_extra_config.get("audit")
        if not isinstance(given, Mapping):
            raise ConnectorConfigError('kv_connector_extra_config needs "audit": {…}')
        unknown = set(given) - {"level", "directory", "instance"}
        if unknown:
            raise ConnectorConfigError(f"audit: unknown key {', '.join(sorted(unknown))}")
        level = given.get("level", "sample")
        if level not in LEVELS:
            raise ConnectorConfigError(f"audit.level must be one of {LEVELS}, got {level!r}")
        if level != "off" and not given.get("directory"):
            raise ConnectorConfigError("audit.directory must name a directory on this host")
        instance = given.get("instance") or f"engine-{transfer.engine_id}"
        return cls(level, str(given.get("directory", "")), str(instance))

    def covers(self, join_key: str) -> bool:
        """Whether a request is audited; both sides decide alike."""
        if self.level == "sample":
            return hashlib.blake2b(join_key.encode(), digest_size=1).digest()[0] % SAMPLED_OF == 0
        return self.level == "full"


@dataclass(frozen=True)
class Subject:
    """One request whose KV is to be digested."""

    request: str
    remote_request: str
    """The producer's id of the request: the key that joins both sides."""
    blocks: list[int]
    first_block: int
    """Position in the prompt of the first listed block; those before it were not transferred."""
    tokens: int
    """Prompt tokens, counted from the start of the prompt."""


@dataclass
class AuditMetadata(KVConnectorMetadata):  # type: ignore[misc]  # vLLM's classes are untyped here
    """The inner connector's metadata and what to digest."""

    inner: Any
    produced: dict[str, Subject] = field(default_factory=dict)
    received: dict[str, Subject] = field(default_factory=dict)


def inner_config(vllm_config: Any) -> Any:
    """A copy of vLLM's configuration as the inner connector would see it without us."""
    transfer = copy.copy(vllm_config.kv_transfer_config)
    given = transfer.kv_connector_extra_config.get("inner")
    if not isinstance(given, Mapping) or "kv_connector" not in given:
        raise ConnectorConfigError(
            'kv_connector_extra_config needs "inner": {"kv_connector": NAME, …}'
        )
    transfer.kv_connector = given["kv_connector"]
    transfer.kv_connector_module_path = given.get("kv_connector_module_path")
    transfer.kv_connector_extra_config = dict(given.get("kv_connector_extra_config") or {})
    config = copy.copy(vllm_config)
    config.kv_transfer_config = transfer
    return config


def _forwarding_base() -> Any:
    """A KVConnectorBase_V1 that forwards every public method and property to `_inner`.

    Made from the running vLLM's class, because the set of methods differs by version and one
    that is not forwarded would silently do nothing.
    """

    def method(name: str) -> Any:
        return lambda self, *args, **kwargs: getattr(self._inner, name)(*args, **kwargs)

    def attribute(name: str) -> property:
        return property(lambda self: getattr(self._inner, name))

    members: dict[str, Any] = {}
    for name, member in vars(KVConnectorBase_V1).items():
        if name.startswith("_"):
            continue
        if inspect.isfunction(member):
            members[name] = method(name)
        elif isinstance(member, property):
            members[name] = attribute(name)
    return type(KVConnectorBase_V1)("ForwardingConnector", (KVConnectorBase_V1,), members)


ForwardingConnector: Any = _forwarding_base()


class AuditConnector(ForwardingConnector):  # type: ignore[misc]  # made above, hence untyped
    """See the module's text. Not for models with several KV cache groups (hybrid memory)."""

    def __init__(
        self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any | None = None
    ) -> None:
        compat.init_base(self, vllm_config, role, kv_cache_config)
        self._settings = AuditSettings.read(vllm_config.kv_transfer_config)
        config = inner_config(vllm_config)
        inner_class = KVConnectorFactory.get_connector_class(config.kv_transfer_config)
        takes_cache = "kv_cache_config" in inspect.signature(inner_class.__init__).parameters
        extra = (kv_cache_config,) if takes_cache else ()
        self._inner = inner_class(config, role, *extra)
        self._block_size = int(vllm_config.cache_config.block_size)
        self._head_size = int(vllm_config.model_config.get_head_size())
        self._num_blocks = None if kv_cache_config is None else int(kv_cache_config.num_blocks)
        self._next = AuditMetadata(None)
        self._worker: AuditWorker | None = None
        self._invalid: set[int] = set()
        self._lost: set[str] = set()

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: Any) -> Any:
        config = inner_config(vllm_config)
        inner_class = KVConnectorFactory.get_connector_class(config.kv_transfer_config)
        return inner_class.get_required_kvcache_layout(config)

    # ---- scheduler

    def request_finished(
        self, request: Any, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        if hasattr(self._inner, "request_finished_all_groups"):
            delay, params = self._inner.request_finished_all_groups(request, (block_ids,))
        else:
            delay, params = self._inner.request_finished(request, block_ids)
        if delay and params and params.get("do_remote_prefill"):
            tokens = request.num_prompt_tokens
            blocks = list(block_ids[: -(-tokens // self._block_size)])
            key = str(params.get("remote_request_id") or request.request_id)
            if self._settings.covers(key):
                self._next.produced[request.request_id] = Subject(
                    request.request_id, key, blocks, 0, tokens
                )
        return delay, params

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        params = request.kv_transfer_params
        if params and params.get("do_remote_prefill") and num_external_tokens > 0:
            key = str(params.get("remote_request_id") or request.request_id)
            if self._settings.covers(key):
                tokens = request.num_prompt_tokens
                first = (tokens - num_external_tokens) // self._block_size
                end = -(-tokens // self._block_size)
                local = list(blocks.get_block_ids()[0][first:end])
                self._next.received[request.request_id] = Subject(
                    request.request_id, key, local, first, tokens
                )
        self._inner.update_state_after_alloc(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> AuditMetadata:
        metadata, self._next = self._next, AuditMetadata(None)
        metadata.inner = self._inner.build_connector_meta(scheduler_output)
        return metadata

    # ---- worker

    def register_kv_caches(self, kv_caches: Mapping[str, KVCache]) -> None:
        self._inner.register_kv_caches(kv_caches)
        if self._settings.level != "off":
            packing = functools.partial(measure_cpu_packing, head_size=self._head_size)
            found = planes(caches.parts(kv_caches, self._num_blocks), self._block_size, packing)
            self._worker = AuditWorker(self._settings, found, self._block_size, compat.tp_rank())

    def bind_connector_metadata(self, connector_metadata: AuditMetadata) -> None:
        KVConnectorBase_V1.bind_connector_metadata(self, connector_metadata)
        self._inner.bind_connector_metadata(connector_metadata.inner)
        if self._worker is not None:
            self._worker.begin_step(connector_metadata)

    def clear_connector_metadata(self) -> None:
        KVConnectorBase_V1.clear_connector_metadata(self)
        self._inner.clear_connector_metadata()

    def has_connector_metadata(self) -> bool:
        return bool(self._inner.has_connector_metadata())

    def handle_preemptions(self, kv_connector_metadata: AuditMetadata) -> None:
        self._inner.handle_preemptions(kv_connector_metadata.inner)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        sent, received = self._inner.get_finished(finished_req_ids)
        sent, received, _ = self._hold_back(set(sent or ()), set(received or ()), set())
        return sent or None, received or None

    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        results = self._inner.get_transfer_results(finished_req_ids)
        sent, received, failed = self._hold_back(
            set(results.finished_sending),
            set(results.finished_recving),
            set(results.failed_recving),
        )
        return type(results)(sent, received, failed)

    def get_block_ids_with_load_errors(self) -> set[int]:
        invalid, self._invalid = self._invalid, set()
        return invalid

    def get_kv_connector_stats(self) -> None:
        """None: the API server rebuilds them by the class alone and cannot know the inner."""
        return

    def _hold_back(
        self, sent: set[str], received: set[str], failed: set[str]
    ) -> tuple[set[str], set[str], set[str]]:
        if compat.REPORTS_LOAD_FAILURES:
            # Asked for here, because a failed load must not be recorded as received.
            self._invalid |= self._inner.get_block_ids_with_load_errors()
        else:
            self._lost |= backport.failures(sent)
            failed |= self._lost & received
            self._lost -= received
        if self._worker is None:
            return sent, received, failed
        return self._worker.results(sent, received, failed, self._invalid)

    def shutdown(self) -> None:
        self._inner.shutdown()
        if self._worker is not None:
            self._worker.close()


class AuditWorker:
    """Digests in a thread of its own and writes `<directory>/<instance>-rank<r>.jsonl`."""

    def __init__(
        self, settings: AuditSettings, all_planes: list[Plane], block_size: int, rank: int
    ) -> None:
        self._settings = settings
        self._planes = all_planes
        self._layers = list(dict.fromkeys(plane.layer for plane in all_planes))
        self._block_size = block_size
        self._rank = rank
        path = Path(settings.directory) / f"{settings.instance}-rank{rank}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = path.open("a", encoding="utf-8")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kv-audit")
        self._loading: dict[str, tuple[Subject, float, Digests]] = {}
        self._producing: dict[str, Future[None]] = {}
        self._receiving: dict[str, Future[None]] = {}
        self._sent: set[str] = set()
        self._last_step: AuditMetadata | None = None

    def begin_step(self, metadata: AuditMetadata) -> None:
        if metadata is self._last_step:
            return
        self._last_step = metadata
        for request_id, subject in metadata.produced.items():
            self._producing[request_id] = self._thread.submit(self._record, "produced", subject, 0)
        for request_id, subject in metadata.received.items():
            before = self._digests(subject) if self._settings.level == "full" else {}
            self._loading[request_id] = (subject, time.monotonic(), before)

    def results(
        self, sent: set[str], received: set[str], failed: set[str], invalid: set[int]
    ) -> tuple[set[str], set[str], set[str]]:
        """What may be reported now: transfers whose digests, if any, have been taken."""
        now = time.monotonic()
        for request_id in received & self._loading.keys():
            subject, started, before = self._loading.pop(request_id)
            lost = request_id in failed or not invalid.isdisjoint(subject.blocks)
            phase = "failed" if lost else "received"
            self._receiving[request_id] = self._thread.submit(
                self._record, phase, subject, now - started, before
            )
        # vLLM takes a failure before the end of the load that failed, so that need not wait.
        ready = {r for r in received if r not in self._receiving} | _done(self._receiving)
        self._sent |= sent
        _done(self._producing)
        released = {request_id for request_id in self._sent if request_id not in self._producing}
        self._sent -= released
        return released, ready, failed

    def _record(
        self, phase: str, subject: Subject, seconds: float, before: Digests | None = None
    ) -> None:
        """Write one line. A defect here is logged and must not end the engine."""
        try:
            started = time.monotonic()
            digests = {} if phase == "failed" else self._digests(subject)
            # Where wrong KV came from is only asked at level `full`.
            more: dict[str, Any] = {}
            if phase == "produced" and self._settings.level == "full":
                more["other_digests"] = self._digests_elsewhere(subject)
            if phase == "received":
                more["unchanged"] = _equal(before or {}, digests)
            record = {
                **asdict(subject),
                "instance": self._settings.instance,
                "rank": self._rank,
                "phase": phase,
                "layers": self._layers,
                "digests": digests,
                **{name: value for name, value in more.items() if value},
                "bytes": size_of(self._planes, len(subject.blocks)),
                "seconds": round(seconds, 6),
                "digest_seconds": round(time.monotonic() - started, 6),
                "time": time.time(),
            }
            self._file.write(json.dumps(record, separators=(",", ":")) + "\n")
            self._file.flush()
        except Exception:
            logger.exception("KV audit of %s (%s)", subject.request, phase)

    def _valid(self, subject: Subject) -> list[int]:
        skipped = subject.first_block * self._block_size
        return valid_tokens(len(subject.blocks), subject.tokens - skipped, self._block_size)

    def _digests(self, subject: Subject) -> Digests:
        """As the blocks are now; none, and a line in the log, if that fails."""
        try:
            valid = self._valid(subject)
            return digest_blocks(self._planes, subject.blocks, valid, self._block_size)
        except Exception:
            logger.exception("KV audit of %s", subject.request)
            return {}

    def _digests_elsewhere(self, subject: Subject) -> Digests:
        """What each block's content would be digested to in a place of another length.

        That is the last block, if it is partly filled: by them a swap with it is known.
        """
        *full, last = self._valid(subject)
        if last == self._block_size:
            return {}
        valid = [last] * len(full) + [self._block_size]
        return digest_blocks(self._planes, subject.blocks, valid, self._block_size)

    def close(self) -> None:
        self._thread.shutdown(wait=True)
        self._file.close()


def _done(futures: dict[str, Future[None]]) -> set[str]:
    """Ids whose digest has been taken; removes them."""
    done = {request_id for request_id, future in futures.items() if future.done()}
    for request_id in done:
        del futures[request_id]
    return done


def _equal(before: Digests, after: Digests) -> dict[str, list[list[bool]]]:
    """Which digests did not change, by layer and block; layers without any are left out."""
    equal = {
        layer: [
            [old == new for old, new in zip(*both, strict=True)]
            for both in zip(before[layer], rows, strict=True)
        ]
        for layer, rows in after.items()
        if layer in before
    }
    return {layer: rows for layer, rows in equal.items() if any(map(any, rows))}
