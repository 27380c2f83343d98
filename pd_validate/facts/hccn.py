"""Parsers of `hccn_tool -i N … -g` on A2 and A3: output of one command -> typed reading.

Texts and spellings: the published source of hccn_tool (hicann/driver@ef377e95, the
910B and 910_93 build) and captures of driver 23.0 to 25.5. Exit codes are ambiguous
(the shell sees the low byte of a 16-bit code) and are not used, with one exception:
an answer without any text is an answer only if the exit code is 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from typing import Any, TypeVar

from pd_validate.facts.reading import Output, Reading, Reason, failed, first_line, measured, refusal

T = TypeVar("T")

# The device serves somebody else: asking again is the answer. The collector retries on these.
BUSY_TEXTS = (
    "hccn_tool is busy",
    "I2c is busy",
    "The device is occupied",
    "Get lock failed",
    "optical module initializing",
)
# -net_health, -vnic, the address part of -ip and -gateway -inet6 say only this when the device
# is busy, so for them it is worth asking again, too.
FAILED_TEXTS = ("Command execute failed!", "Cmd execute failed!")
PERMISSION_TEXT = "permission denied: pls check"

_REFUSALS: tuple[tuple[str, Reason], ...] = (
    *((text, Reason.BUSY) for text in BUSY_TEXTS),
    (PERMISSION_TEXT, Reason.PERMISSION),
    ("The hccn.conf can't access", Reason.PERMISSION),
    ("Get invalid device id.", Reason.NO_DEVICE),
    ("The device is not exist!", Reason.NO_DEVICE),
    ("Get device health status failed!", Reason.NOT_READY),
    ("The cmd line execute timeout!", Reason.TIMEOUT),
    ("The command is not supported on this product.", Reason.UNSUPPORTED),
    ("The VM does not support this command.", Reason.UNSUPPORTED),
    ("This device does not support", Reason.UNSUPPORTED),
    ("This optical module does not support", Reason.UNSUPPORTED),
    ("Diagnostic mode is not enabled", Reason.UNSUPPORTED),
    ("Get invalid major cmd", Reason.UNSUPPORTED),
    ("Get unknown option!", Reason.REFUSED),
    ("Get invalid parameters!", Reason.REFUSED),
    ("Get invalid input param len.", Reason.REFUSED),
    ("The total count of input parameters is wrong!", Reason.REFUSED),
    ("you input is out of the valid range!", Reason.REFUSED),
    ("The ip address you configured is invalid!", Reason.REFUSED),
    ("The ip address configured is conflicted!", Reason.REFUSED),
    ('Please add "-tcp"', Reason.REFUSED),
    ("Link status is down.", Reason.LINK_DOWN),
)
_FAILURES: tuple[tuple[str, Reason], ...] = (
    ("Control link unreachable.", Reason.FAILED),
    ("The confuguraion does not exist!", Reason.FAILED),  # the tool's own spelling
    *((text, Reason.FAILED) for text in FAILED_TEXTS),
)


def parse_with(output: Output, read: Callable[[str], T | None]) -> Reading[T]:
    """The order in which an answer is judged: clear refusals, the value, failures, the rest.

    `read` gets both streams without the tool's log warning and returns None if the
    text does not hold its value. Failures come after it because the tool prints
    "Command execute failed!" below a complete ping report, too.
    """
    refused = refusal(output, _REFUSALS)
    if refused is not None:
        return refused
    text = "\n".join(line for line in output.text.splitlines() if not _NOISE.match(line))
    value = read(text)
    if value is not None:
        return measured(value, output)
    return _no_value(output, text)


def _no_value(output: Output, text: str) -> Reading[Any]:
    unreadable = refusal(output, _FAILURES)
    if unreadable is not None:
        return unreadable
    if not text.strip():
        # Also: the calling user has no passwd entry (container started with --user), exit 234.
        return failed(Reason.FAILED, output, f"no output, exit {output.exit_code}")
    return failed(Reason.UNPARSABLE, output, f"not understood: {first_line(text)}")


_NOISE = re.compile(r'\[WARNING\] ".*" is not a directory')


# --- link ---------------------------------------------------------------------------------------


def parse_link(output: Output) -> Reading[bool]:
    """`-link -g`: True for UP."""

    def read(text: str) -> bool | None:
        match = re.search(r"^link status:\s*(UP|DOWN)\s*$", text, re.M)
        return None if match is None else match[1] == "UP"

    reading = parse_with(output, read)
    if reading.reason is Reason.LINK_DOWN:  # -ENOLINK from the device, exit 22
        return measured(False, output)
    return reading


@dataclass(frozen=True)
class LinkChange:
    """One entry of the port's history, by the device's own clock."""

    at: datetime
    up: bool


@dataclass(frozen=True)
class LinkHistory:
    """`-link_stat -g`. The device's clock may be years off: compare with `now` only."""

    now: datetime
    ups: int | None
    downs: int | None  # not printed by older tools
    changes: tuple[LinkChange, ...]  # newest first

    def downs_within(self, period: timedelta) -> tuple[LinkChange, ...]:
        return tuple(c for c in self.changes if not c.up and self.now - c.at <= period)


