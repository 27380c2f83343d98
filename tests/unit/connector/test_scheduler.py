"""The scheduler half under vLLM's real scheduler: blocks are freed on every path, once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole

from connector import compat
from connector.backport import FailureReports, failures

reports_failures = pytest.mark.skipif(
    not compat.REPORTS_LOAD_FAILURES, reason="this vLLM cannot be told of failed loads"
)
needs_backport = pytest.mark.skipif(
    compat.REPORTS_LOAD_FAILURES, reason="this vLLM is told of failed loads"
)

PROMPT = list(range(10, 10 + 40))  # 2.5 blocks
EOS = 1  # the model's, in conftest.py
PREFILL = {"do_remote_decode": True, "do_remote_prefill": False}


def prefill(p: Any, request_id: str = "p-1", prompt: list[int] = PROMPT, token: int = 7) -> Any:
    """Run a prompt on the prefiller; returns the client's output."""
    p.add(request_id, prompt, dict(PREFILL))
    _, outputs = p.step(token)
    (output,) = outputs
    return output


def handed_over(p: Any, **options: Any) -> dict[str, Any]:
    params = prefill(p, **options).kv_transfer_params
    assert params is not None
    return dict(params)


class TestPrefiller:
    def test_finished_request_offers_its_blocks(self, engine: Any) -> None:
        params = handed_over(engine("kv_producer"))

        assert params["do_remote_prefill"] is True
        assert len(params["remote_block_ids"]) == 3
        assert params["remote_engine_id"] == "kv_producer"
        assert params["remote_host"] == "127.0.0.1"
        assert params["remote_port"] == 5557 + 1
        assert params["remote_tp_size"] == "1"
        assert params["remote_request_id"] == "p-1"

    def test_blocks_stay_until_the_workers_report(self, engine: Any) -> None:
        p = engine("kv_producer")
        handed_over(p)
        metadata, _ = p.step()
        assert metadata.holds == {"p-1": 3}
        assert not p.is_empty()

        p.step(sent={"p-1"})
        p.step()
        assert p.is_empty()

    def test_engine_steps_while_blocks_are_held_and_shows_when_they_are_not(
        self, engine: Any
    ) -> None:
        """An idle 0.10.1.1 would sleep, and free them when the next request comes."""
        p = engine("kv_producer")
        handed_over(p)
        p.step()
        assert p.usage > 2 / 100, "three blocks are in use"
        assert p.scheduler.has_requests()

        p.step(sent={"p-1"})
        p.step()
        assert p.is_empty()
        assert p.usage == p.scheduler.kv_cache_manager.usage
        assert not p.scheduler.has_requests()

    def test_first_token_that_ends_the_text_hands_over_like_any_other(self, engine: Any) -> None:
        p, d = engine("kv_producer"), engine("kv_consumer")
        params = handed_over(p, token=EOS)
        assert len(params["remote_block_ids"]) == 3
        d.add("d-1", PROMPT, params, max_tokens=5)
        d.step()
        d.step(received={"d-1"})
        _, (output,) = d.step(token=EOS)
        assert str(output.finish_reason) == "stop"
        d.step()
        p.step(sent={"p-1"})
        p.step()
        assert d.is_empty()
        assert p.is_empty()

    def test_requests_that_share_a_prefix_are_held_each_for_itself(self, engine: Any) -> None:
        p = engine("kv_producer")
        first = handed_over(p, request_id="p-1")
        second = handed_over(p, request_id="p-2")
        assert first["remote_block_ids"][:2] == second["remote_block_ids"][:2]
        p.step(sent={"p-1"})
        p.step()
        assert not p.is_empty(), "the other decoder has not pulled yet"
        p.step(sent={"p-2"})
        p.step()
        assert p.is_empty()

    def test_vllm_gets_a_connector_that_knows_its_role(self, engine: Any) -> None:
        """v0.10.1rc1's does not call the base class, which later versions rely on."""
        assert engine("kv_producer").connector.role is KVConnectorRole.SCHEDULER

    def test_abort_during_prefill_frees_at_once(self, engine: Any) -> None:
        from vllm.v1.request import RequestStatus

        p = engine("kv_producer")
        p.add("p-1", PROMPT, dict(PREFILL))
        p.scheduler.schedule()
        p.scheduler.finish_requests("p-1", RequestStatus.FINISHED_ABORTED)
        assert p.is_empty()

    def test_abort_while_held_changes_nothing(self, engine: Any) -> None:
        from vllm.v1.request import RequestStatus

        p = engine("kv_producer")
        handed_over(p)
        p.scheduler.finish_requests("p-1", RequestStatus.FINISHED_ABORTED)
        p.step(sent={"p-1"})
        p.step()
        assert p.is_empty()

    def test_abort_of_a_held_request_is_asked_twice_by_old_vllm(self, engine: Any) -> None:
        """0.10.1.1 calls request_finished again; freeing then would pull the blocks away."""
        p = engine("kv_producer")
        request = p.add("p-1", PROMPT, dict(PREFILL))
        p.step()
        delay, params = p.connector.request_finished(request, [1, 2, 3])
        assert (delay, params) == (True, None)

    def test_report_of_an_unknown_request_does_not_end_the_engine(self, engine: Any) -> None:
        p = engine("kv_producer")
        p.step(sent={"nobody"}, received={"nobody"})
        assert p.is_empty()

    def test_repeated_report_does_not_end_the_engine(self, engine: Any) -> None:
        p = engine("kv_producer")
        handed_over(p)
        p.step(sent={"p-1"})
        p.step(sent={"p-1"})
        assert p.is_empty()

    def test_request_without_transfer_is_not_held(self, engine: Any) -> None:
        p = engine("kv_producer")
        p.add("plain", PROMPT, None)
        _, (output,) = p.step()
        assert output.kv_transfer_params is None
        p.step()
        assert p.is_empty()

    def test_proxy_names_aborted_requests_with_the_next_prefill(self, engine: Any) -> None:
        p = engine("kv_producer")
        handed_over(p, request_id="cmpl-3f2a-0-abcd1234")
        p.add("p-2", PROMPT, {**PREFILL, "aborted_request": ["3f2a"]})
        metadata, _ = p.step()
        assert metadata.releases == {"cmpl-3f2a-0-abcd1234"}

    @pytest.mark.parametrize("named", [["cmpl-1"], ["req-1"], ["0"], [""], "req-11", 7, [None]])
    @pytest.mark.parametrize("held", ["cmpl-req-11-0-abcd1234", "chatcmpl-req-1-2-abcd1234"])
    def test_a_name_that_is_only_like_another_releases_nothing(
        self, engine: Any, held: str, named: Any
    ) -> None:
        p = engine("kv_producer")
        handed_over(p, request_id=held)
        p.add("p-2", PROMPT, {**PREFILL, "aborted_request": named})
        metadata, _ = p.step()
        assert metadata.releases == set()

    @pytest.mark.parametrize(
        "held", ["req-11", "cmpl-req-11-0", "chatcmpl-req-11", "chatcmpl-req-11-abcd1234"]
    )
    def test_a_request_is_known_by_every_name_that_vllm_makes_of_its_id(
        self, engine: Any, held: str
    ) -> None:
        p = engine("kv_producer")
        handed_over(p, request_id=held)
        p.add("p-2", PROMPT, {**PREFILL, "aborted_request": ["req-11"]})
        metadata, _ = p.step()
        assert metadata.releases == {held}


