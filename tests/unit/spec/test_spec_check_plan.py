"""Checks of the launch plan: for each id a plan in which it fires, and the sound one in
which nothing does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest

from pd_validate.checks.plan import ModelShape, check_plan
from pd_validate.findings import Finding, Severity, Where
from pd_validate.spec.models import Cluster
from pd_validate.spec.plan import LaunchPlan, launch_plan, run_dirs

Load = Callable[..., Cluster]


@pytest.fixture
def check(load: Load, base: str) -> Callable[..., list[Finding]]:
    """Findings of the base file with decode-1 changed: `check(decode_1="port: 22")`."""

    def check(
        extra: str = "", *, decode_1: str = "", model: ModelShape | None = None
    ) -> list[Finding]:
        text = base.replace("host: d1,", f"host: d1, {decode_1}," if decode_1 else "host: d1,")
        cluster = load(extra, base=text)
        return check_plan(cluster, plan_of(cluster), model)

    return check


Check = Callable[..., list[Finding]]


def plan_of(cluster: Cluster) -> LaunchPlan:
    return launch_plan(cluster, run_dirs=run_dirs(cluster, "r1"))


def args(*arguments: str) -> str:
    return f"engine: {{args: {list(arguments)}}}"


def only(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_the_guides_topology_has_no_finding(check: Check) -> None:
    assert check() == []


class TestPorts:
    def test_side_channels_moved_onto_each_other_by_a_variable(self, load: Load) -> None:
        base = """
model: {path: /m}
hosts: {node: {address: 10.0.0.1}}
instances:
  prefill-1: {role: prefill, host: node, devices: [0, 1]}
  decode-1: {role: decode, host: node, devices: [2, 3], port: 13701}
