"""When a prefiller rank lets a request's blocks go, message by message, without any waiting."""

from __future__ import annotations

from typing import Any

import pytest

from connector.holds import End, Holds
from connector.protocol import BeginStatus

TIMEOUT, LEASE = 120.0, 45.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def holds(clock: Clock) -> Holds:
    """Of a prefiller rank that hears from every rank of a decoder."""
    return Holds(TIMEOUT, lambda tp_size: set(range(tp_size)), clock)


def begin(holds: Holds, tp_rank: int = 0, tp_size: int = 1, run: str | None = "run") -> BeginStatus:
    return holds.begin("r", run, tp_rank, tp_size, LEASE).status


def test_every_decoder_rank_must_be_done(holds: Holds) -> None:
    holds.announce("run", {"r": 3})
    for rank in (0, 1):
        assert begin(holds, rank, 2) is BeginStatus.OK
    holds.finished("r", 0, 2)
    assert holds.collect() == {}
    assert holds.totals() == (1, 3)
    holds.finished("r", 1, 2)
    assert holds.collect() == {"r": End.ACKED}
    assert holds.totals() == (0, 0)


def test_a_decoder_may_be_done_before_the_announcement(holds: Holds) -> None:
    """It was aborted at once, or pulls from another rank. Nobody would say so again."""
    holds.finished("r", 0, 1)
    assert holds.collect() == {}
    holds.announce("run", {"r": 3})
    assert holds.collect() == {"r": End.ACKED}


def test_one_of_two_ranks_is_done_before_the_announcement(holds: Holds) -> None:
    holds.finished("r", 1, 2)
    holds.announce("run", {"r": 3})
    assert begin(holds, 0, 2) is BeginStatus.OK
    assert holds.collect() == {}
    holds.finished("r", 0, 2)
    assert holds.collect() == {"r": End.ACKED}


def test_a_release_may_come_before_the_announcement(holds: Holds) -> None:
    holds.release("r")
    assert begin(holds) is BeginStatus.GONE
    holds.announce("run", {"r": 3})
    assert holds.collect() == {"r": End.RELEASED}


def test_a_release_waits_for_ranks_that_pull(holds: Holds) -> None:
    holds.announce("run", {"r": 3})
    begin(holds, 0, 2)
    holds.release("r")
    assert begin(holds, 1, 2) is BeginStatus.GONE
    assert holds.collect() == {}
    holds.finished("r", 0, 2)
    assert holds.collect() == {"r": End.RELEASED}


def test_nobody_asks(holds: Holds, clock: Clock) -> None:
    holds.announce("run", {"r": 3})
    clock.now += TIMEOUT - 1
    assert holds.collect() == {}
    clock.now += 1
    assert begin(holds) is BeginStatus.GONE, "it may be freed any moment"
    assert holds.collect() == {"r": End.EXPIRED}


def test_a_decoder_dies_while_it_pulls(holds: Holds, clock: Clock) -> None:
    holds.announce("run", {"r": 3})
    clock.now += TIMEOUT - 1
    begin(holds)
    clock.now += LEASE - 1
    assert holds.collect() == {}, "the lease outlasts the hold"
    clock.now += 1
    assert holds.collect() == {"r": End.EXPIRED}


def test_late_and_repeated_messages_end_nothing_again(holds: Holds) -> None:
    holds.announce("run", {"r": 3})
    for _ in range(2):
        holds.finished("r", 0, 1)
    assert holds.collect() == {"r": End.ACKED}
    holds.finished("r", 0, 1)
    holds.release("r")
    assert holds.collect() == {}
    assert begin(holds) is BeginStatus.GONE
    holds.announce("run", {})
    assert holds.totals() == (0, 0)


def test_a_rank_that_tries_again_is_waited_for_again(holds: Holds) -> None:
    holds.announce("run", {"r": 3})
    begin(holds, 0, 2)
    holds.finished("r", 0, 2)
    begin(holds, 0, 2)
    holds.finished("r", 1, 2)
    assert holds.collect() == {}
    holds.finished("r", 0, 2)
    assert holds.collect() == {"r": End.ACKED}


@pytest.mark.parametrize(
    ("run", "status"),
    [("run", BeginStatus.UNKNOWN), (None, BeginStatus.UNKNOWN), ("earlier", BeginStatus.GONE)],
)
def test_a_request_that_is_not_announced(holds: Holds, run: Any, status: BeginStatus) -> None:
    holds.announce("run", {})
    assert begin(holds, run=run) is status


def test_what_is_remembered_has_a_limit(holds: Holds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connector.holds.REMEMBERED", 2)
    for number in range(3):
        holds.release(f"early-{number}")
    holds.announce("run", {f"early-{number}": 1 for number in range(3)})
    assert holds.collect().keys() == {"early-1", "early-2"}