class TestDecoder:
    @pytest.fixture
    def offered(self, engine: Any) -> dict[str, Any]:
        return handed_over(engine("kv_producer"))

    def test_loads_the_whole_prompt(self, engine: Any, offered: dict[str, Any]) -> None:
        d = engine("kv_consumer")
        d.add("d-1", PROMPT, dict(offered), max_tokens=2)
        metadata, outputs = d.step()

        plan = metadata.loads["d-1"]
        assert outputs == []
        assert plan.remote_blocks == offered["remote_block_ids"]
        assert len(plan.local_blocks) == 3
        assert plan.remote.request_id == "p-1"

    def test_decodes_after_the_load_and_ends_clean(
        self, engine: Any, offered: dict[str, Any]
    ) -> None:
        d = engine("kv_consumer")
        d.add("d-1", PROMPT, dict(offered), max_tokens=2)
        d.step()
        d.step(received={"d-1"})
        _, (first,) = d.step()
        _, (last,) = d.step()
        d.step()
        assert first.new_token_ids == [7]
        assert last.finish_reason is not None
        assert d.is_empty()

    def test_local_prefix_is_not_pulled(self, engine: Any, offered: dict[str, Any]) -> None:
        d = engine("kv_consumer")
        d.add("warm", PROMPT, None)
        d.step()
        d.add("d-1", PROMPT, dict(offered))
        metadata, _ = d.step()
        plan = metadata.loads["d-1"]
        assert plan.remote_blocks == offered["remote_block_ids"][2:]
        assert len(plan.local_blocks) == 1
        d.step(received={"d-1"})
        d.step()
        d.step()
        assert d.is_empty()

    @reports_failures
    def test_nothing_to_pull_releases_the_prefiller(
        self, engine: Any, offered: dict[str, Any]
    ) -> None:
        """vLLM may take no external token, e.g. with prompt_logprobs."""
        d = engine("kv_consumer")
        d.add("d-1", PROMPT, dict(offered), prompt_logprobs=1)
        metadata = d.scheduler.schedule().kv_connector_metadata
        assert metadata.loads == {}
        assert [remote.request_id for remote in metadata.refused] == ["p-1"]

    @pytest.mark.parametrize(
        "broken",
        [
            {"remote_block_ids": []},
            {"remote_host": None},
            {"remote_host": 7},
            {"remote_port": "abc"},
            {"remote_port": None},
            {"remote_port": 0},
            {"remote_port": 70000},
            {"remote_tp_size": None},
            {"remote_tp_size": "0"},
            {"remote_tp_size": "99999"},
            {"remote_prompt_digest": "another prompt"},
            {"remote_block_ids": [1]},
            {"remote_block_ids": None},
            {"remote_block_ids": 3},
            {"remote_block_ids": [[1, 2, 3]] * 3},
        ],
        ids=str,
    )
    def test_unusable_parameters_mean_local_prefill(
        self, engine: Any, offered: dict[str, Any], broken: dict[str, Any]
    ) -> None:
        """And tell the prefiller, if they name one: it need not wait."""
        d = engine("kv_consumer")
        d.add("d-1", PROMPT, {**offered, **broken})
        metadata, (output,) = d.step()
        assert output.new_token_ids == [7]
        told = broken.keys() & {"remote_host", "remote_port", "remote_tp_size"} == set()
        assert [remote.request_id for remote in metadata.refused] == ["p-1"] * told
        d.step()
        assert d.is_empty()

    @pytest.mark.parametrize("key", ["remote_host", "remote_port", "remote_tp_size"])
    def test_abort_before_any_block_with_unusable_parameters(
        self, engine: Any, offered: dict[str, Any], key: str
    ) -> None:
        from vllm.v1.request import RequestStatus

        d = engine("kv_consumer")
        d.add("d-1", PROMPT, {**offered, key: None})
        d.scheduler.finish_requests("d-1", RequestStatus.FINISHED_ABORTED)
        metadata, _ = d.step()
        assert metadata.refused == []
        assert d.is_empty()

    def test_abort_before_any_block_releases_the_prefiller(
        self, engine: Any, offered: dict[str, Any]
    ) -> None:
        from vllm.v1.request import RequestStatus

        d = engine("kv_consumer")
        d.add("d-1", PROMPT, dict(offered))
        d.scheduler.finish_requests("d-1", RequestStatus.FINISHED_ABORTED)
        metadata, _ = d.step()
        assert [remote.request_id for remote in metadata.refused] == ["p-1"]
        assert d.is_empty()

    def test_abort_during_the_load_keeps_blocks_until_it_ends(
        self, engine: Any, offered: dict[str, Any]
    ) -> None:
        from vllm.v1.request import RequestStatus

        d = engine("kv_consumer")
        d.add("d-1", PROMPT, dict(offered))
        d.step()
        d.scheduler.finish_requests("d-1", RequestStatus.FINISHED_ABORTED)
        metadata, _ = d.step()
        assert metadata.cancelled == {"d-1"}
        assert not d.is_empty()
        d.step(received={"d-1"})
        d.step()
        assert d.is_empty()

    def test_engine_steps_until_an_aborted_load_has_ended(
        self, engine: Any, offered: dict[str, Any]
    ) -> None:
        from vllm.v1.request import RequestStatus

        d = engine("kv_consumer")
        d.add("d-1", PROMPT, dict(offered))
        d.step()
        d.scheduler.finish_requests("d-1", RequestStatus.FINISHED_ABORTED)
        d.step()
        assert d.scheduler.has_requests()
        d.step(received={"d-1"})
        d.step()
        assert not d.scheduler.has_requests()
        assert d.is_empty()
        assert d.usage == d.scheduler.kv_cache_manager.usage

    def test_abort_after_the_load_frees_at_once(self, engine: Any, offered: dict[str, Any]) -> None:
        from vllm.v1.request import RequestStatus

        d = engine("kv_consumer")
        d.add("d-1", PROMPT, dict(offered), max_tokens=5)
        d.step()
        d.step(received={"d-1"})
        d.scheduler.finish_requests("d-1", RequestStatus.FINISHED_ABORTED)
        d.step()
        assert d.is_empty()

    @reports_failures
    def test_failed_load_fails_the_request(self, engine: Any, offered: dict[str, Any]) -> None:
        d = engine("kv_consumer", policy="fail")
        d.add("d-1", PROMPT, dict(offered))
        metadata, _ = d.step()
        lost = set(metadata.loads["d-1"].local_blocks)
        _, (output,) = d.step(received={"d-1"}, invalid=lost)
        assert str(output.finish_reason) == "error"
        d.step()
        assert d.is_empty()

    @reports_failures
    def test_failed_load_is_recomputed(self, engine: Any, offered: dict[str, Any]) -> None:
        d = engine("kv_consumer", policy="recompute")
        d.add("d-1", PROMPT, dict(offered))
        metadata, _ = d.step()
        d.step(received={"d-1"}, invalid=set(metadata.loads["d-1"].local_blocks))
        _, (output,) = d.step(token=9)
        assert output.new_token_ids == [9]
        d.step()
        assert d.is_empty()

    @reports_failures
    def test_one_rank_fails_before_the_others_end(
        self, engine: Any, offered: dict[str, Any]
    ) -> None:
        d = engine("kv_consumer", policy="fail")
        d.add("d-1", PROMPT, dict(offered))
        metadata, _ = d.step()
        _, (output,) = d.step(invalid=set(metadata.loads["d-1"].local_blocks))
        assert str(output.finish_reason) == "error"
        assert not d.is_empty(), "another rank may still write into the blocks"
        d.step(received={"d-1"})
        d.step()
        assert d.is_empty()

    @needs_backport
    @pytest.mark.parametrize("warm", [False, True])
    def test_failed_load_is_recomputed_by_an_old_vllm(
        self, engine: Any, offered: dict[str, Any], warm: bool
    ) -> None:
        """Also when the prompt came into the prefix cache in the meantime."""
        d = engine("kv_consumer")
        d.add("d-1", PROMPT, dict(offered))
        d.step()
        if warm:
            d.add("warm", PROMPT, None)
            d.step()
        reports = FailureReports(tp_rank=0, tp_size=1)
        marks, ended = reports.results(ended={"d-1"}, failed={"d-1"})
        d.step(sent=marks, received=ended)
        _, (output,) = d.step(token=9)
        assert output.new_token_ids == [9]
        d.step()
        assert d.is_empty()

    @needs_backport
    def test_abort_of_a_load_that_fails(self, engine: Any, offered: dict[str, Any]) -> None:
        from vllm.v1.request import RequestStatus

        d = engine("kv_consumer")
        d.add("d-1", PROMPT, dict(offered))
        d.step()
        d.scheduler.finish_requests("d-1", RequestStatus.FINISHED_ABORTED)
        d.step()
        marks, ended = FailureReports(0, 1).results(ended={"d-1"}, failed={"d-1"})
        d.step(sent=marks, received=ended)
        d.step()
        assert d.is_empty()


