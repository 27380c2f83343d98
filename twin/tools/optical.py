"""What `hccn_tool -optical -g` prints of an optical module, in its old and its v2 form."""

from __future__ import annotations

import math

from twin.tools.answers import Answers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

TEMPERATURE_NOT_SUPPORTED, TEMPERATURE_FAILED = 0x7EFF, 0x7FFF
HIGH_POWER_ENABLED = 5
HALF_LANES = 0x42  # the module's two lanes a port instead of four
LANES = range(4)

IDENTIFIERS = {
    0x00: "UNKNOWN",
    0x01: "GBIC",
    0x03: "SFP_SFPPLUS",
    0x04: "PIN_XBI",
    0x05: "XENPAK",
    0x06: "XFP",
    0x07: "XFF",
    0x08: "XFP_E",
    0x09: "XPAK",
    0x0A: "X2",
    0x0B: "DWDM_SFP_SFPPLUS",
    0x0C: "QSFP",
    0x0D: "QSFPPLUS",
    0x0E: "CXP",
    0x11: "QSFP28 or later",
    0x12: "CXP2",
    0x18: "QSFP_DD",
    0x1E: "QSFP+ or later",
}

# Units as the module counts: 100 uV, 0.1 uW, 2 uA.
VCC, VCC_HIGH, VCC_LOW = 32629, 34650, 31350
TX_POWER, RX_POWER, BIAS = 11035, 10189, 3968
TX_HIGH, TX_LOW, RX_HIGH, RX_LOW = 35481, 2818, 35481, 1445
TEMP_HIGH, TEMP_LOW = 70, 0
HOST_SNR, MEDIA_SNR = 22.5, 23.12109375  # dB


class _Module:
    """The module's registers as the device reports them."""

    def __init__(self, answers: Answers) -> None:
        self.present = answers.number("opt.present", 1) == 1
        self.temperature = answers.number("opt.temp", 47)
        self.high_power = answers.number("opt.hp", HIGH_POWER_ENABLED) == HIGH_POWER_ENABLED
        self.vcc = answers.number("opt.vcc", VCC)
        self.tx_power = answers.number("opt.txmw", TX_POWER)
        self.rx_power = answers.number("opt.rxmw", RX_POWER)
        self.half_lanes = answers.number("opt.dr4", 0) == HALF_LANES
        self.tx_los = answers.number("opt.txlos", 0)
        self.rx_los = answers.number("opt.rxlos", 0)
        self.tx_lol = answers.number("opt.txlol", 0)
        self.rx_lol = answers.number("opt.rxlol", 0)

    @property
    def readable(self) -> bool:
        return self.present and self.temperature != TEMPERATURE_NOT_SUPPORTED and self.vcc != 0


def plain(answers: Answers, *, rear: bool) -> Iterator[str]:
    """The lines of `-optical -g`. `rear`: the port uses lanes 4..7, which read the same here."""
    module = _Module(answers)
    yield "optical info:"
    yield f"present              : {'present' if module.present else 'not present'}"
    yield f"temperature          : {_temperature(module)}"
    yield f"high power enable reg: {'enabled' if module.high_power else 'not enabled'}"
    yield f"vendor name          : {answers.text('opt.vendor') or 'Hisense'}"
    yield f"vendor part number   : {answers.text('opt.pn') or 'LMQ8611-PC+'}"
    yield f"vendor serial number : {answers.text('opt.sn') or 'V8BD6H25033'}"
    yield "vendor org unique id : 0xac 0x4a 0x0"
    yield f"xsfp identifier      : {IDENTIFIERS.get(answers.number('opt.id', 0x1E), 'NA')}"
    yield f"xsfp wave length     : {answers.number('opt.wave', 850)} nm"
    yield f"manufact date code   : {answers.text('opt.date') or '2023.6.18'}"
    if not module.readable:
        for name in ("Vcc", "Tx Power", "Rx Power", *THRESHOLDS):
            yield f"{name:21}: NA"
        return
    yield f"Vcc                  : {module.vcc / 10:.2f} mV"
    for lane in LANES:
        unused = module.half_lanes and lane > 1
        for name, power in (("Tx", module.tx_power), ("Rx", module.rx_power)):
            reading = "NA" if unused else f"{power / 10000:.4f} mW"
            yield f"{name} Power{lane}            : {reading}"
    for name, threshold in THRESHOLDS.items():
        yield f"{name:21}: {threshold}"
    for lane in LANES:
        unused = module.half_lanes and lane > 1
        yield f"Tx Bias{lane}             : {'NA' if unused else f'{BIAS / 500:.4f} mA'}"
    yield f"Tx Los Flag          : 0x{module.tx_los:x}"
    yield f"Rx Los Flag          : 0x{module.rx_los:x}"
    yield f"Tx LoL Flag          : 0x{module.tx_lol:x}"
    yield f"Rx LoL Flag          : 0x{module.rx_lol:x}"
    for lane in LANES:
        yield f"Host SNR Lane{lane}       : {HOST_SNR:.4f} dB"
    for lane in LANES:
        unused = module.half_lanes and lane > 1
        yield f"Media SNR Lane{lane}      : {'NA' if unused else f'{MEDIA_SNR:.4f} dB'}"
    yield "Physical Code        : NA"
    yield "vendor rev           : NA"
    yield f"Specification compliance: {' '.join(['0x00'] * 8)}"


