"""Every finding id there is: its layer, what it means, how to fix it.

The ids are an interface (findings.json, scenarios, known-issue lists): add where
a fault has none, never rename one in use. docs/checks.md is generated from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Layer(IntEnum):
    """Where a fault sits, lowest first: a fault below explains symptoms above."""

    LINK = 1
    NPU_NETWORK = 2
    HOST = 3
    PLAN = 4
    ENGINE = 5
    KV_LINK = 6
    KV_DATA = 7
    PROXY = 8
    SERVICE = 9
    LEFTOVER = 10

    @property
    def label(self) -> str:
        return _LABELS[self]


_LABELS = {
    Layer.LINK: "physical link",
    Layer.NPU_NETWORK: "NPU network",
    Layer.HOST: "host network and software",
    Layer.PLAN: "ranktable and launch plan",
    Layer.ENGINE: "engine",
    Layer.KV_LINK: "KV link",
    Layer.KV_DATA: "KV data",
    Layer.PROXY: "proxy",
    Layer.SERVICE: "service",
    Layer.LEFTOVER: "leftovers",
}


@dataclass(frozen=True)
class Kind:
    """One kind of fault: `meaning` says what is so, `fix` what to do next."""

    id: str
    layer: Layer
    meaning: str
    fix: str


_KINDS = (
    Kind(
        "link.down",
        Layer.LINK,
        "The RoCE port of the NPU has no carrier.",
        "Check cable, optical module and switch port of this NPU.",
    ),
    Kind(
        "link.flapping",
        Layer.LINK,
        "The port went down and up within the last hour of device time.",
        "Reseat or replace the cable or optical module; check the switch port's error counters.",
    ),
    Kind(
        "link.no-neighbour",
        Layer.LINK,
        "No LLDP neighbour is seen on the port.",
        "Check the cabling and that LLDP is on at the switch.",
    ),
    Kind(
        "link.speed-mismatch",
        Layer.LINK,
        "Speed or duplex differ from the other NPUs.",
        "Set both ends of the link to the same speed and duplex.",
    ),
    Kind(
        "optics.absent",
        Layer.LINK,
        "No optical module is present.",
        "Insert the optical module, or use the copper cable the port expects.",
    ),
    Kind(
        "optics.los",
        Layer.LINK,
        "The optical module receives no light.",
        "Check the fibre, its polarity, and the peer's transmitter.",
    ),
    Kind(
        "address.missing",
        Layer.NPU_NETWORK,
        "The NPU has no IP address.",
        "Set one: hccn_tool -i <npu> -ip -s address <ip> netmask <mask>, and keep it in /etc/hccn.conf.",
    ),
    Kind(
        "address.duplicate",
        Layer.NPU_NETWORK,
        "Two NPUs have the same IP address.",
        "Give each NPU of the cluster its own address.",
    ),
    Kind(
        "address.conf-mismatch",
        Layer.NPU_NETWORK,
        "/etc/hccn.conf says another value than the device; the KV transport reads the file first.",
        "Make the address_<npu> line of /etc/hccn.conf equal to the device, on the host and in the container.",
    ),
    Kind(
        "address.conf-missing",
        Layer.NPU_NETWORK,
        "/etc/hccn.conf is missing, empty or lacks this NPU.",
        "Mount /etc/hccn.conf into the container, or write it (hccn_tool -i <npu> -ip -s writes it).",
    ),
    Kind(
        "address.subnet",
        Layer.NPU_NETWORK,
        "NPUs that must talk are in different subnets with no gateway between them.",
        "Put them in one subnet or give each a gateway.",
    ),
    Kind(
        "address.reserved",
        Layer.NPU_NETWORK,
        "The NPU's address is in a net that the driver uses itself.",
        "Choose an address outside the driver's internal nets.",
    ),
    Kind(
        "gateway.missing",
        Layer.NPU_NETWORK,
        "No gateway is set though peers are in another subnet.",
        "Set one: hccn_tool -i <npu> -gateway -s gateway <ip>.",
    ),
    Kind(
        "gateway.outside-subnet",
        Layer.NPU_NETWORK,
        "The gateway is not inside the NPU's own subnet.",
        "Correct gateway or netmask.",
    ),
    Kind(
        "netdetect.unset",
        Layer.NPU_NETWORK,
        "No detection address is configured; net_health proves nothing.",
        "Set one: hccn_tool -i <npu> -netdetect -s address <gateway ip>.",
    ),
    Kind(
        "health.unreachable",
        Layer.NPU_NETWORK,
        "The detection address does not answer.",
        "Check link, VLAN and gateway of this NPU.",
    ),
    Kind(
        "health.fault",
        Layer.NPU_NETWORK,
        "The device could not run its network detection.",
        "Look into the driver's device log; reset the NPU if it stays.",
    ),
    Kind(
        "health.not-started",
        Layer.NPU_NETWORK,
        "Network detection is configured and never starts.",
        "Wait a minute and repeat; then look into the driver's device log.",
    ),
    Kind(
        "mtu.mismatch",
        Layer.NPU_NETWORK,
        "MTU differs between NPUs.",
        "Set the same MTU on all NPUs and on the switch.",
    ),
    Kind(
        "tls.mismatch",
        Layer.NPU_NETWORK,
        "The TLS switch differs between NPUs; their sockets will time out.",
        "Set all to 0: hccn_tool -i <npu> -tls -s enable 0.",
    ),
    Kind(
        "tls.expired",
        Layer.NPU_NETWORK,
        "A TLS certificate in use has expired.",
        "Renew the certificates, or switch TLS off on all NPUs.",
    ),
    Kind(
        "vnic.down",
        Layer.NPU_NETWORK,
        "The virtual NIC of the NPU is down or unreadable.",
        "Check the super pod's fabric manager and the driver.",
    ),
    Kind(
        "vnic.outside-superpod",
        Layer.NPU_NETWORK,
        "The NPU is not part of a super pod.",
        "Check the super pod's configuration of this host.",
    ),
    Kind(
        "sdid.duplicate",
        Layer.NPU_NETWORK,
        "Two NPUs report the same super pod device id.",
        "Check the server index of both hosts in the super pod's configuration.",
    ),
    Kind(
        "sdid.mismatch",
        Layer.NPU_NETWORK,
        "The super pod device id does not fit host, card and die.",
        "Check the super pod's configuration of this host.",
    ),
    Kind(
        "ping.unreachable",
        Layer.NPU_NETWORK,
        "No packet of the ping came back.",
        "Check address, VLAN and switch between both NPUs.",
    ),
    Kind(
        "ping.loss",
        Layer.NPU_NETWORK,
        "Some packets of the ping were lost.",
        "Look for errors on both ports and the switches between them.",
    ),
    Kind(
        "ping.slow",
        Layer.NPU_NETWORK,
        "The ping is slow against the other pairs of this cluster.",
        "Look for congestion or a longer path between both NPUs.",
    ),
    Kind(
        "ping.size",
        Layer.NPU_NETWORK,
        "Small packets pass and large ones do not.",
        "Compare the MTU of both NPUs and of the switch.",
    ),
    Kind(
        "host.unreachable",
        Layer.HOST,
        "No SSH session to the host.",
        "Check power, address, port and firewall; try ssh by hand.",
    ),
    Kind(
        "host.auth",
        Layer.HOST,
        "The host refused our user or key.",
        "Check ssh.user and ssh.key in the cluster file, and authorized_keys on the host.",
    ),
    Kind(
        "host.key-changed",
        Layer.HOST,
        "The host shows another key than known_hosts has.",
        "If the host was reinstalled, remove its old line from known_hosts; else find out who answers.",
    ),
    Kind(
        "host.hang",
        Layer.HOST,
        "The host or a command on it did not answer in time.",
        "Look at the host's load and its driver; try the command by hand.",
    ),
    Kind(
        "host.unusable",
        Layer.HOST,
        "The host answers, and our reader script does not run there.",
        "Install Python 3.8 or later, and make sure that login scripts end without an error.",
    ),
    Kind(
        "host.clock-skew",
        Layer.HOST,
        "The host's clock differs from the controller's.",
        "Set up time synchronisation (chrony, NTP).",
    ),
    Kind(
        "host.nic-missing",
        Layer.HOST,
        "The network card named in the cluster file does not exist.",
        "Correct `nic`, or the host's network configuration.",
    ),
    Kind(
        "host.nic-down",
        Layer.HOST,
        "The network card named in the cluster file is down.",
        "Bring it up, or name another.",
    ),
    Kind(
        "host.address-mismatch",
        Layer.HOST,
        "The host's address is not on the named card, or vLLM would choose another one.",
        "Correct `nic` and `address`, or set VLLM_HOST_IP.",
    ),
    Kind(
        "host.proxy-env",
        Layer.HOST,
        "http_proxy or https_proxy is set; requests between servers would go there.",
        "Unset it, or add the hosts to no_proxy.",
    ),
    Kind(
        "host.port-taken",
        Layer.HOST,
        "A port that we need is in use by somebody else.",
        "Stop that process or choose another port.",
    ),
    Kind(
        "tool.missing",
        Layer.HOST,
        "A needed tool is not there.",
        "Install the driver, or mount the tool into the container.",
    ),
    Kind(
        "tool.busy",
        Layer.HOST,
        "The device stayed busy; nothing could be measured.",
        "See who else queries the device (npu-exporter, device plugin), then repeat.",
    ),
    Kind(
        "tool.permission",
        Layer.HOST,
        "The tool refused: not permitted.",
        "Use root, or a user in the group HwHiAiUser.",
    ),
    Kind(
        "tool.failed",
        Layer.HOST,
        "The tool gave no usable answer and no reason; nothing could be measured.",
        "Run the command by hand, and look into the driver's log (/var/log/hccn_tool, dmesg).",
    ),
    Kind(
        "device.missing",
        Layer.HOST,
        "The NPU does not exist on the host.",
        "Correct `devices`, or look for a card that fell off the bus (lspci, dmesg).",
    ),
    Kind(
        "device.not-ready",
        Layer.HOST,
        "The NPU's own system is not up.",
        "Wait, or reset the card: npu-smi set -t reset.",
    ),
    Kind(
        "device.unhealthy",
        Layer.HOST,
        "The NPU reports a fault, or its health cannot be read.",
        "Look the error code up in the vendor's list; npu-smi info -t health -i <card>.",
    ),
    Kind(
        "device.in-use",
        Layer.HOST,
        "Somebody's process runs on the NPU or holds its memory.",
        "End that process or choose other devices.",
    ),
    Kind(
        "device.held",
        Layer.HOST,
        "Another container holds the NPU.",
        "Stop that container.",
    ),
    Kind(
        "driver.broken",
        Layer.HOST,
        "The driver does not answer.",
        "Reload or reinstall the driver; look at dmesg.",
    ),
    Kind(
        "software.missing",
        Layer.HOST,
        "A needed package or file is not there.",
        "Install it, or use the right image.",
    ),
    Kind(
        "software.mismatch",
        Layer.HOST,
        "Hosts have different versions or files.",
        "Use one image on all hosts.",
    ),
    Kind(
        "software.unexpected",
        Layer.HOST,
        "The version is not the one that the cluster file expects.",
        "Install the expected version, or correct `expect`.",
    ),
    Kind(
        "model.mismatch",
        Layer.HOST,
        "The model's files differ between hosts, or are not there.",
        "Copy the model again and compare digests.",
    ),
    Kind(
        "env.mismatch",
        Layer.HOST,
        "Variables that must agree do not.",
        "Make them agree; the plan shows what each instance gets.",
    ),
    Kind(
        "env.renamed",
        Layer.HOST,
        "A variable of an old name is set and has no effect.",
        "Use the new name.",
    ),
    Kind(
        "env.range",
        Layer.HOST,
        "A variable's value is outside what works.",
        "Correct the value.",
    ),
    Kind(
        "ranktable.missing",
        Layer.PLAN,
        "The rank table is not where the instances will look.",
        "Generate it, or correct its path.",
    ),
    Kind(
        "ranktable.schema",
        Layer.PLAN,
        "The rank table has not the form the connector reads.",
        "Generate it again.",
    ),
    Kind(
        "ranktable.stale",
        Layer.PLAN,
        "The rank table differs from what the devices say now.",
        "Generate it again; an existing file is never refreshed by gen_ranktable.sh.",
    ),
    Kind(
        "ranktable.duplicate",
        Layer.PLAN,
        "An id or address appears twice in the rank table.",
        "Generate it again.",
    ),
    Kind(
        "ranktable.overlap",
        Layer.PLAN,
        "A device is listed for prefill and for decode.",
        "Give each device one role.",
    ),
    Kind(
        "ranktable.order",
        Layer.PLAN,
        "The table's order is not the ranks' order.",
        "Generate it again; order in the table is TP order.",
    ),
    Kind(
        "ranktable.server-id",
        Layer.PLAN,
        "No entry has the address that vLLM reports on this host.",
        "server_id must be what vLLM's get_ip() answers; set VLLM_HOST_IP.",
    ),
    Kind(
        "ranktable.device",
        Layer.PLAN,
        "A rank's device is not in its role's list, so the connector finds none for it.",
        "Generate it again for the devices that the instance uses.",
    ),
    Kind(
        "ranktable.loopback",
        Layer.PLAN,
        "A real cluster's rank table has a loopback address.",
        "Use the address of the network card.",
    ),
    Kind(
        "ranktable.differs",
        Layer.PLAN,
        "Hosts have different rank tables.",
        "Place the same file on all hosts.",
    ),
    Kind(
        "plan.port-clash",
        Layer.PLAN,
        "Two parts of the plan want the same port on one host.",
        "Give each instance its own ports.",
    ),
    Kind(
        "plan.port-range",
        Layer.PLAN,
        "A port is outside 1..65535 or in a range that something else uses.",
        "Choose another port.",
    ),
    Kind(
        "plan.role",
        Layer.PLAN,
        "An instance's role and its arguments contradict each other.",
        "Make role and kv_role agree.",
    ),
    Kind(
        "plan.tp",
        Layer.PLAN,
        "Tensor parallel size does not fit.",
        "Give as many devices as TP x DP, and TP sizes the connector can serve.",
    ),
    Kind(
        "plan.pd-mismatch",
        Layer.PLAN,
        "Prefill and decode instances differ where they must agree.",
        "Use the same value on both.",
    ),
    Kind(
        "plan.engine-id",
        Layer.PLAN,
        "Two instances have the same engine_id.",
        "Give each its own.",
    ),
    Kind(
        "plan.device-overlap",
        Layer.PLAN,
        "Two instances want the same device.",
        "Give each device to one instance.",
    ),
    Kind(
        "plan.scheduler",
        Layer.PLAN,
        "The scheduler's limits contradict each other.",
        "Without chunked prefill, max_num_batched_tokens must be at least max_model_len.",
    ),
    Kind(
        "engine.exited",
        Layer.ENGINE,
        "The engine's process ended by itself.",
        "Read its last log lines below.",
    ),
    Kind(
        "engine.timeout",
        Layer.ENGINE,
        "The engine was not ready in time.",
        "Read its last log lines below.",
    ),
    Kind(
        "engine.hung",
        Layer.ENGINE,
        "The engine lives and does no work.",
        "Look for a dead or stopped worker; read its log.",
    ),
    Kind(
        "kvlink.failed",
        Layer.KV_LINK,
        "The KV link between two ranks could not be made.",
        "Check both devices' link, address, hccn.conf and TLS switch.",
    ),
    Kind(
        "kvlink.timeout",
        Layer.KV_LINK,
        "The KV link was not made in time.",
        "Check both devices' link, address and TLS switch.",
    ),
    Kind(
        "kv.corrupt",
        Layer.KV_DATA,
        "KV that arrived is not the KV that was produced.",
        "Take this pair out of service; check connector version and fabric counters.",
    ),
    Kind(
        "kv.swapped",
        Layer.KV_DATA,
        "KV arrived at the wrong place: blocks, heads, layers or ranks are exchanged.",
        "Check TP sizes, block order and the rank table's order.",
    ),
    Kind(
        "kv.missing",
        Layer.KV_DATA,
        "KV that was produced never arrived.",
        "Read both instances' logs for this request.",
    ),
    Kind(
        "kv.stale",
        Layer.KV_DATA,
        "KV that arrived is that of another request.",
        "The producer freed its blocks too early; check its release timeout.",
    ),
    Kind(
        "kv.recomputed",
        Layer.KV_DATA,
        "The decoder computed the prompt itself.",
        "Read the decoder's log for a failed pull; check the proxy passes kv_transfer_params.",
    ),
    Kind(
        "kv.slow",
        Layer.KV_DATA,
        "A pull is slow against the other pairs.",
        "Look at this pair's link, path and hccn.conf.",
    ),
    Kind(
        "drain.leak",
        Layer.KV_DATA,
        "KV blocks stay held after all requests ended.",
        "The release message was lost; see the request ids.",
    ),
    Kind(
        "drain.stuck",
        Layer.KV_DATA,
        "Requests stay running or waiting after all clients are gone.",
        "Read the instance's log for these request ids.",
    ),
    Kind(
        "proxy.wrong-status",
        Layer.PROXY,
        "The proxy answers another status than the engine.",
        "Use a proxy that passes the engine's answer on.",
    ),
    Kind(
        "proxy.empty",
        Layer.PROXY,
        "The proxy answered 200 with nothing.",
        "Look at the decoder behind it; use a proxy that reports its failure.",
    ),
    Kind(
        "proxy.duplicate",
        Layer.PROXY,
        "Text came twice.",
        "Use a proxy that never sends a request again after the first byte.",
    ),
    Kind(
        "proxy.cut",
        Layer.PROXY,
        "A cut answer ended as if it were complete.",
        "Look at the decoder behind it; use a proxy that reports its failure.",
    ),
    Kind(
        "proxy.stuck",
        Layer.PROXY,
        "The proxy keeps load or requests that ended.",
        "Restart it; use a proxy that releases on cancellation.",
    ),
    Kind(
        "parity.diverged",
        Layer.SERVICE,
        "The answer through PD is not that of one engine alone.",
        "Look for a KV finding of the same request; see the first diverging token.",
    ),
    Kind(
        "determinism.diverged",
        Layer.SERVICE,
        "The same request gives different answers.",
        "Set HCCL_DETERMINISTIC=true, LCCL_DETERMINISTIC=1, CLOSE_MATMUL_K_SHIFT=1; compare decoders.",
    ),
    Kind(
        "golden.diverged",
        Layer.SERVICE,
        "The answer is not the recorded one.",
        "Model, version or settings changed, or the answer is wrong; see both texts.",
    ),
    Kind(
        "service.error",
        Layer.SERVICE,
        "A request failed.",
        "Read the proxy's and the instances' logs.",
    ),
    Kind(
        "service.timeout",
        Layer.SERVICE,
        "A request did not end in time.",
        "Read the proxy's and the instances' logs.",
    ),
    Kind(
        "leftover.process",
        Layer.LEFTOVER,
        "A process of ours is still there.",
        "pd-validate down, or end it by its process group.",
    ),
    Kind(
        "leftover.port",
        Layer.LEFTOVER,
        "A port of ours is still in use.",
        "See which process holds it.",
    ),
    Kind(
        "leftover.file",
        Layer.LEFTOVER,
        "A file of ours is still there.",
        "Remove it, or pd-validate down.",
    ),
    Kind(
        "leftover.lock",
        Layer.LEFTOVER,
        "A lock of a dead run is still there.",
        "pd-validate down removes locks of dead runs.",
    ),
)

CATALOGUE: dict[str, Kind] = {kind.id: kind for kind in _KINDS}
