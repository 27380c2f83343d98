"""The launch plan beyond the guide's example: our connector, audit, several on one host."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pd_validate.spec.arguments import options
from pd_validate.spec.models import Cluster
from pd_validate.spec.plan import (
    AuditLevel,
    LaunchPlan,
    Process,
    launch_plan,
    render_shell,
    run_dirs,
)

Load = Callable[..., Cluster]

ONE_HOST = """\
model: {path: /model/Qwen3-30B-A3B}
hosts: {node: {address: 10.0.0.1}}
instances:
  prefill-1: {role: prefill, host: node, devices: [0, 1]}
  decode-1: {role: decode, host: node, devices: [3, 2], port: 13701}
proxy: {host: node}
"""


def plan_of(cluster: Cluster, audit: AuditLevel = "off") -> LaunchPlan:
    return launch_plan(cluster, run_dirs=run_dirs(cluster, "r1"), audit=audit)


def transfer(plan: LaunchPlan, instance: str) -> dict[str, Any]:
    value = options(plan.instances[instance].argv)["--kv-transfer-config"]
    assert value is not None
    config = json.loads(value)
    assert isinstance(config, dict)
    return config


class TestOurConnector:
    def test_is_loaded_by_module_path_from_the_staged_code(self, load: Load) -> None:
        plan = plan_of(load())
        config = transfer(plan, "decode-1")
        assert config["kv_connector"] == "LLMDataDistConnector"
        assert config["kv_connector_module_path"] == "connector.llmdatadist"
        assert plan.instances["decode-1"].code == "/tmp/pd-validate/r1/code"
        assert plan.hosts_with_code() == ["p1", "d1", "d2"]

    def test_engine_ids_are_the_instances_names(self, load: Load) -> None:
        plan = plan_of(load())
        assert [transfer(plan, name)["engine_id"] for name in plan.instances] == [
            "prefill-1",
            "decode-1",
            "decode-2",
        ]

    def test_decoders_are_told_where_the_prefillers_side_channels_are(self, load: Load) -> None:
        plan = plan_of(load())
        peers = transfer(plan, "decode-2")["kv_connector_extra_config"]["prelink_peers"]
        assert peers == [f"192.0.0.1:{plan.instances['prefill-1'].side_channel_ports[0]}"]

    def test_settings_of_the_file_go_over_the_plans(self, load: Load) -> None:
        plan = plan_of(load("connector: {extra: {pull_timeout: 5.0, metrics_directory: /m}}"))
        extra = transfer(plan, "prefill-1")["kv_connector_extra_config"]
        assert extra == {"instance": "prefill-1", "metrics_directory": "/m", "pull_timeout": 5.0}

    def test_side_channel_listens_on_the_hosts_address_only(self, load: Load) -> None:
        assert plan_of(load()).instances["decode-1"].env["VLLM_ASCEND_LLMDD_RPC_IP"] == "192.0.0.2"

    def test_no_key_that_newer_vllm_refuses(self, load: Load) -> None:
        assert "kv_parallel_size" not in transfer(plan_of(load()), "prefill-1")


class TestAudit:
    @pytest.mark.parametrize(
        ("connector", "inner"),
        [
            (
                "connector: {kind: vllm-ascend}",
                {
                    "kv_connector": "LLMDataDistCMgrConnector",
                    "kv_connector_module_path": "vllm_ascend.distributed."
                    "llmdatadist_c_mgr_connector",
                },
            ),
            (
                "connector: {kind: module, name: NixlConnector, module: a.b, extra: {x: 1}}",
                {
                    "kv_connector": "NixlConnector",
                    "kv_connector_module_path": "a.b",
                    "kv_connector_extra_config": {"x": 1},
                },
            ),
        ],
    )
    def test_wraps_any_connector(self, load: Load, connector: str, inner: dict[str, Any]) -> None:
        plan = plan_of(load(connector), audit="full")
        config = transfer(plan, "decode-1")
        assert config["kv_connector"] == "AuditConnector"
        assert config["kv_connector_module_path"] == "connector.audit"
        assert config["kv_role"] == "kv_consumer"
        assert config["kv_connector_extra_config"] == {
            "audit": {
                "level": "full",
                "directory": "/tmp/pd-validate/r1/trace",
                "instance": "decode-1",
            },
            "inner": inner,
        }
        assert plan.instances["decode-1"].code == "/tmp/pd-validate/r1/code"

    def test_off_leaves_the_connector_alone(self, load: Load) -> None:
        plan = plan_of(load("connector: {kind: vllm-ascend}"))
        assert "kv_connector_extra_config" not in transfer(plan, "decode-1")
        assert plan.instances["decode-1"].code is None, "nothing of ours is needed there"


class TestSeveralOnOneHost:
    def test_side_channels_do_not_overlap(self, load: Load) -> None:
        plan = plan_of(load(base=ONE_HOST))
        prefill, decode = plan.instances.values()
        # Base 5557: with DP=1 the connector listens on base + TP + rank.
        assert prefill.side_channel_ports == (5559, 5560)
        assert decode.side_channel_ports == (5563, 5564)
        assert prefill.env["VLLM_ASCEND_LLMDD_RPC_PORT"] == "5557"
        assert decode.env["VLLM_ASCEND_LLMDD_RPC_PORT"] == "5561"

    def test_alone_on_its_host_the_default_needs_no_variable(self, load: Load) -> None:
        assert "VLLM_ASCEND_LLMDD_RPC_PORT" not in plan_of(load()).instances["decode-1"].env

    def test_devices_are_visible_in_rank_order(self, load: Load) -> None:
        decode = plan_of(load(base=ONE_HOST)).instances["decode-1"]
        assert decode.env["ASCEND_RT_VISIBLE_DEVICES"] == "3,2"
        assert decode.devices == (3, 2)

    def test_the_host_runs_instances_and_proxy(self, load: Load) -> None:
        plan = plan_of(load(base=ONE_HOST))
        assert [p.name for p in plan.on("node")] == ["prefill-1", "decode-1", "proxy"]


def test_data_parallel_instance(load: Load, base: str) -> None:
    text = base.replace(
        "host: p1, devices: [0, 1]",
        "host: p1, devices: [0, 1, 2, 3], engine: {data_parallel: 2}",
    )
    launch = plan_of(load(base=text)).instances["prefill-1"]
    assert options(launch.argv)["--data-parallel-size"] == "2"
    assert launch.side_channel_ports == (5557, 5558, 5559, 5560), "base + DP rank * TP + TP rank"


class TestSettings:
    def test_variables_the_narrower_wins(self, load: Load, base: str) -> None:
        text = base.replace("192.0.0.2}", "192.0.0.2, env: {A: host, B: host, C: host}}").replace(
            "host: d1, devices: [6, 7]",
            "host: d1, devices: [6, 7], engine: {env: {C: instance}}",
        )
        extra = "env: {A: cluster, OMP_NUM_THREADS: '1'}\nengine: {env: {B: engine, C: engine}}"
        env = plan_of(load(extra, base=text)).instances["decode-1"].env
        assert (env["A"], env["B"], env["C"]) == ("host", "engine", "instance")
        assert env["OMP_NUM_THREADS"] == "1", "the file goes over the guide's values"

    def test_an_instances_arguments_follow_the_clusters(self, load: Load, base: str) -> None:
        text = base.replace(
            "host: d1, devices: [6, 7]",
            "host: d1, devices: [6, 7], engine: {args: [--max-num-seqs, '8']}",
        )
        plan = plan_of(load("engine: {args: [--disable-log-requests]}", base=text))
        assert plan.instances["decode-1"].argv[-3:] == (
            "--disable-log-requests",
            "--max-num-seqs",
            "8",
        )
        assert plan.instances["decode-2"].argv[-1] == "--disable-log-requests"

    @pytest.mark.parametrize(
        ("engine", "arguments"),
        [
            ("dtype: float32", ["--dtype", "float32"]),
            ("block_size: 128", ["--block-size", "128"]),
            ("kv_cache_dtype: fp8", ["--kv-cache-dtype", "fp8"]),
            ("quantization: ascend", ["--quantization", "ascend"]),
            ("prefix_caching: true", ["--enable-prefix-caching"]),
        ],
    )
    def test_settings_that_the_guide_has_not(
        self, load: Load, engine: str, arguments: list[str]
    ) -> None:
        argv = shlex.join(plan_of(load(f"engine: {{{engine}}}")).instances["decode-1"].argv)
        assert f" {shlex.join(arguments)} " in argv

    @pytest.mark.parametrize(
        ("engine", "absent"),
        [
            ("expert_parallel: false", "--enable-expert-parallel"),
            ("trust_remote_code: false", "--trust-remote-code"),
            ("additional_config: {}", "--additional-config"),
            ("enforce_eager: false", "--enforce-eager"),
        ],
    )
    def test_settings_that_leave_an_option_out(self, load: Load, engine: str, absent: str) -> None:
        assert absent in plan_of(load()).instances["prefill-1"].argv
        assert absent not in plan_of(load(f"engine: {{{engine}}}")).instances["prefill-1"].argv

    def test_a_rank_table_of_the_users(self, load: Load) -> None:
        launch = plan_of(load("ranktable: {path: /etc/rt.json}")).instances["decode-1"]
        assert launch.ranktable_path == "/etc/rt.json"
        assert launch.env["DISAGGREGATED_PREFILL_RANK_TABLE_PATH"] == "/etc/rt.json"

    def test_directories_of_a_host(self, load: Load, base: str) -> None:
        text = base.replace("192.0.0.2}", "192.0.0.2, workdir: /data/pd}")
        plan = plan_of(load(base=text))
        assert plan.instances["decode-1"].cwd == "/data/pd/r1"
        assert plan.instances["decode-2"].cwd == "/tmp/pd-validate/r1"


class TestProxyCommand:
    def test_lists_become_arguments_or_are_joined(self, load: Load, base: str) -> None:
        text = base.replace(
            "proxy: {host: p1}",
            'proxy: {host: p1, port: 9000, command: [router, "--bind={host}:{port}", --prefill,'
            ' "{prefiller_urls}", "--decode={decoder_urls}", --ports, "{decoder_ports}"],'
            " args: [--policy, least], env: {LOG: debug}}",
        )
        proxy = plan_of(load(base=text)).proxy
        assert proxy.argv == (
            "router",
            "--bind=192.0.0.1:9000",
            "--prefill",
            "http://192.0.0.1:13700",
            "--decode=http://192.0.0.2:13700,http://192.0.0.3:13700",
            "--ports",
            "13700",
            "13700",
            "--policy",
            "least",
        )
        assert proxy.env["LOG"] == "debug"
        assert proxy.code is None, "our code is not needed for it"
        assert proxy.url == "http://192.0.0.1:9000"

    def test_literal_braces(self, load: Load, base: str) -> None:
        text = base.replace("{host: p1}\n", """{host: p1, command: [r, '{{"a": {port}}}']}\n""")
        assert plan_of(load(base=text)).proxy.argv == ("r", '{"a": 8080}')


class TestCommand:
    """What is executed: CANN's scripts first, our code before the host's PYTHONPATH."""

    SHOW = "import os, sys; print(os.environ.get('PYTHONPATH'), sys.argv)"
    ARGV = "['-c', 'a b', \"'quoted'\", '{\"中\": 1}']"

    def show(self, *setup: Path, code: str | None = "/code") -> str:
        process = Process(
            name="x",
            host="p1",
            argv=("python3", "-c", self.SHOW, "a b", "'quoted'", '{"中": 1}'),
            env={},
            cwd="/",
            setup=tuple(str(script) for script in setup),
            code=code,
        )
        env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": "/cann", "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            process.command, env=env, check=True, capture_output=True, text=True, timeout=20
        )
        return done.stdout.strip()

    def test_our_code_stands_before_the_hosts_python_path(self) -> None:
        assert self.show() == f"/code:/cann {self.ARGV}"

    def test_scripts_are_sourced_without_arguments(self, tmp_path: Path) -> None:
        script = tmp_path / "set env.sh"
        script.write_text('test $# = 0 && export PYTHONPATH="/toolkit:$PYTHONPATH"')
        assert self.show(script) == f"/code:/toolkit:/cann {self.ARGV}"

    def test_scripts_that_are_not_there_are_left_out(self, tmp_path: Path) -> None:
        assert self.show(tmp_path / "absent.sh", code=None) == f"/cann {self.ARGV}"

    def test_without_either_the_arguments_are_executed_as_they_are(self) -> None:
        process = Process("x", "p1", ("echo", "hi"), {}, "/")
        assert process.command == ("echo", "hi")


def test_shell_of_a_host_with_a_container(load: Load) -> None:
    plan = plan_of(load())
    text = render_shell(plan, "d1", enter=[["docker", "exec", "-it", "my container", "bash"]])
    assert text.startswith("docker exec -it 'my container' bash\n\n# decode-1 on d1\n")
