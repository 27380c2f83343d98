"""Parsers of the hccn_tool queries that no check rests on: counters, tables, small settings.

They are what an engineer looks at next, so they are typed as well; what decides a
verdict is in `hccn.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pd_validate.facts.hccn import parse_with
from pd_validate.facts.reading import Output, Reading


def parse_stat(output: Output) -> Reading[dict[str, int]]:
    """`-stat -g` and `-hw_stats -g`: cumulative counters. Names differ by version."""

    def read(text: str) -> dict[str, int] | None:
        body = re.sub(r"^\[dev(?:id|ice) \d+\]", "", text, flags=re.M)
        pairs = re.findall(r"^\s*(\w+)\s*:\s*(\d+)\s*$", body, re.M)
        return {name: int(value) for name, value in pairs} or None

    return parse_with(output, read)


def parse_fields(output: Output) -> Reading[dict[str, str]]:
    """`key: value` lines, as of -version, -mac, -process, -cfg status, -status, -bandwidth."""

    def read(text: str) -> dict[str, str] | None:
        pairs = re.findall(r"^\s*([A-Za-z][\w .-]*?)\s*:[ \t]*(\S.*?)\s*$", text, re.M)
        return dict(pairs) or None

    return parse_with(output, read)


@dataclass(frozen=True)
class Route:
    """A line of the device's routing table; `gateway` None for its own network."""

    destination: str
    gateway: str | None
    mask: str
    interface: str


def parse_route(output: Output) -> Reading[tuple[Route, ...]]:
    """`-route -g`."""

    def read(text: str) -> tuple[Route, ...] | None:
        if "Routing table:" not in text:
            return None
        rows = [line.split() for line in text.splitlines()]
        return tuple(
            Route(row[0], None if row[1] == "*" else row[1], row[2], row[-1])
            for row in rows
            if len(row) == 8 and row[0] != "Destination"
        )

    return parse_with(output, read)


def parse_arp(output: Output) -> Reading[dict[str, str]]:
    """`-arp -g`: MAC by address. Also without the head line, as people paste it."""

    def read(text: str) -> dict[str, str] | None:
        found = dict(re.findall(r"\(([^)\s]+)\) at ([0-9a-fA-F:]{17})", text))
        return found if found or "arp table:" in text else None

    return parse_with(output, read)


def parse_pfc(output: Output) -> Reading[tuple[bool, ...]]:
    """`-pfc -g`: whether each priority from 0 to 7 is paused by flow control."""

    def read(text: str) -> tuple[bool, ...] | None:
        match = re.search(r"^enabled((?:\s+[01])+)\s*$", text, re.M)
        return None if match is None else tuple(word == "1" for word in match[1].split())

    return parse_with(output, read)


def parse_dscp_to_tc(output: Output) -> Reading[dict[int, int]]:
    """`-dscp_to_tc -g`: traffic class by DSCP."""

    def read(text: str) -> dict[int, int] | None:
        if not re.search(r"^dscp\s+tc\s*$", text, re.M):
            return None
        return {int(d): int(t) for d, t in re.findall(r"^\s*(\d+)\s+(\d+)\s*$", text, re.M)}

    return parse_with(output, read)
