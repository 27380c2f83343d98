"""hccn_tool of a twin host: the vendor's command layer over the twin's devices.

Which argument is refused how, who may call what, what goes to which stream and with which exit
code follow the tool's recorded behaviour (A2 and A3 of driver 2026-07). What the device itself
answers comes from `answers.py`. Only queries exist here: a command that would change a device
is refused to non-root as the real one does, and to root with a message of the twin's own.
"""

from __future__ import annotations

import os
import time

from twin.tools.answers import Answers, Machine
from twin.tools.console import Console

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_ARGUMENTS = 64  # the program's name included
MAX_ARGUMENT_LENGTH = 900
NO_SUCH_USER = 234  # -EINVAL as a process's exit code; nothing is printed
ALL_DEVICES = -1  # the id of a call with -a
HEALTH_TRIES = 300  # one a second until a device is given up
HCCS_POLLS = 60  # one a second until the result of -hccs_ping is taken as it is
LLDP_BYTES = 1999  # what the tool keeps of the device's text
PING_BYTES = 65507  # largest payload of one IP packet
PING_DEFAULT_BYTES = 4096

# errno values as devices answer them (negative), and those of the channel to a device
ENOENT, EACCES, EBUSY, ENOLINK = 2, 13, 16, 67
BUSY_RESULT = 0x300B
LOCK_RESULT = 0x100
CHANNEL_REFUSED = 46

ATLAS_9000_BOARDS = (0x1C, 0x1D)
SUPERPOD_BOARDS = (0x18, 0x19, 0x14, 0x15)

NET_HEALTH = (
    "Success",
    "Socket fail",
    "Receive timeout",
    "Unreachable",
    "Time exceeded",
    "Fault",
    "Init",
    "Thread error",
    "Detect ip set",
    "Unknown",
)


class Failure(Exception):
    """The command ends with this text and exit code."""

    def __init__(
        self, exit_code: int, text: str, *, on_stdout: bool = False, help_: bool = False
    ) -> None:
        super().__init__(text)
        self.exit_code = exit_code
        self.text = text
        self.on_stdout = on_stdout
        self.help = help_  # the command's options follow on stdout


def _wrong_count() -> Failure:
    return Failure(4, "The total count of input parameters is wrong!", help_=True)


def _unknown_option() -> Failure:
    return Failure(3, "Get unknown option!", help_=True)


def _invalid_parameters() -> Failure:
    return Failure(1, "Get invalid parameters!", help_=True)


def _invalid_ip() -> Failure:
    return Failure(6, "The ip address you configured is invalid!")


def _out_of_range(what: str, exit_code: int) -> Failure:
    return Failure(
        exit_code, f"The value of {what} you input is out of the valid range!", help_=True
    )


def _invalid_id() -> Failure:
    return Failure(4, "Get invalid device id.")


def _failed() -> Failure:
    return Failure(1, "Command execute failed!")


def _busy() -> Failure:
    return Failure(11, "hccn_tool is busy, please try again.", on_stdout=True)


def _denied() -> Failure:
    return Failure(12, "permission denied: pls check this cmd run permission.")


def _not_on_this_product() -> Failure:
    return Failure(13, "The command is not supported on this product.", on_stdout=True)


def _no_ipv6() -> Failure:
    return Failure(23, "This device does not support IPV6!", on_stdout=True)


def _not_modelled(what: str) -> Failure:
    """The twin's own: louder than any plausible answer would be."""
    return Failure(70, f"twin: hccn_tool {what} is not modelled")


class Call:
    """One command on one device."""

    def __init__(
        self, machine: Machine, console: Console, command: str, device: int, args: list[str]
    ) -> None:
        self.machine = machine
        self.console = console
        self.command = command
        self.id = device  # physical id as it was given
        self.args = args  # after the command
        self.answers: Answers = machine.devices.get(device, Answers({}))

    @property
    def operation(self) -> str:
        return self.args[0]

    def say(self, line: str) -> None:
        self.console.out(line + "\n")

    def expect_args(self, count: int) -> None:
        if len(self.args) != count:
            raise _wrong_count()

    def expect_get(self, *changes: str) -> None:
        """The command's first word is -g; `changes` are the words that would change something."""
        if not self.args:
            raise _wrong_count()
        if self.operation in changes:
            raise self.refused_change()
        if self.operation != "-g":
            raise _unknown_option()

    def refused_change(self) -> Failure:
        if not self.machine.is_root:
            return _denied()
        if not os.path.exists(self.machine.conf):
            return Failure(
                29,
                "The hccn.conf can't access, cmd execute failed!"
                " pls check the conf file or cmd run permission.",
            )
        return _not_modelled(f"{self.command} {self.operation}")

    def take_inet6(self) -> bool:
        """Strip a leading -inet6; refused where the product has no IPv6."""
        if not self.args or self.args[0] != "-inet6":
            return False
        del self.args[0]
        if self.answers.number("mainboard_id") in ATLAS_9000_BOARDS:
            raise _no_ipv6()
        return True

    def ask(self, opcode: int) -> None:
        """Send `opcode` to the device; a `Failure` unless it answers with success."""
        result = self.result(opcode)
        if result:
            raise _failure_of(result)

    def result(self, opcode: int) -> int:
        """The device's result of `opcode`, 0 for success; channel errors become errno values."""
        for which in ("all", f"0x{opcode:04x}"):
            channel = self.answers.number(f"op.{which}.ret", 0)
            if channel:
                return -EACCES if channel == CHANNEL_REFUSED else -22
            for key in (f"op.{which}.result", f"op.{which}.busy_in_recv"):
                result = self.answers.number(key, 0)
                if result:
                    return result
        return 0


