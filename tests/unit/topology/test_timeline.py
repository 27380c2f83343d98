"""What was done when: told live, kept in order, handed out once."""

import pytest
from local import Told

from pd_validate.topology.timeline import Timeline


def test_a_step_is_told_timed_and_noted() -> None:
    told = Told()
    timeline = Timeline(told)
    with timeline.step("p1", "staging", "being copied") as step:
        assert step.note == "being copied"
        step.note = "code copied"
        (open_step,) = timeline.steps
        assert open_step.end is None
    (done,) = timeline.steps
    assert done.end is not None
    assert done.end >= done.start
    assert (done.host, done.what, done.ok, done.note) == ("p1", "staging", True, "code copied")
    assert told.lines == ["p1: staging", "p1: done code copied"]


def test_what_raises_has_failed_with_the_first_line_of_its_reason() -> None:
    told = Told()
    timeline = Timeline(told)
    with pytest.raises(RuntimeError), timeline.step("p1", "staging"):
        raise RuntimeError("disk full\nand more")
    with timeline.step("p1", "first token") as step:
        step.fail("no answer")
    assert [(step.ok, step.note) for step in timeline.steps] == [
        (False, "disk full"),
        (False, "no answer"),
    ]
    assert told.lines[1::2] == ["p1: failed disk full", "p1: failed no answer"]


def test_steps_are_handed_out_once() -> None:
    timeline = Timeline(Told())
    with timeline.step("p1", "one"), timeline.step("d1", "two"):
        pass
    assert [step.what for step in timeline.fresh()] == ["one", "two"]
    with timeline.step("p1", "three"):
        pass
    assert [step.what for step in timeline.fresh()] == ["three"]
    assert timeline.fresh() == []
    assert [step.what for step in timeline.steps] == ["one", "two", "three"]
