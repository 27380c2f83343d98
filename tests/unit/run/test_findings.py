"""How verdicts are told, merged and ordered; and a wait that runs out."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from pd_validate.catalogue import CATALOGUE, Layer
from pd_validate.errors import SpecError, WaitTimeout
from pd_validate.findings import Finding, Severity, Verdict, Where, root_findings, verdict_of
from pd_validate.options import Options
from pd_validate.waiting import wait_for

DOWN = Finding(id="link.down", where=Where(host="d1", device=6), expected="UP", got="DOWN")
LOST = Finding(id="ping.unreachable", where=Where(host="d1"), because=(DOWN.as_cause(),))
BUSY = Finding(id="tool.busy", severity=Severity.UNKNOWN, where=Where(host="d2"))
LONELY = Finding(id="link.no-neighbour", severity=Severity.WARN, where=Where(host="p1"))


@pytest.mark.parametrize(
    ("findings", "verdict"),
    [
        ([], Verdict.PASS),
        ([LONELY], Verdict.PASS),
        ([LONELY, BUSY], Verdict.UNKNOWN),
        ([BUSY, DOWN], Verdict.FAIL),
    ],
)
def test_a_failure_counts_most_and_a_warning_not(findings: list[Finding], verdict: Verdict) -> None:
    assert verdict_of(findings) is verdict


def test_roots_are_told_lowest_layer_first_failures_before_the_rest() -> None:
    service = Finding(id="service.error", where=Where(host="p1"))
    assert root_findings([service, LOST, LONELY, DOWN]) == [DOWN, service, LONELY]


def test_one_line_says_what_where_expected_got_and_what_to_do() -> None:
    assert str(DOWN) == (
        "link.down at d1 npu6: expected UP, got DOWN. "
        "Check cable, optical module and switch port of this NPU."
    )
    assert "(because of link.down at d1 npu6)" in str(LOST)
    assert str(DOWN.model_copy(update={"hint": "Do this."})).endswith(". Do this.")


def test_a_place_names_both_ends_of_a_path() -> None:
    where = Where(host="p1", device=0, peer_host="d2", peer_device=6)
    assert str(where) == "p1 npu0 -> d2 npu6"
    assert str(Where(instance="decode-1", rank=1, layer=3, block=20)) == (
        "decode-1 rank 1 layer 3 block 20"
    )
    assert str(Where()) == "cluster"
    assert where.matches(Where(host="p1"))
    assert not where.matches(Where(host="p1", device=1))


def test_an_id_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown finding id 'link\.dwon'"):
        Finding(id="link.dwon")


def test_json_leaves_out_what_is_not_known() -> None:
    told = LOST.to_json()
    assert told["where"] == {"host": "d1"}
    assert told["because"] == [{"id": "link.down", "where": {"host": "d1", "device": 6}}]
    assert told["layer"] == CATALOGUE["ping.unreachable"].layer.label
    assert told["hint"] == CATALOGUE["ping.unreachable"].fix


def test_every_layer_and_kind_has_its_words() -> None:
    assert all(layer.label for layer in Layer)
    for id_, kind in CATALOGUE.items():
        assert id_ == kind.id
        assert kind.meaning.endswith("."), id_
        assert kind.fix.endswith("."), id_


# --- waiting --------------------------------------------------------------------------------------


def test_a_wait_ends_with_what_the_probe_found() -> None:
    answers = iter([None, None, "ready"])
    assert wait_for(lambda: next(answers), seconds=5, what="it", interval=0.01) == "ready"


def test_a_wait_that_runs_out_says_for_what_how_long_and_the_last_lines() -> None:
    with pytest.raises(WaitTimeout, match=r"^the engine: not within 0\.05 s\nlast words$"):
        wait_for(
            lambda: None, seconds=0.05, what="the engine", interval=0.01, tail=lambda: "last words"
        )


def test_a_probe_ends_the_wait_by_raising() -> None:
    def dead() -> None:
        raise SpecError("it is dead")

    with pytest.raises(SpecError):
        wait_for(dead, seconds=60, what="it")


# --- options --------------------------------------------------------------------------------------


def options(*arguments: str) -> Options:
    parser = argparse.ArgumentParser()

    class Group:
        addoption = staticmethod(parser.add_argument)

    Options.add_to(Group())
    return Options.of(parser.parse_args(arguments))


def test_an_option_is_read_from_the_environment_and_overruled_by_the_command_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PD_CLUSTER", "a.yaml")
    monkeypatch.setenv("PD_KEEP_UP", "1")
    monkeypatch.setenv("PD_REUSE", "0")
    assert options().cluster == "a.yaml"
    assert options("--cluster", "b.yaml").cluster == "b.yaml"
    assert options().keep_up
    assert not options().reuse


def test_a_word_of_the_environment_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PD_AUDIT", "ful")
    with pytest.raises(SpecError, match=r"PD_AUDIT is 'ful', not one of off, sample, full"):
        options().check()


def test_a_scenario_alone_means_the_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PD_CLUSTER", raising=False)
    assert options().cluster == ""
    assert options("--scenario", "s.yaml").cluster == "twin"
    assert options("--scenario", "s.yaml").scenario == Path("s.yaml")


def test_places_that_do_not_exist_yet_are_right(tmp_path: Path) -> None:
    new = tmp_path / "new"
    options("--report", str(new / "report"), "--findings", str(new / "f.json")).check()


def test_a_file_in_the_way_of_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for option in ("--report", "--findings"):
        with pytest.raises(SpecError, match=rf"^{option} .*file is a file$"):
            options(option, str(tmp_path / "file" / "below" / "x")).check()