def _failure_of(result: int) -> Failure:
    """The tool's translation of what a device answers."""
    if result == -ENOLINK:
        return Failure(22, "Execute failed: Link status is down.")
    if result == -EACCES:
        return _denied()
    if result in (-EBUSY, BUSY_RESULT):
        return _busy()
    if result == LOCK_RESULT:
        return Failure(25, "Get lock failed. Please try again.")
    return _failed()


# --- the commands -------------------------------------------------------------------------------


def _link(call: Call) -> None:
    call.expect_get("-s")
    if len(call.args) > 1:
        if call.args[1] != "down_fault_time":
            raise _unknown_option()
        call.expect_args(2)
        raise _not_modelled("-link -g down_fault_time")
    call.ask(0x0008)
    call.say("link status: UP" if call.answers.number("link", 1) else "link status: DOWN")


def _net_health(call: Call) -> None:
    call.expect_args(1)
    call.expect_get()
    health = call.answers.number("net_health", 0)
    if call.answers.number("net_health.ret", 0) or health >= len(NET_HEALTH):
        raise _failed()  # also when busy: this command does not translate it
    call.say(f"net health status: {NET_HEALTH[health]}")


def _netdetect(call: Call) -> None:
    if not call.args:
        raise _wrong_count()
    inet6 = call.take_inet6()
    call.expect_get("-s")
    call.expect_args(1)
    call.ask(0x0022)
    if inet6:
        address = call.answers.text("netdetect6")
        # Unset, the tool prints the value it started from, uncompressed.
        call.say(f"netdetect addr: {_compressed(address) if address else '0:0:0:0:0:0:0:0'}")
    else:
        call.say(f"netdetect addr: {call.answers.text('netdetect') or '0.0.0.0'}")


def _gateway(call: Call) -> None:
    if not call.args:
        raise _wrong_count()
    inet6 = call.take_inet6()
    if call.args and call.operation == "-s":
        call.expect_args(3)
    call.expect_get("-s")
    call.expect_args(1)
    address = call.answers.text("gateway6" if inet6 else "gateway")
    result = call.result(0x0140 if inet6 else 0x0005)
    if result == -ENOENT or (not result and address is None):
        raise Failure(2, "Get gateway failed, because no gateway was preset there!")
    if inet6:
        if result:
            raise _failed()
        call.say(f"gateway:{_compressed(address or '')}")
        return
    if result:
        raise _failure_of(result)
    call.say(f"default gateway:{address}, Iface:eth{call.answers.number('gateway.port', call.id)}")


def _ip(call: Call) -> None:
    if not call.args:
        raise _wrong_count()
    inet6 = call.take_inet6()
    if call.args and call.operation == "-s":
        call.expect_args(5)
    call.expect_get("-s")
    call.expect_args(1)
    if inet6:
        address = _address_or_failure(call, "ip6.addr")
        call.say(f"ipv6_address:{_compressed(address)}")
        call.say(f"prefix_length:{call.answers.number('ip6.prefix', 64)}")
        return
    call.ask(0x003A)
    ports = 1
    if call.answers.number("mainboard_id") in ATLAS_9000_BOARDS:
        ports = call.answers.number("link_cnt", 2) // 2  # of the card's two dies
    for _ in range(ports):
        address = _address_or_failure(call, "ip.addr")
        call.say(f"ipaddr:{address}")
        call.say(f"netmask:{call.answers.text('ip.mask') or '255.255.255.0'}")


def _address_or_failure(call: Call, key: str) -> str:
    if call.answers.number("ip.ret", 0):
        raise _failed()  # also when busy
    address = call.answers.text(key)
    if address is None:
        raise Failure(13, "Get ipconf failed, because no ip was preset there!")
    return address