def parse_link_stat(output: Output) -> Reading[LinkHistory]:
    def read(text: str) -> LinkHistory | None:
        body = re.sub(r"^\[dev(?:id|ice) \d+\]", "", text, flags=re.M)
        now = re.search(rf"^current time\s*:\s*({_CTIME})", body, re.M)
        if now is None:
            return None
        changes = tuple(
            LinkChange(_ctime(match[1]), match[2] == "UP")
            for match in re.finditer(rf"^\s+({_CTIME})\s+LINK (UP|DOWN)\s*$", body, re.M)
        )
        return LinkHistory(
            _ctime(now[1]),
            _int(re.search(r"^link up count\s*:\s*(\d+)", body, re.M)),
            _int(re.search(r"^link down count\s*:\s*(\d+)", body, re.M)),
            changes,
        )

    return parse_with(output, read)


_CTIME = r"[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}"


def _ctime(text: str) -> datetime:
    # The weekday is not compared with the date: fixtures and reset clocks get it wrong.
    return datetime.strptime(text[4:], "%b %d %H:%M:%S %Y")


def _int(match: re.Match[str] | None) -> int | None:
    return None if match is None else int(match[1])


def parse_speed(output: Output) -> Reading[int | str]:
    """`-speed -g`: Mb/s, or the word `Unknown`. A negative number is what no speed looks like."""

    def read(text: str) -> int | str | None:
        match = re.search(r"^Speed:\s*(?:(-?\d+)\s*Mb/s|(Unknown)!?)", text, re.M)
        if match is None:
            return None
        return "Unknown" if match[2] or int(match[1]) < 0 else int(match[1])

    return parse_with(output, read)


def parse_duplex(output: Output) -> Reading[str]:
    """`-duplex -g`: `Full`, `Half` or `Unknown`."""

    def read(text: str) -> str | None:
        match = re.search(r"^Duplex:\s*(\w+)", text, re.M)
        return None if match is None else match[1]

    return parse_with(output, read)


@dataclass(frozen=True)
class Neighbour:
    """`-lldp -g`. `port` is the neighbour's Ifname or MAC; None: no neighbour was seen."""

    port: str | None
    description: str = ""
    max_frame: int | None = None  # bytes

    @property
    def is_npu(self) -> bool:
        """Cabled back to back instead of to a switch."""
        return "AscendNPU" in self.description


def parse_lldp(output: Output) -> Reading[Neighbour]:
    """An empty answer with exit code 0 means that no neighbour was seen.

    The text may be cut after 2000 bytes, so that its end is not required.
    """

    def read(text: str) -> Neighbour | None:
        if not text.strip():
            return Neighbour(None) if output.exit_code == 0 else None
        if " TLV" not in text:
            return None
        port = re.search(r"^Port ID TLV\s*\n\s+(?:\w[\w ]*:\s*)?(\S.*)$", text, re.M)
        about = re.search(
            r"^System Description TLV\s*\n(.*?)(?=^\w[\w ]* TLV|\Z)", text, re.M | re.S
        )
        frame = re.search(r"^Maximum Frame Size TLV\s*\n\s*(\d+)", text, re.M)
        return Neighbour(
            port[1].strip() if port else None,
            " ".join(about[1].split()) if about else "",
            _int(frame),
        )

    return parse_with(output, read)


@dataclass(frozen=True)
class Optics:
    """`-optical -g`. A flag is a bit per lane; None where the module does not tell it."""

    present: bool
    rx_los: int | None = None
    tx_los: int | None = None
    rx_lol: int | None = None
    tx_lol: int | None = None
    rx_power: tuple[float, ...] = ()  # mW per lane
    vendor: str = ""
    serial: str = ""


def parse_optical(output: Output) -> Reading[Optics]:
    def read(text: str) -> Optics | None:
        fields = {
            match[1].strip(): match[2].strip()
            for match in re.finditer(r"^([^:\n]+?)\s*:[ \t]*(.*)$", text, re.M)
        }
        present = fields.get("present")
        if present not in ("present", "not present"):
            return None
        return Optics(
            present == "present",
            rx_los=_hex(fields.get("Rx Los Flag")),
            tx_los=_hex(fields.get("Tx Los Flag")),
            rx_lol=_hex(fields.get("Rx LoL Flag")),
            tx_lol=_hex(fields.get("Tx LoL Flag")),
            rx_power=tuple(
                float(match[1])
                for key, value in fields.items()
                if re.fullmatch(r"Rx Power\d", key) and (match := re.match(r"([\d.]+) mW", value))
            ),
            vendor=fields.get("vendor name", ""),
            serial=fields.get("vendor serial number", ""),
        )

    if "Optical module is not present." in output.text:
        return measured(Optics(present=False), output)
    return parse_with(output, read)