proxy: {host: node}
env: {VLLM_ASCEND_LLMDD_RPC_PORT: "5557"}
"""
        cluster = load(base=base)
        finding = only(check_plan(cluster, plan_of(cluster)))
        assert finding.id == "plan.port-clash"
        assert finding.where == Where(
            host="node", instance="decode-1", peer_instance="prefill-1", port=5559
        )

    def test_api_port_given_again_as_an_argument(self, check: Check) -> None:
        finding = only(check(decode_1=args("--port", "5560")))
        assert finding.id == "plan.port-clash"
        assert finding.got == (
            "decode-1's API (port 5560) and decode-1's side channel (ports 5559-5560)"
        )

    @pytest.mark.parametrize("port", [60000, 60015])
    def test_where_hccl_listens(self, check: Check, port: int) -> None:
        finding = only(check(decode_1=f"port: {port}"))
        assert (finding.id, finding.severity) == ("plan.port-range", Severity.FAIL)
        assert finding.where == Where(host="d1", instance="decode-1", port=port)
        assert "60000-60015" in finding.expected

    def test_where_hccl_was_told_to_listen(self, check: Check) -> None:
        env = "engine: {env: {HCCL_IF_BASE_PORT: '13690'}}"
        assert only(check(decode_1=env)).id == "plan.port-range"

    def test_hccl_with_ports_of_its_own_leaves_the_default_ones_free(self, check: Check) -> None:
        env = "engine: {env: {HCCL_HOST_SOCKET_PORT_RANGE: '50000-50100'}}"
        assert check(decode_1=f"port: 60000, {env}")[0].severity is Severity.WARN

    def test_where_the_kernel_takes_ports_at_random_is_a_warning(self, check: Check) -> None:
        finding = only(check(decode_1="port: 40000"))
        assert (finding.id, finding.severity) == ("plan.port-range", Severity.WARN)

    def test_beyond_the_last_port(self, check: Check) -> None:
        assert only(check(decode_1=args("--port", "70000"))).id == "plan.port-range"

    def test_mooncakes_random_ports(self, check: Check) -> None:
        connector = "connector: {kind: module, name: MooncakeConnectorV1, module: a.b, kv_port: "
        findings = check(connector + "'27999'}")
        assert {f.id for f in findings} == {"plan.port-range"}
        assert [f.where.instance for f in findings] == ["prefill-1", "decode-1", "decode-2"]
        assert check(connector + "'28000'}") == []


def test_a_role_contradicted_by_an_argument(check: Check) -> None:
    config = '{"kv_connector": "X", "kv_role": "kv_both"}'
    finding = only(check(decode_1=args("--kv-transfer-config", config)))
    assert finding.id == "plan.role"
    assert finding.where == Where(host="d1", instance="decode-1")
    assert (finding.expected, finding.got) == (
        "kv_role kv_consumer for role decode",
        "kv_role kv_both",
    )


class TestTensorParallel:
    def test_an_argument_that_does_not_fit_the_devices(self, check: Check) -> None:
        for option in (("-tp", "4"), ("--tensor_parallel_size=4",)):
            finding = only(check(decode_1=args(*option)))
            assert finding.id == "plan.tp"
            assert finding.got == "TP 4 x DP 1"

    @pytest.fixture
    def unequal(self, load: Load, base: str) -> Callable[[str, ModelShape | None], list[Finding]]:
        def unequal(kind: str, model: ModelShape | None) -> list[Finding]:
            text = base.replace(
                "host: d1, devices: [6, 7]",
                "host: d1, devices: [4, 5, 6, 7], engine: {tensor_parallel: 4}",
            )
            cluster = load(f"connector: {{kind: {kind}}}", base=text)
            findings = check_plan(cluster, plan_of(cluster), model)
            return [f for f in findings if f.id == "plan.tp"]

        return unequal

    def test_unequal_sizes_split_the_heads(
        self, unequal: Callable[[str, ModelShape | None], list[Finding]]
    ) -> None:
        finding = only(unequal("ours", ModelShape(kv_heads=4, mla=False)))
        assert finding.severity is Severity.FAIL
        assert finding.where == Where(
            host="d1", instance="decode-1", peer_instance="prefill-1", peer_host="p1"
        )

    def test_one_head_per_rank_on_both_sides_is_served_by_ours_only(
        self, unequal: Callable[[str, ModelShape | None], list[Finding]]
    ) -> None:
        shape = ModelShape(kv_heads=2, mla=False)
        assert unequal("ours", shape) == []
        assert only(unequal("vllm-ascend", shape)).severity is Severity.FAIL

    def test_mla_holds_the_same_on_every_rank(
        self, unequal: Callable[[str, ModelShape | None], list[Finding]]
    ) -> None:
        assert unequal("vllm-ascend", ModelShape(kv_heads=1, mla=True)) == []

    def test_without_the_models_shape_nobody_can_tell(
        self, unequal: Callable[[str, ModelShape | None], list[Finding]]
    ) -> None:
        assert only(unequal("ours", None)).severity is Severity.UNKNOWN


class TestAgreement:
    @pytest.mark.parametrize(
        ("setting", "expected", "got"),
        [
            ("engine: {max_model_len: 4096}", "--max-model-len 6144", "--max-model-len 4096"),
            ("engine: {dtype: float16}", "--dtype not set", "--dtype float16"),
            ("engine: {block_size: 64}", "--block-size not set", "--block-size 64"),
            ("engine: {kv_cache_dtype: fp8}", "--kv-cache-dtype not set", "--kv-cache-dtype fp8"),
            ("engine: {quantization: ascend}", "--quantization not set", "--quantization ascend"),
            (args("--served-model-name=x"), "--served-model-name qwen3-moe", None),
            (args("--max_model_len", "4096"), "--max-model-len 6144", "--max-model-len 4096"),
        ],
    )
    def test_the_instance_that_differs_is_named(
        self, check: Check, setting: str, expected: str, got: str | None
    ) -> None:
        finding = only(check(decode_1=setting))
        assert (finding.id, finding.severity) == ("plan.pd-mismatch", Severity.FAIL)
        assert finding.where == Where(host="d1", instance="decode-1", peer_instance="prefill-1")
        assert finding.expected == f"{expected}, as prefill-1"
        assert got is None or finding.got == got

    def test_another_seed_is_a_warning(self, check: Check) -> None:
        finding = only(check(decode_1="engine: {seed: 7}"))
        assert (finding.id, finding.severity) == ("plan.pd-mismatch", Severity.WARN)

    def test_what_may_differ_may_differ(self, check: Check) -> None:
        setting = "engine: {gpu_memory_utilization: 0.8, prefix_caching: true, enforce_eager: true}"
        assert check(decode_1=setting) == []

    def test_another_model(self, load: Load) -> None:
        cluster = load()
        plan = plan_of(cluster)
        launch = plan.instances["decode-2"]
        other = replace(launch, argv=("vllm", "serve", "/model/other", *launch.argv[3:]))
        changed = replace(plan, instances={**plan.instances, "decode-2": other})
        finding = only(check_plan(cluster, changed))
        assert finding.got == "model /model/other"
        assert finding.where.instance == "decode-2"


class TestEngineId:
    def test_two_alike_are_a_fault_of_ours(self, check: Check) -> None:
        finding = only(check(decode_1="engine_id: prefill-1"))
        assert (finding.id, finding.severity) == ("plan.engine-id", Severity.FAIL)
        assert finding.where.instance == "decode-1"
        assert finding.where.peer_instance == "prefill-1"

    def test_the_guides_zero_for_all_is_a_warning(self, check: Check) -> None:
        findings = check("connector: {kind: vllm-ascend}")
        assert {(f.id, f.severity) for f in findings} == {("plan.engine-id", Severity.WARN)}


def test_device_of_two_instances(load: Load) -> None:
    cluster = load()
    instances = dict(cluster.instances)
    instances["decode-2"] = instances["decode-2"].model_copy(update={"host": "d1", "port": 13701})
    shared = cluster.model_copy(update={"instances": instances})
    findings = [f for f in check_plan(shared, plan_of(shared)) if f.id == "plan.device-overlap"]
    assert [f.where for f in findings] == [
        Where(host="d1", device=device, instance="decode-2", peer_instance="decode-1")
        for device in (6, 7)
    ]


class TestScheduler:
    def test_too_few_batched_tokens_for_the_longest_prompt(self, check: Check) -> None:
        finding = only(check(decode_1="engine: {max_num_batched_tokens: 4096}"))
        assert finding.id == "plan.scheduler"
        assert finding.where == Where(host="d1", instance="decode-1")
        assert finding.got == "max_num_batched_tokens 4096, without chunked prefill"

    @pytest.mark.parametrize(
        "scheduler", ["{enabled: true, enable_chunked_prefill: true}", "{enabled: false}"]
    )
    def test_with_chunked_prefill_it_does_not_matter(self, check: Check, scheduler: str) -> None:
        config = f"additional_config: {{ascend_scheduler_config: {scheduler}}}"
        assert check(decode_1=f"engine: {{max_num_batched_tokens: 4096, {config}}}") == []


class TestVariables:
    def test_a_name_that_nothing_reads(self, check: Check) -> None:
        finding = only(check(decode_1="engine: {env: {VLLM_LLMDD_RPC_PORT: '5600'}}"))
        assert finding.id == "env.renamed"
        assert finding.expected == "VLLM_ASCEND_LLMDD_RPC_PORT"

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("VLLM_ASCEND_LLMDD_RPC_PORT", "auto"),
            ("HCCL_IF_BASE_PORT", "65530"),
            ("OMP_NUM_THREADS", "0"),
        ],
    )
    def test_out_of_range(self, check: Check, name: str, value: str) -> None:
        finding = only(check(decode_1=f"engine: {{env: {{{name}: '{value}'}}}}"))
        assert finding.id == "env.range"
        assert finding.got == f"{name}='{value}'"

    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("ASCEND_RT_VISIBLE_DEVICES", "6, 7", "6,7"),
            ("HCCL_IF_IP", "10.9.9.9", "192.0.0.2"),
            ("VLLM_HOST_IP", "10.9.9.9", "192.0.0.2"),
            ("GLOO_SOCKET_IFNAME", "eth1", "eth0"),
        ],
    )
    def test_against_the_plan(self, check: Check, name: str, value: str, expected: str) -> None:
        finding = only(check(decode_1=f"engine: {{env: {{{name}: '{value}'}}}}"))
        assert finding.id == "env.mismatch"
        assert finding.where == Where(host="d1", instance="decode-1")
        assert (finding.expected, finding.got) == (f"{name}={expected}", f"{name}='{value}'")

    @pytest.mark.parametrize(
        ("name", "severity"),
        [("HCCL_INTRA_ROCE_ENABLE", Severity.FAIL), ("HCCL_DETERMINISTIC", Severity.WARN)],
    )
    def test_on_one_instance_only(self, check: Check, name: str, severity: Severity) -> None:
        finding = only(check(decode_1=f"engine: {{env: {{{name}: '1'}}}}"))
        assert (finding.id, finding.severity) == ("env.mismatch", severity)
        assert finding.where.instance == "decode-1"

    def test_on_all_instances(self, check: Check) -> None:
        assert check("env: {HCCL_INTRA_ROCE_ENABLE: '1', HCCL_DETERMINISTIC: 'true'}") == []


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        ({"num_attention_heads": 32, "num_key_value_heads": 4}, ModelShape(4, mla=False)),
        ({"num_attention_heads": 16}, ModelShape(16, mla=False)),
        ({"num_attention_heads": 128, "kv_lora_rank": 512}, ModelShape(128, mla=True)),
        ({"architectures": ["Unknown"]}, None),
    ],
)
def test_shape_is_read_from_the_models_config(
    config: dict[str, object], shape: ModelShape | None
) -> None:
    assert ModelShape.of_config(config) == shape
