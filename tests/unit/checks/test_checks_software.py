"""Software, model and variables: missing, unlike, unexpected."""

from __future__ import annotations

import json
from typing import Any

import pytest
from lab import Lab, software_text

from pd_validate.spec.models import ConnectorSpec, EngineSpec, Expect


def test_missing_engine() -> None:
    lab = Lab()
    lab.answer("d1", "software", software_text(vllm=None))
    assert lab.lines() == ["fail software.missing at d1"]


def test_missing_llm_datadist() -> None:
    lab = Lab()
    data = json.loads(software_text()) | {"modules": {"llm_datadist": None}}
    lab.answer("d1", "software", json.dumps(data))
    assert lab.lines() == ["fail software.missing at d1"]


def test_package_that_most_hosts_have() -> None:
    lab = Lab()
    lab.answer("d1", "software", software_text(torch_npu=None))
    assert lab.lines() == ["fail software.missing at d1"]


def test_package_that_no_host_has_is_needed_by_the_upstream_connector_only() -> None:
    lab = Lab()
    for host in lab.cluster.hosts:
        lab.answer(host, "software", software_text(torch_npu=None, vllm_ascend=None))
    assert lab.lines() == []
    lab.cluster = lab.cluster.model_copy(update={"connector": ConnectorSpec(kind="vllm-ascend")})
    report = lab.report()
    missing = [f for f in report.findings if f.id == "software.missing"]
    assert len(missing) == 3
    assert "torch_npu" in missing[0].expected


def test_python_that_does_not_run_is_unknown() -> None:
    lab = Lab()
    lab.answer("d1", "software", "", "python3: command not found\n", 127)
    assert lab.lines() == ["unknown software.missing at d1"]


def test_other_version_than_most_hosts() -> None:
    lab = Lab()
    lab.answer("d1", "software", software_text(vllm="0.10.0"))
    assert lab.lines() == ["fail software.mismatch at d1"]


def test_other_driver_than_most_hosts() -> None:
    lab = Lab()
    lab.answer("d1", "cat /usr/local/Ascend/driver/version.info", "Version=24.1.rc1\n")
    assert lab.lines() == ["fail software.mismatch at d1"]


def test_version_that_the_cluster_file_does_not_expect() -> None:
    lab = Lab(expect=Expect(vllm="0.10.1.1"))
    lab.answer("d1", "software", software_text(vllm="0.10.0"))
    assert lab.lines() == ["fail software.unexpected at d1"]


def test_version_that_is_expected_and_cannot_be_read_is_unknown() -> None:
    lab = Lab(expect=Expect(firmware="7.7.0.6.236"))
    assert lab.lines() == [
        "unknown software.unexpected at d1",
        "unknown software.unexpected at d2",
        "unknown software.unexpected at p1",
    ]


def test_software_is_not_looked_at_if_the_cluster_file_says_so() -> None:
    lab = Lab()
    checks = lab.cluster.checks.model_copy(update={"software": False})
    lab.cluster = lab.cluster.model_copy(update={"checks": checks})
    lab.answer("d1", "software", software_text(vllm=None))
    assert lab.lines() == []
    assert lab.report().of("software") == []


@pytest.mark.parametrize(
    "model",
    [
        {"path": "/model/x", "error": "no such directory"},
        {"path": "/model/x", "files": {"tokenizer.json": [1, "a"]}},
        {"path": "/model/x", "files": {"config.json": [700, "bb"]}},
        {"path": "/model/x", "files": {"config.json": [700, "aa"], "extra": [1, "c"]}},
    ],
    ids=["absent", "empty", "other", "more"],
)
def test_model_unlike_the_others(model: dict[str, Any]) -> None:
    lab = Lab()
    lab.change("d1", model=model)
    assert lab.lines() == ["fail model.mismatch at d1 /model/x"]


# --- variables ----------------------------------------------------------------------------------


def with_env(lab: Lab, **env: str) -> Lab:
    """Variables of decode-1 in the cluster file."""
    instances = dict(lab.cluster.instances)
    engine = instances["decode-1"].engine.model_copy(update={"env": env})
    instances["decode-1"] = instances["decode-1"].model_copy(update={"engine": engine})
    lab.cluster = lab.cluster.model_copy(update={"instances": instances})
    return lab


def test_hccl_address_that_is_not_the_hosts() -> None:
    lab = with_env(Lab(), HCCL_IF_IP="10.9.9.9")
    assert lab.lines() == ["fail env.mismatch at d1 decode-1"]


def test_login_variable_that_the_plan_overrides_warns() -> None:
    lab = Lab()
    lab.change("d1", environment={"HCCL_IF_IP": "10.9.9.9"})
    assert lab.lines() == ["warn env.mismatch at d1 decode-1"]


def test_misspelt_card_in_a_variable() -> None:
    lab = with_env(Lab(), GLOO_SOCKET_IFNAME="eht0")
    assert lab.lines() == ["fail env.mismatch at d1 decode-1"]


def test_variable_that_all_instances_must_share() -> None:
    lab = with_env(Lab(), HCCL_INTRA_ROCE_ENABLE="1")
    assert lab.lines() == ["fail env.mismatch at d1 decode-1"]


def test_renamed_variable_has_no_effect() -> None:
    lab = with_env(Lab(), VLLM_LLMDD_RPC_PORT="5600")
    assert lab.lines() == ["fail env.renamed at d1 decode-1"]


def test_renamed_variable_beside_its_new_name_warns() -> None:
    lab = with_env(Lab(), VLLM_LLMDD_RPC_PORT="5600", VLLM_ASCEND_LLMDD_RPC_PORT="5600")
    assert lab.lines() == ["warn env.renamed at d1 decode-1"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HCCL_IF_BASE_PORT", "99"),
        ("VLLM_ASCEND_LLMDD_RPC_PORT", "70000"),
        ("HCCL_CONNECT_TIMEOUT", "5"),
        ("OMP_NUM_THREADS", "ten"),
        ("ASCEND_RT_VISIBLE_DEVICES", "6, 7"),
    ],
)
def test_value_out_of_range(name: str, value: str) -> None:
    lab = with_env(Lab(), **{name: value})
    assert lab.lines() == ["fail env.range at d1 decode-1"]


def test_host_tuning_is_advice_and_no_finding() -> None:
    lab = Lab()
    lab.answer("d1", "uname -r", "4.19.90\n")
    lab.answer("d1", "systemd-detect-virt", "kvm\n")
    report = lab.report()
    assert report.findings == ()
    assert any(note.startswith("kernel: 5.10 or later") for note in report.notes)
    assert any("kvm on d1" in note for note in report.notes)


def test_recommended_variables_are_advice_and_no_finding() -> None:
    buffers = {"HCCL_BUFFSIZE": "1024", "TASK_QUEUE_ENABLE": "1"}
    lab = Lab(engine=EngineSpec(env=buffers))
    report = lab.report()
    assert report.findings == ()
    assert not any(note.startswith("TASK_QUEUE_ENABLE") for note in report.notes)
    assert (
        "HCCL_BUFFSIZE: 512 and 1024 is recommended (HCCL's buffers, prefillers and decoders); "
        "1024 on prefill-1" in report.notes
    )