def _hex(text: str | None) -> int | None:
    return int(text, 16) if text and re.fullmatch(r"0x[0-9a-fA-F]+", text) else None


# --- NPU network --------------------------------------------------------------------------------


class NetHealth(StrEnum):
    """What `-net_health -g` can say; the words of two generations of the tool are one here."""

    SUCCESS = "Success"
    SOCKET_FAIL = "Socket fail"
    RECEIVE_TIMEOUT = "Receive timeout"
    UNREACHABLE = "Unreachable"
    TIME_EXCEEDED = "Time exceeded"
    FAULT = "Fault"
    INIT = "Init"
    THREAD_ERROR = "Thread error"
    DETECT_IP_SET = "Detect ip set"
    UNKNOWN = "Unknown"


def parse_net_health(output: Output) -> Reading[NetHealth]:
    def read(text: str) -> NetHealth | None:
        match = re.search(r"^net health status:\s*(.*?)\s*$", text, re.M)
        if match is None:
            return None
        word = "Socket fail" if match[1] == "Socket failed" else match[1]
        return NetHealth(word) if word in set(NetHealth) else None

    return parse_with(output, read)


Address = IPv4Interface | IPv6Interface


@dataclass(frozen=True)
class Addresses:
    """`-ip -g`: the device's own addresses with their netmask. Empty: none is set."""

    all: tuple[Address, ...] = ()

    @property
    def first(self) -> Address | None:
        return self.all[0] if self.all else None


def parse_ip(output: Output) -> Reading[Addresses]:
    """Both families. Older tools print nothing at all when no address is set."""

    def read(text: str) -> Addresses | None:
        if not text.strip():
            return Addresses() if output.exit_code == 0 else None
        hosts = re.findall(r"^(?:ipaddr|ipv6_address)\s*:\s*(\S+)", text, re.M)
        masks = re.findall(r"^(?:netmask|prefix_length)\s*:\s*(\S+)", text, re.M)
        if not hosts or len(hosts) != len(masks):
            return None
        found = [_interface(host, mask) for host, mask in zip(hosts, masks, strict=True)]
        known = [address for address in found if address is not None]
        if len(known) < len(found):
            return None
        # Atlas 9000 A3 prints one pair per port, and the ports may share an address.
        return Addresses(tuple(dict.fromkeys(known)))

    if re.search(r"Get ip(conf)? failed, because no ip was preset there!", output.text):
        return measured(Addresses(), output)
    return parse_with(output, read)


def _interface(host: str, mask: str) -> Address | None:
    try:
        return ip_interface(f"{host}/{mask}")
    except ValueError:
        return None


def is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Gateway:
    """`-gateway -g`. `address` None: none is set."""

    address: str | None
    interface: str = ""


def parse_gateway(output: Output) -> Reading[Gateway]:
    def read(text: str) -> Gateway | None:
        match = re.search(
            r"^(?:default )?gateway\s*:\s*([^\s,]+)(?:\s*,\s*Iface\s*:\s*(\S+))?", text, re.M
        )
        if match is None or not is_address(match[1]):
            return None
        return Gateway(match[1], match[2] or "")

    if "Get gateway failed, because no gateway was preset there!" in output.text:
        return measured(Gateway(None), output)
    return parse_with(output, read)


@dataclass(frozen=True)
class Netdetect:
    """`-netdetect -g`: the address that net_health pings. None: none is set."""

    address: str | None


def parse_netdetect(output: Output) -> Reading[Netdetect]:
    """Two spellings of the key; all zeros mean that no address is set."""

    def read(text: str) -> Netdetect | None:
        match = re.search(r"^netdetect addr(?:ess)?\s*:\s*(\S*)\s*$", text, re.M)
        if match is None or (match[1] and not is_address(match[1])):
            return None
        unset = not match[1] or ip_address(match[1]).is_unspecified
        return Netdetect(None if unset else match[1])

    return parse_with(output, read)


def parse_mtu(output: Output) -> Reading[int]:
    """`-mtu -g`: bytes."""

    def read(text: str) -> int | None:
        return _int(re.search(r"^mtu\s*:\s*(\d+)\s*$", text, re.M))

    return parse_with(output, read)


@dataclass(frozen=True)
class Tls:
    """`-tls -g`. `enabled` None: the device has no certificates, and the tool then tells no switch.

    `expired`: a certificate has status 2. Which one cannot be told, because the tool
    prints that line to stderr.
    """

    enabled: bool | None
    certificates: int = 0
    expired: bool = False
    issuers: tuple[str, ...] = ()  # of the certificates, each once, sorted


