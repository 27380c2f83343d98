"""The scheduler's half: which request loads from where, which blocks wait for a decoder.

It talks to nobody; its decisions travel to the workers in the step's metadata.
"""

from __future__ import annotations

import hashlib
import logging
import re
from array import array
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata
from vllm.v1.request import RequestStatus

from connector import backport, compat
from connector.config import base_port
from connector.steps import LoadPlan, Remote, Step

logger = logging.getLogger(f"vllm.{__name__}")  # vLLM configures loggers below its own

# What vLLM makes of X-Request-Id: chat prefixes it, completions add the prompt's number, too,
# and from 0.11 on random characters follow. A number behind any other form is another id.
ENGINE_ID = r"(?:chatcmpl-{0}|cmpl-{0}-\d+|{0})(?:-[0-9a-f]{{8}})?"
MAX_TP = 1024  # ranks: a wrong number must not make a thread for each


@dataclass
class StepMetadata(Step, KVConnectorMetadata):  # type: ignore[misc]  # vLLM is untyped here
    """A step as vLLM carries it to the workers."""


class SchedulerHalf:
    """Decisions of one engine; `role` is `prefill` or `decode`."""

    def __init__(self, vllm_config: Any, role: str, rpc_port: int) -> None:
        self._role = role
        self._engine_id = vllm_config.kv_transfer_config.engine_id
        self._block_size = int(vllm_config.cache_config.block_size)
        self._tp_size = int(vllm_config.parallel_config.tensor_parallel_size)
        self._host = compat.get_ip()
        self._port = base_port(vllm_config.parallel_config, rpc_port)
        self._run = uuid4().hex[:12]
        self._next = StepMetadata(self._run, idle=True)
        self._loading: set[str] = set()
        self._aborted: set[str] = set()
        self._held: set[str] = set()
        self._failed: set[str] = set()
        self._recompute: set[str] = set()
        if not compat.REPORTS_LOAD_FAILURES:
            backport.recompute_failed_loads(self.take_failed)

    # ---- decoder

    def matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """Prompt tokens to load beyond those computed here, and whether in the background."""
        params = request.kv_transfer_params or {}
        self._release(params.get("aborted_request"))
        if self._role != "decode" or not params.get("do_remote_prefill"):
            return 0, False
        if (problem := self._unusable(request)) is not None:
            logger.warning(
                "%s is prefilled here, kv_transfer_params are unusable: %s",
                request.request_id,
                problem,
            )
            return 0, False
        count = max(request.num_prompt_tokens - num_computed_tokens, 0)
        return count, count > 0

    def _unusable(self, request: Any) -> str | None:
        params = request.kv_transfer_params
        if (problem := _unaddressed(params)) is not None:
            return problem
        offered = params.get("remote_block_ids")
        if not isinstance(offered, list) or not all(isinstance(block, int) for block in offered):
            return "remote_block_ids is not a list of numbers"
        needed = -(-request.num_prompt_tokens // self._block_size)
        if len(offered) < needed:
            return f"the prefiller offers {len(offered)} blocks, the prompt needs {needed}"
        digest = params.get("remote_prompt_digest")
        if digest is not None and digest != _prompt_digest(request):
            return "the prefiller computed another prompt"
        return None

    def allocated(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Blocks were allocated: start the load, or tell the prefiller that there is none."""
        params = request.kv_transfer_params
        if self._role != "decode" or not params or not params.get("do_remote_prefill"):
            return
        # Once only: after a preemption the prompt is computed here.
        params["do_remote_prefill"] = False
        if num_external_tokens == 0:
            self._refuse(request)
            return
        first = (request.num_prompt_tokens - num_external_tokens) // self._block_size
        end = -(-request.num_prompt_tokens // self._block_size)
        (local,) = blocks.get_block_ids()
        self._next.loads[request.request_id] = LoadPlan(
            _remote(request), list(params["remote_block_ids"][first:end]), list(local[first:end])
        )
        self._loading.add(request.request_id)

    def _refuse(self, request: Any) -> None:
        if (problem := _unaddressed(request.kv_transfer_params)) is None:
            self._next.refused.append(_remote(request))
        else:
            logger.warning(
                "%s: no prefiller can be told to release it: %s", request.request_id, problem
            )

    # ---- both

    def finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """A request ended: whether its blocks stay allocated, and what the client is told."""
        if self._role == "decode":
            return self._decode_finished(request), None
        if request.request_id in self._held:
            return True, None  # aborted while held: blocks go when the decoder is done
        return self._prefill_finished(request, block_ids)

    def _decode_finished(self, request: Any) -> bool:
        params = request.kv_transfer_params
        if params and params.get("do_remote_prefill"):
            # Ended before any block was allocated here: the prefiller waits for nobody.
            params["do_remote_prefill"] = False
            self._refuse(request)
        if request.request_id not in self._loading:
            return False
        # A pull may still write: keep the blocks until it is over.
        self._aborted.add(request.request_id)
        self._next.cancelled.add(request.request_id)
        return True

    def _prefill_finished(
        self, request: Any, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        params = request.kv_transfer_params
        if not params or not params.get("do_remote_decode"):
            return False, None
        # A first token that ends the text is as good as the length cap: the decoder, given
        # the same KV, ends there too.
        if request.status not in (
            RequestStatus.FINISHED_LENGTH_CAPPED,
            RequestStatus.FINISHED_STOPPED,
        ):
            return False, None
        blocks = block_ids[: -(-request.num_prompt_tokens // self._block_size)]
        if not blocks:
            return False, None
        self._held.add(request.request_id)
        self._next.holds[request.request_id] = len(blocks)
        return True, {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": blocks,
            "remote_engine_id": self._engine_id,
            "remote_host": self._host,
            "remote_port": self._port,
            "remote_tp_size": str(self._tp_size),
            "remote_request_id": request.request_id,
            "remote_run": self._run,
            "remote_prompt_digest": _prompt_digest(request),
        }

    def _release(self, named: Any) -> None:
        """Let go of held requests that a proxy names, by the ids that it knows."""
        for name in named if isinstance(named, list) else ():
            given = re.compile(ENGINE_ID.format(re.escape(str(name))))
            self._next.releases |= {held for held in self._held if given.fullmatch(held)}

    # ---- each step

    def busy(self) -> bool:
        """Whether blocks wait for a decoder, or for a pull to end."""
        return bool(self._held or self._loading)

    def step(self, scheduled_tokens: int) -> StepMetadata:
        """The metadata of this step."""
        metadata, self._next = self._next, StepMetadata(self._run, idle=True)
        metadata.idle = scheduled_tokens == 0
        return metadata

    def output(self, output: Any) -> None:
        """Results of the workers, before vLLM looks at them.

        Blocks of a request that was aborted during its load are freed as a finished *send*:
        every vLLM version frees those, only later ones expect a finished load of a request
        that is no longer waiting. Ids of no request of ours are taken out, since vLLM ends
        the engine at a finished id it does not know.
        """
        received = set(output.finished_recving or ())
        sent = set(output.finished_sending or ())
        self._failed |= backport.failures(sent) & self._loading
        ended = received & self._loading
        aborted = ended & self._aborted
        failed = (ended & self._failed) - aborted
        known = (sent & self._held) | aborted
        self._loading -= ended
        self._aborted -= ended
        self._failed -= ended
        self._recompute |= failed
        self._held -= sent
        compat.set_kv_finished(output, sending=known, recving=ended - aborted - failed)

    def take_failed(self) -> set[str]:
        """Ended loads that failed and that vLLM cannot be told of (connector.backport)."""
        failed, self._recompute = self._recompute, set()
        return failed


def _unaddressed(params: dict[str, Any]) -> str | None:
    """Why these parameters do not tell where the prefiller is; None when they do."""
    if not isinstance(params.get("remote_host"), str) or not params["remote_host"]:
        return "remote_host is missing"
    for key, largest in (("remote_port", 65535), ("remote_tp_size", MAX_TP)):
        text = str(params.get(key))
        if not (re.fullmatch(r"\d{1,5}", text) and 1 <= int(text) <= largest):
            return f"{key} is {text}, not a number from 1 to {largest}"
    return None


def _remote(request: Any) -> Remote:
    params = request.kv_transfer_params
    return Remote(
        host=str(params["remote_host"]),
        port=int(params["remote_port"]),
        tp_size=int(params["remote_tp_size"]),
        request_id=str(params.get("remote_request_id") or request.request_id),
        run=params.get("remote_run"),
    )


def _prompt_digest(request: Any) -> str | None:
    """Of the prompt's token ids; None where the prompt came as embeddings."""
    if request.prompt_token_ids is None:
        return None
    return hashlib.blake2b(
        array("q", request.prompt_token_ids).tobytes(), digest_size=8
    ).hexdigest()
