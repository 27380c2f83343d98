"""npu-smi of a twin host: the vendor's command layer over the twin's cards.

A card has an NPU id; its chips (one on A2, two dies on A3) and its controller (Mcu) count from 0
in it. All output goes to stdout, errors too. Answers come as flat words, those of the recordings
of the real tool (tests/data/transcripts/README.md); `values_of` derives them from the fabric:

    cards, chips_per_card, a3, mcu, board_id, driver_version      of the host
    card.ids           ids of the cards there, if not all
    health, temp, power, util, hbm.used, hbm.total, proc.n, proc.<i>.pid, …, err.n, err.<i>
                       of every chip, or of one: <card>.<chip>.health
    <query>.ret        that query fails with this code

Only queries exist here.
"""

from __future__ import annotations

from twin.tools.answers import Answers, condition_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from twin.tools.console import Console
    from twin.tools.state import Layout

VERSION = "8.5.T7.0.B053"

# The tool's own codes; the exit code is their low byte.
INVALID_PARAMETER, INNER, DCMI_FAILED = -9001, -9005, -9019
# The driver interface's
NOT_SUPPORTED, RESOURCE_OCCUPIED = -8255, -8020

HEALTH = ("OK", "Warning", "Alarm", "Critical", "UNKNOWN")


class Stop(Exception):
    """The command ends with this code of the tool (0: well), after what it has printed."""

    def __init__(self, code: int, *, usage: bool = False) -> None:
        super().__init__(code)
        self.code = code
        self.usage = usage


class Failed(Exception):
    """A query of the driver failed with this code of the tool."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Host:
    """The cards as the driver shows them."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._answers = Answers(values)
        self.number = self._answers.number
        self.text = self._answers.text
        self.is_a3 = self.number("a3") == 1
        self.chips = self.number("chips_per_card", 1)
        ids = self.text("card.ids")
        self.cards = (
            list(range(self.number("cards"))) if ids is None else [int(i) for i in ids.split()]
        )
        self.mcu = self.chips if self.number("mcu", 1) else None  # its chip id

    def chip(self, card: int, chip: int) -> Chip:
        return Chip(self, card, chip)

    def check(self, query: str) -> None:
        code = self.number(f"{query}.ret")
        if code:
            raise Failed(_tool_code(code))


class Chip:
    """One chip (or the Mcu) of a card."""

    def __init__(self, host: Host, card: int, chip: int) -> None:
        self.host = host
        self.card = card
        self.id = chip

    @property
    def logic_id(self) -> int:
        return self.host.cards.index(self.card) * self.host.chips + self.id

    @property
    def physical_id(self) -> int:
        return self.card * self.host.chips + self.id

    def number(self, key: str, default: int = 0) -> int:
        host = self.host
        return host.number(f"{self.card}.{self.id}.{key}", host.number(key, default))

    def text(self, key: str) -> str | None:
        own = self.host.text(f"{self.card}.{self.id}.{key}")
        return self.host.text(key) if own is None else own

    def fails(self, query: str) -> int:
        """The driver's code of a query of this chip, 0 if it succeeds."""
        return self.number(f"{query}.ret")

    def check(self, query: str) -> None:
        if self.fails(query):
            raise Failed(_tool_code(self.fails(query)))

    @property
    def health(self) -> int:
        return self.number("health")

    @property
    def temperature(self) -> int:
        """Degrees Celsius; 0 if it cannot be read."""
        return 0 if self.fails("temp") else self.number("temp", 36 + self.card)

    @property
    def power(self) -> float:
        """Watt; 0 if it cannot be read."""
        return 0.0 if self.fails("power") else self.number("power", 928 + self.card) / 10

    @property
    def use(self) -> int:
        """Percent of the AI cores."""
        return 0 if self.fails("util") else self.number("util")

    @property
    def hbm(self) -> tuple[int, int]:
        """Used and total, MiB; zeros if it cannot be read."""
        if self.fails("hbm"):
            return 0, 0
        return self.number("hbm.used", 3445), self.number("hbm.total", 65536)

    @property
    def bus(self) -> str:
        if self.fails("pcie"):
            return "0000:00:00.0"
        recorded = (0xC1, 0x01, 0xC2, 0x02, 0x81, 0x41, 0x82, 0x42)
        if self.host.is_a3:
            bus = (0x9D - 4 * self.card + 2 * self.id) & 0xFF
        else:
            bus = recorded[self.card % len(recorded)]
        return f"0000:{bus:02X}:00.0"

    @property
    def processes(self) -> list[tuple[int, str, int]]:
        """pid, name (empty if it is not visible here), MiB."""
        if self.fails("proc"):
            return []
        found = []
        for n in range(self.number("proc.n")):
            pid = self.number(f"proc.{n}.pid")
            name = self.text(f"proc.{n}.name")
            found.append(
                (pid, _process_name(pid) if name is None else name, self.number(f"proc.{n}.mem"))
            )
        return found


