"""Run records as real runs would leave them: what the report's tests and screenshots draw.

The cluster is the guide's: three Atlas 800T A2 with eight NPUs each, 1P2D, TP=2.
Numbers are made up and always the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

from pd_validate.catalogue import Layer
from pd_validate.findings import Finding, Severity, Verdict, Where
from pd_validate.report.record import (
    Attachment,
    CheckResult,
    HostNode,
    InstanceNode,
    KvPair,
    KvPull,
    KvUsage,
    Npu,
    Outcome,
    Ping,
    ProxyNode,
    Rank,
    RequestTiming,
    RunRecord,
    Span,
    TestResult,
)
from pd_validate.spec.models import Role

STARTED = datetime(2026, 11, 20, 9, 30, tzinfo=UTC)
T0 = STARTED.timestamp()
HOSTS = ("p1", "d1", "d2")
DEVICES = tuple(range(8))

_NPU_CHECKS = (
    ("link.state", Layer.LINK),
    ("link.flaps", Layer.LINK),
    ("link.neighbour", Layer.LINK),
    ("optics", Layer.LINK),
    ("address", Layer.NPU_NETWORK),
    ("address.conf", Layer.NPU_NETWORK),
    ("gateway", Layer.NPU_NETWORK),
    ("net-health", Layer.NPU_NETWORK),
    ("mtu", Layer.NPU_NETWORK),
    ("tls", Layer.NPU_NETWORK),
    ("device.health", Layer.HOST),
)
_HOST_CHECKS = (
    ("host.nic", Layer.HOST),
    ("host.clock", Layer.HOST),
    ("software", Layer.HOST),
    ("environment", Layer.HOST),
    ("ranktable", Layer.PLAN),
)


def empty() -> RunRecord:
    """A run that ended before it learned anything."""
    return RunRecord(cluster="atlas-1p2d", started=STARTED, verdict=Verdict.UNKNOWN, exit_code=3)


def network_only() -> RunRecord:
    """`-m network`: nothing was started; one NPU without neighbour is only a warning."""
    record = _base("pytest --cluster cluster.yaml -m network", seconds=7.4)
    record.findings = [
        Finding(
            id="link.no-neighbour",
            severity=Severity.WARN,
            where=Where(host="d2", device=3),
            expected="an LLDP neighbour",
            got="none",
            evidence=("$ hccn_tool -i 3 -lldp -g\n(no answer)",),
        )
    ]
    record.checks = _checks()
    record.pings = _pings()
    record.tests = _network_tests()
    return _finish(record, Verdict.PASS, 0)


def green() -> RunRecord:
    """A healthy cluster, everything run."""
    record = _base("pytest --cluster cluster.yaml", seconds=412.6)
    record.checks = _checks()
    record.pings = _pings()
    record.timeline = _timeline()
    record.kv_pairs, record.kv_pulls = _kv()
    record.requests = _requests()
    record.kv_usage = _kv_usage()
    record.tests = [*_network_tests(), *_service_tests()]
    record.leftovers = {host: [] for host in HOSTS}
    record.attachments = [
        Attachment(name="prefill-1.log", path="logs/prefill-1.log", bytes=184_320),
        Attachment(name="decode-1.log", path="logs/decode-1.log", bytes=201_007),
        Attachment(name="decode-2.log", path="logs/decode-2.log", bytes=199_441),
        Attachment(name="proxy.log", path="logs/proxy.log", bytes=42_118),
    ]
    return _finish(record, Verdict.PASS, 0)


def dead_link() -> RunRecord:
    """NPU 6 of d1 has no carrier; everything above that needs it is blocked."""
    record = _base("pytest --cluster cluster.yaml", seconds=9.8)
    root = Finding(
        id="link.down",
        where=Where(host="d1", device=6),
        expected="link status UP",
        got="link status DOWN since 2026-11-20 08:57:12",
        evidence=(
            "$ hccn_tool -i 6 -link -g\nlink status: DOWN",
            "$ hccn_tool -i 6 -optical -g\npresent: present\nRx Power0: 0.0000 mW",
        ),
    )
    because = (root.as_cause(),)
    pings = [
        Finding(
            id="ping.unreachable",
            where=Where(
                host=source.host,
                device=source.device,
                peer_host=target.host,
                peer_device=target.device,
            ),
            expected="3 of 3 packets back",
            got="0 of 3",
            because=because,
        )
        for source, target in _dead_paths()
    ]
    health = Finding(
        id="health.unreachable",
        where=Where(host="d1", device=6),
        expected="net health Success",
        got="Receive timeout",
        because=because,
    )
    busy = Finding(
        id="tool.busy",
        severity=Severity.UNKNOWN,
        where=Where(host="d2", device=2),
        expected="an answer of hccn_tool within 10 s",
        got="device busy, three times",
        evidence=("$ hccn_tool -i 2 -net_health -g\nthe device is busy (exit 1, 2.0 s)",),
    )
    record.findings = [*pings, health, root, busy]
    record.checks = _checks(
        {
            ("link.state", "d1", 6): Verdict.FAIL,
            ("optics", "d1", 6): Verdict.FAIL,
            ("net-health", "d1", 6): Verdict.FAIL,
            ("net-health", "d2", 2): Verdict.UNKNOWN,
        }
    )
    record.pings = _pings(dead=Npu(host="d1", device=6))
    record.timeline = [span for span in _timeline() if span.name in ("connect", "pre-flight")]
    record.tests = [
        *_network_tests({"link_is_up[d1]": root, "ping_matrix": root}),
        *(
            test.model_copy(
                update={
                    "outcome": Outcome.BLOCKED,
                    "seconds": 0.0,
                    "findings": ("link.down",),
                    "reason": "blocked by link.down at d1 npu6",
                }
            )
            for test in _service_tests()
        ),
    ]
    record.leftovers = {host: [] for host in HOSTS}
    return _finish(record, Verdict.FAIL, 10)


def corrupted_block() -> RunRecord:
    """Everything is green and one KV block of decode-2 is wrong."""
    record = green()
    root = Finding(
        id="kv.corrupt",
        where=Where(
            instance="decode-2", rank=1, layer=17, block=482, request="cmpl-7f3a", host="d2"
        ),
        expected="digest 9c41e0d7 as prefill-1 rank 1 produced it",
        got="digest 03b7aa15",
        hint="Take d2 npu7 out of service and run with --audit full; see fabric counters of "
        "p1 npu1 -> d2 npu7.",
        evidence=(
            "produced p1 prefill-1 rank 1 layer 17 V block 55 -> 9c41e0d7",
            "received d2 decode-2 rank 1 layer 17 V block 482 -> 03b7aa15",
            "1 of 41472 digests differs; K of the same block is equal",
        ),
    )
    parity = Finding(
        id="parity.diverged",
        where=Where(request="cmpl-7f3a", instance="decode-2"),
        expected="token 12 = 48 (' 我是')",
        got="token 12 = 9107 (' 的的')",
        because=(root.as_cause(),),
        evidence=(
            "expected: 我是通义千问，由阿里云开发。",
            "got:      我是通义的的的的的的的的",
        ),
    )
    determinism = Finding(
        id="determinism.diverged",
        where=Where(request="cmpl-7f3b", instance="decode-2"),
        expected="the same 100 tokens in 5 runs",
        got="run 3 differs from token 12",
        because=(parity.as_cause(),),
    )
    record.findings = [parity, determinism, root]
    record.kv_pairs = [
        pair.model_copy(update={"mismatches": 1})
        if (pair.target.instance, pair.target.rank) == ("decode-2", 1)
        else pair
        for pair in record.kv_pairs
    ]
    failing = {
        "tests/e2e/test_kv.py::test_received_kv_is_produced_kv": root,
        "tests/e2e/test_parity.py::test_answer_equals_single_engine": parity,
        "tests/e2e/test_determinism.py::test_same_prompt_same_tokens": determinism,
    }
    record.tests = [
        test.model_copy(
            update={
                "outcome": Outcome.FAILED,
                "findings": (failing[test.id].id,),
                "reason": str(failing[test.id]),
            }
        )
        if test.id in failing
        else test
        for test in record.tests
    ]
    record.checks += [
        CheckResult(
            id="kv.audit",
            where=Where(instance="decode-2", rank=1),
            verdict=Verdict.FAIL,
            seconds=0.4,
            layer=Layer.KV_DATA,
        )
    ]
    return _finish(record, Verdict.FAIL, 1)


def failed_bringup() -> RunRecord:
    """decode-1 dies while it loads; the others become ready and wait."""
    record = _base("pytest --cluster cluster.yaml", seconds=96.2)
    root = Finding(
        id="engine.exited",
        where=Where(host="d1", instance="decode-1", file="/tmp/pd-validate/r-41c2/decode-1.log"),
        expected="decode-1 ready within 900 s",
        got="exit code 1 after 71.3 s",
        evidence=(
            "last lines of decode-1.log:\n"
            "INFO 09:31:22 [loader.py] Loading safetensors shards:  62% | 10/16\n"
            "ERROR 09:31:27 [core.py] EngineCore failed to start.\n"
            "RuntimeError: NPU out of memory. Tried to allocate 1.50 GiB "
            "(NPU 6; 60.97 GiB total; 912.00 MiB free)",
        ),
    )
    in_use = Finding(
        id="device.in-use",
        where=Where(host="d1", device=6),
        expected="no process on the NPU",
        got="pid 48213 (python3, user li) holds 57.2 GiB",
        evidence=("$ npu-smi info -t proc-mem -i 6\nProcess id: 48213, memory 58573 MB",),
    )
    root = root.model_copy(update={"because": (in_use.as_cause(),)})
    timeout = Finding(
        id="service.timeout",
        where=Where(host="p1", port=8080),
        expected="a completion through the proxy",
        got="not tried: decode-1 never became ready",
        because=(root.as_cause(),),
    )
    record.findings = [timeout, root, in_use]
    record.checks = _checks({("device.health", "d1", 6): Verdict.FAIL})
    record.pings = _pings()
    record.timeline = _timeline(failing="decode-1")
    record.tests = [
        *_network_tests(),
        *(
            test.model_copy(
                update={
                    "outcome": Outcome.BLOCKED,
                    "seconds": 0.0,
                    "findings": ("engine.exited",),
                    "reason": "blocked by engine.exited at d1 decode-1",
                }
            )
            for test in _service_tests()
        ),
    ]
    record.environment["driver"] = {"p1": "24.1.rc3", "d1": "24.1.rc2", "d2": "24.1.rc3"}
    record.findings.append(
        Finding(
            id="software.mismatch",
            severity=Severity.WARN,
            where=Where(host="d1"),
            expected="driver 24.1.rc3 as on p1, d2",
            got="24.1.rc2",
        )
    )
    record.leftovers = {
        "p1": [],
        "d1": ["process group 48702 (VLLM::EngineCore), started by this run"],
        "d2": [],
    }
    record.findings.append(
        Finding(
            id="leftover.process",
            where=Where(host="d1"),
            expected="no process of run r-41c2",
            got="process group 48702 (VLLM::EngineCore)",
        )
    )
    return _finish(record, Verdict.FAIL, 12)


EXAMPLES: dict[str, Callable[[], RunRecord]] = {
    "empty": empty,
    "network-only": network_only,
    "green": green,
    "dead-link": dead_link,
    "corrupted-block": corrupted_block,
    "failed-bringup": failed_bringup,
}


def _base(command: str, *, seconds: float) -> RunRecord:
    return RunRecord(
        cluster="atlas-1p2d",
        started=STARTED,
        finished=STARTED + timedelta(seconds=seconds),
        command=command,
        harness="pd-validate 0.1.0",
        environment={
            "hardware": "Atlas 800T A2",
            "driver": dict.fromkeys(HOSTS, "24.1.rc3"),
            "firmware": dict.fromkeys(HOSTS, "7.5.0.1.129"),
            "CANN": dict.fromkeys(HOSTS, "8.2.RC1"),
            "torch_npu": dict.fromkeys(HOSTS, "2.7.1.dev20250724"),
            "vllm": dict.fromkeys(HOSTS, "0.10.1.1"),
            "vllm_ascend": dict.fromkeys(HOSTS, "0.10.1rc1"),
            "python": {"p1": "3.11.13", "d1": "3.11.13", "d2": "3.11.12"},
            "model": "Qwen3-30B-A3B  sha256 5be4…91c0",
            "pd-validate": "0.1.0",
        },
        hosts=[
            HostNode(name=host, address=f"192.0.0.{number}", devices=DEVICES)
            for number, host in enumerate(HOSTS, start=1)
        ],
        instances=[
            InstanceNode(
                name="prefill-1", role=Role.PREFILL, host="p1", devices=(0, 1), port=13700
            ),
            InstanceNode(name="decode-1", role=Role.DECODE, host="d1", devices=(6, 7), port=13700),
            InstanceNode(name="decode-2", role=Role.DECODE, host="d2", devices=(6, 7), port=13700),
        ],
        proxy=ProxyNode(host="p1", port=8080),
    )


def _finish(record: RunRecord, verdict: Verdict, exit_code: int) -> RunRecord:
    record.verdict = verdict
    record.exit_code = exit_code
    return record


def _checks(
    other: dict[tuple[str, str, int], Verdict] | None = None,
) -> list[CheckResult]:
    other = other or {}
    rng = random.Random(1)
    results = [
        CheckResult(
            id=check,
            where=Where(host=host, device=device),
            verdict=other.get((check, host, device), Verdict.PASS),
            seconds=round(rng.uniform(0.02, 0.2), 3),
            layer=layer,
        )
        for check, layer in _NPU_CHECKS
        for host in HOSTS
        for device in DEVICES
    ]
    results += [
        CheckResult(
            id=check,
            where=Where(host=host),
            verdict=Verdict.PASS,
            seconds=round(rng.uniform(0.05, 0.4), 3),
            layer=layer,
        )
        for check, layer in _HOST_CHECKS
        for host in HOSTS
    ]
    results.append(
        CheckResult(id="plan", verdict=Verdict.PASS, seconds=0.004, layer=Layer.PLAN),
    )
    return results


def _cross_paths() -> Iterable[tuple[Npu, Npu]]:
    npus = [Npu(host=host, device=device) for host in HOSTS for device in DEVICES]
    return ((a, b) for a in npus for b in npus if a.host != b.host)


def _dead_paths() -> list[tuple[Npu, Npu]]:
    """Paths between used NPUs that end or begin at d1 npu6."""
    dead = Npu(host="d1", device=6)
    used = [Npu(host="p1", device=0), Npu(host="p1", device=1)]
    used += [Npu(host="d2", device=6), Npu(host="d2", device=7)]
    return [(npu, dead) for npu in used] + [(dead, npu) for npu in used]


def _pings(dead: Npu | None = None) -> list[Ping]:
    rng = random.Random(2)
    result = []
    for source, target in _cross_paths():
        lost = dead in (source, target)
        same_rail = source.device == target.device
        ms = round(rng.gauss(0.045 if same_rail else 0.062, 0.006), 4)
        result.append(
            Ping(
                source=source,
                target=target,
                sent=3,
                received=0 if lost else 3,
                ms=None if lost else ms,
            )
        )
    return result


def _timeline(failing: str = "") -> list[Span]:
    spans: list[Span] = []

    def add(host: str, name: str, start: float, seconds: float | None, ok: bool = True) -> None:
        spans.append(
            Span(
                host=host,
                name=name,
                start=T0 + start,
                end=None if seconds is None else T0 + start + seconds,
                verdict=Verdict.PASS if ok else Verdict.FAIL,
            )
        )

    for index, host in enumerate(HOSTS):
        add(host, "connect", 0.1, 0.4 + 0.1 * index)
        add(host, "pre-flight", 0.7 + 0.1 * index, 4.1 + 0.8 * index)
        add(host, "rank table", 6.8, 0.3)
    add("p1", "prefill-1: load", 7.4, 61.0)
    add("d1", "decode-1: load", 7.4, 71.3 if failing else 66.2, ok=not failing)
    add("d2", "decode-2: load", 7.5, 68.9)
    add("p1", "prefill-1: warm up", 68.4, 9.7)
    if failing:
        add("d2", "decode-2: graph capture", 76.4, None, ok=True)
        add("p1", "proxy", 70.0, 1.1)
    else:
        add("d1", "decode-1: graph capture", 73.6, 21.5)
        add("d2", "decode-2: graph capture", 76.4, 22.8)
        add("p1", "proxy", 70.0, 1.1)
        add("p1", "first completion", 99.4, 1.3)
    return spans


def _network_tests(failing: dict[str, Finding] | None = None) -> list[TestResult]:
    failing = failing or {}
    rng = random.Random(3)
    names = [
        f"{name}[{host}]"
        for name in (
            "host_is_reachable",
            "link_is_up",
            "address_is_the_configured_one",
            "tls_switch_is_equal",
        )
        for host in HOSTS
    ] + ["ping_matrix", "software_is_the_same", "ranktable_is_valid"]
    results = []
    for name in names:
        finding = failing.get(name)
        results.append(
            TestResult(
                id=f"tests/network/test_network.py::test_{name}",
                outcome=Outcome.FAILED if finding else Outcome.PASSED,
                seconds=round(rng.uniform(0.01, 1.2), 3),
                findings=(finding.id,) if finding else (),
                reason=str(finding) if finding else "",
                layer=Layer.PLAN if name.startswith("ranktable") else Layer.NPU_NETWORK,
            )
        )
    return results


def _service_tests() -> list[TestResult]:
    rows = (
        ("test_engines.py::test_all_instances_are_ready", 101.2, Layer.ENGINE),
        ("test_kv.py::test_every_pair_is_linked", 2.8, Layer.KV_LINK),
        ("test_kv.py::test_received_kv_is_produced_kv", 31.4, Layer.KV_DATA),
        ("test_kv.py::test_prompt_lengths_around_a_block", 24.9, Layer.KV_DATA),
        ("test_kv.py::test_usage_returns_to_zero", 18.0, Layer.KV_DATA),
        ("test_parity.py::test_answer_equals_single_engine", 44.7, Layer.SERVICE),
        ("test_determinism.py::test_same_prompt_same_tokens", 38.1, Layer.SERVICE),
        ("test_proxy.py::test_stream_is_complete", 6.3, Layer.PROXY),
        ("test_proxy.py::test_cancelled_client_frees_kv", 11.5, Layer.PROXY),
        ("test_service.py::test_burst_of_64", 52.9, Layer.SERVICE),
    )
    results = [
        TestResult(id=f"tests/e2e/{name}", outcome=Outcome.PASSED, seconds=seconds, layer=layer)
        for name, seconds, layer in rows
    ]
    results.append(
        TestResult(
            id="tests/e2e/test_fault.py::test_decoder_dies_while_pulling",
            outcome=Outcome.SKIPPED,
            reason="breaks things on purpose; run with --allow-faults",
            layer=Layer.SERVICE,
        )
    )
    return results


def _kv() -> tuple[list[KvPair], list[KvPull]]:
    rng = random.Random(4)
    pairs, pulls = [], []
    for instance in ("decode-1", "decode-2"):
        for rank in (0, 1):
            source = Rank(instance="prefill-1", rank=rank)
            target = Rank(instance=instance, rank=rank)
            mine = []
            for _ in range(96):
                size = rng.choice((12, 24, 48, 96)) * 1_572_864
                rate = rng.gauss(21.4e9 if instance == "decode-1" else 20.1e9, 0.9e9)
                at = T0 + 110 + rng.uniform(0, 280)
                mine.append(
                    KvPull(at=at, source=source, target=target, bytes=size, seconds=size / rate)
                )
            pulls += sorted(mine, key=lambda pull: pull.at)
            pairs.append(
                KvPair(
                    source=source,
                    target=target,
                    pulls=len(mine),
                    bytes=sum(pull.bytes for pull in mine),
                    seconds=sum(pull.seconds for pull in mine),
                    blocks_compared=41_472,
                )
            )
    return pairs, pulls


def _requests() -> list[RequestTiming]:
    rng = random.Random(5)
    return [
        RequestTiming(
            request=f"cmpl-{number:04x}",
            ttft=0.11 + rng.lognormvariate(-2.6, 0.55),
            tpot=rng.gauss(0.0262, 0.0021) if number % 16 else None,
        )
        for number in range(192)
    ]


def _kv_usage() -> list[KvUsage]:
    rng = random.Random(6)
    result = []
    for instance, peak in (("prefill-1", 0.31), ("decode-1", 0.64), ("decode-2", 0.58)):
        samples: list[tuple[float, float]] = []
        level = 0.0
        for second in range(0, 300, 2):
            busy = any(a <= second < b for a, b in ((20, 80), (110, 150), (180, 262)))
            goal = peak * rng.uniform(0.75, 1.0) if busy else 0.0
            level += (goal - level) * 0.35
            samples.append((T0 + 110 + second, 0.0 if level < 0.004 else round(level, 4)))
        result.append(KvUsage(instance=instance, samples=tuple(samples)))
    return result
