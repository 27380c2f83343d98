"""Many requests at once: what each got, in order; and traffic that ends when it is told to."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from pd_validate.traffic.client import Answer, RequestFailed
from pd_validate.traffic.load import Traffic, at_once, send, storm
from pd_validate.waiting import wait_for


def good(number: int = 0) -> Answer:
    return Answer(f"r{number}", 200, "hi", token_ids=(1,))


def broken() -> Answer:
    raise RequestFailed("cut", server="proxy")


def test_a_connection_that_breaks_is_a_result() -> None:
    sent = send(broken)
    assert not sent.ok
    assert sent.answer is None
    assert sent.error is not None
    assert sent.error.server == "proxy"
    assert send(good).ok


def test_a_refusal_and_a_cut_answer_are_not_well() -> None:
    assert not send(lambda: Answer("r", 503, "")).ok
    assert not send(lambda: Answer("r", 200, "h", done=False)).ok


def test_all_run_at_the_same_time_and_keep_their_order() -> None:
    together = threading.Barrier(5)  # breaks, and fails the test, if one waits for another

    def ask(number: int) -> Answer:
        together.wait(20)
        return good(number)

    asks = [lambda n=n: ask(n) for n in range(4)]  # type: ignore[misc]  # default of a lambda
    sent = at_once(asks, beside=lambda: void(together.wait(20)))
    assert [one.answer and one.answer.request_id for one in sent] == ["r0", "r1", "r2", "r3"]


def void(_: object) -> None:
    """Of what is called for its effect."""


@dataclass
class Leaver:
    """Remembers how its requests were left."""

    left: list[str] = field(default_factory=list)

    def abandon(self, prompt: list[int], *, max_tokens: int, after_events: int) -> None:
        self.left.append(f"{prompt} after {after_events} events")

    def hang_up_after(self, prompt: list[int], *, max_tokens: int, seconds: float) -> None:
        assert 0 < seconds <= 0.4
        self.left.append(f"{prompt} at some moment")


def test_a_storm_leaves_half_in_mid_stream_and_half_at_any_moment() -> None:
    client = Leaver()
    storm(client, [[number] for number in range(10)])
    assert len(client.left) == 10
    assert sum("events" in how for how in client.left) == 5


def test_traffic_goes_on_until_it_is_stopped() -> None:
    with Traffic(good, width=2) as traffic:
        wait_for(lambda: True if len(traffic.sent) > 5 else None, seconds=20, what="six requests")
        assert traffic.stop(seconds=20)
    count = len(traffic.sent)
    assert all(one.ok for one in traffic.sent)
    assert len({one.answer.request_id for one in traffic.sent if one.answer}) == count


def test_a_request_that_does_not_end_is_said() -> None:
    gate = threading.Event()

    def hangs(number: int) -> Answer:
        gate.wait(30)
        return good(number)

    with Traffic(hangs, width=1) as traffic:
        assert not traffic.stop(seconds=0.2)
    gate.set()
