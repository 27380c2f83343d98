"""What is wrong with a rank table: pure checks of it against the plan and the devices.

The rules are those of vllm-ascend v0.10.1rc1's connector (what it reads, what each rank
picks) and of the hosts' own answers (what is true now). A table that differs from the
generator's only in what nobody reads is not a fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from itertools import groupby
from typing import Any

from pd_validate.findings import Finding, Severity, Where
from pd_validate.ranktable import (
    A3_FIELDS,
    FIELDS,
    LIST_OF,
    DeviceAddress,
    Pick,
    Seat,
    parse,
    picks,
    seats,
)
from pd_validate.spec.models import Cluster, Role
from pd_validate.spec.plan import VISIBLE_DEVICES, LaunchPlan
from pd_validate.spec.profiles import profile_of

HOST_IP = "VLLM_HOST_IP"
Table = Mapping[str, Any]


def check_rank_tables(
    cluster: Cluster,
    plan: LaunchPlan,
    files: Mapping[str, bytes | None],
    addresses: Iterable[DeviceAddress],
) -> list[Finding]:
    """All findings about the rank tables as they lie on the hosts.

    `files`: the file's content by host, None where there is none. `addresses`: what the
    devices answer now; a device that could not be asked is simply not among them.

    Hosts with different tables: the one that agrees best with the devices is judged in
    full, the others are said to differ from it.
    """
    live = {(address.host, address.device_id): address for address in addresses}
    findings: list[Finding] = []
    readable: dict[str, Table] = {}
    for host, data in files.items():
        path = _path_on(plan, host)
        if data is None:
            findings.append(_missing(host, path))
            continue
        table, faults = read_table(data, host=host, path=path, cluster=cluster)
        findings += faults
        if table is not None:
            readable[host] = table
    if not readable:
        return findings
    reference = _reference(cluster, readable, live)
    findings += check_same(readable, reference)
    table = readable[reference]
    for host in readable:
        if readable[host] == table:
            findings += _header(table, host, _path_on(plan, host))
    stale = check_live(cluster, table, live.values())
    findings += _explained(cluster, check_table(cluster, plan, table), stale)
    return findings + stale


def _explained(cluster: Cluster, findings: list[Finding], stale: list[Finding]) -> list[Finding]:
    """A duplicate of which one side is an outdated entry is that entry's fault.

    So is the order of ids that are all outdated: they were exchanged, not put into another order.
    """
    outdated = {
        (f.where.host, f.where.device): f.as_cause() for f in stale if f.severity is Severity.FAIL
    }

    def explained(finding: Finding) -> Finding:
        where = finding.where
        ends = ((where.host, where.device), (where.peer_host, where.peer_device))
        if finding.id == "ranktable.order":
            devices = cluster.instances[where.instance].devices if where.instance else ()
            causes = tuple(outdated[e] for n in devices if (e := (where.host, n)) in outdated)
            if len(causes) < len(devices):
                return finding
        elif finding.id == "ranktable.duplicate":
            causes = tuple(outdated[end] for end in ends if end in outdated)
        else:
            return finding
        return finding.model_copy(update={"because": (*finding.because, *causes)})

    return [explained(finding) for finding in findings]


def _path_on(plan: LaunchPlan, host: str) -> str | None:
    for launch in plan.instances.values():
        if launch.host == host:
            return launch.ranktable_path
    return None


def _missing(host: str, path: str | None) -> Finding:
    return Finding(
        id="ranktable.missing",
        where=Where(host=host, file=path),
        expected="a rank table, which the instances of this host read at start",
        got="no file",
    )


def read_table(
    data: bytes, *, host: str, path: str | None, cluster: Cluster
) -> tuple[Table | None, list[Finding]]:
    """The table in a file, None if the connector could not use it; and ranktable.schema."""
    try:
        table = parse(data)
    except ValueError as error:
        return None, [
            Finding(
                id="ranktable.schema",
                where=Where(host=host, file=path),
                expected="a JSON object",
                got=str(error),
            )
        ]
    faults = [
        Finding(
            id="ranktable.schema",
            where=Where(host=host, file=path),
            expected=fault.expected,
            got=f"{fault.at}: {fault.got}",
        )
        for fault in _schema_faults(table, super_pod=profile_of(cluster).super_pod)
    ]
    return (None if faults else table), faults


_HEADER = {"version": "1.2", "status": "completed"}


def _header(table: Table, host: str, path: str | None) -> Iterator[Finding]:
    """The connector reads neither, so only a warning: of another kind, or not yet complete."""
    for key, usual in _HEADER.items():
        if table.get(key, usual) != usual:
            yield Finding(
                id="ranktable.schema",
                severity=Severity.WARN,
                where=Where(host=host, file=path),
                expected=f'{key} "{usual}"',
                got=f"{key} {_short(table[key])}; the connector does not read it, but the "
                "generator writes no other",
            )


@dataclass(frozen=True)
class _SchemaFault:
    at: str
    expected: str
    got: str


def _schema_faults(table: Table, *, super_pod: bool) -> Iterator[_SchemaFault]:
    fields = (*FIELDS, *A3_FIELDS) if super_pod else FIELDS
    for key in LIST_OF.values():
        devices = table.get(key)
        if not isinstance(devices, list) or not devices:
            got = "missing" if key not in table else _short(devices)
            yield _SchemaFault(key, "a list with at least one device", got)
            continue
        for index, entry in enumerate(devices):
            at = f"{key}[{index}]"
            if not isinstance(entry, dict):
                yield _SchemaFault(at, "an object", _short(entry))
                continue
            for field in fields:
                fault = _field_fault(entry, field)
                if fault is not None:
                    expected, got = fault
                    yield _SchemaFault(f"{at}.{field}", expected, got)


def _field_fault(entry: Mapping[str, Any], field: str) -> tuple[str, str] | None:
    """(expected, got) if a field of an entry is not what the connector can use."""
    value = entry.get(field)
    if value is None:
        return "text", "missing"
    if not isinstance(value, str):
        # The connector compares as text: the number 0 is not in "0,1".
        return "text", f"{_short(value)}, not quoted"
    if field in ("device_id", "cluster_id") and not value.isdecimal():
        return "a whole number as text", f'"{value}"'
    if field == "device_ip" and not _is_ipv4(value):
        return "an IPv4 address", f'"{value}"'
    return None


def _reference(
    cluster: Cluster,
    tables: Mapping[str, Table],
    live: Mapping[tuple[str, int], DeviceAddress],
) -> str:
    """The host whose table is taken for the right one: fewest lies, then most hosts."""

    def rank(host: str) -> tuple[int, int]:
        lies = sum(
            finding.severity is Severity.FAIL
            for finding in check_live(cluster, tables[host], live.values())
        )
        return lies, -sum(table == tables[host] for table in tables.values())

    return min(tables, key=rank)


def check_same(tables: Mapping[str, Table], reference: str) -> list[Finding]:
    """ranktable.differs for each host whose table says other things than the reference's."""
    right = tables[reference]
    return [
        Finding(
            id="ranktable.differs",
            where=Where(host=host, peer_host=reference),
            expected=f"the same table as on {reference}",
            got=_first_difference(right, table),
        )
        for host, table in tables.items()
        if table != right
    ]