def _tool_code(driver_code: int) -> int:
    """The tool's code for one of the driver's; not supported stays what it is."""
    return NOT_SUPPORTED if driver_code == NOT_SUPPORTED else INNER


def _process_name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return ""


def main(
    argv: Sequence[str],
    values: Mapping[str, Any],
    console: Console,
    *,
    completely_installed: bool = True,
) -> int:
    """Run one call (`argv` with the program's name); returns its exit code (0..255)."""
    try:
        _run(argv[1:], Host(values), console, completely_installed)
    except Stop as stop:
        if stop.usage:
            console.out(_usage())
        return stop.code & 0xFF
    return 0


def _run(args: Sequence[str], host: Host, console: Console, completely_installed: bool) -> None:
    if not args:
        console.out(_main_usage())
        raise Stop(INVALID_PARAMETER)
    if args[0] not in ("-h", "--help", "-v", "info", "set", "clear", "upgrade"):
        console.out("Command or option is not found.\n" + _main_usage())
        raise Stop(INNER)
    failure = host.number("dcmi_init.ret")
    if failure == RESOURCE_OCCUPIED:
        console.out(
            "dcmi model initialized failed, because the device is used."
            f" ret is {RESOURCE_OCCUPIED}\n"
        )
        raise Stop(failure)
    if failure:
        console.out(f"dcmi module initialize failed. ret is {failure}\n")
        raise Stop(failure)
    if host.number("boot.ret") or not host.cards:
        console.out(f"npu get board type failed. ret is {INNER}\n")
        raise Stop(INNER)
    if args[0] in ("-h", "--help"):
        console.out(_main_usage())
    elif args[0] == "-v":
        console.out(f"npu-smi version: {VERSION}\n")
    elif args[0] == "info":
        _info(args[1:], host, console, completely_installed)
    else:
        console.err(f"twin: npu-smi {args[0]} is not modelled\n")
        raise Stop(70)


def _info(args: Sequence[str], host: Host, console: Console, completely_installed: bool) -> None:
    if not args:
        _table(host, console, completely_installed)
        return
    if args[0] in ("watch", "proc"):
        console.err(f"twin: npu-smi info {args[0]} is not modelled\n")
        raise Stop(70)
    kind, card, chip, whole = _options(args, host, console)
    if whole == "-l":
        _list(host, console)
    elif whole == "-m":
        _mapping(host, console)
    elif card is None:
        console.out("\nThis command must input card id.\n\n")
        raise Stop(INVALID_PARAMETER, usage=True)
    else:
        _one(kind, card, chip, host, console)


def _options(
    args: Sequence[str], host: Host, console: Console
) -> tuple[str, int | None, int | None, str]:
    """-t, -i, -c and the one of -l or -m; the tool takes each second word as an option."""
    kind, whole = "", ""
    card: int | None = None
    chip: int | None = None
    once: set[str] = set()
    for position in range(0, len(args), 2):
        option = args[position]
        value = args[position + 1] if position + 1 < len(args) else None
        group = "single" if option in ("-t", "-l", "-m", "-h", "-help") else option
        if group in once and group in ("single", "-i", "-c"):
            raise _wrong(option, console)
        once.add(group)
        if option in ("-h", "--help"):
            raise Stop(0, usage=True)
        if option in ("-l", "-m"):
            whole = whole or option
        elif option == "-t":
            if value not in CHIP_TYPES and value not in _known_types():
                raise _wrong(option, console)
            kind = value or ""
        elif option == "-i":
            card = _id(value)
            if host.number("card_list.ret"):
                console.out("Failed to get card number.\n")
            if card not in host.cards or host.number("card_list.ret"):
                console.out("Invalid card id.\n")
                raise _wrong(option, console)
        elif option == "-c":
            chip = _id(value)
            chips = host.chips + (host.mcu is not None)
            if chip is None or chip >= chips or card is None:
                console.out("Invalid chip id.\n")
                raise _wrong(option, console)
        else:
            raise _wrong(option, console)
    return kind, card, chip, whole