class TestFailureReports:
    """One rank of several saw the failure; vLLM's own aggregator must let the mark through."""

    def test_mark_arrives_no_later_than_the_end_of_the_load(self) -> None:
        from vllm.distributed.kv_transfer.kv_connector.utils import KVOutputAggregator
        from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, KVConnectorOutput

        ranks = [FailureReports(rank, 2) for rank in (0, 1)]
        aggregator = KVOutputAggregator(2)
        sent: set[str] = set()
        received: set[str] = set()
        ended, failed = {"d-1"}, [set(), {"d-1"}]
        for _ in range(2):
            outputs = []
            for rank, reports in enumerate(ranks):
                marks, over = reports.results(ended, failed[rank])
                output = copy.copy(EMPTY_MODEL_RUNNER_OUTPUT)
                output.kv_connector_output = KVConnectorOutput(
                    finished_sending=marks or None, finished_recving=over or None
                )
                outputs.append(output)
            ended, failed = set(), [set(), set()]
            combined = aggregator.aggregate(outputs).kv_connector_output
            sent |= combined.finished_sending or set()
            received |= combined.finished_recving or set()
        assert received == {"d-1"}
        assert failures(sent) == {"d-1"}

    def test_nothing_is_reported_twice(self) -> None:
        reports = FailureReports(0, 1)
        marks, ended = reports.results({"d-1", "d-2"}, {"d-1"})
        assert failures(marks) == {"d-1"}
        assert ended == {"d-1", "d-2"}
        assert reports.results(set(), set()) == (set(), set())
