"""The watch on KV usage: looks again and again, leaves gaps as gaps, looks once at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import count

from pd_validate.traffic.client import RequestFailed
from pd_validate.traffic.usage import UsageWatch
from pd_validate.waiting import wait_for


def rising() -> tuple[Callable[[], float], threading.Event]:
    """A reader whose value rises with every look, and an event that is set from the third on."""
    numbers, thrice = count(1), threading.Event()

    def read() -> float:
        number = next(numbers)
        if number >= 3:
            thrice.set()
        return number / 100

    return read, thrice


def test_samples_over_time() -> None:
    read, thrice = rising()
    before = time.time()
    watch = UsageWatch({"decode-1": read}, seconds=0.01)
    watch.start()
    assert thrice.wait(10)
    samples = watch.stop()["decode-1"]
    shares = [share for _, share in samples]
    assert shares == [number / 100 for number in range(1, len(samples) + 1)]
    times = [at for at, _ in samples]
    assert times == sorted(times)
    assert before <= times[0] <= times[-1] <= time.time()
    assert not [t for t in threading.enumerate() if t.name == "kv-usage"]


def test_the_last_look_is_at_the_end() -> None:
    """What was in use at the first look and is free now: the curve comes back to zero."""
    shares = iter([0.5, 0.0])
    looked = threading.Event()

    def read() -> float:
        looked.set()
        return next(shares)

    watch = UsageWatch({"prefill-1": read}, seconds=600)
    watch.start()
    assert looked.wait(10)
    assert [share for _, share in watch.stop()["prefill-1"]] == [0.5, 0.0]


def test_an_instance_that_does_not_answer_has_a_gap() -> None:
    read, thrice = rising()

    def dead() -> float:
        raise RequestFailed("connection refused")

    watch = UsageWatch({"dead": dead, "alive": read}, seconds=0.01)
    watch.start()
    wait_for(lambda: thrice.is_set() or None, seconds=10, what="three looks")
    samples = watch.stop()
    assert samples["dead"] == []
    assert len(samples["alive"]) >= 3
