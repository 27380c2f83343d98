"""What tests do with ranks: start a load, wait for its end, ask what was freed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rank_process import HOST, RankProcess

from connector.steps import LoadPlan, Remote

Start = Callable[..., RankProcess]


def until(ready: Callable[[], Any], seconds: float = 10) -> Any:
    """The first true answer; fails the test when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (answer := ready()):
        assert time.monotonic() < deadline, f"nothing within {seconds} s"
        time.sleep(0.005)
    return answer


def plan(
    port: int, blocks: int = 3, tp_size: int = 1, request: str = "p-1", **remote: Any
) -> LoadPlan:
    """Remote blocks 4, 5, 6, … to local blocks 20, 18, 16, …"""
    return LoadPlan(
        Remote(
            **{
                "host": HOST,
                "port": port,
                "tp_size": tp_size,
                "request_id": request,
                "run": "run",
                **remote,
            }
        ),
        remote_blocks=list(range(4, 4 + blocks)),
        local_blocks=list(range(20, 20 - 2 * blocks, -2)),
    )


def load(d: RankProcess, plan: LoadPlan, request_id: str = "d-1", seconds: float = 10) -> set[int]:
    """Load and wait; returns the blocks that did not load."""
    d.load(request_id, plan)
    return wait_for_load(d, request_id, seconds)


def wait_for_load(d: RankProcess, request_id: str = "d-1", seconds: float = 10) -> set[int]:
    lost: set[int] = set()

    def ended() -> bool:
        results = d.results()
        assert results.sent == set()
        assert results.failed <= results.received
        lost.update(results.invalid_blocks)
        return request_id in results.received

    until(ended, seconds)
    return lost


def freed(p: RankProcess, seconds: float = 5) -> set[str]:
    return until(lambda: p.results().sent, seconds)


def all_freed(p: RankProcess, *requests: str) -> None:
    """Wait until each of them has been reported, in whatever steps."""
    done: set[str] = set()
    until(lambda: done.update(p.results().sent) or done == set(requests))