def _first_difference(right: Table, other: Table) -> str:
    for key in LIST_OF.values():
        ours, theirs = right[key], other[key]
        if len(ours) != len(theirs):
            return f"{key} has {len(theirs)} devices, not {len(ours)}"
        for index, (expected, got) in enumerate(zip(ours, theirs, strict=True)):
            for field in {**expected, **got}:
                if expected.get(field) != got.get(field):
                    return (
                        f"{key}[{index}].{field} is {_short(got.get(field))}, "
                        f"not {_short(expected.get(field))}"
                    )
    key = next(key for key in {**right, **other} if right.get(key) != other.get(key))
    return f"{key} is {_short(other.get(key))}, not {_short(right.get(key))}"


def check_table(cluster: Cluster, plan: LaunchPlan, table: Table) -> list[Finding]:
    """Faults of a readable table, by itself and against the plan; one finding per fault."""
    inside = [
        *_loopback(cluster, table),
        *_overlaps(cluster, table),
        *_duplicates(cluster, table),
    ]
    return [*inside, *_picks(cluster, plan, table, inside)]


def _entries(table: Table) -> Iterator[tuple[Role, Mapping[str, str]]]:
    for role, key in LIST_OF.items():
        for entry in table[key]:
            yield role, entry


def _place(cluster: Cluster, entry: Mapping[str, str]) -> Where:
    return Where(host=_host_of(cluster, entry["server_id"]), device=int(entry["device_id"]))


def _host_of(cluster: Cluster, server_id: str) -> str | None:
    for name, host in cluster.hosts.items():
        if host.address == server_id:
            return name
    return None