def _wrong(option: str, console: Console) -> Stop:
    console.out(f"Error parameter of {option}\n")
    return Stop(INVALID_PARAMETER, usage=True)


def _id(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


# --- npu-smi info: the table ----------------------------------------------------------------------

NARROW, HEAVY, LIGHT = (
    "+---------------------------+---------------+"
    "-----------------------------------------------------+",
    "+===========================+===============+"
    "=====================================================+",
    "+" + "-" * 97 + "+",
)


def _table(host: Host, console: Console, completely_installed: bool) -> None:
    if host.number("card_list.ret"):
        console.out("Failed to get card number.\n")
        raise Stop(INNER)
    failure = host.number("driver_version.ret")
    if failure:
        console.out(f"Failed to execute npu-smi info. ret is {failure}.\n")
        raise Stop(failure)
    version = host.text("driver_version") or ""
    lines = [
        LIGHT,
        f"| {f'npu-smi {VERSION}':<32} {f'Version: {version}':<62} |",
        NARROW,
        "| NPU   Name                | Health        "
        "| Power(W)    Temp(C)           Hugepages-Usage(page) |",
        f"| {'Chip  Phy-ID' if host.is_a3 else 'Chip':<25} | Bus-Id        "
        "| AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)         |",
        HEAVY,
    ]
    for card in host.cards:
        for number in range(host.chips):
            if number:
                lines.append(LIGHT)
            lines += _rows(host.chip(card, number))
        lines.append(HEAVY)
    lines += [
        NARROW,
        "| NPU     Chip              | Process id    "
        "| Process name             | Process memory(MB)       |",
        HEAVY,
    ]
    for card in host.cards:
        rows = [
            f"| {card:<7} {number:<17} | {pid:<13} | {name:<24} | {memory:<24} |"
            for number in range(host.chips)
            for pid, name, memory in host.chip(card, number).processes
        ]
        lines += rows or [f"| {f'No running processes found in NPU {card}':<95} |"]
        lines.append(HEAVY)
    if not completely_installed and not host.number("docker"):
        lines.append(
            "[WARNING]The driver package may not be completely installed, which may cause function"
            " abnormal. Please reinstall it."
        )
    console.out("".join(f"{line}\n" for line in lines))


def _rows(chip: Chip) -> list[str]:
    """The two rows of a chip. A query that fails leaves zeros or nothing, and health OK."""
    host = chip.host
    name = "" if chip.fails("chip_info") else "Ascend910" if host.is_a3 else "910B3"
    power = "-" if chip.id else f"{chip.power:.1f}"
    health = 0 if chip.fails("health") else chip.health
    used, total = chip.hbm
    ids = f"{chip.id:<5} {chip.physical_id}" if host.is_a3 else f"{chip.id}"
    second = (
        f"| {ids:<25} | {chip.bus:<13} "
        f"| {chip.use:<11} {'0    / 0':<17} {f'{used:<6}/ {total}':<21} |"
    )
    if health >= len(HEALTH):
        return [second]  # the tool has no word for it and skips the row
    first = (
        f"| {chip.card:<5} {name:<19} | {HEALTH[health]:<13} "
        f"| {power:<11} {chip.temperature:<17} {'0     / 0':<21} |"
    )
    return [first, second]


# --- npu-smi info -l, -m --------------------------------------------------------------------------


def _field(name: str, value: object) -> str:
    return f"\t{name:<30} : {value}\n"


def _list(host: Host, console: Console) -> None:
    if host.number("card_list.ret"):
        console.out("Failed to get card number.\n")
        raise Stop(INNER)
    console.out(_field("Total Count", len(host.cards)) + "\n")
    is_server = host.number("board_id", 0x30) >= 0x10
    for card in host.cards:
        console.out(_field("NPU ID", card))
        if not is_server:
            console.out(_field("Product Name", "NA") + _field("Serial Number", "NA"))
        console.out(_field("Chip Count", host.chips) + "\n")


def _mapping(host: Host, console: Console) -> None:
    if host.number("card_list.ret"):
        console.out("Failed to get card number.\n")
        raise Stop(DCMI_FAILED)
    columns = ["NPU ID", "Chip ID", "Chip Logic ID", "Chip Name"]
    if host.is_a3:
        columns.insert(3, "Chip Phy-ID")
    console.out(_columns(columns) + "\n")
    for card in host.cards:
        for number in range(host.chips):
            chip = host.chip(card, number)
            ids: list[object] = [card, number, chip.logic_id]
            ids += [chip.physical_id] if host.is_a3 else []
            name = "Ascend910" if host.is_a3 else "Ascend 910B3"
            console.out(f"{_columns(ids)} {name}\n")  # the name alone is not padded
        if host.mcu is not None:
            ids = [card, host.mcu, *["-"] * (2 if host.is_a3 else 1), "Mcu"]
            console.out(_columns(ids) + "\n")


def _columns(cells: Sequence[object]) -> str:
    return "\t" + " ".join(f"{cell!s:<30}" for cell in cells)


# --- npu-smi info -t ------------------------------------------------------------------------------


def _one(kind: str, card: int, chip: int | None, host: Host, console: Console) -> None:
    """One type of information of a card, or of a chip of it."""
    what = "info" if chip is None else "result"
    try:
        if chip is not None:
            if kind not in CHIP_TYPES:
                if kind == "common" or not kind:
                    console.out(f'Error parameter in querying chip info, type: "{kind}".\n')
                    raise Stop(INVALID_PARAMETER, usage=True)
                raise _not_modelled(kind, console)
            CHIP_TYPES[kind](host.chip(card, chip), console)
        elif kind == "common":
            _common(host, card, console)
        elif kind == "board":
            _board_of_card(host, card, console)
        elif kind == "spod-info":
            console.out("Must input parameter of chip id.\n")
            raise Stop(INVALID_PARAMETER, usage=True)
        elif kind in CARD_TYPES:
            _each_chip(kind, host, card, console)
        elif not kind:
            raise Failed(NOT_SUPPORTED)
        else:
            raise _not_modelled(kind, console)
    except Failed as failed:
        if failed.code == NOT_SUPPORTED:
            console.out(f"This device does not support querying {kind}.\n")
            return
        console.out(f'Failed to query "{kind}" {what}.\n')
        raise Stop(failed.code) from None


def _not_modelled(kind: str, console: Console) -> Stop:
    console.err(f"twin: npu-smi info -t {kind} is not modelled\n")
    return Stop(70)


def _each_chip(kind: str, host: Host, card: int, console: Console) -> None:
    show = CARD_TYPES[kind]
    console.out(_field("NPU ID", card) + _field("Chip Count", host.chips) + "\n")
    chips: list[tuple[int, str]] = [
        (number, _field("Chip ID", number)) for number in range(host.chips)
    ]
    if host.mcu is not None and kind == "health":
        chips.append((host.mcu, _field("Chip Name", "MCU")))
    for number, name in chips:
        try:
            show(host.chip(card, number), console)
        except Failed as failed:
            if failed.code == NOT_SUPPORTED:
                continue
            console.out(f"{name}Failed to query npu chip: {number} info.\n\n")
            raise
        console.out(name + "\n")


def _health(chip: Chip, console: Console) -> None:
    chip.check("health")
    if chip.health >= len(HEALTH):
        raise Stop(INVALID_PARAMETER, usage=True)
    codes = [chip.number(f"err.{n}") for n in range(chip.number("err.n"))]
    console.out(_field("Health Status", HEALTH[chip.health]))
    console.out(_field("Error Code", " ".join(f"{code:X}" for code in codes) or "NA"))
    if not codes:
        console.out(_field("Error Information", "NA"))
    for n, code in enumerate(codes):
        text = chip.host.text(f"errstr.{code:X}") or "simulated error text"
        if chip.host.number("errstr.ret"):
            text = str(code)
        console.out(("\n" if n else "") + _field("" if n else "Error Information", text))


def _health_of_card(chip: Chip, console: Console) -> None:
    chip.check("health")
    if chip.health >= len(HEALTH):
        raise Failed(INNER)
    console.out(_field("Health", HEALTH[chip.health]))


def _usages(chip: Chip, console: Console) -> None:
    if chip.id == chip.host.mcu:
        raise Failed(NOT_SUPPORTED)
    if chip.fails("multi_util"):
        raise Failed(DCMI_FAILED)
    used, total = chip.hbm
    use = chip.use
    share = used * 100 // total if total else 0
    for name, value in (
        ("DDR Capacity(MB)", 0),
        ("DDR Usage Rate(%)", 0),
        ("DDR Hugepages Total(page)", 0),
        ("DDR Hugepages Usage Rate(%)", 0),
        ("HBM Capacity(MB)", total),
        ("HBM Usage Rate(%)", chip.number("util.6", use) if chip.host.is_a3 else share),
        ("Aicore Usage Rate(%)", use),
        ("Aivector Usage Rate(%)", chip.number("util.vec")),
        ("Aicpu Usage Rate(%)", chip.number("util.3", use)),
        ("Ctrlcpu Usage Rate(%)", chip.number("util.4", use)),
        ("DDR Bandwidth Usage Rate(%)", 0),
        ("HBM Bandwidth Usage Rate(%)", chip.number("hbm.bw")),
        ("NPU Utilization(%)", chip.number("util.npu")),
        ("Aicube Usage Rate(%)", chip.number("util.cube")),
    ):
        console.out(_field(name, value))


def _power(chip: Chip, console: Console) -> None:
    chip.check("power")
    name = "Power Dissipation(W)" if chip.id == chip.host.mcu else "NPU Real-time Power(W)"
    console.out(_field(name, f"{chip.power:.1f}"))


def _temperature(chip: Chip, console: Console) -> None:
    if chip.id == chip.host.mcu:
        raise _not_modelled("temp of the Mcu", console)  # sends its own text
    chip.check("temp")
    console.out(_field("NPU Temperature (C)", chip.temperature))


def _memory(chip: Chip, console: Console) -> None:
    raise Failed(NOT_SUPPORTED)


def _processes(chip: Chip, console: Console) -> None:
    chip.check("proc")
    if not chip.processes:
        console.out("\tNo process in device.\n")
    for pid, name, memory in chip.processes:
        console.out(f"\tProcess id:{pid:<7} Process name:{name:<17} Process memory(MB):{memory}\n")


def _spod(chip: Chip, console: Console) -> None:
    host = chip.host
    if not host.is_a3 or chip.id == host.mcu:
        raise Failed(NOT_SUPPORTED)
    chip.check("spod")
    server = chip.number("spod.server", 4)
    derived = server << 22 | chip.card << 18 | chip.id << 16 | chip.card * 2 + chip.id
    for name, value in (
        ("SDID", chip.number("spod.sdid", derived)),
        ("Super Pod Size", chip.number("spod.size", 384)),
        ("Super Pod ID", chip.number("spod.id")),
        ("Server Index", server),
    ):
        console.out(_field(name, value & 0xFFFFFFFF))


def _board(chip: Chip, console: Console) -> None:
    zeros = " ".join(["0" * 8] * 5)
    console.out(_field("NPU ID", chip.card))
    if chip.host.is_a3:
        console.out(_field("NPU Name", "") + _field("Chip ID", chip.id))
    else:
        console.out(_field("Chip ID", chip.id) + _field("Chip Type", ""))
    for name, value in (
        ("Chip Name", ""),
        ("Chip Version", ""),
        ("Board ID", f"0x{chip.host.number('board_id', 0x30):02x}"),
        ("PCB ID", "NA"),
        ("BOM ID", 0),
        ("VDie ID", zeros),
        ("NDie ID", zeros),
        ("Chip Position ID", 0),
        ("PCIe Bus Info", chip.bus),
        ("Firmware Version", chip.text("firmware") or "NA"),
    ):
        console.out(_field(name, value))


def _board_of_card(host: Host, card: int, console: Console) -> None:
    if host.is_a3:
        raise Failed(NOT_SUPPORTED)
    for name, value in (
        ("NPU ID", card),
        ("Product Name", "NA"),
        ("Model", ""),
        ("Manufacturer", ""),
        ("Serial Number", "NA"),
        ("Software Version", host.text("driver_version") or "NA"),
        ("Firmware Version", host.text("firmware") or "NA"),
        ("Compatibility", host.text("compatibility") or "NOT SUPPORT"),
        ("Board ID", f"0x{host.number('board_id', 0x30):02x}"),
        ("PCB ID", "NA"),
        ("BOM ID", "NA"),
        ("PCIe Bus Info", host.chip(card, 0).bus),
        ("Slot ID", card),
        ("Class ID", "NA"),
        ("PCI Vendor ID", "0x19E5"),
        ("PCI Device ID", "0xD802"),
        ("Subsystem Vendor ID", "0x0000"),
        ("Subsystem Device ID", "0x0000"),
        ("Chip Count", host.chips),
    ):
        console.out(_field(name, value))


def _common(host: Host, card: int, console: Console) -> None:
    console.out(_field("NPU ID", card) + _field("Chip Count", host.chips) + "\n")
    for number in range(host.chips):
        chip = host.chip(card, number)
        for name, value in (
            ("Chip ID", number),
            ("Memory Usage Rate(%)", 0),
            ("HBM Usage Rate(%)", chip.number("util.6", chip.use)),
            ("Aicore Usage Rate(%)", chip.use),
            ("Aicore Freq(MHZ)", 1800),
            ("Aicore curFreq(MHZ)", 800),
            ("Aicore Count", 24 if host.is_a3 else 20),
            ("Temperature(C)", chip.temperature),
            ("NPU Real-time Power(W)", f"{chip.power:.1f}"),
        ):
            console.out(_field(name, value))
        console.out("\n")
    if host.mcu is not None:
        console.out(_field("Chip Name", "mcu"))
        console.out(_field("Temperature(C)", host.chip(card, host.mcu).temperature))


CHIP_TYPES: dict[str, Callable[[Chip, Console], None]] = {
    "board": _board,
    "health": _health,
    "memory": _memory,
    "power": _power,
    "proc-mem": _processes,
    "spod-info": _spod,
    "temp": _temperature,
    "usages": _usages,
}
CARD_TYPES: dict[str, Callable[[Chip, Console], None]] = {
    "health": _health_of_card,
    "power": _power,
    "proc-mem": _processes,
    "temp": _temperature,
    "usages": _usages,
}


def _usage() -> str:
    from twin.tools import npu_smi_help

    return npu_smi_help.INFO


def _known_types() -> list[str]:
    """Every type that the help names."""
    _, _, rest = _usage().partition("type: ")
    names, _, _ = rest.partition(".")
    return names.replace(",", " ").split()


def _main_usage() -> str:
    from twin.tools import npu_smi_help

    return npu_smi_help.MAIN


# --- from the fabric ------------------------------------------------------------------------------

QUERIES = ("health", "power", "temp", "hbm", "chip_info", "util", "multi_util", "pcie", "proc")


def values_of(layout: Layout, host: str, now: float) -> dict[str, Any]:
    """The answers of the host of that name. KeyError if there is none."""
    its = layout["hosts"][host]
    is_a3 = layout["product"] == "A3"
    chips = 2 if is_a3 else 1
    driver = its["driver"]
    values: dict[str, Any] = {
        "a3": int(is_a3),
        "chips_per_card": chips,
        "board_id": 0xB0 if is_a3 else 0x30,
        "driver_version": driver["version"],
        "firmware": driver["firmware"],
        "compatibility": "OK",
        "card.ids": " ".join(str(c) for c in sorted({int(d) // chips for d in its["devices"]})),
    }
    if driver["state"] == "not-loaded":
        values["dcmi_init.ret"] = -8005
    elif driver["state"] == "held":
        values["dcmi_init.ret"] = RESOURCE_OCCUPIED
    for number, device in its["devices"].items():
        card, chip = divmod(int(number), chips)
        answers = _values_of_device(device, its["superpod"], now)
        values |= {f"{card}.{chip}.{key}": value for key, value in answers.items()}
        values |= {f"errstr.{code}": text for code, text in device["npu"]["errors"].items()}
    return values


def _values_of_device(
    device: Mapping[str, Any], superpod: Mapping[str, int] | None, now: float
) -> dict[str, Any]:
    npu = device["npu"]
    values: dict[str, Any] = {
        "health": ("ok", "warning", "alarm", "critical", "unknown").index(npu["health"]),
        "temp": npu["temperature"],
        "power": round(npu["power"] * 10),
        "util": npu["aicore"],
        "util.npu": npu["aicore"],
        "util.cube": npu["aicore"],
        "util.vec": npu["aicore"],
        "util.6": npu["hbm_used"] * 100 // npu["hbm_total"],
        "hbm.used": npu["hbm_used"],
        "hbm.total": npu["hbm_total"],
        "proc.n": len(npu["processes"]),
        "err.n": len(npu["errors"]),
    }
    for n, code in enumerate(npu["errors"]):
        values[f"err.{n}"] = int(code, 16)
    for n, process in enumerate(npu["processes"]):
        values |= {f"proc.{n}.pid": process["pid"], f"proc.{n}.mem": process["memory"]}
        values[f"proc.{n}.name"] = process["name"]
    if superpod is None:
        values["spod.ret"] = NOT_SUPPORTED
    else:
        values |= {f"spod.{key}": superpod[key] for key in ("id", "size", "server")}
        values["spod.sdid"] = device["sdid"]
    if condition_of(device, now) in ("gone", "not-ready"):
        values |= {f"{query}.ret": -8005 for query in (*QUERIES, "spod")}
    return values


if __name__ == "__main__":
    import sys

    from twin.tools.launch import run

    run("npu-smi", sys.argv)
