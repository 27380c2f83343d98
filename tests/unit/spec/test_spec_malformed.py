"""Malformed and contradictory cluster files, one fault each: refused in one line that says
where and what to write instead.

Each case changes one piece of a good file; `▶` stands where the message must point
(it is taken out before the file is read).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from pd_validate.errors import SpecError
from pd_validate.spec.load import load_cluster

GOOD = """\
model: {path: /model/Qwen3-30B-A3B}
name: three-servers
hardware: atlas-800t-a2
nic: eth0
ssh: {user: root, port: 22}
hosts:
  p1: {address: 192.0.0.1}
  d1: {address: 192.0.0.2}
  d2: {address: 192.0.0.3, devices: [4, 5, 6, 7]}
engine: {tensor_parallel: 2}
instances:
  prefill-1: {role: prefill, host: p1, devices: [0, 1]}
  decode-1: {role: decode, host: d1, devices: [6, 7]}
  decode-2: {role: decode, host: d2, devices: [6, 7]}
connector: {kind: ours}
proxy: {host: p1, port: 8080}
"""
MARK = "▶"


@dataclass(frozen=True)
class Case:
    name: str
    old: str
    new: str
    message: str  # a part of it


CASES = [
    # -- keys
    Case("unknown key", "nic: eth0", "▶nicc: eth0", "unknown key `nicc` here; did you mean `nic`?"),
    Case(
        "unknown key of an instance",
        "role: decode, host: d1,",
        "role: decode, ▶hst: d1, host: d1,",
        "unknown key `hst` in `instances.decode-1`; did you mean `host`?",
    ),
    Case(
        "unknown key unlike any",
        "{tensor_parallel: 2}",
        "{tensor_parallel: 2, ▶zebra: 1}",
        "unknown key `zebra` in `engine`; known are `additional_config`, `args`,",
    ),
    Case(
        "misspelt needed key is one mistake",
        "proxy: {host",
        "▶proxi: {host",
        "unknown key `proxi` here; did you mean `proxy`?",
    ),
    Case("missing key", "model: {path: /model/Qwen3-30B-A3B}\n", "▶", "`model:` is missing"),
    Case(
        "missing key inside",
        "  prefill-1: {role: prefill, host: p1, devices",
        "  ▶prefill-1: {host: p1, devices",
        "`instances.prefill-1` needs `role:`",
    ),
    Case("key twice", "nic: eth0", "nic: eth0\n▶nic: eth1", "`nic` stands twice, first in line 4"),
    Case(
        "instance twice",
        "connector:",
        "  ▶decode-1: {role: decode, host: d1, devices: [4, 5]}\nconnector:",
        "`decode-1` stands twice, first in line 13",
    ),
    Case(
        "name with a blank",
        "  decode-1:",
        "  ▶decode 1:",
        "`decode 1` is not a name: letters, digits",
    ),
    # -- types and values
    Case(
        "text for a number",
        "port: 8080",
        "port: ▶http",
        "`proxy.port` must be a whole number, not `http`",
    ),
    Case("quoted number", "port: 22", 'port: ▶"22"', "`ssh.port` must be a whole number, not `22`"),
    Case("true for a number", "port: 22", "port: ▶true", "must be a whole number, not `true`"),
    Case("port too large", "port: 8080", "port: ▶80800", "must be at most 65535, not `80800`"),
    Case(
        "number for text",
        "connector: {kind: ours}",
        "connector: {kind: ours, kv_port: ▶20001}",
        'must be text, not `20001`: quote it, "20001"',
    ),
    Case(
        "version as a number",
        "connector: {kind: ours}",
        "expect: {cann: ▶8.10}",
        '`expect.cann` must be text, not `8.10`: quote it, "8.10"',
    ),
    Case(
        "variable as a boolean",
        "connector: {kind: ours}",
        "env: {HCCL_DETERMINISTIC: ▶true}",
        'must be text, not `true`: quote it, "true"',
    ),
    Case(
        "scalar for a mapping",
        "proxy: {host: p1, port: 8080}",
        "proxy: ▶p1",
        "`proxy` must be a mapping (`key: value`), not `p1`",
    ),
    Case(
        "number for a list",
        "host: p1, devices: [0, 1]",
        "host: p1, devices: ▶0",
        "`instances.prefill-1.devices` must be a list (`[a, b]`), not `0`",
    ),
    Case(
        "nothing for a mapping",
        "model: {path: /model/Qwen3-30B-A3B}",
        "model:▶",
        "`model` must be a mapping (`key: value`), not nothing",
    ),
    Case(
        "wrong word",
        "role: prefill",
        "role: ▶prefil",
        "must be `prefill` or `decode`, not `prefil`; did you mean `prefill`?",
    ),
    Case(
        "unknown connector",
        "kind: ours",
        "kind: ▶mooncake",
        "must be `ours` or `vllm-ascend` or `module`, not `mooncake`",
    ),
    Case(
        "unknown runtime",
        "connector:",
        "runtime: {kind: ▶docker-exe, container: x}\nconnector:",
        "must be `host` or `docker-exec` or `docker-run`, not `docker-exe`; "
        "did you mean `docker-exec`?",
    ),
    Case(
        "misspelt key of a runtime",
        "connector:",
        "runtime: {kind: docker-exec, ▶contaner: x}\nconnector:",
        "unknown key `contaner` in `runtime`; did you mean `container`?",
    ),
    Case(
        "runtime without a kind",
        "connector:",
        "runtime: ▶{container: x}\nconnector:",
        "`runtime` needs `kind:`, which says what it is",
    ),
    Case(
        "module connector without its names",
        "connector: {kind: ours}",
        "connector: ▶{kind: module}",
        "`connector` of kind `module` needs `name` and `module`",
    ),
    Case(
        "existing rank table without its path",
        "connector:",
        "ranktable: ▶{generate: false}\nconnector:",
        "`ranktable` with `generate: false` needs `path`, the table to check",
    ),
    Case(
        "host name for an address",
        "address: 192.0.0.2",
        "address: ▶node-2.lab",
        "`hosts.d1.address` must be an IPv4 address",
    ),
    Case(
        "no devices",
        "host: p1, devices: [0, 1]",
        "host: p1, devices: ▶[]",
        "`instances.prefill-1.devices` must have at least 1 item, not an empty list",
    ),
    Case(
        "negative device",
        "host: p1, devices: [0, 1]",
        "host: p1, devices: [0, ▶-1]",
        "`instances.prefill-1.devices[1]` must be at least 0, not `-1`",
    ),
    Case(
        "jump host without a name",
        "ssh: {user: root,",
        "ssh: {jump: ▶ops@, user: root,",
        "`ssh.jump` must be [user@]host[:port], not `ops@`",
    ),
    # -- contradictions
    Case(
        "unknown hardware",
        "hardware: atlas-800t-a2",
        "hardware: ▶atlas-800-a2",
        "must be `atlas-800t-a2` or `atlas-800t-a3`, not `atlas-800-a2`; "
        "did you mean `atlas-800t-a2`?",
    ),
    Case(
        "instance on an unknown host",
        "role: decode, host: d2",
        "role: decode, host: ▶d3",
        "`decode-2` is on host `d3`, which is not under `hosts:`; did you mean",
    ),
    Case(
        "proxy on an unknown host",
        "proxy: {host: p1",
        "proxy: {host: ▶gateway",
        "the proxy is on host `gateway`, which is not under `hosts:`; hosts are p1, d1, d2",
    ),
    Case(
        "one address for two hosts",
        "address: 192.0.0.2",
        "address: ▶192.0.0.1",
        "`d1` has the same address as `p1`, 192.0.0.1",
    ),
    Case(
        "device of two instances",
        "role: decode, host: d2, devices: [6, 7]",
        "role: decode, host: d1, port: 13701, devices: [5, ▶6]",
        "device 6 of host `d1` is already `decode-1`'s; give `decode-2` another one",
    ),
    Case(
        "device twice in one instance",
        "host: p1, devices: [0, 1]",
        "host: p1, devices: [0, ▶0]",
        "device 0 stands twice in `prefill-1`",
    ),
    Case(
        "device the machine has not",
        "host: p1, devices: [0, 1]",
        "host: p1, devices: [0, ▶8]",
        "host `p1` has no device 8; it has 0, 1, 2, 3, 4, 5, 6, 7",
    ),
    Case(
        "device the host has not",
        "role: decode, host: d2, devices: [6, 7]",
        "role: decode, host: d2, devices: [▶3, 7]",
        "host `d2` has no device 3; it has 4, 5, 6, 7",
    ),
    Case(
        "host with more than the profile",
        "devices: [4, 5, 6, 7]",
        "devices: [4, 5, 6, 7, ▶8]",
        "`d2` cannot have device 8: atlas-800t-a2 has 0 to 7",
    ),
    Case(
        "devices do not fit TP",
        "host: p1, devices: [0, 1]",
        "host: p1, devices: ▶[0, 1, 2]",
        "`prefill-1` has 3 devices and needs 2: tensor_parallel 2 x data_parallel 1",
    ),
    Case(
        "devices do not fit TP x DP",
        "host: p1, devices: [0, 1]",
        "host: p1, engine: {data_parallel: 2}, devices: ▶[0, 1]",
        "has 2 devices and needs 4: tensor_parallel 2 x data_parallel 2",
    ),
    Case(
        "no prefiller",
        "instances:\n  prefill-1: {role: prefill",
        "▶instances:\n  prefill-1: {role: decode",
        "no instance has `role: prefill`; a topology needs at least one",
    ),
    Case(
        "two API ports on one host",
        "role: decode, host: d2, devices: [6, 7]",
        "role: decode, host: d1, devices: [4, 5], port: ▶13700",
        "decode-2's API (port 13700) and decode-1's API (port 13700) both want port 13700 "
        "of host `d1`",
    ),
    Case(
        "proxy on an instance's port",
        "port: 8080",
        "port: ▶13700",
        "proxy's API (port 13700) and prefill-1's API (port 13700) both want",
    ),
    Case(
        "loopback address among others",
        "d1: {address: 192.0.0.2}",
        "d1: {address: ▶127.0.0.1}",
        "`d1` has the loopback address 127.0.0.1, which the other hosts cannot reach",
    ),
    Case(
        "side channel on an API port",
        "host: p1, devices: [0, 1]",
        "host: p1, devices: [0, 1], port: ▶5560",
        "prefill-1's side channel (ports 5559-5560) and prefill-1's API (port 5560) both want",
    ),
    Case(
        "side channel beyond the last port",
        "role: prefill, host: p1,",
        "role: prefill, side_channel_port: ▶65533, host: p1,",
        "prefill-1's side channel (ports 65535-65536) goes beyond 65535",
    ),
    Case(
        "unknown placeholder in the proxy's command",
        "proxy: {host: p1, port: 8080}",
        'proxy: {host: p1, command: [router, --prefill, ▶"{prefill_urls}"]}',
        "unknown placeholder `{prefill_urls}`; did you mean `{prefiller_urls}`?",
    ),
    Case(
        "open brace in the proxy's command",
        "proxy: {host: p1, port: 8080}",
        """proxy: {host: p1, command: [router, ▶'{"a": 1']}""",
        "write {{ and }} for literal braces",
    ),
    Case(
        "instance called proxy",
        "  decode-2:",
        "  ▶proxy:",
        "`proxy` is the name of a process of our own; call the instance something else",
    ),
    # -- YAML
    Case("tab", "nic: eth0", "▶\tnic: eth0", "indent with spaces, not with tabs"),
    Case("unclosed bracket", "devices: [0, 1]}", "devices: [0, 1▶}", "not valid YAML: expected"),
    Case("a tag", "name: three-servers", "name: ▶!!python/name:os.system x", "YAML tags"),
    Case("unknown alias", "engine: {tensor", "engine: {<<: ▶*base, tensor", "undefined alias"),
    Case("merge of a scalar", "engine: {tensor", "engine: {<<: ▶3, tensor", "`<<` takes a mapping"),
    Case(
        "unset variable",
        "nic: eth0",
        "nic: ▶${PD_TEST_NIC}",
        "the environment variable PD_TEST_NIC is not set; export it, or give a default: "
        "${PD_TEST_NIC:-…}",
    ),
    Case("broken variable", "nic: eth0", 'nic: "eth▶${0}"', "`${0}` is not ${NAME} or"),
    Case("include of nothing", "nic: eth0", "include: ▶site.yaml", "site.yaml does not exist"),
    Case(
        "include of itself", "nic: eth0", "include: ▶cluster.yaml", "cluster.yaml includes itself"
    ),
]


def write(tmp_path: Path, case: Case) -> tuple[Path, int, int]:
    """The case's file, and the line and column its message must point at."""
    assert GOOD.count(case.old) == 1, "the case must change one place"
    text = GOOD.replace(case.old, case.new)
    before = text[: text.index(MARK)]
    path = tmp_path / "cluster.yaml"
    path.write_text(text.replace(MARK, ""))
    return path, before.count("\n") + 1, len(before) - before.rfind("\n")


def test_the_file_they_are_made_from_is_good(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(GOOD)
    assert list(load_cluster(path, environ={}).instances) == ["prefill-1", "decode-1", "decode-2"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refused_with_place_and_advice(case: Case, tmp_path: Path) -> None:
    path, line, column = write(tmp_path, case)

    with pytest.raises(SpecError) as caught:
        load_cluster(path, environ={})

    message = str(caught.value)
    assert case.message in message
    assert message.startswith(f"{path}:{line}:{column}: ")
    assert "\n" not in message, "one fault, one line"


def test_there_are_at_least_forty() -> None:
    assert len(CASES) >= 40
