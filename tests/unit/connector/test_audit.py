"""The audit: forwards everything to the connector it wraps, and records what went through."""

from __future__ import annotations

import inspect
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1

from connector.audit import AuditConnector, AuditSettings, AuditWorker, Subject
from connector.digest import measure_cpu_packing, planes
from connector.errors import ConnectorConfigError

PROMPT = list(range(10, 10 + 40))  # 2.5 blocks of 16
BLOCK_SIZE = 16
INNER = {
    "kv_connector": "LLMDataDistConnector",
    "kv_connector_module_path": "connector.llmdatadist",
}


@pytest.fixture
def audited(engine: Any, tmp_path: Path) -> Any:
    """`audited("kv_producer")` is an instance whose connector is wrapped."""

    def make(role: str, level: str = "full") -> Any:
        audit = {"level": level, "directory": str(tmp_path / "trace"), "instance": role}
        extra = {"audit": audit, "inner": INNER}
        return engine(role, connector="AuditConnector", module="connector.audit", extra=extra)

    return make


class TestScheduler:
    def test_both_sides_name_the_same_request_and_blocks(self, audited: Any) -> None:
        p, d = audited("kv_producer"), audited("kv_consumer")
        p.add("p-1", PROMPT, {"do_remote_decode": True})
        _, (output,) = p.step()
        metadata, _ = p.step()
        produced = metadata.produced["p-1"]

        d.add("d-1", PROMPT, dict(output.kv_transfer_params))
        metadata, _ = d.step()
        received = metadata.received["d-1"]

        assert produced.remote_request == received.remote_request == "p-1"
        assert produced.blocks == output.kv_transfer_params["remote_block_ids"]
        assert len(received.blocks) == 3
        assert produced.tokens == received.tokens == 40
        assert metadata.inner.loads["d-1"].local_blocks == received.blocks

    def test_local_prefix_is_no_part_of_what_was_received(self, audited: Any) -> None:
        p, d = audited("kv_producer"), audited("kv_consumer")
        p.add("p-1", PROMPT, {"do_remote_decode": True})
        _, (output,) = p.step()
        d.add("warm", PROMPT, None)
        d.step()
        d.add("d-1", PROMPT, dict(output.kv_transfer_params))
        metadata, _ = d.step()
        assert metadata.received["d-1"].first_block == 2
        assert len(metadata.received["d-1"].blocks) == 1

    def test_request_without_transfer_is_no_subject(self, audited: Any) -> None:
        p = audited("kv_producer")
        p.add("plain", PROMPT, None)
        p.step()
        metadata, _ = p.step()
        assert metadata.produced == {}
        assert p.is_empty()

    def test_off_audits_nothing(self, audited: Any) -> None:
        p = audited("kv_producer", level="off")
        p.add("p-1", PROMPT, {"do_remote_decode": True})
        p.step()
        metadata, _ = p.step()
        assert metadata.produced == {}
        assert metadata.inner.holds == {"p-1": 3}


def test_sample_takes_the_same_requests_on_both_sides_and_about_one_in_sixteen() -> None:
    settings = AuditSettings("sample", "", "")
    taken = sum(settings.covers(f"request-{number}") for number in range(4000))
    assert 150 < taken < 350


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({}, 'needs "audit"'),
        ({"audit": {"level": "all"}}, "must be one of"),
        ({"audit": {"level": "full"}}, "audit.directory"),
        ({"audit": {"level": "off", "levle": 1}}, "unknown key levle"),
    ],
)
def test_wrong_settings_are_named(extra: dict[str, Any], words: str) -> None:
    class Transfer:
        kv_connector_extra_config = extra
        engine_id = "0"

    with pytest.raises(ConnectorConfigError, match=words):
        AuditSettings.read(Transfer)


class TestForwarding:
    """A method that is not forwarded would silently do nothing."""

    # Answered by the audit itself.
    OWN = frozenset({"get_kv_connector_stats", "get_block_ids_with_load_errors"})

    def test_every_method_reaches_the_inner_connector(self) -> None:
        calls: list[str] = []

        class Inner:
            def __getattr__(self, name: str) -> Any:
                def method(*_: Any, **__: Any) -> Any:
                    calls.append(name)
                    if name == "get_finished" or name.startswith("request_finished"):
                        return None, None
                    if name == "get_transfer_results":
                        from vllm.distributed.kv_transfer.kv_connector.v1.base import (
                            KVConnectorTransferResults,
                        )

                        return KVConnectorTransferResults()
                    return set()

                return method

        for name, member in vars(KVConnectorBase_V1).items():
            if name.startswith("_") or not inspect.isfunction(member) or name in self.OWN:
                continue
            audit = AuditConnector.__new__(AuditConnector)
            audit._inner = Inner()
            audit._worker = None
            audit._invalid = set()
            audit._lost = set()
            audit._next = type("Next", (), {"inner": None})()
            audit._settings = AuditSettings("off", "", "")
            argument = type("Any", (), {"inner": None, "kv_transfer_params": None})()
            needed = len(inspect.signature(member).parameters) - 1
            keywords = "kwargs" in inspect.signature(member).parameters
            calls.clear()
            getattr(audit, name)(*[argument] * (needed - keywords))
            expected = {name, "request_finished_all_groups"} if "finished" in name else {name}
            assert expected & set(calls), f"{name} does not reach the inner connector"


