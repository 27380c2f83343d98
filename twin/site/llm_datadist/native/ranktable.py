"""The rank table given to `link`: which device each rank is."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Rank:
    """One rank of a communicator. All as the table says it; nothing is checked against reality."""

    rank: int
    server: str  # server_id
    device: int  # physical id
    device_ip: str


def parse(text: str) -> dict[int, Rank]:
    """The ranks by number; ValueError says what is wrong with the table."""
    try:
        ranks = [
            Rank(
                rank=int(device["rank_id"]),
                server=str(server["server_id"]),
                device=int(device["device_id"]),
                device_ip=str(device["device_ip"]),
            )
            for server in json.loads(text)["server_list"]
            for device in server["device"]
        ]
    except KeyError as error:
        raise ValueError(f"rank table: {error} is missing") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"rank table: {error}") from error
    return {rank.rank: rank for rank in ranks}