def _vnic(call: Call) -> None:
    call.expect_args(1)
    call.expect_get()
    address = call.answers.text("vnic.addr")
    if call.result(0x001F) or address is None:
        raise _failed()  # also when busy
    call.say(f"vnic link status: {'UP' if call.answers.number('vnic.link', 1) else 'DOWN'}")
    call.say(f"vnic ipaddr: {address}")
    call.say(f"vnic netmask: {call.answers.text('vnic.mask') or '255.255.255.0'}")


def _ping(call: Call) -> None:
    if len(call.args) < 3:
        raise _wrong_count()
    inet6 = call.take_inet6()
    if call.operation != "-g":
        raise _unknown_option()
    if len(call.args) > 5:
        raise _wrong_count()
    target, size = "", PING_DEFAULT_BYTES
    words = iter(call.args[1:])
    for word in words:
        value = next(words, None)
        if word not in ("pkt", "address", "ipv6_address"):
            raise _unknown_option()
        if value is None:
            raise _wrong_count()
        if word == "pkt":
            size = _unsigned(value)
            if size > PING_BYTES:
                raise _invalid_parameters()
        elif (word == "ipv6_address") != inet6:
            raise _invalid_parameters()
        else:
            if not (_is_ipv6(value) if inet6 else _is_ipv4(value)):
                raise _invalid_ip()
            target = value
    call.ask(0x009F)
    body = call.answers.ping(target, size)
    call.say(f"device {call.id} PING{'6' if inet6 else ''} {target}\n{body}")
    # The exit code hangs on these words alone, not on the packets received.
    if any(
        sign in body
        for sign in ("Message too long", "recv time out seq", "Destination Host Unreachable")
    ):
        raise _failed()


HCCS_OPTIONS = {"pkt": (1792, 3000), "cnt": (1, 1000), "interval": (0, 10), "timeout": (1, 20000)}
HCCS_NOT_STARTED, HCCS_SUCCESS, HCCS_SEND_FAILED, HCCS_CHECK_FAILED = 0, 1, 2, 3
HCCS_TEXT = {
    HCCS_NOT_STARTED: "This pkt ping not start to send!",
    HCCS_SEND_FAILED: "This pkt send fail!",
    HCCS_CHECK_FAILED: "This pkt check recv msg fail!",
}


def _hccs_ping(call: Call) -> None:
    if call.answers.number("mainboard_id") not in ATLAS_9000_BOARDS + SUPERPOD_BOARDS:
        raise _not_on_this_product()
    if not 2 <= len(call.args) <= 11:
        raise _wrong_count()
    if not call.machine.is_root:
        raise _denied()
    if call.operation != "-g":
        raise _unknown_option()
    sdid, address, count, size = _hccs_arguments(call.args[1:])

    target = call.answers.hccs(sdid, size)
    result = call.result(0x00A0)
    if result == EBUSY:  # the positive value only; the negative one is "busy" as everywhere
        raise Failure(31, "The device is occupied. Please try again later.")
    if result:
        raise _failure_of(result)
    completed = target.number("hccs.completed", 1)
    call.console.sleep(1 if completed else HCCS_POLLS)
    if not completed:
        packets = [HCCS_NOT_STARTED] * count
        call.say(f"device {call.id} PING 0.0.0.0\n")
        _say_hccs_result(call, packets, target, transmitted=0)
        return
    default = target.number("hccs.ret", HCCS_SUCCESS)
    packets = [target.number(f"hccs.{seq}.ret", default) for seq in range(count)]
    call.say(f"device {call.id} PING {address or target.text('hccs.dst') or _vnic_of(sdid)}\n")
    _say_hccs_result(call, packets, target, transmitted=count)


def _hccs_arguments(words: list[str]) -> tuple[int, str | None, int, int]:
    """sdid, the address if that was given, the number of packets, and their size in bytes."""
    sdid: int | None = None
    address: str | None = None
    values = {"cnt": 3, "interval": 0, "pkt": HCCS_OPTIONS["pkt"][0]}
    if len(words) % 2:
        words, lonely = words[:-1], True
    else:
        lonely = False
    for word, value in zip(words[::2], words[1::2], strict=True):
        if word in ("address", "sdid"):
            if sdid is not None:
                raise _invalid_ip()
            if word == "sdid":
                sdid = _unsigned(value)
            else:
                address = value
                sdid = sdid_of(value)
            if not is_sdid(sdid):
                raise _invalid_ip()
        elif word in HCCS_OPTIONS:
            low, high = HCCS_OPTIONS[word]
            values[word] = _unsigned(value)
            if not low <= values[word] <= high:
                raise _invalid_parameters()
        else:
            raise _invalid_parameters()
    if lonely or sdid is None:
        raise _invalid_parameters()
    return sdid, address, values["cnt"], values["pkt"]