class TestWorker:
    @pytest.fixture
    def cache(self) -> torch.Tensor:
        torch.manual_seed(1)
        return torch.rand(8, 2, BLOCK_SIZE, 64)

    @pytest.fixture
    def worker(self, cache: torch.Tensor, tmp_path: Path) -> Any:
        from connector.caches import Part

        packing = partial(measure_cpu_packing, head_size=32)
        if packing(cache[0].view(2, 2 * BLOCK_SIZE, 32), BLOCK_SIZE) is None:
            pytest.skip("needs the CPU kernels of vLLM 0.11 or later")
        found = planes([Part("layer", "kv", cache)], BLOCK_SIZE, packing)
        made = AuditWorker(AuditSettings("full", str(tmp_path), "i"), found, BLOCK_SIZE, 1)
        yield made
        made.close()

    @staticmethod
    def step(**subjects: dict[str, Subject]) -> Any:
        from connector.audit import AuditMetadata

        return AuditMetadata(None, **subjects)

    @staticmethod
    def records(tmp_path: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (tmp_path / "i-rank1.jsonl").open()]

    def settle(
        self, worker: Any, sent: set[str], received: set[str], **how: Any
    ) -> tuple[Any, ...]:
        """Report until the digests have been taken."""
        failed, invalid = how.get("failed", set()), how.get("invalid", set())
        out_sent, out_received, _ = worker.results(sent, received, failed, invalid)
        deadline = time.monotonic() + 5
        while not (sent <= out_sent and received <= out_received):
            assert time.monotonic() < deadline
            more = worker.results(set(), set(), set(), set())
            out_sent, out_received = out_sent | more[0], out_received | more[1]
        return out_sent, out_received

    def test_a_transfer_is_recorded_alike_on_both_sides(
        self, worker: Any, cache: torch.Tensor, tmp_path: Path
    ) -> None:
        cache[5], cache[6] = cache[1], cache[2]
        worker.begin_step(
            self.step(
                produced={"p-1": Subject("p-1", "p-1", [1, 2], 0, 20)},
                received={"d-1": Subject("d-1", "p-1", [5, 6], 0, 20)},
            )
        )
        assert self.settle(worker, {"p-1"}, {"d-1"}) == ({"p-1"}, {"d-1"})
        produced, received = self.records(tmp_path)
        assert (produced["phase"], received["phase"]) == ("produced", "received")
        assert produced["remote_request"] == received["remote_request"] == "p-1"
        assert produced["rank"] == 1
        assert produced["digests"] == received["digests"]
        assert produced["bytes"] == 2 * 2 * BLOCK_SIZE * 64 * 4

    def test_prefix_is_aligned_by_position(
        self, worker: Any, cache: torch.Tensor, tmp_path: Path
    ) -> None:
        cache[6] = cache[2]
        worker.begin_step(
            self.step(
                produced={"p-1": Subject("p-1", "p-1", [1, 2], 0, 20)},
                received={"d-1": Subject("d-1", "p-1", [6], 1, 20)},
            )
        )
        self.settle(worker, {"p-1"}, {"d-1"})
        produced, received = self.records(tmp_path)
        assert produced["digests"]["layer"][1:] == received["digests"]["layer"]

    def test_a_block_that_keeps_what_it_held_is_told(
        self, worker: Any, cache: torch.Tensor, tmp_path: Path
    ) -> None:
        """A pull that reports success and delivers nothing of its second block."""
        worker.begin_step(self.step(received={"d-1": Subject("d-1", "p-1", [5, 6], 0, 20)}))
        cache[5] = cache[1]
        self.settle(worker, set(), {"d-1"})
        (record,) = self.records(tmp_path)
        assert record["unchanged"] == {"layer": [[False, False], [True, True]]}

    def test_a_swap_with_the_partly_filled_block_can_be_recognised(
        self, worker: Any, cache: torch.Tensor, tmp_path: Path
    ) -> None:
        cache[5], cache[6] = cache[2], cache[1]
        worker.begin_step(
            self.step(
                produced={"p-1": Subject("p-1", "p-1", [1, 2], 0, 20)},
                received={"d-1": Subject("d-1", "p-1", [5, 6], 0, 20)},
            )
        )
        self.settle(worker, {"p-1"}, {"d-1"})
        produced, received = self.records(tmp_path)
        assert received["digests"]["layer"] == produced["other_digests"]["layer"][::-1]

    @pytest.mark.parametrize("how", [{"failed": {"d-1"}}, {"invalid": {6}}])
    def test_failed_load_is_not_recorded_as_received(
        self, worker: Any, tmp_path: Path, how: dict[str, Any]
    ) -> None:
        worker.begin_step(self.step(received={"d-1": Subject("d-1", "p-1", [5, 6], 0, 20)}))
        self.settle(worker, set(), {"d-1"}, **how)
        (record,) = self.records(tmp_path)
        assert record["phase"] == "failed"
        assert record["digests"] == {}

    def test_requests_that_are_not_audited_pass(self, worker: Any, tmp_path: Path) -> None:
        assert worker.results({"a"}, {"b"}, {"c"}, set()) == ({"a"}, {"b"}, {"c"})
        assert self.records(tmp_path) == []

    def test_end_of_a_send_waits_for_its_digest(self, worker: Any) -> None:
        """vLLM reuses the blocks as soon as the end is reported."""
        import threading

        go = threading.Event()
        worker._thread.submit(go.wait, 5)
        worker.begin_step(self.step(produced={"p-1": Subject("p-1", "p-1", [1], 0, 3)}))
        assert worker.results({"p-1"}, set(), set(), set())[0] == set()
        go.set()
        assert self.settle(worker, {"p-1"}, set())[0] == {"p-1"}

    def test_a_defect_does_not_end_the_engine(self, worker: Any) -> None:
        worker.begin_step(self.step(produced={"p-1": Subject("p-1", "p-1", [999], 0, 3)}))
        assert self.settle(worker, {"p-1"}, set())[0] == {"p-1"}