def parse_tls(output: Output) -> Reading[Tls]:
    def read(text: str) -> Tls | None:
        switch = re.search(r"\btls switch\[(\d+)\]", text)
        if switch is None:
            return None
        statuses = re.findall(r"tls expiration status\[(\d+)\]", text)
        issuers = sorted(set(re.findall(r"^\s*issuer\[(.*)\]\s*$", text, re.M)))
        certificates = len(re.findall(r"\bcert\] info:", text))
        return Tls(switch[1] != "0", certificates, "2" in statuses, tuple(issuers))

    if "No certificate found, please set certs firstly!" in output.text:
        return measured(Tls(None), output)
    return parse_with(output, read)


@dataclass(frozen=True)
class Vnic:
    """`-vnic -g` of A3: the interface inside a super pod."""

    up: bool
    address: Address


def parse_vnic(output: Output) -> Reading[Vnic]:
    """All three lines are required: a vNIC that lacks one is not readable."""

    def read(text: str) -> Vnic | None:
        link = re.search(r"^vnic link status:\s*(UP|DOWN)\s*$", text, re.M)
        host = re.search(r"^vnic ipaddr:\s*(\S+)", text, re.M)
        mask = re.search(r"^vnic netmask:\s*(\S+)", text, re.M)
        if link is None or host is None or mask is None:
            return None
        address = _interface(host[1], mask[1])
        return None if address is None else Vnic(link[1] == "UP", address)

    return parse_with(output, read)


# --- reachability -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ping:
    """One ping as the tool reported it. `milliseconds`: one time per packet that came back."""

    transmitted: int
    received: int
    milliseconds: tuple[float, ...] = ()
    no_route: bool = False  # "Destination Host Unreachable"
    too_long: bool = False  # "Message too long"
    bad_plane: int = 0  # hccs_ping: bits of the L1 planes that failed

    @property
    def complete(self) -> bool:
        """Everything that was sent came back; a ping that sent nothing proves nothing."""
        return self.transmitted > 0 and self.received == self.transmitted

    @property
    def loss(self) -> float:
        """Lost share, 0 to 1."""
        return 1.0 if self.transmitted == 0 else 1 - self.received / self.transmitted

    @property
    def steady_milliseconds(self) -> float | None:
        """Mean without the first packet, which also pays for ARP; None if too few came back."""
        later = self.milliseconds[1:]
        return sum(later) / len(later) if later else None


def parse_ping(output: Output) -> Reading[Ping]:
    """`-ping -g address X`. Complete means received == transmitted > 0, whatever the exit code.

    The tool exits 1 only for three phrases in the device's text, so a report of
    100 % loss can exit 0, and an empty report does.
    """

    def read(text: str) -> Ping | None:
        summary = _SUMMARY.search(text)
        if summary is None:
            return None
        return Ping(
            int(summary[1]),
            int(summary[2]),
            tuple(float(ms) for ms in _PACKET.findall(text)),
            no_route="Destination Host Unreachable" in text,
            too_long="Message too long" in text,
        )

    reading = parse_with(output, read)
    if reading.reason in (Reason.UNPARSABLE, Reason.FAILED):
        no_route = "Destination Host Unreachable" in output.text
        too_long = "Message too long" in output.text
        if no_route or too_long:
            return measured(Ping(0, 0, no_route=no_route, too_long=too_long), output)
    return reading


def parse_hccs_ping(output: Output) -> Reading[Ping]:
    """`-hccs_ping -g address X` of A3. Exit code 0 and "Cmd executed successfully!" mean nothing.

    When the device never finishes, the report says 0 packets transmitted and 0 % loss.
    """

    def read(text: str) -> Ping | None:
        summary = _SUMMARY.search(text)
        if summary is None:
            return None
        times: list[float] = []
        planes = 0
        packets = re.findall(
            r"^This pkt (.*?)!\s*\nrecv seq \d+, time = ([\d.]+)us, "
            r"L1 plane check result = 0x([0-9a-fA-F]+)",
            text,
            re.M,
        )
        for outcome, microseconds, plane in packets:
            if outcome == "ping success":
                times.append(float(microseconds) / 1000)
                planes |= int(plane, 16)
        # The packets are believed before the summary, if they say less.
        received = min(int(summary[2]), len(times)) if packets else int(summary[2])
        return Ping(int(summary[1]), received, tuple(times), bad_plane=planes)

    return parse_with(output, read)


_PACKET = re.compile(r"^recv seq=\d+,\s*time=([\d.]+)\s*ms", re.M)
_SUMMARY = re.compile(
    r"^(\d+) packets transmitted, (\d+) received, [\d.]+% packets? loss\s*$", re.M
)