def sdid_of(address: str) -> int:
    """The super device id behind a vNIC address; `Failure` if it cannot be one."""
    if not _is_ipv4(address):
        raise _invalid_ip()
    head, server, die, device = (int(part) for part in address.split("."))
    if head != 192:
        raise _invalid_ip()
    die, device = (die - 2) & 0xFFFFFFFF, (199 - device) & 0xFFFFFFFF
    return (server << 22 | device // 2 << 18 | die << 16 | device) & 0xFFFFFFFF


def is_sdid(sdid: int) -> bool:
    return sdid >> 22 & 0xFF < 48 and (sdid >> 18 & 0xF) * 2 + (sdid >> 16 & 3) == sdid & 0xFFFF


def _vnic_of(sdid: int) -> str:
    return f"192.{sdid >> 22}.{2 + (sdid >> 16 & 3)}.{199 - (sdid & 0xFFFF)}"


def _say_hccs_result(call: Call, packets: list[int], target: Answers, *, transmitted: int) -> None:
    def microseconds(nanoseconds: int) -> str:
        return f"{nanoseconds // 1000}.{nanoseconds % 1000:03d}us"

    plane = target.number("hccs.l1", 0)
    times: list[int] = []
    for seq, packet in enumerate(packets):
        spent = 0
        if packet == HCCS_SUCCESS:
            spent = target.number("hccs.ns", 12345) - 100 * seq
            times.append(spent)
        call.say(HCCS_TEXT.get(packet, "This pkt ping success!"))
        call.say(
            f"recv seq {seq}, time = {microseconds(spent)}, L1 plane check result = 0x{plane:x}\n"
        )
    lost = transmitted - len(times)
    percent = lost / transmitted * 100 if lost else 0.0
    times.sort()
    call.say(
        f"{transmitted} packets transmitted, {len(times)} received, {percent:.2f}% packets loss"
    )
    call.say(f"max time {microseconds(max(times, default=0))}")
    call.say(f"min time {microseconds(min(times, default=0))}")
    call.say(f"average time {microseconds(sum(times) // len(times) if times else 0)}")
    call.say(f"TP95 time {microseconds(times[int(0.95 * len(times))] if times else 0)}")
    call.say("Cmd executed successfully!")


def _lldp(call: Call) -> None:
    call.expect_args(1)
    call.expect_get()
    call.ask(0x0002)
    text = (call.answers.text("lldp") or "").encode()[:LLDP_BYTES]
    call.say(text.decode(errors="replace"))


def _tls(call: Call) -> None:
    call.expect_get("-s", "-c")
    if len(call.args) > 2:
        raise _wrong_count()
    if len(call.args) == 2:
        if call.args[1] != "host":
            raise _unknown_option()
        raise _not_modelled("-tls -g host")
    result = call.result(0x0018)
    count = call.answers.number("tls.certs", -1)
    if result == -ENOENT or (not result and count < 0):
        raise Failure(14, "No certificate found, please set certs firstly!")
    if result:
        raise _failure_of(result)
    enable = call.answers.number("tls.enable", 0)
    alarm_days = call.answers.number("tls.alarm", 60)
    _keep_tls_enable(call, enable)
    issuers = [
        call.answers.text(f"tls.{n}.issuer") or "/C=CN/O=Huawei/CN=Huawei Equipment CA"
        for n in range(count)
    ]
    preset = int(any(issuer in PRESET_ISSUERS for issuer in issuers))
    call.say(
        f"dev_id:{call.id}, tls switch[{enable}](0:disable, 1:enable),"
        f" tls preconfigured[{preset}](0:non-preset, 1:preset),"
        f" tls alarm time threshold[{alarm_days}]days"
    )
    for number, issuer in enumerate(issuers):
        _say_certificate(call, number, issuer, alarm_days)


PRESET_ISSUERS = (
    "/C=CN/O=Huawei/CN=Huawei IT Product CA",
    "/C=CN/O=Huawei/CN=Huawei Equipment CA",
    "/C=CN/O=Huawei/CN=Huawei Computing RSA-PSS Equipment CA 1",
    "/C=CN/O=Huawei/CN=Huawei Computing RSA-PSS Equipment CA 2",
    "/C=CN/O=Huawei/CN=Huawei RSA-PSS Equipment Root CA 1",
    "/C=CN/O=Huawei/CN=Huawei RSA Equipment Root CA 2",
)


def _say_certificate(call: Call, number: int, issuer: str, alarm_days: int) -> None:
    def field(name: str, default: str) -> str:
        return call.answers.text(f"tls.{number}.{name}") or default

    kind = "pub cert" if number == 0 else f"ca{number} cert" if number <= 14 else "crl"
    end = field("end", "Sat Jan  1 00:00:00 2033")
    call.say(
        f"dev_id:{call.id}, [{kind}] info:\n"
        f"\t subject[{field('subject', '/C=CN/O=Huawei/CN=simulated')}]\n"
        f"\t issuer[{issuer}]\n"
        f"\t start_time[{field('start', 'Sun Jan  1 00:00:00 2023')} GMT]\n"
        f"\t end_time[{end} GMT]"
    )
    seconds_left = _seconds_until(end, call.console.now())
    meaning = "(0:normal, 1:near expiration, 2:has expired)"
    if seconds_left <= 0:
        call.console.err(f"\t tls expiration status[2]{meaning}\n")
    else:
        near = int(seconds_left <= alarm_days * 86400)
        call.say(f"\t tls expiration status[{near}]{meaning}")


MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def _seconds_until(when: str, now: float) -> float:
    """Seconds from `now` to a GMT time like ``Sat Jan  1 00:00:00 2033``.

    `Failure` if it is no such time.
    """
    try:
        weekday, month, day, clock, year = when.split()
        hour, minute, second = (int(part) for part in clock.split(":"))
        if weekday not in WEEKDAYS:
            raise ValueError(weekday)
        then = (int(year), MONTHS.index(month) + 1, int(day), hour, minute, second, 0, 0, 0)
    except ValueError:
        raise Failure(8, "Cmd execute failed!") from None
    # Both read as local time, as the tool does: the zone cancels out.
    return time.mktime(then) - time.mktime((*time.gmtime(now)[:6], 0, 0, 0))


def _keep_tls_enable(call: Call, enable: int) -> None:
    """The query's side effect: the first time, root's hccn.conf gets the switch."""
    conf, key = call.machine.conf, f"tls_enable_{call.id}"
    if not call.machine.is_root or not os.path.exists(conf):
        return
    with open(conf, "r+", encoding="utf-8") as file:
        text = file.read()
        if any(line.partition("=")[0] == key for line in text.splitlines()):
            return
        file.write(("" if not text or text.endswith("\n") else "\n") + f"{key}={enable}\n")


def _link_stat(call: Call) -> None:
    call.expect_args(1)
    call.expect_get("-c")
    call.ask(0x002C)
    number = call.answers.number
    who = f"[devid {call.id}]"

    def clock(seconds: int) -> str:
        return time.asctime(time.localtime(seconds))

    call.say(f"{who}current time        : {clock(number('ls.now', int(call.console.now())))}")
    call.say(f"{who}link up count       : {number('ls.up', 0)}")
    call.say(f"{who}link down count     : {number('ls.down', 0)}")
    count = min(number("ls.n", 0), 10)
    call.say(f"{who}link change records :{'' if count else ' NA'}")
    for n in reversed(range(count)):
        change = "LINK UP" if number(f"ls.{n}.up", 0) else "LINK DOWN"
        call.say(f"{who}    {clock(number(f'ls.{n}.t', 0))}    {change}")


def _optical(call: Call) -> None:
    if not call.args:
        raise _wrong_count()
    if call.answers.number("mainboard_id") in ATLAS_9000_BOARDS:
        raise _not_on_this_product()
    if call.operation == "-dump":
        _optical_dump(call)
        return
    call.expect_get("-s", "-t")
    superpod = call.answers.number("mainboard_id") in SUPERPOD_BOARDS
    if superpod:
        # The module is read through the card's other half; without that, nothing.
        partner = call.id + 8 if call.id % 2 and call.id < 8 else call.id
        partner = call.id - 8 if call.id % 2 == 0 and call.id >= 8 else partner
        if partner not in call.machine.devices:
            raise Failure(15, "Control link unreachable.")
    if len(call.args) > 2:
        raise _wrong_count()
    if len(call.args) == 2:
        if call.args[1] not in ("v2", "dfx_cfg"):
            raise _unknown_option()
        if call.args[1] == "dfx_cfg":
            raise _not_modelled("-optical -g dfx_cfg")
    call.ask(0x0013)
    from twin.tools import optical

    lines = optical.v2 if len(call.args) == 2 else optical.plain
    rear = call.id >= 8 if superpod else False
    for line in lines(call.answers, rear=rear):
        call.say(line)


DUMP_FAILURES = {
    1: Failure(24, "Diagnostic mode is not enabled, please enable it first."),
    3: Failure(12, "I2c is busy. Please try again.", on_stdout=True),
    8: Failure(
        18, "The system is in optical module initializing, please try again later.", on_stdout=True
    ),
    11: Failure(20, "Optical module is not present.", on_stdout=True),
    95: _not_on_this_product(),
    97: Failure(17, "This optical module does not support dumping on this page!"),
}


def _optical_dump(call: Call) -> None:
    if len(call.args) < 2:
        raise _wrong_count()
    if call.args[1] not in ("all", "page"):
        raise _invalid_parameters()
    call.expect_args(3 if call.args[1] == "page" else 2)
    result = call.answers.number("dump.result", 0)
    if not result:
        raise _not_modelled("-optical -dump")
    raise DUMP_FAILURES.get(result, _failed())


def _speed(call: Call) -> None:
    call.expect_get()
    call.expect_args(1)
    call.ask(0x0085)
    speed = call.answers.number("speed", 200000)
    call.say("Speed: Unknown!" if speed == 65535 else f"Speed: {speed} Mb/s")


def _duplex(call: Call) -> None:
    call.expect_get()
    call.expect_args(1)
    call.ask(0x0086)
    mode = {1: "Full", 0: "Half"}.get(call.answers.number("duplex", 1), "Unknown!")
    call.say(f"Duplex: {mode}")


def _mtu(call: Call) -> None:
    call.expect_get("-s")
    call.expect_args(1)
    call.ask(0x000A)
    call.say(f"mtu:{call.answers.number('mtu', 1500)}")


def _mac(call: Call) -> None:
    call.expect_get("-s")
    call.expect_args(1)
    call.ask(0x0006)
    call.say(f"mac addr: {call.answers.text('mac') or '0c:4f:9b:b5:ca:74'}")


def _pfc(call: Call) -> None:
    call.expect_get("-s")
    call.expect_args(1)
    call.ask(0x009A)
    call.say("PFC configuration:")
    call.say("priority   0 1 2 3 4 5 6 7")
    call.say(f"enabled    {' '.join(call.answers.text('pfc') or '00001000')}")


def _dscp_to_tc(call: Call) -> None:
    call.expect_get("-s")
    if len(call.args) not in (1, 3):
        raise _wrong_count()
    wanted = list(range(64))
    if len(call.args) == 3:
        if call.args[1] != "dscp":
            raise _unknown_option()
        text = call.args[2]
        if not _is_small_number(text):
            raise _invalid_parameters()
        if int(text or "0") > 63:
            raise _out_of_range("dscp", 9)
        wanted = [int(text or "0")]
    else:
        call.say("dscp      tc")  # before the device is asked
    table = call.answers.text("dscp_to_tc") or "0" * 64
    for dscp in wanted:
        call.ask(0x000D)
        if int(table[dscp]) > 3:
            raise _out_of_range("tc", 10)
        if len(wanted) == 1:
            call.say("dscp      tc")
        call.say(f"{dscp:4d}{int(table[dscp]):8d}")


def _version(call: Call) -> None:
    call.expect_args(1)
    call.expect_get()
    call.ask(0x001C)
    call.say("Network Driver Version:    1.0.4.0")
    call.say(f"Network Firmware Version:  {(call.answers.text('firmware') or '7.8.0.5.216')[:15]}")


def _process(call: Call) -> None:
    call.expect_args(1)
    call.expect_get()
    call.ask(0x0020)
    found = "exist" if call.answers.number("process", 0) else "not exist"
    call.say(f"device hccp process: {found}")


def _cfg(call: Call) -> None:
    if not call.args:
        raise _wrong_count()
    if call.operation == "recovery":
        raise call.refused_change()
    if call.operation != "status" or call.id == ALL_DEVICES:
        raise _unknown_option()
    call.expect_args(1)
    call.ask(0x0029)
    names = ("NONE", "START", "FAIL", "SUCCESS")
    status = call.answers.number("cfg_status", 0)
    call.say(f"config status:{names[status] if status < len(names) else 'FAULT'}")


def _arp(call: Call) -> None:
    call.expect_get("-a", "-d")
    call.expect_args(1)
    result = call.result(0x000E)
    if result == -ENOENT:
        raise Failure(32, "The confuguraion does not exist! Please preset firstly!")
    if result:
        raise _failure_of(result)
    call.say("arp table:")
    call.say(call.answers.text("arp") or "")


def _route(call: Call) -> None:
    if not call.args:
        raise _wrong_count()
    if call.take_inet6():
        raise _not_modelled("-route -inet6")
    call.expect_get("-a", "-d", "-c")
    call.expect_args(1)
    call.ask(0x000F)
    call.say("Routing table:")
    call.say(call.answers.text("route") or "")


def _status(call: Call) -> None:
    call.expect_get()
    call.expect_args(1)
    call.ask(0x002A)
    call.say(f"Netdev status:{call.answers.text('status') or ''}")


def _local_lldp(call: Call) -> None:
    call.expect_get("-s")
    call.expect_args(1)
    call.ask(0x003C)
    call.say(call.answers.text("local_lldp") or "")


def _stat(call: Call) -> None:
    call.expect_args(1)
    call.expect_get("-c")
    call.ask(0x0014)
    call.say("packet statistics:")
    fill = call.answers.number("stat.fill", -1)
    for n, counter in enumerate(COUNTERS):
        value = call.answers.number(f"stat.{counter}", 0 if fill < 0 else fill + n)
        call.say(f"{counter}:{value}")


def _priorities(direction: str) -> tuple[str, ...]:
    return tuple(f"mac_{direction}_pfc_pri{n}_pkt_num" for n in range(8))


COUNTERS = (
    "mac_tx_mac_pause_num",
    "mac_rx_mac_pause_num",
    "mac_tx_pfc_pkt_num",
    *_priorities("tx"),
    "mac_rx_pfc_pkt_num",
    *_priorities("rx"),
    "mac_tx_total_pkt_num",
    "mac_tx_total_oct_num",
    "mac_tx_bad_pkt_num",
    "mac_tx_bad_oct_num",
    "mac_rx_total_pkt_num",
    "mac_rx_total_oct_num",
    "mac_rx_bad_pkt_num",
    "mac_rx_bad_oct_num",
    "mac_rx_fcs_err_pkt_num",
    "roce_rx_rc_pkt_num",
    "roce_rx_all_pkt_num",
    "roce_rx_err_pkt_num",
    "roce_tx_rc_pkt_num",
    "roce_tx_all_pkt_num",
    "roce_tx_err_pkt_num",
    "roce_cqe_num",
    "roce_rx_cnp_pkt_num",
    "roce_tx_cnp_pkt_num",
    "roce_unexpected_ack_num",
    "roce_out_of_order_num",
    "roce_verification_err_num",
    "roce_qp_status_err_num",
    "roce_new_pkt_rty_num",
    "roce_ecn_db_num",
    "nic_tx_all_pkg_num",
    "nic_tx_all_oct_num",
    "nic_rx_all_pkg_num",
    "nic_rx_all_oct_num",
)

HW_COUNTERS = (
    "pd_alloc",
    "pd_dealloc",
    "mr_alloc",
    "mr_dealloc",
    "cq_alloc",
    "cq_dealloc",
    "qp_alloc",
    "qp_dealloc",
    "pd_active",
    "mr_active",
    "cq_active",
    "qp_active",
    "aeqe",
    "ceqe",
)


def _hw_stats(call: Call) -> None:
    call.expect_args(1)
    call.expect_get()
    call.ask(0x0032)
    for counter in HW_COUNTERS:
        call.say(f"[devid {call.id}] {counter}: {call.answers.number(f'hw.{counter}', 0)}")


def _fec(call: Call) -> None:
    call.say("This device does not support switching fec mode.")


def _roce_test(call: Call) -> None:
    if call.take_inet6() and not call.args:
        raise Failure(0, "Cmd execute failed!")
    tests = ("send", "read", "write")
    if not call.args or call.operation not in {
        f"ib_{test}_{kind}" for test in tests for kind in ("bw", "lat")
    }:
        raise _unknown_option()
    if "-tcp" not in call.args:
        call.say('Please add "-tcp"')
        raise Failure(0, "Cmd execute failed!")  # the vendor's exit code
    raise _not_modelled("-roce_test")


COMMANDS: dict[str, Callable[[Call], None]] = {
    "-arp": _arp,
    "-cfg": _cfg,
    "-dscp_to_tc": _dscp_to_tc,
    "-duplex": _duplex,
    "-fec": _fec,
    "-gateway": _gateway,
    "-hccs_ping": _hccs_ping,
    "-hw_stats": _hw_stats,
    "-ip": _ip,
    "-link": _link,
    "-link_stat": _link_stat,
    "-lldp": _lldp,
    "-local_lldp": _local_lldp,
    "-mac": _mac,
    "-mtu": _mtu,
    "-net_health": _net_health,
    "-netdetect": _netdetect,
    "-optical": _optical,
    "-pfc": _pfc,
    "-ping": _ping,
    "-process": _process,
    "-roce_test": _roce_test,
    "-route": _route,
    "-speed": _speed,
    "-stat": _stat,
    "-status": _status,
    "-tls": _tls,
    "-version": _version,
    "-vnic": _vnic,
}

# --- the frame around them ----------------------------------------------------------------------


def main(argv: Sequence[str], machine: Machine, console: Console) -> int:
    """Run one call (`argv` with the program's name); returns its exit code (0..255)."""
    if not machine.user:
        return NO_SUCH_USER
    if machine.log_directory_is_file:
        console.out(
            '[WARNING] "/var/log/hccn_tool" is not a directory, hccn_tool logs may be lost.\n'
        )
    section = ""
    try:
        if not 1 < len(argv) < MAX_ARGUMENTS:
            raise _see_help(2, "Get invalid major cmd number. Please check your input.")
        if any(len(word.encode()) > MAX_ARGUMENT_LENGTH for word in argv):
            raise Failure(5, "Get invalid input param len.")
        if len(argv) == 2 and argv[1] in ("-h", "--help"):
            console.out(_help(machine))
            return 0
        section, command, args = _command(argv, machine)
        device = _device(argv[2], machine, console) if argv[1] == "-i" else ALL_DEVICES
        call = Call(machine, console, command, device, args)
        if command not in COMMANDS:
            raise _not_modelled(command)
        COMMANDS[command](call)
    except Failure as failure:
        (console.out if failure.on_stdout else console.err)(f"{failure.text}\n")
        if failure.help:
            console.out(_options(section, machine))
        return failure.exit_code
    return 0


def _see_help(exit_code: int, text: str) -> Failure:
    return Failure(exit_code, f"{text}\nEnter [ hccn_tool -h ] for more details.")


def _command(argv: Sequence[str], machine: Machine) -> tuple[str, str, list[str]]:
    """The help section's heading, the command and its arguments."""
    if argv[1] not in ("-i", "-a"):
        raise _see_help(
            1, 'Get invalid major cmd type. The valid major cmd type should be "-a" or "-i".'
        )
    position = 3 if argv[1] == "-i" else 2
    command = argv[position] if len(argv) > position else ""
    section = f"hccn_tool {argv[1]} {'devid' if argv[1] == '-i' else ''} {command}"
    known = command in COMMANDS and argv[1] == "-i"
    if not known and f"\n{section}\n" not in "\n" + _help(machine):
        raise _see_help(3, "Get invalid major cmd.")
    return section, command, list(argv[position + 1 :])


def _device(word: str, machine: Machine, console: Console) -> int:
    """The physical id in `word`, once that device answers."""
    if len(word) > 2 or any(letter not in "0123456789" for letter in word):
        raise _invalid_id()
    device = int(word or "0")
    if device not in machine.devices:
        raise _invalid_id()
    answers = machine.devices[device]
    if answers.number("health.ret", 0):
        tries = answers.number("health.ready_after", HEALTH_TRIES)
        console.sleep(min(tries, HEALTH_TRIES))
        if tries >= HEALTH_TRIES:
            raise Failure(3, "Get device health status failed!")
    if answers.number("health.value", 0) == 0xFFFFFFFF:
        raise Failure(4, "The device is not exist!")
    if answers.number("mainboard.ret", 0):
        raise _failed()
    return device


def _help(machine: Machine) -> str:
    from twin.tools import hccn_help

    return hccn_help.A3 if machine.is_a3 else hccn_help.A2


def _options(section: str, machine: Machine) -> str:
    """What follows an error of arguments: the command's part of the help."""
    _, _, rest = ("\n" + _help(machine)).partition(f"\n{section}\n")
    body, _, _ = rest.partition("\n\n")
    return f"[ {section.replace('  ', ' devid ')} ] needs the following parameters:\n{body}\n\n"


# --- C's idea of numbers and addresses ----------------------------------------------------------


def _unsigned(text: str) -> int:
    """strtoul into 32 bits: leading blanks and a sign are fine, a minus wraps around."""
    digits = text.lstrip(" \t\n\v\f\r")
    negative = digits[:1] == "-"
    digits = digits[1:] if digits[:1] in ("-", "+") else digits
    if not digits or not all(letter in "0123456789" for letter in digits):
        raise _invalid_parameters()
    value = min(int(digits), 2**64 - 1)
    return (-value if negative else value) & 0xFFFFFFFF


def _is_small_number(text: str) -> bool:
    digits = all(letter in "0123456789" for letter in text)
    return (
        len(text) <= 3
        and digits
        and not (len(text) > 1 and text[0] == "0")
        and (int(text or "0") <= 255)
    )


def _is_ipv4(text: str) -> bool:
    parts = text.split(".")
    return len(parts) == 4 and all(
        part.isascii()
        and part.isdigit()
        and len(part) <= 3
        and int(part) <= 255
        and (len(part) == 1 or part[0] != "0")
        for part in parts
    )


def _is_ipv6(text: str) -> bool:
    import _socket  # not socket: that costs more than the whole answer

    try:
        _socket.inet_pton(_socket.AF_INET6, text)
    except OSError:
        return False
    return True


def _compressed(address: str) -> str:
    import _socket

    return _socket.inet_ntop(_socket.AF_INET6, _socket.inet_pton(_socket.AF_INET6, address))


if __name__ == "__main__":
    import sys

    from twin.tools.launch import run

    run("hccn_tool", sys.argv)