THRESHOLDS = {
    "Vcc High Thres": f"{VCC_HIGH / 10:.2f} mV",
    "Vcc Low Thres": f"{VCC_LOW / 10:.2f} mV",
    "Temp High Thres": f"{TEMP_HIGH} C",
    "Temp Low Thres": f"{TEMP_LOW} C",
    "TxPower High Thres": f"{TX_HIGH / 10000:.4f} mW",
    "TxPower Low Thres": f"{TX_LOW / 10000:.4f} mW",
    "RxPower High Thres": f"{RX_HIGH / 10000:.4f} mW",
    "RxPower Low Thres": f"{RX_LOW / 10000:.4f} mW",
}


def _temperature(module: _Module) -> str:
    if module.temperature == TEMPERATURE_NOT_SUPPORTED:
        return "not supported"
    if not module.present:
        return "NA"
    if module.temperature == TEMPERATURE_FAILED:
        return "get failed"
    return f"{module.temperature} C"


def v2(answers: Answers, *, rear: bool) -> Iterator[str]:
    """The lines of `-optical -g v2`. `rear`: the flags shown are those of lanes 4..7."""
    module = _Module(answers)
    double, single = "=" * 92, "-" * 92
    yield from (double, "State-flag Diagnostic Monitoring:", single)
    yield from ("Items            Status", single)
    for name, flags, always_four in (
        ("TxFault Flag", 0, False),
        ("RxLos Flag  ", module.rx_los, False),
        ("TxLos Flag  ", module.tx_los, True),
        ("TxLol Flag  ", module.tx_lol, True),
        ("RxLol Flag  ", module.rx_lol, False),
    ):
        halved = module.half_lanes and not always_four
        first = (2 if halved else 4) if rear else 0
        cells = ["Abnormal " if flags >> first + lane & 1 else "Normal   " for lane in LANES]
        if halved:
            cells[2:] = ["-", "-"]
        if not module.readable:
            cells = ["-"] * 4
        yield f"{name}     " + "| ".join(f"{cell:10}" for cell in cells)
    yield f"High power enable reg: {'enabled' if module.high_power else 'not enabled'}"
    yield from (single, double, "Digital Diagnostic Monitoring:", single)
    yield "Items               Value       HighAlarm   HighWarn    LowAlarm    LowWarn     Status"

    shows_temperature = module.present and module.temperature not in (
        TEMPERATURE_NOT_SUPPORTED,
        TEMPERATURE_FAILED,
    )
    temperature = (module.temperature, 0, TEMP_HIGH, 0, TEMP_LOW) if shows_temperature else ()
    yield _row("Temperature(C)", temperature)
    yield _row("Voltage(V)", _scaled(module, 10000, (module.vcc, 0, VCC_HIGH, 0, VCC_LOW)))
    for lane in LANES:
        unused = module.half_lanes and lane > 1
        yield _row(
            f"Bias lane{lane}(mA)", () if unused else _scaled(module, 500, (BIAS, 0, 0, 0, 0))
        )
    for name, power, high, low in (
        ("Rx", module.rx_power, RX_HIGH, RX_LOW),
        ("Tx", module.tx_power, TX_HIGH, TX_LOW),
    ):
        for lane in LANES:
            unused = module.half_lanes and lane > 1
            milliwatts = () if unused else _scaled(module, 10000, (power, 0, high, 0, low))
            yield _row(f"{name}Power Lane{lane}(dBm)", tuple(_dbm(mw) for mw in milliwatts))
    for lane in LANES:
        unused = module.half_lanes and lane > 1
        yield _row(f"MediaSNR Lane{lane}(dB)", () if unused else (MEDIA_SNR,))
    for lane in LANES:
        yield _row(f"HostSNR Lane{lane}(dB)", (HOST_SNR,))


def _scaled(module: _Module, divisor: int, values: tuple[int, ...]) -> tuple[float, ...]:
    return tuple(value / divisor for value in values) if module.readable else ()


def _row(name: str, values: tuple[float, ...]) -> str:
    cells = [f"{value:.2f}" for value in values]
    cells += ["-"] * (6 - len(cells))
    return f"{name:20}" + "".join(f"{cell:12}" for cell in cells)


def _dbm(milliwatts: float) -> float:
    return 10 * math.log10(milliwatts) if milliwatts > 0 else -math.inf