def _loopback(cluster: Cluster, table: Table) -> Iterator[Finding]:
    """Loopback addresses that the cluster file does not state itself.

    gen_ranktable.sh falls back to 127.0.0.1 when none of --ips is an address of the host.
    """
    seen: set[str] = set()
    for _, entry in _entries(table):
        server_id, device_ip = entry["server_id"], entry["device_ip"]
        foreign = _is_loopback(server_id) and _host_of(cluster, server_id) is None
        if foreign and server_id not in seen:
            seen.add(server_id)
            yield Finding(
                id="ranktable.loopback",
                where=Where(device=int(entry["device_id"])),
                expected="the address of the host's network card as server_id",
                got=f"{server_id} for device {entry['device_id']}, {device_ip}",
                hint="gen_ranktable.sh found none of --ips on that host: correct --ips, "
                "and generate the table again.",
            )
        if _is_loopback(device_ip):
            yield Finding(
                id="ranktable.loopback",
                where=_place(cluster, entry),
                expected="the NPU's own address as device_ip",
                got=device_ip,
            )


def _overlaps(cluster: Cluster, table: Table) -> Iterator[Finding]:
    prefill = {_device_of(entry) for role, entry in _entries(table) if role is Role.PREFILL}
    for role, entry in _entries(table):
        if role is Role.DECODE and _device_of(entry) in prefill:
            yield Finding(
                id="ranktable.overlap",
                where=_place(cluster, entry),
                expected="one role for each device",
                got=f"device {entry['device_id']} of {entry['server_id']} in both lists",
            )


def _device_of(entry: Mapping[str, str]) -> tuple[str, str]:
    return entry["server_id"], entry["device_id"]


def _duplicates(cluster: Cluster, table: Table) -> Iterator[Finding]:
    """What stands twice. A device in both lists is an overlap and not said again here."""
    keys: dict[str, Callable[[Mapping[str, str]], object]] = {
        "device": _device_of,
        "device_ip": lambda entry: entry["device_ip"],
        "cluster_id": lambda entry: int(entry["cluster_id"]),
    }
    first: dict[tuple[str, object], tuple[Role, Mapping[str, str]]] = {}
    for role, entry in _entries(table):
        for what, key in keys.items():
            earlier_role, earlier = first.setdefault((what, key(entry)), (role, entry))
            if earlier is entry:
                continue
            same_device = _device_of(earlier) == _device_of(entry)
            if same_device and earlier_role is not role:
                break
            peer = _place(cluster, earlier)
            yield Finding(
                id="ranktable.duplicate",
                where=_place(cluster, entry).model_copy(
                    update={"peer_host": peer.host, "peer_device": peer.device}
                ),
                expected=f"each {what} once",
                got=f"{what} {_named(what, entry)} also for device "
                f"{earlier['device_id']} of {earlier['server_id']}",
            )
            if same_device:
                break  # its address and cluster id are the same device's


def _named(what: str, entry: Mapping[str, str]) -> str:
    if what == "device":
        return f"{entry['device_id']} of {entry['server_id']}"
    return entry[what]


def _picks(
    cluster: Cluster, plan: LaunchPlan, table: Table, inside: list[Finding]
) -> Iterator[Finding]:
    """What the ranks of each instance would pick, against the devices they run on.

    `inside`: faults of the table itself; they explain wrong picks on the same host.
    """
    for name, ranks in groupby(seats(cluster), key=lambda seat: seat.instance):
        finding = _instance_picks(plan, table, list(ranks))
        if finding is not None:
            host = plan.instances[name].host
            because = tuple(f.as_cause() for f in inside if f.where.host in (None, host))
            yield finding.model_copy(update={"because": because})


def _instance_picks(plan: LaunchPlan, table: Table, ranks: list[Seat]) -> Finding | None:
    first = ranks[0]
    server_id = plan.instances[first.instance].env.get(HOST_IP, first.server_id)
    key = LIST_OF[first.role]
    listed = [entry["device_id"] for entry in table[key] if entry["server_id"] == server_id]
    if not listed:
        return _no_server_id(table, first, server_id)
    absent = [seat for seat in ranks if str(seat.device) not in listed]
    if absent:
        missing = ", ".join(f"{seat.device} (rank {seat.rank})" for seat in absent)
        return Finding(
            id="ranktable.device",
            where=_where(absent[0]),
            expected=f"{_plural('device', absent)} {missing} of {server_id} in {key}",
            got=f"only {', '.join(listed)}",
        )
    wrong: list[tuple[Seat, Pick | None]] = []
    for seat in ranks:
        pick = picks(
            table,
            seat.role,
            server_id=server_id,
            visible_devices=_visible(plan, seat),
            tp_rank=seat.tp_rank,
        )
        if pick is None or pick.device_id != str(seat.device):
            wrong.append((seat, pick))
    return _wrong_picks(wrong, listed, _visible(plan, wrong[0][0])) if wrong else None


