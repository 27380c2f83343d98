"""Parsers of `npu-smi info …` on A2 and A3: output of one command -> typed reading.

npu-smi writes everything to stdout and draws tables whose widths changed from version
to version: cells are cut at `|`, never by offset. It also prints `OK` for a chip whose
health query failed, so the table's health is shown and never believed alone;
`-t health` per chip is what tells a failed query.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from pd_validate.facts.reading import Output, Reading, Reason, failed, first_line, measured, refusal

T = TypeVar("T")

_REFUSALS: tuple[tuple[str, Reason], ...] = (
    ("because the device is used. ret is -8020", Reason.HELD),
    ("dcmi module initialize failed", Reason.DRIVER),
    ("dcmi model initialized failed", Reason.DRIVER),
    ("npu get board type failed", Reason.DRIVER),
    ("Failed to execute npu-smi info", Reason.DRIVER),
    ("Failed to get card number", Reason.DRIVER),
    ("There is no NPU card on this server", Reason.NO_DEVICE),
    ("Invalid card id.", Reason.NO_DEVICE),
    ("Invalid chip id.", Reason.NO_DEVICE),
    ("This device does not support", Reason.UNSUPPORTED),
    ("Permission denied", Reason.PERMISSION),
    ("permission denied", Reason.PERMISSION),
    ("Error parameter", Reason.REFUSED),
    ("Must input parameter", Reason.REFUSED),
    ("This command must input", Reason.REFUSED),
    ("Failed to query", Reason.FAILED),
)


def _parse(output: Output, read: Callable[[str], T | None]) -> Reading[T]:
    refused = refusal(output, _REFUSALS)
    if refused is not None:
        return refused
    if output.text.lstrip().startswith("Usage:"):
        # Seen for `-t health` when the device reports a value outside the known ones.
        return failed(Reason.FAILED, output, "npu-smi printed its usage page instead of an answer")
    value = read(output.text)
    if value is not None:
        return measured(value, output)
    if not output.text.strip():
        return failed(Reason.FAILED, output, f"no output, exit {output.exit_code}")
    return failed(Reason.UNPARSABLE, output, f"not understood: {first_line(output.text)}")


@dataclass(frozen=True)
class Chip:
    """One line of `npu-smi info -m`: which NPU die answers to which numbers.

    `physical` is what `hccn_tool -i` and /dev/davinci<N> count by.
    """

    card: int
    chip: int
    logic: int
    physical: int
    name: str


def parse_mapping(output: Output) -> Reading[tuple[Chip, ...]]:
    """`npu-smi info -m`. Rows of the management controller (logic id `-`) are left out.

    A2 prints no physical id; a card has one NPU there, and its number is the card's.
    """

    def read(text: str) -> tuple[Chip, ...] | None:
        if "Chip Logic ID" not in text:
            return None
        has_physical = "Chip Phy-ID" in text
        count = 4 if has_physical else 3
        chips = []
        for line in text.splitlines():
            cells = line.split(maxsplit=count)
            if len(cells) <= count or not all(cell.isdigit() for cell in cells[:count]):
                continue
            card, chip, logic = (int(cell) for cell in cells[:3])
            physical = int(cells[3]) if has_physical else card
            chips.append(Chip(card, chip, logic, physical, cells[count].strip()))
        return tuple(chips)

    return _parse(output, read)


def parse_list(output: Output) -> Reading[dict[int, int]]:
    """`npu-smi info -l`: number of NPU dies per card. Totals count cards on some drivers."""

    def read(text: str) -> dict[int, int] | None:
        if not re.search(r"^\s*Total Count\s*:", text, re.M):
            return None
        pairs = re.findall(
            r"^\s*NPU ID\s*:\s*(\d+)\s*$(?:(?!^\s*NPU ID).)*?^\s*Chip Count\s*:\s*(\d+)",
            text,
            re.M | re.S,
        )
        return {int(card): int(count) for card, count in pairs}

    return _parse(output, read)


class HealthWord(StrEnum):
    OK = "OK"
    WARNING = "Warning"
    ALARM = "Alarm"
    CRITICAL = "Critical"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True)
class Health:
    """`npu-smi info -t health -i <card> -c <chip>`."""

    status: HealthWord
    codes: tuple[str, ...] = ()  # hexadecimal error codes
    texts: tuple[str, ...] = ()


def parse_health(output: Output) -> Reading[Health]:
    """Of one chip (`Health Status`), or of a card (`Health`) when no chip was asked for."""

    def read(text: str) -> Health | None:
        status = re.search(r"^\s*Health(?: Status)?\s*:\s*(\w+)\s*$", text, re.M)
        if status is None or status[1] not in set(HealthWord):
            return None
        code = re.search(r"^\s*Error Code\s*:[ \t]*(.*)$", text, re.M)
        about = re.search(r"^\s*Error Information\s*:(.*)\Z", text, re.M | re.S)
        codes = code[1].split() if code else []
        # Further texts stand on lines whose key is blank.
        lines = about[1].splitlines() if about else []
        texts = [line.strip().lstrip(":").strip() for line in lines]
        return Health(
            HealthWord(status[1]),
            tuple(item for item in codes if item != "NA"),
            tuple(item for item in texts if item and item != "NA"),
        )

    return _parse(output, read)


@dataclass(frozen=True)
class SuperPod:
    """`npu-smi info -t spod-info` of A3. `sdid` numbers the die inside the super pod."""

    sdid: int
    size: int
    pod: int
    server: int

    @property
    def inside(self) -> bool:
        """False for the values that a host outside a super pod reports: server ids end at 47."""
        return self.server < 48 and self.sdid != 0xFFFFFFFF

    def expected_sdid(self, device: int) -> int:
        """server << 22 | chip << 18 | die << 16 | device with chip * 2 + die == device."""
        return self.server << 22 | device // 2 << 18 | device % 2 << 16 | device


def parse_spod(output: Output) -> Reading[SuperPod]:
    def read(text: str) -> SuperPod | None:
        values = [
            re.search(rf"^\s*{key}\s*:\s*(\d+)\s*$", text, re.M)
            for key in ("SDID", "Super Pod Size", "Super Pod ID", "Server Index")
        ]
        numbers = [int(match[1]) for match in values if match is not None]
        return SuperPod(*numbers) if len(numbers) == len(values) else None

    return _parse(output, read)


@dataclass(frozen=True)
class Row:
    """One die in the table of `npu-smi info`. None or blank where the tool printed nothing.

    `card` is None if the row that carries it is missing, which happens when the device
    reports a health value that the tool does not know.
    """

    card: int | None
    chip: int
    physical: int | None  # A3 only
    name: str
    health: str
    bus: str
    hbm_used: int  # MiB
    hbm_total: int

    @property
    def readable(self) -> bool:
        """False if the queries behind this row failed, in spite of its `OK`."""
        return bool(self.name) and self.hbm_total > 0 and self.bus != "0000:00:00.0"


@dataclass(frozen=True)
class Process:
    """One process on an NPU. A name is blank if the process is not visible here (container)."""

    card: int
    chip: int
    pid: int
    name: str
    memory: int  # MiB


@dataclass(frozen=True)
class Table:
    """The table of `npu-smi info`."""

    tool: str
    driver: str
    rows: tuple[Row, ...]
    processes: tuple[Process, ...]

    def row(self, chip: Chip) -> Row | None:
        """The row of a die: by physical id where the table has it, else by card and chip."""
        for row in self.rows:
            if row.physical is not None:
                if row.physical == chip.physical:
                    return row
            elif (row.card, row.chip) == (chip.card, chip.chip):
                return row
        return None


def parse_info(output: Output) -> Reading[Table]:
    def read(text: str) -> Table | None:
        head = re.search(r"^\|\s*npu-smi\s+(\S+)\s+Version:\s*(\S+)", text, re.M)
        if head is None:
            return None
        upper, _, lower = text.partition("Process id")
        return Table(head[1], head[2], tuple(_rows(upper)), tuple(_processes(lower)))

    return _parse(output, read)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _rows(text: str) -> list[Row]:
    """A die is two lines: card, name and health, then chip, bus and memory."""
    rows: list[Row] = []
    upper: tuple[int, str, str] | None = None
    for line in text.splitlines():
        if line.startswith("+"):
            upper = None if "=" in line else upper
            continue
        cells = _cells(line)
        if not line.startswith("|") or len(cells) != 3 or not cells[0][:1].isdigit():
            continue
        if _BUS.fullmatch(cells[1]):
            numbers = [int(number) for number in cells[0].split()]
            # Memory-Usage and HBM-Usage; on NPUs with HBM the first is 0 / 0.
            usage = re.findall(r"(\d+)\s*/\s*(\d+)", cells[2])
            used, total = (int(part) for part in usage[-1]) if usage else (0, 0)
            card, name, health = upper or (None, "", "")
            physical = numbers[1] if len(numbers) > 1 else None
            rows.append(Row(card, numbers[0], physical, name, health, cells[1], used, total))
            upper = None
        else:
            number, _, name = cells[0].partition(" ")
            upper = (int(number), name.strip(), cells[1])
    return rows


_BUS = re.compile(r"[0-9A-Fa-f]{4,}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f]")


def _processes(text: str) -> list[Process]:
    found = []
    for line in text.splitlines():
        cells = _cells(line)
        numbers = cells[0].split()
        if len(cells) != 4 or len(numbers) != 2 or not cells[1].isdigit():
            continue
        memory = int(cells[3]) if cells[3].isdigit() else 0
        found.append(Process(int(numbers[0]), int(numbers[1]), int(cells[1]), cells[2], memory))
    return found


def parse_fields(output: Output) -> Reading[tuple[tuple[str, str], ...]]:
    """`key : value` lines of -t board, usages, common and others; keys repeat per chip."""

    def read(text: str) -> tuple[tuple[str, str], ...] | None:
        pairs = re.findall(r"^\s*([A-Za-z][^:\n]*?)\s*:[ \t]*(.*?)\s*$", text, re.M)
        return tuple(pairs) or None

    return _parse(output, read)


def firmware_version(output: Output) -> str | None:
    """`npu-smi info -t board -i <card>`; None if the card does not tell it."""
    version = dict(parse_fields(output).value or ()).get("Firmware Version")
    return None if version == "NA" else version