def _visible(plan: LaunchPlan, seat: Seat) -> str | None:
    """ASCEND_RT_VISIBLE_DEVICES as the rank's engine sees it."""
    text = plan.instances[seat.instance].env.get(VISIBLE_DEVICES)
    width = len(seat.visible)
    if not text or len(plan.instances[seat.instance].devices) == width:
        return text
    first = seat.rank - seat.tp_rank  # vLLM gives each data-parallel engine its share
    return ",".join(text.split(",")[first : first + width])


def _no_server_id(table: Table, seat: Seat, server_id: str) -> Finding:
    key = LIST_OF[seat.role]
    got = f"{key} has {', '.join(sorted({entry['server_id'] for entry in table[key]}))}"
    hint = ""
    if any(e["server_id"] == server_id for role, e in _entries(table) if role is not seat.role):
        got += f"; {server_id} is only in the other list"
        hint = "Generate it again with the prefillers' addresses first."
    return Finding(
        id="ranktable.server-id",
        where=Where(host=seat.host, instance=seat.instance),
        expected=f"server_id {server_id} in {key}",
        got=got,
        hint=hint,
    )


def _wrong_picks(
    wrong: list[tuple[Seat, Pick | None]], listed: list[str], visible: str | None
) -> Finding:
    seat, pick = wrong[0]
    order = ", ".join(listed)
    sees = f"{VISIBLE_DEVICES} is {visible!r}" if visible else f"{VISIBLE_DEVICES} is not set"
    if pick is None:
        return Finding(
            id="ranktable.device",
            where=_where(seat),
            expected=f"rank {seat.rank} picks device {seat.device}",
            got=f"it finds none among {order}: {sees}",
            hint=f"Write {VISIBLE_DEVICES} without blanks, with the instance's devices.",
        )
    expected = ", ".join(f"rank {s.rank} picks device {s.device}" for s, _ in wrong)
    got = ", ".join(f"rank {s.rank} {_picked(p)}" for s, p in wrong)
    return Finding(
        id="ranktable.order",
        where=_where(seat),
        expected=expected,
        got=f"{got}; the table's order is {order}, {sees}",
    )


def _picked(pick: Pick | None) -> str:
    return "finds none" if pick is None else f"picks device {pick.device_id}"


def _where(seat: Seat) -> Where:
    return Where(host=seat.host, device=seat.device, instance=seat.instance, rank=seat.rank)


def _plural(noun: str, things: list[Seat]) -> str:
    return noun if len(things) == 1 else f"{noun}s"


def check_live(cluster: Cluster, table: Table, addresses: Iterable[DeviceAddress]) -> list[Finding]:
    """ranktable.stale: entries that are not what the devices say now.

    A device that could not be asked gives `unknown`. Entries of servers that are not in
    the cluster are not looked at: nobody can say whether they are true.
    """
    live = {(address.host, address.device_id): address for address in addresses}
    findings = []
    for _, entry in _entries(table):
        where = _place(cluster, entry)
        if where.host is None or where.device is None:
            continue
        if where.device >= profile_of(cluster).devices:
            findings.append(
                Finding(
                    id="ranktable.stale",
                    where=where,
                    expected=f"a device of {cluster.hardware}",
                    got=f"device_id {where.device}",
                )
            )
            continue
        findings += _stale(entry, live.get((where.host, where.device)), where)
    return findings


def _stale(entry: Mapping[str, str], live: DeviceAddress | None, where: Where) -> list[Finding]:
    if live is None or not live.device_ip:
        return [
            Finding(
                id="ranktable.stale",
                severity=Severity.UNKNOWN,
                where=where,
                expected=f"device_ip {entry['device_ip']}, as in the rank table",
                got="no answer from the device",
                hint="Repeat when the device's address can be read.",
            )
        ]
    now = live.entry(cluster_id=int(entry["cluster_id"]))
    wrong = [
        field
        for field in ("device_ip", *A3_FIELDS)
        if field in now and entry.get(field) != now[field]
    ]
    if not wrong:
        return []
    return [
        Finding(
            id="ranktable.stale",
            where=where,
            expected=", ".join(f"{field} {now[field]}" for field in wrong) + " (the device's)",
            got=", ".join(f"{field} {entry.get(field)}" for field in wrong) + " in the table",
        )
    ]


def _is_ipv4(text: str) -> bool:
    try:
        IPv4Address(text)
    except AddressValueError:
        return False
    return True


def _is_loopback(text: str) -> bool:
    return _is_ipv4(text) and IPv4Address(text).is_loopback


def _short(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
